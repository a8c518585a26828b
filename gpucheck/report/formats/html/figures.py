"""Pictures of the page, without scripts: the map of an error over an output, the strip of errors against bounds."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence

from gpucheck.model.record import Heat, Record
from gpucheck.report.formats.html.markup import Html, tag
from gpucheck.report.screen_summary import CurvePoint

LEVELS = 32  # shades of a map beside none
FAINTEST = 0.25  # opacity of a cell with a single wrong element
WRONG = (211, 63, 47)  # seen on light and on dark ground
MOST_LINES = 64  # tile lines along a side; beyond, only every so many are drawn
WIDTH = 1000  # of a strip
DECADES = (-3, 3)  # of error / bound that a strip spans
CURVE_HEIGHT = 240
DASHES = ("none", "8 4", "2 4")  # by which the lines of a curve are told apart
ENDS = 60  # width of the zones beside them: no error at one end, none allowed at the other


def heat_figure(heat: Heat, label: str) -> Html:
    """The map of an output with its tile grid; opaque where all elements are wrong.

    Args:
        label: what it shows, for those who cannot see it.
    """
    rows, columns = len(heat.per_mille), len(heat.per_mille[0])
    height, width = heat.shape[0] / heat.cell[0], heat.shape[1] / heat.cell[1]  # in cells; the last ones may be cut
    levels = [bytes(math.ceil(share * LEVELS / 1000) for share in row) for row in heat.per_mille]
    picture = tag("image", href=png(levels), width=columns, height=rows, preserveAspectRatio="none")
    return tag(
        "svg",
        picture,
        tag("path", d=_tile_lines(heat, height, width), class_="tiles"),
        class_="heat",
        viewBox=f"0 0 {width:g} {height:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        style=f"aspect-ratio:{max(1.0, min(16.0, width / height)):.3g}",
    )


def _tile_lines(heat: Heat, height: float, width: float) -> str:
    rows = _inner(
        start + line
        for start in range(0, heat.shape[0] if heat.tile[0] else 0, heat.block)
        for line in range(0, heat.block, heat.tile[0])
    )
    columns = _inner(range(0, heat.shape[1], heat.tile[1]) if heat.tile[1] else ())
    across = (f"M0 {row / heat.cell[0]:g}H{width:g}" for row in rows)
    return "".join([*across, *(f"M{column / heat.cell[1]:g} 0V{height:g}" for column in columns)])


def _inner(places: Iterable[int]) -> Sequence[int]:
    """The lines to draw of those at ``places``: not the edge, and not so many that they hide the map."""
    lines = [place for place in places if place]
    return lines[:: -(-len(lines) // MOST_LINES)] if lines else lines


def png(rows: Sequence[bytes]) -> str:
    """A data URI of an image of one colour whose opacity each byte gives, from 0 to ``LEVELS``."""
    header = struct.pack(">2I5B", len(rows[0]), len(rows), 8, 3, 0, 0, 0)  # 8 bits a pixel, from a palette
    opacity = [0, *(FAINTEST + (1 - FAINTEST) * (level - 1) / (LEVELS - 1) for level in range(1, LEVELS + 1))]
    chunks = {
        b"IHDR": header,
        b"PLTE": bytes(WRONG) * (LEVELS + 1),
        b"tRNS": bytes(round(255 * share) for share in opacity),
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows), 9),
        b"IEND": b"",
    }
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return "data:image/png;base64," + base64.b64encode(content).decode()


def error_to_bound(record: Record) -> float:
    """How much of its bound the error of a judged case takes: up to 1 where right; inf where no error was allowed."""
    if not record.mismatches:
        return record.tightness
    return max(
        abs(mismatch.got - mismatch.expected) / mismatch.bound
        if mismatch.got is not None and mismatch.bound
        else math.inf
        for mismatch in record.mismatches
    )


def place(ratio: float) -> float:
    """Where a ratio lies on a strip, from 0 to ``WIDTH``."""
    if not ratio < math.inf:  # NaN too
        return WIDTH - ENDS / 2
    if ratio <= 0:
        return ENDS / 2
    low, high = DECADES
    share = (math.log10(ratio) - low) / (high - low)
    return ENDS + (WIDTH - 2 * ENDS) * min(1.0, max(0.0, share))


def strip(right: Sequence[float], wrong: Sequence[float], label: str) -> Html:
    """A line for each case at its error / bound: short ones right, tall ones wrong."""
    return tag(
        "svg",
        tag("path", d=f"M{place(1)} 0V24", class_="bound"),
        tag("path", d=_ticks(right, 7, 17), class_="right"),
        tag("path", d=_ticks(wrong, 1, 23), class_="wrong"),
        class_="strip",
        viewBox=f"0 0 {WIDTH} 24",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def power_curve(points: Sequence[CurvePoint]) -> Html:
    """The chance to see a fault against seconds, both of a screen, a line for each rate; seconds by their logarithm."""
    first, last = (math.log(points[end].seconds) for end in (0, -1))
    places = [ENDS + (WIDTH - 2 * ENDS) * (math.log(point.seconds) - first) / (last - first) for point in points]
    lines, words = [], []
    for number, rate in enumerate(points[0].chances):
        chances = [point.chances[rate] for point in points]
        heights = [CURVE_HEIGHT - 20 - (CURVE_HEIGHT - 40) * chance for chance in chances]
        path = "L".join(f"{at:.0f} {height:.0f}" for at, height in zip(places, heights, strict=True))
        lines.append(
            tag("path", d=f"M{path}", class_="curve", style=f"stroke-dasharray:{DASHES[number % len(DASHES)]}")
        )
        lines.append(tag("text", f"1 in {1 / float(rate):,.0f}", x=f"{places[-1] + 4:.0f}", y=f"{heights[-1] - 4:.0f}"))
        words.append(f"1 in {1 / float(rate):,.0f} tiles: {chances[0]:.0%} to {chances[-1]:.0%}")
    ticks = [
        tag("text", f"{point.seconds:g} s", x=f"{at:.0f}", y=str(CURVE_HEIGHT - 4))
        for point, at in zip(points, places, strict=True)
    ]
    return tag(
        "svg",
        *lines,
        *ticks,
        class_="power",
        viewBox=f"0 0 {WIDTH + ENDS} {CURVE_HEIGHT}",
        role="img",
        aria_label=f"chance to see a fault after {points[0].seconds:g} to {points[-1].seconds:g} s: {'; '.join(words)}",
    )


def _ticks(ratios: Iterable[float], top: int, bottom: int) -> str:
    return "".join(f"M{at:g} {top}V{bottom}" for at in sorted({round(place(ratio)) for ratio in ratios}))


def scale() -> Html:
    """The words over the strips, each at its place; minor ones where there is room."""
    words = {0.0: "0", 1e-2: "1%", 1e-1: "10%", 1.0: "bound", 1e1: "×10", 1e2: "×100", math.inf: "∞"}
    marks = (
        tag("span", word, class_="minor" if ratio in (1e-1, 1e1) else None, style=f"left:{place(ratio) / WIDTH:.1%}")
        for ratio, word in words.items()
    )
    return tag("div", *marks, class_="scale", aria_hidden="true")
