from __future__ import annotations

import pytest

from gpucheck.diagnose.causes import CAUSES
from gpucheck.diagnose.error_pattern import PATTERNS
from gpucheck.diagnose.known_faults import known_faults, page
from tests.cli.conftest import Command


@pytest.mark.parametrize("cause", sorted({**CAUSES, **PATTERNS}))
def test_every_cause_is_explained_in_full(gpucheck: Command, cause: str) -> None:
    answer = gpucheck("explain", cause)
    lines = answer.out.splitlines()
    assert answer.code == 0 and lines[0] == cause and max(map(len, lines)) <= 100
    words = answer.out.split()
    for title, text in {**CAUSES, **PATTERNS}[cause].parts.items():
        assert [line for line in lines if line.startswith(f"  {title}")]
        assert not [word for word in text.split() if word not in words]


def test_a_cause_is_found_without_quotes_and_in_any_case(gpucheck: Command) -> None:
    assert gpucheck("explain", "Wrong", "device", "CONTEXT").out == gpucheck("explain", "wrong device context").out


def test_without_a_cause_all_are_listed(gpucheck: Command) -> None:
    answer = gpucheck("explain")
    titles = [line for line in answer.out.splitlines() if not line.startswith(" ")]
    assert answer.code == 0
    assert titles == [*CAUSES, "what is wrong with an output", "known faults of public software"]
    assert "wrong expert" in answer.out and all(f"\n  {fault.id}  " in answer.out for fault in known_faults())


@pytest.mark.parametrize("fault", [fault.id for fault in known_faults()])
def test_every_known_fault_is_explained_in_full(gpucheck: Command, fault: str) -> None:
    answer = gpucheck("explain", fault.upper())
    known = page(fault)
    assert answer.code == 0 and known and answer.out.startswith(f"{fault}: ")
    words = answer.out.split()
    for part, text in known.parts.items():
        assert [line for line in answer.out.splitlines() if line.startswith(f"  {part} ")]
        assert not [word for word in text.split() if word not in words]


def test_a_title_gives_the_pages_on_its_cause_and_on_what_is_wrong(gpucheck: Command) -> None:
    answer = gpucheck("explain", "kernel bug: rows permuted")
    titles = [line for line in answer.out.splitlines() if not line.startswith(" ")]
    assert answer.code == 0 and titles == ["kernel bug", "rows permuted"]
    latent = gpucheck("explain", "wrong device context: latent, right by luck")
    assert latent.out == gpucheck("explain", "wrong device context").out


def test_an_unknown_cause(gpucheck: Command) -> None:
    answer = gpucheck("explain", "bad luck")
    assert answer.code == 2 and answer.message == "unknown cause 'bad luck'; gpucheck explain lists all"
    near = gpucheck("explain", "Wrong device contxt")
    assert near.code == 2 and "'Wrong device contxt', perhaps wrong device context" in near.message
