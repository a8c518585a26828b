"""Exit codes for ``git bisect run``: every code but these makes it call a commit good, bad or untestable by mistake.

``git bisect run`` takes 0 for good, 125 for untestable, any other code up to 127 for bad, and ends at codes above.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from gpucheck.cli.exit_codes import ended
from gpucheck.model.errors import ExitCode

if TYPE_CHECKING:
    from gpucheck.model.finding import Conclusion
    from gpucheck.records.run_folder import Run

GOOD, BAD, UNTESTABLE, STOP = 0, 1, 125, 128


def asked_for(arguments: Sequence[str]) -> bool:
    """Whether a command line is ``gpucheck run --bisect``."""
    return "run" in arguments[:1] and "--bisect" in arguments


def translated(command: Callable[[], object]) -> NoReturn:
    """Ends the process with the code of a command in git's terms; whatever is no verdict ends the bisection."""
    known = {ExitCode.PASS: GOOD, ExitCode.FAIL: BAD, ExitCode.NOTHING_RAN: UNTESTABLE, UNTESTABLE: UNTESTABLE}
    sys.exit(known.get(ended(command), STOP))


def code_of(run: Run, conclusion: Conclusion) -> int:
    """The exit code of a finished run: a library that cannot be tried here is untestable, whatever else failed."""
    from gpucheck.diagnose.buildable import unbuildable
    from gpucheck.model.record import Verdict

    if conclusion.verdict is Verdict.PASS:
        return GOOD
    if unbuildable(run):
        return UNTESTABLE
    return BAD if conclusion.verdict is Verdict.FAIL else STOP
