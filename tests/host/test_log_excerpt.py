"""A few lines of what a process printed: the reason is among them, wherever it stands, and every line has an end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpucheck.host import log_excerpt
from gpucheck.host.log_excerpt import FIRST, LAST, LONGEST, READ, TELLING, Mark, marks, paths, printed

REASON = "the table of expert 17 is missing"


def excerpt(folder: Path, text: str | bytes, start: int = 0) -> list[str]:
    log = folder / "stderr.log"
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    return printed([Mark(log, start)])


def noise(count: int, word: str = "shutting down") -> str:
    return "".join(f"{word} {number} {'ab'[number % 2] * (number % 50)}\n" for number in range(count))


def test_a_short_text_is_shown_as_it_is(tmp_path: Path) -> None:
    assert excerpt(tmp_path, f"{REASON}\n\n  at once\n") == [REASON, "  at once"]
    assert excerpt(tmp_path, "") == [] and printed([Mark(tmp_path / "gone")]) == []


def test_only_what_came_after_the_mark_is_shown(tmp_path: Path) -> None:
    assert excerpt(tmp_path, f"of an earlier case\n{REASON}\n", len("of an earlier case\n")) == [REASON]


def test_lines_that_differ_in_numbers_alone_are_shown_once_and_counted(tmp_path: Path) -> None:
    flood = "".join(f"worker thread {number} at {number:#x}\n" for number in range(20_000))
    shown = ["worker thread 0 at 0x0", "... 19998 more lines like it ...", "worker thread 19999 at 0x4e1f"]
    assert excerpt(tmp_path, f"{REASON}\n{flood}") == [REASON, *shown]
    assert excerpt(tmp_path, f"{flood}{REASON}\n{flood}") == [*shown, REASON, *shown]
    assert excerpt(tmp_path, "same\nsame\n") == ["same", "same"]


@pytest.mark.parametrize("place", [0, 3, 500, 1000])
def test_a_reason_is_shown_wherever_it_stands_in_a_flood(tmp_path: Path, place: int) -> None:
    lines = noise(1000).splitlines()
    lines.insert(place, REASON)
    found = excerpt(tmp_path, "\n".join(lines))
    assert REASON in found and len(found) <= FIRST + TELLING + 1 + LAST


def test_tracebacks_are_shown_without_our_own_frames(tmp_path: Path) -> None:
    ours = Path(log_excerpt.__file__).parents[1] / "worker" / "device" / "executor.py"
    lines = ["Traceback (most recent call last):", f'  File "{ours}", line 3, in _call', "    x = f(", "        ^^^^"]
    theirs = ['  File "/their/check.py", line 45, in launch', "    give_up(x)", "SystemExit: why"]
    assert excerpt(tmp_path, "\n".join([*lines, *theirs])) == [lines[0], *theirs]


def test_beginning_and_end_of_a_huge_text_are_read_and_no_more(tmp_path: Path) -> None:
    found = excerpt(tmp_path, f"{REASON}\n{noise(200_000, 'x' * 20)}the end\n")
    assert os.path.getsize(tmp_path / "stderr.log") > 2 * READ
    assert found[0] == REASON and found[-1] == "the end" and len(found) <= FIRST + TELLING + 1 + LAST


def test_bytes_that_are_no_text_and_lines_without_end_stay_short(tmp_path: Path) -> None:
    found = excerpt(tmp_path, b"\xff\xfe\x00" * 5 + b"\n" + b"y" * 10_000)
    assert "\ufffd" in found[0] and len(found[1]) < LONGEST + 40 and "9700 more characters" in found[1]


def test_the_files_of_this_process_are_those_it_prints_to(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "logs" / "stderr.log"
    log.parent.mkdir(parents=True)
    keep = [os.dup(1), os.dup(2)]
    try:
        with open(log, "wb") as file, open(tmp_path / "stdout.log", "wb") as other:
            os.dup2(file.fileno(), 2)
            os.dup2(other.fileno(), 1)
            os.write(2, b"before\n")
            found = marks()
            os.write(2, b"after\n")
            assert [mark.path for mark in found] == [log, tmp_path / "stdout.log"]
            assert printed(found) == ["after"] and paths(found, run) == "logs/stderr.log"
            os.write(1, b"too\n")
            assert printed(found) == ["after", "too"]
            assert paths(found, run) == f"logs/stderr.log, {tmp_path / 'stdout.log'}"
            os.close(1)
            assert len(marks()) == 1
    finally:
        os.dup2(keep[0], 1)
        os.dup2(keep[1], 2)


def test_a_pipe_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    keep = [os.dup(1), os.dup(2)]
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        found = marks()
    finally:
        os.dup2(keep[0], 1)
        os.dup2(keep[1], 2)
    assert found == [] and paths([], Path("/run")) == ""
    os.close(reading)
    os.close(writing)
