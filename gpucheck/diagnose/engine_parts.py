"""What serving engines had a part in, for the notes of a report: how deep, by what, and what was not their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

from gpucheck.model.record import EnginePart
from gpucheck.records.run_folder import Run


def engine_parts(run: Run) -> list[str]:
    """One line for each engine, depth and backend."""
    cases: dict[tuple[str, str, str, str], set[int]] = defaultdict(set)
    sources: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)
    parts: dict[tuple[str, str, str, str], EnginePart] = {}
    for (step, _), record in sorted(run.records.items()):
        if part := record.engine:
            key = part.name, part.version, part.depth, part.backend
            cases[key].add(step)
            sources[key] |= {part.configuration.partition(": ")[0]} - {""}
            parts[key] = part
    lines, told = [], set[tuple[str, str, str]]()
    for key, part in parts.items():
        stand_ins = {(part.name, part.version, words): words for words in part.stand_ins}
        further = [words for place, words in stand_ins.items() if place not in told]
        lines.append(_line(part, len(cases[key]), sources[key], further))
        told |= stand_ins.keys()
    return lines


def _line(part: EnginePart, cases: int, sources: Collection[str], further: Sequence[str]) -> str:
    """Args:
    sources: where the values that kernels were launched with are from: files, or what begins with "default".
    further: the stand-ins that no line before tells.
    """
    words = f"{part.name} {part.version}: {cases} case(s) by its own {part.depth}, which chose {part.backend}"
    files = sorted(name for name in sources if not name.startswith("default"))
    if files:
        words += f"; launched with the values of {', '.join(files)}"
    if len(files) < len(sources):
        words += f"; {len(sources) - len(files)} shape(s) launched with default values: no tuned file for this GPU"
    if part.lacking:
        words += f"; no deeper, since it lacks {', '.join(part.lacking)}"
    if part.left_behind:
        words += f"; it leaves in the library: {', '.join(part.left_behind)}"
    if part.stand_ins:
        words += f"; without its compiled parts, so {len(part.stand_ins)} stand in"
        words += f": {', '.join(further)}" if further else ", all told above"
        words += ", and what is told above" if 0 < len(further) < len(part.stand_ins) else ""
    return words
