"""A fact about the machine, and whether it is well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from gpucheck.model.errors import ExitCode


class Status(str, Enum):
    """Whether a fact is well."""

    OK = "ok"
    WARN = "warn"  # may slow a run down, leave a part of it out or explain a later failure
    FAIL = "fail"  # a run on this machine fails, or must not be trusted


@dataclass(frozen=True)
class Line:
    """One fact. Where it is not well it says what to do."""

    fact: str  # stable name within its family, "ecc"
    status: Status
    value: str  # what was found, in words
    advice: str = ""  # what to do; only where the fact is not well
    subject: str = ""  # which of several things it is about: the number of a GPU, "cpu", a file
    family: str = ""  # filled in by gpucheck.tools.doctor.examine
    looked: bool = True  # False: the fact could not be read, so its status says nothing about the machine

    def __post_init__(self) -> None:
        assert (self.status is Status.OK) == (not self.advice), f"{self.fact}: advice goes with what is not well"

    @property
    def id(self) -> str:
        """Stable name: ``family.fact``, or ``family.subject.fact``."""
        return ".".join(filter(None, (self.family, self.subject, self.fact)))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"id": self.id, **asdict(self)}


def ok(fact: str, value: str, subject: str = "") -> Line:
    """A fact that is well."""
    return Line(fact, Status.OK, value, "", subject)


def warn(fact: str, value: str, advice: str, subject: str = "", *, looked: bool = True) -> Line:
    """A fact to know about."""
    return Line(fact, Status.WARN, value, advice, subject, looked=looked)


def fail(fact: str, value: str, advice: str, subject: str = "", *, looked: bool = True) -> Line:
    """A fact that must change before a run is worth anything."""
    return Line(fact, Status.FAIL, value, advice, subject, looked=looked)


def exit_code(lines: Iterable[Line]) -> int:
    """FAIL where something is seen to be wrong, INCONCLUSIVE where only looking failed, else PASS."""
    failed = [line for line in lines if line.status is Status.FAIL]
    if any(line.looked for line in failed):
        return int(ExitCode.FAIL)
    return int(ExitCode.INCONCLUSIVE if failed else ExitCode.PASS)
