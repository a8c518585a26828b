"""The map of an error over an output as a small picture of characters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gpucheck.model.record import Heat

SHADES = " ░▒▓█"
PLAIN = ".-+#@"  # the same where there is nothing but ASCII
TALLEST = 24  # lines


def lines(heat: Heat, *, plain: bool) -> Iterator[str]:
    """One line for some rows of cells, led by the first row of the output it shows; then what the characters mean.

    Args:
        plain: ASCII only.
    """
    shades = PLAIN if plain else SHADES
    merged = -(-len(heat.per_mille) // TALLEST)
    bands = [heat.per_mille[start : start + merged] for start in range(0, len(heat.per_mille), merged)]
    labels = [str(number * merged * heat.cell[0]) for number in range(len(bands))]
    width = max(map(len, labels))
    side, corner = ("|", "+") if plain else ("│", "┼")
    columns = len(heat.per_mille[0])
    edge = ("-" if plain else "─") * columns
    yield f"{'':{width}} {corner}{edge}{corner}"
    for label, band in zip(labels, bands, strict=True):
        shares = (_share(column) for column in zip(*band, strict=True))
        yield f"{label:>{width}} {side}{''.join(shades[_level(share)] for share in shares)}{side}"
    yield f"{'':{width}} {corner}{edge}{corner}"
    tiles = f", tiles of {_tile(heat)}" if any(heat.tile) else ""
    yield (
        f"{heat.shape[0]} x {heat.shape[1]}, a character is {merged * heat.cell[0]} x {heat.cell[1]}{tiles}; "
        f"'{shades[0]}' right, '{shades[1]}' up to a third wrong, '{shades[2]}' up to two, '{shades[3]}' more, "
        f"'{shades[4]}' all"
    )


def _tile(heat: Heat) -> str:
    rows, columns = (size or whole for size, whole in zip(heat.tile, heat.shape, strict=True))
    return f"{rows} x {columns}"


def _share(cells: Sequence[int]) -> int:
    """Thousandths over cells of one size; 0 and 1000 only where all of them are."""
    if len(set(cells)) == 1:
        return cells[0]
    return min(999, max(1, round(sum(cells) / len(cells))))


def _level(share: int) -> int:
    return 0 if share == 0 else 4 if share == 1000 else math.ceil(share / 1000 * 3)
