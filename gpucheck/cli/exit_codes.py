"""Exit codes as those frameworks take them that start gpucheck as one check of many.

Whatever is no verdict, a wrong option or a crash included, is what they call unknown, and never a verdict by accident.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from gpucheck.model.errors import ExitCode, GpucheckError, UsageError

if TYPE_CHECKING:
    from gpucheck.diagnose.node_verdict import NodeVerdict

OPTION, VERDICT_OPTION = "--exit-codes", "--node-verdict"
COMMANDS = ("run", "report", "screen")
WARNING = 10  # of a command whose codes are translated; nobody else sees it
SCHEMES = {
    "preflight": ({ExitCode.PASS: 0, WARNING: 0, ExitCode.FAIL: 1}, 2),
    "nagios": ({ExitCode.PASS: 0, WARNING: 1, ExitCode.FAIL: 2}, 3),
}
"""Name -> what codes become, and what all others do.

preflight: NVSentinel's preflight checks (passed, failed, not able to check) and node-problem-detector (no problem,
problem, unknown). nagios: monitoring plugins of Nagios, Icinga and Sensu (OK, WARNING, CRITICAL, UNKNOWN).
"""


def asked_for(arguments: Sequence[str]) -> str:
    """The scheme that a command line names; "" for none, and for one that is not known."""
    scheme = value_of(arguments, OPTION) if arguments[:1] and arguments[0] in COMMANDS else ""
    return scheme if scheme in SCHEMES else ""


def value_of(arguments: Sequence[str], option: str) -> str:
    """The value of an option; "" without it."""
    for place, argument in enumerate(arguments):
        if argument == option:
            return "".join(arguments[place + 1 : place + 2])
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""


def check(scheme: str | None) -> None:
    """Raises UsageError where there is no such scheme."""
    if scheme is not None and scheme not in SCHEMES:
        raise UsageError(f"{OPTION} is {scheme!r}, expected one of {', '.join(SCHEMES)}")


def ended(command: Callable[[], object]) -> Any:
    """The code that a command ends with; None where it raises or returns: it ends the process itself."""
    try:
        command()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
    return None


def translated(command: Callable[[], object], scheme: str) -> NoReturn:
    """Ends the process with the code of a command in the terms of a scheme."""
    known, unknown = SCHEMES[scheme]
    sys.exit(known.get(ended(command), unknown))


def code_of(verdict: NodeVerdict) -> int:
    """The exit code of a run for :func:`translated`."""
    from gpucheck.diagnose.node_verdict import NodeState

    return {
        NodeState.PASS: int(ExitCode.PASS),
        NodeState.WARNING: WARNING,
        NodeState.CRITICAL: int(ExitCode.FAIL),
        NodeState.UNKNOWN: int(ExitCode.INCONCLUSIVE),
    }[verdict.worst.state]


def tell(arguments: Sequence[str], message: str) -> None:
    """Writes the node verdict that a command line asks for where an error ends the command before its run."""
    file = value_of(arguments, VERDICT_OPTION) if arguments[:1] and arguments[0] in COMMANDS else ""
    if not file:
        return
    from gpucheck.cli.present import put_json
    from gpucheck.report.formats.node_json import without_run

    with suppress(GpucheckError):  # the first error is the one to show
        put_json(file, without_run(message, time.time()), VERDICT_OPTION)
