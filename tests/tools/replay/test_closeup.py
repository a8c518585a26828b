from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from gpucheck.model.record import Heat, Outcome, Record
from gpucheck.tools.replay.closeup import Closeup, cells, headline, show
from tests.conftest import Synthetic

ELEMENT: dict[str, Any] = {
    "index": [128, 3],
    "expected": 1.5,
    "got": None,
    "expected_bits": "0x3fc0",
    "got_bits": "0x7fc0",
    "ulps": None,
    "bound": 0.0,
    "tile": [1, 0],
    "writer": "_matmul_ogs (8) of (10)",
}


WRONG = Outcome.MISMATCH


def closeup(synthetic: Synthetic, now: Outcome = WRONG, was: Outcome = WRONG, **changes: Any) -> Closeup:
    plan = synthetic.plan(ranks=2)
    record: Record = synthetic.record(plan, 0, 1, now, **changes)
    worst = {"y": [ELEMENT]} if record.mismatches else {}
    before = synthetic.record(plan, 0, 1, was)
    return Closeup("matmul/0/exact (late)", before, record, {0: Outcome.PASS}, worst, ["run x"])


def shown(closeup: Closeup) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    show(closeup, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_same_bytes_as_in_the_run(synthetic: Synthetic) -> None:
    text = shown(closeup(synthetic))
    assert text.startswith("MISMATCH  matmul/0/exact (late) on rank 1; as in the run: mismatch\nof        run x\n")
    assert "inputs    the bytes of the run, digest i\noutput    y: the bytes of the run, digest d\n" in text
    assert "others    rank 0 pass" in text and text.isascii()


def test_other_bytes_and_other_inputs_are_told(synthetic: Synthetic) -> None:
    seen = closeup(synthetic, digests={"y": "e"}, inputs="j")
    assert seen.same_inputs is False and seen.same_outputs == {"y": False}
    text = shown(seen)
    assert "inputs    NOT those of the run, digest j" in text
    assert "output    y: other bytes than in the run: digest e, was d" in text


def test_what_cannot_be_compared_is_not_called_equal(synthetic: Synthetic) -> None:
    seen = closeup(synthetic, Outcome.CRASH, Outcome.CRASH, digests={}, inputs="", message="killed by SIGSEGV")
    assert seen.same_inputs is None
    text = shown(seen)
    assert "not compared: the replay has no digest" in text and "output    none to compare with the run's" in text
    assert "killed by SIGSEGV" in text


@pytest.mark.parametrize(
    ("now", "was", "words"),
    [
        (Outcome.PASS, Outcome.MISMATCH, "PASS  matmul/0/exact (late) on rank 1; the run had mismatch"),
        (Outcome.HANG, Outcome.LOST, "HANG  matmul/0/exact (late) on rank 1; the run lost this case"),
    ],
)
def test_another_outcome_than_in_the_run(synthetic: Synthetic, now: Outcome, was: Outcome, words: str) -> None:
    assert headline(closeup(synthetic, now, was)) == words


def test_a_row_of_the_table() -> None:
    assert cells(ELEMENT) == [
        *("(128, 3)", "1.5", "NaN", "0x3fc0", "0x7fc0", "bit 14", "-", "0", "(1, 0)", "_matmul_ogs (8) of (10)")
    ]
    changed = {**ELEMENT, "got": 1.25, "got_bits": "0x3fa0", "ulps": 32, "bound": 1e-3, "tile": [], "writer": ""}
    assert cells(changed)[2:] == ["1.25", "0x3fc0", "0x3fa0", "2 bits", "32", "0.001", "-", "not known"]


def test_table_and_picture_of_each_output(synthetic: Synthetic) -> None:
    heat = Heat([4, 2], [1, 1], [0, 0], 4, [[0, 0], [0, 0], [1000, 0], [0, 0]])
    text = shown(closeup(synthetic, mismatches=[synthetic.mismatch(heat=heat)]))
    assert "worst 1 of 1 wrong elements of y" in text and "2 |@.|" in text
    assert "(128, 3)" in text and "_matmul_ogs (8) of (10)" in text


def test_whole_numbers_keep_their_digits_and_programs_that_nobody_knows_have_no_column(synthetic: Synthetic) -> None:
    element = {**ELEMENT, "expected": -1048297791.0, "got": 1047456352.0, "writer": ""}
    table = shown(replace(closeup(synthetic, mismatches=[synthetic.mismatch()]), worst={"y": [element]}))
    assert "-1048297791" in table and "1047456352" in table
    assert "program" not in table and "not known" not in table


def test_hostile_text_cannot_move_the_cursor(synthetic: Synthetic) -> None:
    text = shown(closeup(synthetic, Outcome.ERROR, message="\x1b[2J[bold]gone", traceback="line 1\n\x07line 2"))
    assert "\x1b" not in text and "\x07" not in text and "[bold]gone" in text and "\\x07line 2" in text
