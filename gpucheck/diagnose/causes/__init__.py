"""Rules: from the records of a run to causes.

A rule is a module with two pure functions. ``recognise`` says what one record is evidence of, or None; ``findings``
makes findings of evidence. Rules are asked in the order of :data:`RULES`; a record belongs to the first that
recognises it and to no finding beside that rule's. ``straggler`` and ``less_exact`` are none of
them: they look at ranks that are right.
"""

from __future__ import annotations

from typing import Any, Protocol

from gpucheck.diagnose.causes import (
    autotuned,
    by_process,
    compile_failure,
    compile_race,
    crash,
    fallback,
    hang,
    input_misuse,
    interference,
    kept_state,
    kernel_bug,
    kernel_cache,
    other_ranks_fault,
    out_of_bounds,
    out_of_memory,
    overwritten,
    process_group,
    race,
    rank_environment,
    stream_order,
    suspect_gpu,
    threads,
    undetermined,
    wrong_device,
)
from gpucheck.diagnose.finding_cases import Key
from gpucheck.model.finding import Finding
from gpucheck.model.record import Record
from gpucheck.records.run_folder import Run


class Evidence(Protocol):
    """What a rule makes of a record."""

    @property
    def cause(self) -> str:
        """A key of :data:`gpucheck.diagnose.causes.pages.CAUSES`."""


class Rule(Protocol):
    """A module of this package."""

    def recognise(self, run: Run, record: Record) -> Any:
        """The evidence in a failed record, or None."""

    def findings(self, run: Run, evidence: dict[Key, Any]) -> list[Finding]:
        """The findings of evidence that this rule recognised."""


RULES: tuple[Rule, ...] = (
    wrong_device,
    input_misuse,
    fallback,
    compile_failure,
    out_of_memory,
    process_group,
    threads,
    out_of_bounds,
    autotuned,
    compile_race,
    kernel_cache,
    overwritten,
    stream_order,
    kept_state,
    interference,
    rank_environment,
    suspect_gpu,
    race,
    by_process,
    kernel_bug,
    undetermined,
    other_ranks_fault,
    crash,
    hang,
)
"""In the order they are asked: what a record shows by itself before what experiments and other ranks tell."""


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
