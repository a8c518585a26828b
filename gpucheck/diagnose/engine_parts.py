"""What serving engines had a part in, for the notes of a report: how deep, by what, and what was not their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from gpucheck.model.record import EnginePart
from gpucheck.records.run_folder import Run


def engine_parts(run: Run) -> list[str]:
    """One line for each engine, depth and backend."""
    parts: dict[tuple[str, str, str, str], dict[int, EnginePart]] = defaultdict(dict)
    for (step, _), record in sorted(run.records.items()):
        if (part := record.engine) and part.depth:  # without a depth, loading failed
            parts[part.name, part.version, part.depth, part.backend][step] = part
    lines, told = [], set[tuple[str, str, str]]()
    for (name, version, _, _), each in parts.items():
        lines.append(_line(list(each.values()), {words for *of, words in told if of == [name, version]}))
        told |= {(name, version, words) for part in each.values() for words in part.stand_ins}
    return lines


def _line(parts: list[EnginePart], told: Collection[str]) -> str:
    """What the cases of one engine, depth and backend have in common, and what some of them say beside it.

    Args:
        told: the stand-ins that lines before tell.
    """
    first = parts[0]
    sources = _once(part.configuration.partition(": ")[0] for part in parts)  # of launches: files, or "default..."
    words = f"{first.name} {first.version}: {len(parts)} case(s) by its own {first.depth}, which chose {first.backend}"
    files = sorted(name for name in sources if not name.startswith("default"))
    if files:
        words += f"; launched with the values of {', '.join(files)}"
    if len(files) < len(sources):
        words += f"; {len(sources) - len(files)} shape(s) launched with default values: no tuned file for this GPU"
    for identity in _once(part.identity for part in parts):
        words += f"; {identity}"
    if first.lacking:
        words += f"; no deeper, since it lacks {', '.join(first.lacking)}"
    if left_behind := _once(name for part in parts for name in part.left_behind):
        words += f"; it leaves in the library: {', '.join(left_behind)}"
    for reload in _once(part.reload for part in parts):
        words += f"; a second checkpoint is loaded into {reload}"
    for group in _once(part.group for part in parts):
        words += f"; {group}"
    if stand_ins := _once(name for part in parts for name in part.stand_ins):
        further = [name for name in stand_ins if name not in told]
        words += f"; without its compiled parts, so {len(stand_ins)} stand in"
        words += f": {', '.join(further)}" if further else ", all told above"
        words += ", and what is told above" if 0 < len(further) < len(stand_ins) else ""
    return words


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))
