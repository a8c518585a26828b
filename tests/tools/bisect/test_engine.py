"""Whole searches over made-up versions: what is found, what is refused, and how many runs it takes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.model.errors import GpucheckError, InfrastructureError, UsageError
from gpucheck.tools.bisect.engine import Outcome, check_ends, run_search
from gpucheck.tools.bisect.observation import Failure, Observation
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.saved_search import Find, State, load
from gpucheck.tools.bisect.session import Session
from gpucheck.tools.bisect.signature import Answer
from gpucheck.tools.bisect.sources.base import Candidate
from tests.tools.bisect.conftest import CASE, FAILED, OTHER, PASSED, WRONG, World


def found(outcome: Outcome) -> list[str]:
    return [candidate.name for candidate in outcome.answer]


def marks(outcome: Outcome) -> str:
    """A letter each: g, b, s or a dot where nothing was tried."""
    return "".join(answer.value[0] if answer else "." for _, answer in outcome.path)


@pytest.mark.parametrize("count", [2, 3, 7, 20])
def test_the_first_bad_and_the_first_fixed_one(world: World, count: int) -> None:
    for change in range(1, count):
        outcome = run_search(world.session(world.state("g" * change + "b" * (count - change))))
        assert (found(outcome), outcome.exact) == ([str(change)], True)
        assert (outcome.good.name, outcome.bad.name) == (str(change - 1), str(change))
        outcome = run_search(world.session(world.state("b" * change + "g" * (count - change), Find.FIX)))
        assert (found(outcome), outcome.exact) == ([str(change)], True)
        assert (outcome.bad.name, outcome.good.name) == (str(change - 1), str(change))


def test_a_sure_failure_takes_few_runs(world: World) -> None:
    outcome = run_search(world.session(world.state("ggggggggbbbbbbbb")))
    assert outcome.verified.rate.passes == 2
    assert world.runs[:7] == ["15"] * 5 + ["0"] * 2, "both ends are verified first"
    assert len(world.runs) == 5 + 2 + sum({"g": 2, "b": 1}[letter] for letter in marks(outcome)[1:-1] if letter != ".")
    assert len(world.runs) <= 7 + 4 * 2


def test_what_cannot_be_told_is_skipped(world: World) -> None:
    """Not buildable, another failure and no answer are neither good nor bad."""
    outcome = run_search(world.session(world.state("ggguoxgggbb")))
    assert (found(outcome), outcome.exact) == (["9"], True)
    assert marks(outcome) == "g..s.s.ggbb"


@pytest.mark.parametrize("letter", "uox")
def test_the_range_is_named_where_skips_hide_the_change(world: World, letter: str) -> None:
    outcome = run_search(world.session(world.state(f"gg{letter}{letter}bb")))
    assert (found(outcome), outcome.exact) == (["2", "3", "4"], False)
    assert marks(outcome) == ".gssbb" or marks(outcome) == "ggssbb"


def test_a_run_without_an_answer_is_made_once_more(world: World) -> None:
    observations = iter([BROKEN_ONCE, PASSED, PASSED])
    outcome = run_search(world.session(world.state({0: PASSED, 1: lambda: next(observations), 2: FAILED})))
    assert found(outcome) == ["2"] and world.runs.count("1") == 3


BROKEN_ONCE = Observation(CaseState.BROKEN, CASE, reason="no GPU")


def test_only_the_same_failure_counts(world: World) -> None:
    on_rank_1 = replace(FAILED, failures=(replace(WRONG, ranks=(1,)),))
    other_cause = replace(FAILED, failures=(replace(WRONG, cause="race"),))
    outcome = run_search(world.session(world.state({0: PASSED, 1: on_rank_1, 2: other_cause, 3: OTHER, 4: FAILED})))
    assert (found(outcome), outcome.exact) == (["1", "2", "3", "4"], False)


def test_a_failure_beside_another_counts(world: World) -> None:
    both = replace(FAILED, failures=(*OTHER.failures, WRONG))
    outcome = run_search(world.session(world.state({0: PASSED, 1: PASSED, 2: both, 3: FAILED})))
    assert found(outcome) == ["2"]


def flaky(rate: float, seed: int, *failures: Failure) -> Callable[[], Observation]:
    chance = random.Random(seed)
    shown = failures or (WRONG,)

    def observation() -> Observation:
        if chance.random() >= rate:
            return PASSED
        return replace(FAILED, failures=(shown[chance.randrange(len(shown))],))

    return observation


def test_a_fault_that_shows_in_30_percent_of_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 searches at most one misses it: 3 bad versions are asked at most, each missed in under 1%."""
    monkeypatch.setattr(State, "save", lambda _: None)
    wrong = refused = 0
    for seed in range(60):
        change = 1 + seed % 7
        versions = {n: PASSED if n < change else flaky(0.3, 1000 * seed + n) for n in range(8)}
        world.runs.clear()
        try:
            outcome = run_search(world.session(world.state(versions)))  # type: ignore[arg-type]
        except UsageError as error:
            assert "10 of 10 runs: passed" in str(error)
            refused += 1  # 0.7^10: the bad end did not show it
            continue
        assert outcome.verified.rate.runs >= 10 and outcome.verified.rate.missed < 0.01
        wrong += found(outcome) != [str(change)]
    assert refused <= 5 and wrong <= 1


def test_a_flaky_fault_may_show_on_other_ranks_and_under_another_title(world: World) -> None:
    ways = (WRONG, replace(WRONG, ranks=(1,)), Failure("not repeatable", "", (1,)))
    observations = itertools.cycle([PASSED, *(replace(FAILED, failures=(way,)) for way in ways)])
    versions = {0: PASSED, 1: PASSED, 2: replace(FAILED, failures=ways[2:]), 3: lambda: next(observations)}
    outcome = run_search(world.session(world.state(versions)))  # type: ignore[arg-type]
    assert found(outcome) == ["2"]
    assert sorted(failure.words for failure in outcome.verified.signature.failures) == [
        "not repeatable, rank 1",
        "wrong output, rank 0",
        "wrong output, rank 1",
    ]


def test_a_way_that_the_bad_end_never_showed_is_another_failure(world: World) -> None:
    versions = {0: PASSED, 1: flaky(1.0, 5, *OTHER.failures), 2: flaky(0.7, 6)}
    outcome = run_search(world.session(world.state(versions)))  # type: ignore[arg-type]
    assert (found(outcome), outcome.exact) == (["1", "2"], False)


def test_repeat_fixes_the_number_of_runs(world: World) -> None:
    outcome = run_search(world.session(world.state("ggbb", repeat=3)))
    assert outcome.verified.rate.passes == 3
    assert [world.runs.count(str(n)) for n in range(4)] == [3, 3, 1, 1]


def test_equal_versions_are_run_once(world: World) -> None:
    outcome = run_search(world.session(world.state("ggggbbbb", keys="aaabbccd"[:3] + "a" + "xxxy")))
    assert found(outcome) == ["4"]
    assert len(set(world.runs)) == 3


def test_a_history_that_goes_back_and_forth_says_so(world: World) -> None:
    outcome = run_search(world.session(world.state("ggbgbbb", keys="abxcxyz")))
    assert found(outcome) == ["2"]
    assert any("more than one change: bad at 2, good again at 3" in note for note in outcome.notes)
    assert any("4 holds the content of 2 again" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("letters", "kind", "words"),
    [
        ("gg", UsageError, "the bad end 1 does not show what is searched for.\n  seen      10 of 10 runs: passed"),
        ("gu", UsageError, "the bad end 1 cannot be used.\n  seen  1 of 1 run: not buildable: SyntaxError"),
        ("gx", InfrastructureError, "the bad end 1 cannot be used.\n  seen  2 of 2 runs: no answer: no GPU"),
        ("bb", UsageError, "the good end 0 shows what is searched for: wrong output, rank 0.\n  seen  1 of 1 run"),
        ("ob", UsageError, "the good end 0 cannot be used.\n  seen  1 of 1 run: crash, rank 0"),
        ("ub", UsageError, "the good end 0 cannot be used.\n  seen  1 of 1 run: not buildable: SyntaxError"),
        ("xb", InfrastructureError, "the good end 0 cannot be used.\n  seen  2 of 2 runs: no answer: no GPU"),
    ],
)
def test_wrong_ends_are_refused(world: World, letters: str, kind: type[GpucheckError], words: str) -> None:
    with pytest.raises(kind) as refused:
        run_search(world.session(world.state(letters)))
    assert words in str(refused.value)


def test_a_version_that_cannot_be_unpacked_is_no_bad_end(world: World) -> None:
    state = world.state("gb")
    del world.shows["p==1"]
    with pytest.raises(UsageError, match="not buildable: no wheel of p==1"):
        run_search(world.session(state))


@pytest.mark.parametrize(("keys", "words"), [("a", "nothing changes"), ("aba", "the ends are equal"), ("aa", "equal")])
def test_ends_with_equal_content_are_refused(keys: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_ends([Candidate(str(number), key) for number, key in enumerate(keys)])
    check_ends([Candidate("0", "a"), Candidate("1", "b")])


def test_the_failure_of_the_stored_run_must_show(world: World) -> None:
    state = world.state("gggb")
    state.target = replace(state.target, label=CASE, known=OTHER.failures[0])
    with pytest.raises(UsageError) as refused:
        run_search(world.session(state))
    assert "expected  the failure of the stored run, crash, rank 0" in str(refused.value)
    state = world.state("ggoo")
    state.target = replace(state.target, label=CASE, known=OTHER.failures[0])
    assert found(run_search(world.session(state))) == ["2"]


def bits(letters: str) -> dict[int, Observation]:
    return {number: replace(PASSED, bits=letter * 4) for number, letter in enumerate(letters)}


def test_changed_bits(world: World) -> None:
    outcome = run_search(world.session(world.state(bits("aabcc"), bits=True)))
    assert world.teller.words[0] == "5 of 5 runs: passed, bits cccc"
    assert (found(outcome), outcome.exact) == (["3"], True)
    assert outcome.verified.signature.words == "outputs with the bits cccc"


def test_bits_need_equal_inputs_and_outputs_that_repeat(world: World) -> None:
    observations = {**bits("aab"), 1: replace(PASSED, bits="bbbb", inputs="other")}
    assert not run_search(world.session(world.state(observations, bits=True))).exact  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected  a pass, whose bits can be compared"):
        run_search(world.session(world.state("gb", bits=True)))
    changing = iter("abcdefghijkl")
    with pytest.raises(UsageError, match="differ from run to run"):
        run_search(world.session(world.state({0: PASSED, 1: lambda: replace(PASSED, bits=next(changing))}, bits=True)))


def test_an_interrupted_search_goes_on_where_it_was(world: World) -> None:
    """Interrupted after each number of runs in turn, it makes no run twice and finds the same."""
    letters = "gggguubbbbb"
    whole = run_search(world.session(world.state(letters)))
    runs = list(world.runs)
    for stop in range(1, len(runs)):
        state = world.state(letters)
        world.runs.clear()

        def interrupted(*arguments: Any, stop: int = stop) -> Observation:
            if len(world.runs) == stop:
                raise KeyboardInterrupt
            return world.take(*arguments)

        session = Session(state, interrupted, world.teller)
        with pytest.raises(KeyboardInterrupt):
            run_search(session)
        again = load(world.work)
        assert again.runs >= stop
        outcome = run_search(world.session(again))
        assert world.runs == runs
        assert outcome == whole


def test_the_result_is_in_the_state(world: World) -> None:
    run_search(world.session(world.state("ggbb")))
    result = load(world.work / "state.json").result
    assert result and [candidate["name"] for candidate in result["answer"]] == ["2"]
    assert result["path"] == [["0", "good"], ["1", "good"], ["2", "bad"], ["3", "bad"]]
    assert result["rate"] == {"failed": 5, "runs": 5, "passes": 2}


def test_what_is_decided_is_told_once(world: World) -> None:
    run_search(world.session(world.state("gggbbb")))
    names = [name for name, _ in world.teller.decided_names]
    assert names[:2] == ["5", "0"] and len(set(names)) == len(names)
    assert dict(world.teller.decided_names)["3"] is Answer.BAD
