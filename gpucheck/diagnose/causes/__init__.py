"""Causes: one file each, with what findings call it, its page, and the rule that sees it in the records of a run.

Each file has ``CAUSES``, the causes that it names. A rule also has a pure function ``recognise``, which says what one
failed record is evidence of, or None, and where the usual findings do not do, ``findings``, which makes them of the
evidence. Rules are asked in the order of :data:`ASKED`; a record belongs to the first that recognises it and to no
finding beside that rule's. A file in :data:`WARNING` has one function instead, ``warnings``, which compares ranks that
are right. A new file takes one line here and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from gpucheck.diagnose.causes import common, out_of_bounds
from gpucheck.diagnose.error_pattern import PATTERNS
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause, Page
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.records.run_folder import Run


class Evidence(Protocol):
    """What a rule makes of a record."""

    @property
    def cause(self) -> Cause:
        """One of those that the rule's file states."""


class CauseFile(Protocol):
    """A file of this folder."""

    CAUSES: tuple[Cause, ...]  # those it names


class Rule(CauseFile, Protocol):
    """A file that explains records which failed."""

    def recognise(self, run: Run, record: Record) -> Any:
        """The evidence in a failed record, or None."""


class PeerComparison(CauseFile, Protocol):
    """A file that finds what is strange about ranks that are right."""

    def warnings(self, run: Run) -> list[Finding]:
        """Findings that have no influence on the verdict."""


ASKED = (
    "wrong_device",
    "faulty_multiprocessor",
    "group_mismatch",
    "wrong_share",
    "unwritten_slots",
    "early_buffer",
    "contribution",
    "wrong_link",
    "input_misuse",
    "fallback",
    "compile_failure",
    "out_of_memory",
    "process_group",
    "threads",
    "out_of_bounds",
    "autotuned",
    "compile_race",
    "kernel_cache",
    "overwritten",
    "stream_order",
    "kept_state",
    "interference",
    "rank_environment",
    "suspect_gpu",
    "race",
    "by_process",
    "kernel_bug",
    "undetermined",
    "other_ranks_fault",
    "crash",
    "absent_rank",
    "hang",
)
"""In the order they are asked: what a record shows by itself before what experiments and other ranks tell."""
WARNING = (
    "straggler",
    "less_exact",
)


def _file(name: str) -> Any:
    return import_module(f"{__name__}.{name}")


RULES = tuple(cast(Rule, _file(name)) for name in ASKED)
WARNINGS = tuple(cast(PeerComparison, _file(name)) for name in WARNING)
CAUSES = {cause.title: cause for file in (*RULES, *WARNINGS) for cause in file.CAUSES}
"""By title, the order of :data:`ASKED`."""


def described(name: str) -> dict[str, Page]:
    """The pages on a cause, on what is wrong, or on both that a finding's title names; in any case of letters."""
    pages: dict[str, Page] = {title.lower(): page for title, page in (*CAUSES.items(), *PATTERNS.items())}
    parts = (part.strip().lower() for part in name.split(":"))
    return {pages[part].title: pages[part] for part in parts if part in pages}


def findings(rule: Rule, run: Run, evidence: dict[Key, Any]) -> list[Finding]:
    """The findings of evidence that a rule recognised."""
    made: list[Finding] = getattr(rule, "findings", common.findings)(run, evidence)
    return made


def attribute(run: Run, keys: list[Key]) -> list[tuple[Rule, dict[Key, Any]]]:
    """Each rule with the evidence it finds among records that no earlier rule recognised.

    A store outside of tensors does not say why an output is wrong that other ranks have as wrong without one: such a
    record belongs to a second rule as well.
    """
    left, attributed = list(keys), []
    for rule in RULES:
        found = {key: evidence for key in left if (evidence := rule.recognise(run, run.records[key])) is not None}
        left = [key for key in left if key not in found or (rule is out_of_bounds and _has_another_fault(run, *key))]
        attributed.append((rule, found))
    return attributed


def _has_another_fault(run: Run, step: int, rank: int) -> bool:
    """Whether a record's wrong output is, bit for bit, that of a rank whose stores stay within their tensors."""
    record = run.records[(step, rank)]
    others = (run.records[(step, other)] for other in run.ranks)
    return bool(record.bits) and any(o.bits == record.bits and not out_of_bounds.shown(o) for o in others)
