"""What a process leaves behind: the exceptions behind one, lines at once, and where it was ended."""

from __future__ import annotations

import subprocess
import sys

from gpucheck.worker.last_words import raised_from


def caught(*errors: Exception, suppress: bool = False) -> Exception:
    """The last of some exceptions, each raised from the one before, or while that was handled."""
    try:
        try:
            raise errors[0]
        except Exception as first:
            if suppress:
                raise errors[1] from None
            raise errors[1] from first
    except Exception as last:
        return last


def test_the_exceptions_behind_one_are_told() -> None:
    assert raised_from(caught(KeyError("expert 17"), RuntimeError("failed"))) == "; raised from KeyError: 'expert 17'"
    assert raised_from(caught(KeyError("x"), RuntimeError("failed"), suppress=True)) == ""
    assert raised_from(ValueError("alone")) == ""
    assert raised_from(caught(KeyError("x"), RuntimeError("Model raised KeyError: 'x'"))) == "", "it was said already"
    assert raised_from(caught(KeyError(), RuntimeError("failed"))) == "; raised from KeyError: no message"


def test_an_exception_while_another_was_handled_tells_that_one() -> None:
    try:
        try:
            raise OSError("no such table\nsecond line")
        except OSError:
            raise RuntimeError("failed")  # noqa: B904 - the case at hand
    except RuntimeError as error:
        assert raised_from(error) == "; raised from OSError: no such table"


def test_chains_without_end_end() -> None:
    first, last = ValueError("a"), ValueError("b")
    first.__cause__, last.__cause__ = last, first
    assert raised_from(last) == "; raised from ValueError: a"
    error: Exception = ValueError("0")
    for number in range(1, 9):
        following = ValueError(str(number))
        following.__cause__ = error
        error = following
    assert raised_from(error).count("raised from") == 3


def test_lines_leave_at_once_and_an_exit_names_its_place() -> None:
    code = (
        "from gpucheck.worker.last_words import keep_what_is_printed\nimport os\nkeep_what_is_printed()\n"
        "def leave():\n    print('why')\n    os._exit(7)\nleave()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "why\n") and done.stderr == "os._exit(7) at <string>:6 in leave\n"
