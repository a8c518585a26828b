"""Accepted faults: failures that a team knows of and lives with until a day, each as it showed when it was accepted.

Plain data, part of ``plan.json``: a run folder keeps what was accepted when it ran. What makes a fault the accepted one
is decided in :mod:`gpucheck.diagnose.acceptance` and :mod:`gpucheck.diagnose.fault_signature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        """An item of the accepted faults in ``plan.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> AcceptedFault:
        """The fault that :meth:`to_json` wrote; keys of newer versions are left out."""
        known = {key: value for key, value in item.items() if key in cls.__dataclass_fields__}
        regions = [{key: part[key] for key in Region.__dataclass_fields__} for part in item["regions"]]
        return cls(**{**known, "regions": [Region(**region) for region in regions]})
