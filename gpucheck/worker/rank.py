"""What torchrun sees of a rank: a small process that outlives its supervisor.

torchrun ends all ranks when one of its processes fails. This one does not fail, so the others finish their cases; what
the dead rank has not recorded is missing from its records, and missing records are never a pass.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from gpucheck.worker.zygote import die_with_parent


def outlive(main: Callable[[], None]) -> None:
    """Runs ``main`` in a forked process, waits for it and says on stderr how it died, if it did."""
    die_with_parent()
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        main()
        return
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(f"the supervisor of rank {os.environ.get('RANK')} {how}; its further cases are lost", file=sys.stderr)
