"""The process that has the extensions of a candidate built: it loads it and makes its model, and calls it never."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator

from gpucheck import checks
from gpucheck.checks.base import CandidateCheck
from gpucheck.worker import parcels
from gpucheck.worker.protocol import Reply, Request

BUILD_ERROR = "BuildError"
"""Begins the message of a candidate that does not build."""
MOST = 4  # lines of a compiler that are told
SIGNS = ("Error building extension", "error:", "nvcc fatal", "undefined reference")
LINE = re.compile(
    r"^.*?(?:[\w.+-]+\(\d+\)|[\w.+-]+:\d+(?::\d+)?|nvcc|ld|collect2)\s*:?.*?(?:error\b|fatal\b|undefined).*$"
)
PLACE = re.compile(r"(?:/[^\s:(]+)*/([^\s:(/]+[:(]\d+)")


class BuildProcess:
    """Answers one request."""

    def run(self, request: Request) -> list[Reply]:
        """Loads the candidate; an error of a compiler is the answer, any other one is met by the case itself."""
        try:
            check = checks.load(request.case.check)
            assert isinstance(check, CandidateCheck)
            check.build(request.case, parcels.on_host(request.inputs))
        except Exception as error:
            said = "\n".join(_texts(error))
            if any(sign in said for sign in SIGNS):
                return [Reply("error", f"{BUILD_ERROR}: {compiler_errors(said)}", traceback.format_exc())]
        return [Reply("ran")]


def _texts(error: BaseException | None) -> Iterator[str]:
    """What an error and those that it came of say, and what a compiler printed."""
    while error is not None:
        yield str(error)
        for name in ("output", "stderr", "stdout"):
            held = getattr(error, name, None)
            yield held.decode(errors="replace") if isinstance(held, bytes) else held if isinstance(held, str) else ""
        error = error.__cause__ or error.__context__


def compiler_errors(text: str) -> str:
    """The errors in what a compiler printed, each with file and line, in few words."""
    found = [PLACE.sub(r"\1", line.strip()) for line in text.splitlines() if LINE.match(line) and len(line) < 2000]
    found = list(dict.fromkeys(line for line in found if "FAILED:" not in line and "ninja: " not in line))
    if not found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        found = [line for line in lines if "error" in line.lower()] or lines
    more = f"; {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(line[:300] for line in found[:MOST]) + more
