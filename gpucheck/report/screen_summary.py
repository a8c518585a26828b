"""What a screen ran and what that is worth: the block of ``gpucheck screen``, and its cells for every format."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpucheck.diagnose.chance import CONFIDENCE, rate_seen, seen_with
from gpucheck.model.screened import Screened
from gpucheck.records.run_folder import Run

COLUMNS = ("datapath", "GPU", "multiprocessors", "tiles of each", "time", "rate", "of ceiling", "seen with 99%")
CURVE_COLUMNS = ("seconds on each GPU", "seen with 99%")
RATES = (1e-5, 1e-6, 1e-7)  # of wrong tiles, of which the curve gives the chance to see one
CURVE = (1.0, 3.0, 10.0, 20.0, 60.0, 300.0, 1200.0, 3600.0)  # s
UNKNOWN = "–"
ASSUMED = (
    "seen with 99%: the smallest rate p of wrong tiles, on one multiprocessor, with 1 - (1 - p)^N of 99% for the N "
    "tiles that it ran; each tile is taken to be wrong with chance p whatever came before. A fault that only other "
    "data, programs, heat or load would show is not covered; a group of tiles with several wrong elements keeps its "
    "digest with a chance of about 2^-32, one with a single wrong element never does"
)


@dataclass(frozen=True)
class ScreenRow:
    """One datapath on one GPU."""

    datapath: str
    rank: int
    covered: int  # multiprocessors that ran it
    multiprocessors: int  # that the GPU has
    fewest: int  # tiles that a multiprocessor ran
    most: int
    tile: str  # what one is, in words
    share: float  # of the time of the screen
    rate: float  # achieved, in ``unit`` a second
    unit: str
    of_ceiling: float | None  # share of what the data sheet gives; None: not known
    seen: float  # the smallest rate of wrong tiles that would have been seen with 99%
    source: str  # who knows the right digests


@dataclass(frozen=True)
class CurvePoint:
    """What a screen of so many seconds sees, of the datapath that it sees least of."""

    seconds: float
    seen: float  # as in :class:`ScreenRow`
    chances: dict[str, float]  # rate of wrong tiles -> the chance to see one


@dataclass(frozen=True)
class ScreenSummary:
    """What a screen tells; empty where there was none."""

    rows: list[ScreenRow] = field(default_factory=list)  # by datapath, then rank
    curve: list[CurvePoint] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)  # what a clean screen is worth, one for each GPU


def screen_summary(run: Run) -> ScreenSummary:
    """The block of a run."""
    parts = [(rank, part) for (_, rank), record in sorted(run.records.items()) if (part := record.screened)]
    if not parts:
        return ScreenSummary()
    statements = [_statement(rank, [part for each, part in parts if each == rank]) for rank in run.ranks]
    return ScreenSummary(
        [_row(rank, part) for rank, part in parts], _curve([p for _, p in parts]), [*filter(None, statements)]
    )


def _row(rank: int, part: Screened) -> ScreenRow:
    return ScreenRow(
        part.datapath,
        rank,
        len(part.numbers),
        part.multiprocessors,
        min(part.tiles, default=0),
        max(part.tiles, default=0),
        part.tile,
        part.share,
        part.rate,
        part.unit,
        part.rate / part.ceiling if part.ceiling else None,
        rate_seen(part.fewest),
        part.source,
    )


def _statement(rank: int, parts: list[Screened]) -> str:
    if not parts:
        return ""
    worst = min(parts, key=lambda part: part.fewest)
    seconds, first = sum(part.seconds for part in parts), parts[0]
    if not worst.fewest:
        return f"rank {rank}: not every multiprocessor ran every datapath, so a clean screen is worth nothing"
    waited = f", beside {first.waited:.1f} s that the GPU was left to others" if first.waited else ""
    return (
        f"rank {rank}: in {seconds:.1f} s{waited} each of {first.multiprocessors} multiprocessors of {first.gpu} ran "
        f"at least {worst.fewest:,} tiles of each datapath ({worst.datapath} fewest): a fault that shows once in "
        f"{1 / rate_seen(worst.fewest):,.0f} tiles would have been seen with {CONFIDENCE:.0%}"
    )


def _curve(parts: list[Screened]) -> list[CurvePoint]:
    """What other lengths of the same screen would see: tiles grow with time."""
    speeds = [part.fewest * part.share / part.seconds for part in parts if part.seconds]  # tiles a second of the screen
    slowest = min(speeds, default=0.0)
    points = []
    for seconds in CURVE if slowest else ():
        tiles = int(slowest * seconds)
        chances = {f"{rate:g}": seen_with(rate, tiles) for rate in RATES}
        points.append(CurvePoint(seconds, rate_seen(tiles), chances))
    return points


def merged(summary: ScreenSummary) -> list[ScreenRow]:
    """A row for each datapath with what its worst GPU ran: eight GPUs with a row each are more than fits a screen."""
    of_name: dict[str, list[ScreenRow]] = {}
    for row in summary.rows:
        of_name.setdefault(row.datapath, []).append(row)
    return [
        replace(
            min(rows, key=lambda row: row.covered / row.multiprocessors),
            rank=max(rows, key=lambda row: row.seen).rank,
            fewest=min(row.fewest for row in rows),
            most=max(row.most for row in rows),
            share=sum(row.share for row in rows) / len(rows),
            rate=min(row.rate for row in rows),
            of_ceiling=min((row.of_ceiling for row in rows if row.of_ceiling is not None), default=None),
            seen=max(row.seen for row in rows),
        )
        for rows in of_name.values()
    ]


def cells(row: ScreenRow) -> list[str]:
    """A row of the table, under :data:`COLUMNS`."""
    tiles = f"{row.fewest:,}" if row.fewest == row.most else f"{row.fewest:,} to {row.most:,}"
    return [
        row.datapath,
        str(row.rank),
        f"{row.covered} of {row.multiprocessors}",
        tiles,
        f"{row.share:.0%}",
        f"{row.rate:.3g} {row.unit}/s",
        UNKNOWN if row.of_ceiling is None else f"{row.of_ceiling:.0%}",
        f"1 in {1 / row.seen:,.0f}",
    ]


def curve_heads() -> list[str]:
    """The columns of the curve."""
    return [*CURVE_COLUMNS, *(f"1 in {1 / rate:,.0f}" for rate in RATES)]


def curve_cells(point: CurvePoint) -> list[str]:
    """A row of the curve, under :func:`curve_heads`."""
    return [f"{point.seconds:g}", f"1 in {1 / point.seen:,.0f}", *(f"{each:.1%}" for each in point.chances.values())]


def legend(summary: ScreenSummary) -> list[str]:
    """What the numbers mean."""
    tiles = dict.fromkeys(f"{row.datapath}: {row.tile}" for row in summary.rows)
    sources = dict.fromkeys(f"{row.datapath} by {row.source}" for row in summary.rows if row.source != "the CPU")
    several = len({row.rank for row in summary.rows}) > 1
    lines = ["of several GPUs: the one that ran least, with the slowest rate"] * several
    lines += [ASSUMED, f"a tile is of {'; '.join(tiles)}", "of ceiling: the dense rate of the data sheet"]
    return lines + [f"right digests are known from the CPU before the launch; {', '.join(sources)}"] * bool(sources)
