"""What the place that a run happens in is told: GitHub's step summary, Kubernetes' termination log.

Neither has a say in the verdict: where one cannot be written, a note on stderr says so.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucheck.report.blocks import Report

SUMMARY_LIMIT = 1 << 20  # bytes of a step's summary; GitHub shows nothing of a longer one
MOUNTED_LOG = Path("/dev/termination-log")  # Kubernetes puts it there; never made here


def announce(report: Report) -> None:
    """Appends the report to ``GITHUB_STEP_SUMMARY`` and writes a line to the termination log, where there are such.

    The termination log is ``GPUCHECK_TERMINATION_LOG``, none where that is empty, else the mounted one.
    """
    summary, log = os.environ.get("GITHUB_STEP_SUMMARY"), os.environ.get("GPUCHECK_TERMINATION_LOG")
    if summary:
        _write("the step summary", Path(summary), lambda path: _append(report, path))
    if log or (log is None and os.access(MOUNTED_LOG, os.W_OK)):
        _write("the termination log", Path(log or MOUNTED_LOG), lambda path: _terminate(report, path))


def _append(report: Report, path: Path) -> None:
    from gpucheck.report.formats import markdown

    taken = path.stat().st_size if path.exists() else 0
    text = "\n" * bool(taken) + markdown.render(report, limit=SUMMARY_LIMIT - taken - 1)
    if taken + len(text.encode()) > SUMMARY_LIMIT:
        raise OSError(errno.EFBIG, f"{taken} of {SUMMARY_LIMIT} bytes are taken")
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def _terminate(report: Report, path: Path) -> None:
    from gpucheck.report.formats import termination

    path.write_text(termination.render(report), encoding="utf-8")  # a mount cannot be replaced, only written


def _write(what: str, path: Path, write: Callable[[Path], None]) -> None:
    try:
        write(path)
    except OSError as error:
        print(f"gpucheck: note: {what} {path} cannot be written: {error.strerror or error}", file=sys.stderr)
