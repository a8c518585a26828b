"""A comparison of two runs as text and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from gpucheck.diagnose.compare import Change, Comparison, Row, Standing
from gpucheck.diagnose.wording import counted, rank_list

COMPARISON_SCHEMA = 1
SHOWN = (Change.BROKEN, Change.MISSING, Change.APPEARED, Change.ACCEPTED, Change.FIXED, Change.STILL, Change.GONE)
"""Changes whose cases are listed, in this order."""
QUIET = (Change.PROVEN, Change.OPEN, Change.SAME)
"""Changes whose cases are only counted, unless verbose."""
COUNTED = (*SHOWN, *QUIET, Change.LEFT_OUT)
MOST_LINES = 10  # of one kind, unless verbose
EVEN = 1.05  # ratios of times and errors up to this one are not named


def lines(comparison: Comparison, names: tuple[str, str], *, verbose: bool = False) -> Iterator[str]:
    """The whole comparison, the worst first.

    Args:
        names: of the two runs.
    """
    limit = None if verbose else MOST_LINES
    counts = [(change, len(comparison.of(change))) for change in COUNTED]
    worse = len(comparison.regressions)
    yield f"{worse} REGRESSION{'S' * (worse != 1)}" if worse else "NO REGRESSION"
    yield ", ".join(f"{count} {change.value}" for change, count in counts if count) + " (cases x ranks)"
    for letter, name, verdict in zip("AB", names, comparison.verdicts, strict=True):
        yield f"{letter}  {verdict.value:<12}  {name}"
    yield ""
    yield from _environment(comparison)
    for change in (*SHOWN, *(QUIET if verbose else ())):
        yield from _listed(change.value, [(row, _change_text(row)) for row in comparison.of(change)], limit)
    inexact = [(row, "{1:.1%} of its bound, was {0:.1%}".format(*row.tightness or ())) for row in comparison.less_exact]
    yield from _listed("right, but warns: uses at least ten times as much of its error bound", inexact, limit)
    changed = [(row, ", ".join(row.bits)) for row in comparison.rows if row.bits]
    yield from _listed("other bits from equal inputs, right in both", changed, limit)
    yield from _ratios("error", "of their bounds used", comparison.error_ratios)
    yield from _ratios("time", "of the kernels", comparison.time_ratios)
    yield from _left_out(comparison)


def to_json(comparison: Comparison, names: tuple[str, str]) -> dict[str, Any]:
    """The comparison for machines: one row for each case and rank."""
    return {
        "schema": COMPARISON_SCHEMA,
        "runs": [
            {"folder": name, "verdict": verdict.value} for name, verdict in zip(names, comparison.verdicts, strict=True)
        ],
        "regressions": len(comparison.regressions),
        "counts": {change.value: len(comparison.of(change)) for change in COUNTED},
        "environment": {name: list(values) for name, values in comparison.environment.items()},
        "rows": [asdict(row) for row in comparison.rows],
        "time_ratios": comparison.time_ratios,
        "error_ratios": comparison.error_ratios,
    }


def _environment(comparison: Comparison) -> Iterator[str]:
    yield "environment"
    differing = {name: pair for name, pair in comparison.environment.items() if pair[0] != pair[1]}
    width = max([len(name) for name in differing] + [len("same")])
    for name, (first, second) in differing.items():
        yield f"  {name:<{width}}  {first or 'none'} -> {second or 'none'}"
    same = [f"{name} {pair[0]}" for name, pair in comparison.environment.items() if name not in differing]
    if same:
        yield f"  {'same':<{width}}  {', '.join(same)}"


def _change_text(row: Row) -> str:
    first, second = row.first, row.second
    if row.change is Change.FIXED:
        return f"was {first.words}"
    if row.change is Change.STILL:
        said = [f"was {first.words}"] * (first.words != second.words)
        if row.wrong and row.wrong[0] != row.wrong[1]:
            said.append("{1:.2%} of elements wrong, were {0:.2%}".format(*row.wrong))
        return second.words + (f" ({'; '.join(said)})" if said else "")
    if row.change in (Change.MISSING, Change.GONE):
        return f"{second.standing.value}: {second.words}".rstrip(": ")
    if row.change is Change.APPEARED:
        return f"{second.words} (was {first.standing.value})"
    if row.change is Change.SAME:
        ratios = {"error": row.tightness, "time": row.seconds}
        known = ((name, pair) for name, pair in ratios.items() if pair and min(pair) > 0)
        return ", ".join(f"{name} x {pair[1] / pair[0]:.2f}" for name, pair in known)
    return second.words


def _listed(title: str, rows: Sequence[tuple[Row, str]], limit: int | None) -> Iterator[str]:
    """A line for each case and what is said of it, with the ranks that it is said of."""
    merged: dict[tuple[str, str], list[int]] = {}
    for row, words in rows:
        merged.setdefault((row.case, words), []).append(row.rank)
    if not merged:
        return
    yield ""
    yield f"{title} ({len(merged)})"
    for (case, words), ranks in list(merged.items())[:limit]:
        yield f"  {case}  {rank_list(ranks)}  {words}".rstrip()
    if limit is not None and len(merged) > limit:
        yield f"  ... and {len(merged) - limit} more; -v shows all"


def _ratios(name: str, of: str, ratios: dict[str, float]) -> Iterator[str]:
    """The middle and the extremes of B over A."""
    if not ratios:
        return
    middle = statistics.median(ratios.values())
    words = [f"B / A {of}: {middle:.2f} in the median of {counted(len(ratios), 'case')}"]
    for word, case in (("most", max(ratios, key=ratios.__getitem__)), ("least", min(ratios, key=ratios.__getitem__))):
        if max(ratios[case], 1 / ratios[case]) > EVEN and len(ratios) > 1:
            words.append(f"{word} {ratios[case]:.2f} ({case})")
    yield ""
    yield f"{name:<6}" + ", ".join(words)


def _left_out(comparison: Comparison) -> Iterator[str]:
    """What only one of the runs has."""
    for letter, side in (("A", "second"), ("B", "first")):
        rows = [row for row in comparison.of(Change.LEFT_OUT) if getattr(row, side).standing is Standing.ABSENT]
        if rows:
            cases = list(dict.fromkeys(row.case for row in rows))
            shown = ", ".join(cases[:3]) + ", ..." * (len(cases) > 3)
            count = f"{counted(len(cases), 'case')} on {rank_list(row.rank for row in rows)}"
            yield ""
            yield f"left out, in {letter} only: {count} ({shown})"
