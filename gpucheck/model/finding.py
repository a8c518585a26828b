"""A finding: what is wrong, where, on what evidence, and the command that shows it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpucheck.model.record import Verdict


@dataclass(frozen=True)
class FailedCase:
    """One case of a finding."""

    case: str
    ranks: list[int]
    lines: list[str]  # region and numbers, in words
    replay: str  # command that runs this case again


@dataclass(frozen=True)
class Acceptance:
    """That a team knows of a fault and lives with it."""

    reason: str
    until: str  # YYYY-MM-DD in UTC, the last day

    @property
    def words(self) -> str:
        return f"accepted until {self.until}: {self.reason}"


@dataclass(frozen=True)
class ProofCommand:
    """A command that shows on this machine what cures a known fault."""

    shows: str  # in words
    command: str


@dataclass(frozen=True)
class Known:
    """A fault of public software that cases of a finding are; it changes neither the verdict nor the exit code."""

    id: str  # what `gpucheck explain` takes
    title: str
    alike: bool  # upstream has a fault of this kind, which need not be the same
    cases: list[str]  # those of the finding that fit
    upstream: list[str]  # "owner/name#number", or where it was published
    good: list[str]  # first releases without it
    workaround: str
    proofs: list[ProofCommand]


@dataclass(frozen=True)
class Finding:
    """Failures that belong together: one row of the matrix, one kind, one set of ranks."""

    title: str
    fails: bool  # False: leaves the verdict open instead of failing it, or is a warning
    ranks: list[int]
    rows: list[str]
    cases: list[FailedCase]
    fix: str = ""
    evidence: list[str] = field(default_factory=list)  # the answers of experiments
    cause: str = ""  # key for `gpucheck explain`; "" where only a symptom is known
    driver: list[str] = field(default_factory=list)  # messages of the kernel and the GPU driver during the run
    warns: bool = False  # worth a look, no influence on the verdict
    accepted: Acceptance | None = None  # why a failure warns; None: nobody accepted it
    known: list[Known] = field(default_factory=list)  # known faults that its cases are
    judged: str = ""  # why a failure warns by what the run is judged by, or a victim of an excused failure; "": neither

    def __post_init__(self) -> None:
        assert not (self.fails and self.warns), "a warning has no influence on the verdict"
        assert self.warns or not self.excuse, "an excused failure has no influence on the verdict"

    @property
    def excuse(self) -> str:
        """Why a failure does not fail the run, in words; "" for all other findings."""
        return self.accepted.words if self.accepted else self.judged


@dataclass(frozen=True)
class Conclusion:
    """The verdict of a run and everything it rests on."""

    verdict: Verdict
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, no influence on the verdict
    expected: frozenset[tuple[int, int]] = frozenset()  # (step, rank) that failed just as the scenario says
    accepted: frozenset[tuple[int, int]] = frozenset()  # (step, rank) that failed just as was accepted
    warned: frozenset[tuple[int, int]] = frozenset()  # (step, rank) that only warns: beside what is judged, or a victim
