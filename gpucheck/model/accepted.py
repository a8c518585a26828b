"""Accepted faults: failures that a team knows of and lives with until a day, each as it showed when it was accepted.

Plain data, part of ``plan.json``: a run folder keeps what was accepted when it ran. What makes a fault the accepted one
is decided in :mod:`gpucheck.diagnose.acceptance` and :mod:`gpucheck.diagnose.fault_signature`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Region:
    """Where an output was wrong."""

    output: str
    exactly: dict[str, list[int]]  # grouping -> groups whose rows are the wrong ones
    spans: list[list[int]]  # per axis [first, last] wrong index
    wrong: int  # elements
    total: int


@dataclass(frozen=True)
class AcceptedFault:
    """A fault of one case, on ranks that show it alike."""

    case: str  # label: id and conditions
    ranks: list[int]
    cause: str  # key for `gpucheck explain`, else the title of the finding
    outcome: str
    shows: list[str]  # what the wrong output looks like, violations, where it raised or broke
    regions: list[Region]  # one for each wrong output
    seed: int  # of the run it was seen in
    content: dict[str, str]  # "triton_kernels" or file of a check -> its hash; name of an engine -> its version
    reason: str
    until: str  # YYYY-MM-DD in UTC; valid through the end of that day
    file: str = field(default="", compare=False)  # it was read from
