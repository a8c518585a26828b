"""What a process leaves for the report: the exceptions behind an exception, what it printed, the place of an exit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PACKAGE = str(Path(__file__).parents[1]) + os.sep
MOST_CAUSES = 3


def raised_from(error: BaseException) -> str:
    """The exceptions that led to this one, as in Python's own traceback, but for those whose words it has itself."""
    lines = [f"{type(cause).__name__}: {str(cause).strip() or 'no message'}" for cause in _causes(error)]
    return "".join(f"; raised from {line.splitlines()[0]}" for line in lines if line not in str(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = [error]
    while len(seen) <= MOST_CAUSES:
        last = seen[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in seen:
            return
        seen.append(cause)
        yield cause


def keep_what_is_printed() -> None:
    """Flushes each printed line, and makes code under test that calls ``os._exit`` print where; also in forks."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    end = os._exit

    def reported_exit(status: int) -> NoReturn:
        code, line = sys._getframe(1).f_code, sys._getframe(1).f_lineno
        if not code.co_filename.startswith(PACKAGE):
            _say(f"os._exit({status}) at {Path(code.co_filename).name}:{line} in {code.co_name}")
        end(status)

    os._exit = reported_exit


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # the code under test closed it, or the disk is full
