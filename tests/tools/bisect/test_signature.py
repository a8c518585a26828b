from __future__ import annotations

from dataclasses import replace

import pytest

from gpucheck.tools.bisect.observation import Failure, Observation
from gpucheck.tools.bisect.session import decide
from gpucheck.tools.bisect.signature import Answer, Seen, Signature
from tests.tools.bisect.conftest import BROKEN, FAILED, OTHER, PASSED, UNBUILDABLE, WRONG


def failing(*failures: Failure) -> Observation:
    return replace(FAILED, failures=failures)


ON_1 = replace(WRONG, ranks=(1,))
ON_BOTH = replace(WRONG, ranks=(0, 1))


def test_what_a_run_shows() -> None:
    signature = Signature.of(FAILED)
    observations = [PASSED, FAILED, OTHER, UNBUILDABLE, BROKEN]
    assert [signature.seen(observation) for observation in observations] == [
        Seen.GOOD,
        Seen.BAD,
        Seen.OTHER,
        Seen.UNBUILDABLE,
        Seen.BROKEN,
    ]


def test_other_numbers_are_the_same_failure() -> None:
    assert Signature.of(FAILED).seen(failing(replace(WRONG, lines=("y: row 7 of 9",)))) is Seen.BAD


@pytest.mark.parametrize("changed", [{"ranks": (1,)}, {"ranks": (0, 1)}, {"title": "hang"}, {"cause": "race"}])
def test_other_ranks_titles_or_causes_are_another(changed: dict[str, object]) -> None:
    assert Signature.of(FAILED).seen(failing(replace(WRONG, **changed))) is Seen.OTHER  # type: ignore[arg-type]


def test_ranks_that_differ_from_run_to_run() -> None:
    signature = Signature.of(failing(WRONG)).widened(failing(ON_1))
    assert all(signature.seen(failing(failure)) is Seen.BAD for failure in (WRONG, ON_1, ON_BOTH))
    assert signature.seen(failing(replace(WRONG, ranks=(2,)))) is Seen.OTHER
    assert signature.words == "wrong output, some of ranks 0, 1"


def test_ranks_that_never_differ_stay_exact() -> None:
    signature = Signature.of(failing(ON_BOTH)).widened(failing(ON_BOTH))
    assert signature.failures == (ON_BOTH,)
    assert signature.seen(failing(WRONG)) is Seen.OTHER
    assert signature.words == "wrong output, ranks 0, 1"


def test_a_failure_beside_the_one_searched_for_is_not_taken_in() -> None:
    """Where the wanted one shows too, the other belongs to another fault."""
    signature = Signature.of(failing(WRONG)).widened(failing(WRONG, *OTHER.failures))
    assert signature.seen(OTHER) is Seen.OTHER
    assert signature.widened(OTHER).seen(OTHER) is Seen.BAD


def test_bits() -> None:
    signature = Signature.of(PASSED, bits=True)
    assert signature.seen(PASSED) is Seen.BAD
    assert signature.seen(replace(PASSED, bits="bbbb")) is Seen.GOOD
    assert signature.seen(replace(PASSED, inputs="other")) is Seen.OTHER
    assert signature.seen(FAILED) is Seen.OTHER


G, B, O, U, X = Seen.GOOD, Seen.BAD, Seen.OTHER, Seen.UNBUILDABLE, Seen.BROKEN  # noqa: E741


@pytest.mark.parametrize(
    ("seen", "answer"),
    [
        ([], None),
        ([G, G], None),
        ([G, G, G], Answer.GOOD),
        ([G, G, B], Answer.BAD),
        ([O, B], Answer.BAD),
        ([G, O], Answer.SKIP),
        ([U], Answer.SKIP),
        ([X], None),
        ([X, G, G], None),
        ([X, G, G, G], Answer.GOOD),
        ([X, G, X], Answer.SKIP),
    ],
)
def test_from_runs_to_an_answer(seen: list[Seen], answer: Answer | None) -> None:
    assert decide(seen, passes=3) is answer
