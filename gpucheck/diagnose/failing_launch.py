"""Which launch a failure belongs to: named where it is known, and otherwise what is known instead."""

from __future__ import annotations

from dataclasses import dataclass

from gpucheck.diagnose.experiment_list import BLOCKING, needs_pinning
from gpucheck.model.record import Outcome, Record, Underway
from gpucheck.records.run_folder import Run


@dataclass(frozen=True)
class Place:
    """Where something went wrong."""

    kernel: str  # "" where no launch can be named
    words: str


def place(run: Run, record: Record) -> Place:
    """The place of a crash or hang.

    A GPU tells of a failed launch at some later call, so none is named before the case has run again with launches
    that are waited for.
    """
    if not needs_pinning(record, run.plan):
        return _known_place(record, "")
    again = next(iter(run.experiments.get((record.step, record.rank), {}).get(BLOCKING, ())), None)
    if again is None:
        return Place("", f"{_last(record.underway)}; next: --experiments 60 waits for each launch and so names the one")
    if not again.outcome.failed:
        return Place("", f"{_last(record.underway)}; it did not happen again when each launch was waited for")
    return _known_place(again, "when each launch was waited for, ")


def _known_place(record: Record, how: str) -> Place:
    """The place in a record whose launches were waited for, or ran on the CPU."""
    underway = record.underway
    if underway is not None and (underway.open or record.sticky):
        return Place(underway.kernel, f"{how}in {_launch(underway)}")
    if record.outcome is Outcome.HANG:
        return Place("", f"{how}no launch was under way: it hung in host code")
    if record.kernels:
        where = f" at {record.source}" if record.source else ""
        return Place("", f"{how}outside of any Triton launch{where}; under test: {', '.join(record.kernels)}")
    return Place("", "")


def _last(underway: Underway | None) -> str:
    if underway is None:
        return "no launch known"
    before = f" or one of the {underway.open - 1} before it" if underway.open > 1 else ""
    return f"last launched: {_launch(underway)}{before}"


def _launch(underway: Underway) -> str:
    return underway.kernel + (f" ({underway.source})" if underway.source else "")
