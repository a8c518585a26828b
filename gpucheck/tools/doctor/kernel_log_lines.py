"""What the driver has written into the kernel log: Xid lines, one a GPU error."""

from __future__ import annotations

from gpucheck.host.xid import HARDWARE, Xid, xids
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine


def look(machine: Machine) -> list[Line]:
    """One line for each Xid number on each GPU."""
    found = xids(machine.dev / "kmsg")
    if found is None:
        if not machine.smi().gpus:
            return []
        advice = "it tells of GPU errors that no counter keeps: run dmesg | grep Xid as root on the host"
        return [warn("xid", "the kernel log is not readable here", advice, looked=False)]
    if not found:
        return [ok("xid", "no GPU errors since boot, as far back as the log goes")]
    groups: dict[tuple[int, str], list[Xid]] = {}
    for xid in found:
        groups.setdefault((xid.number, xid.bus), []).append(xid)
    return [_line(group) for _, group in sorted(groups.items())]


def _line(group: list[Xid]) -> Line:
    last = group[-1]
    value = f"{len(group)} x Xid {last.number} on {last.bus}: {last.means}; last: {last.text or 'no text'}"
    subject = f"{last.number}-{last.bus}"
    if last.number in HARDWARE:
        return fail("xid", value, "drain the node; reset or replace this GPU before its results are trusted", subject)
    return warn("xid", value, "a process on this GPU failed; reset the GPU if it comes back without one", subject)
