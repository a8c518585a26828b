"""A coarse map of where an output is wrong, small enough for a record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpucheck.model.record import Heat
from gpucheck.verify.expected import Axes

MOST_CELLS = 48  # along each side


def heat_map(wrong: Tensor, axes: Axes) -> Heat | None:
    """The map of an output's wrong elements; None where the output is a single number.

    Cells line up with tiles wherever tiles line up with the matrix, so that a wrong tile shows as a sharp square.

    Args:
        wrong: bool, in the shape of the output.
    """
    if not wrong.ndim or not wrong.numel():
        return None
    matrix = wrong.reshape(-1, wrong.shape[-1])
    tile_rows, block = _row_tiles(wrong.shape, axes.tile)
    tile = [tile_rows, axes.tile[-1]]
    regular = not tile_rows or block % tile_rows == 0 or block == len(matrix)
    cell = [cell_size(matrix.shape[0], tile[0] if regular else 0), cell_size(matrix.shape[1], tile[1])]
    return Heat(list(matrix.shape), cell, tile, block, _per_mille(matrix, cell))


def cell_size(extent: int, tile: int) -> int:
    """The smallest extent of at most ``MOST_CELLS`` cells that divides a tile evenly or is made of whole tiles."""
    least = -(-extent // MOST_CELLS)
    if not tile:
        return least
    if least >= tile:
        return -(-least // tile) * tile
    return next(size for size in range(least, tile + 1) if tile % size == 0)


def _row_tiles(shape: Sequence[int], tile: Sequence[int]) -> tuple[int, int]:
    """Height of a tile in rows of the matrix and after how many rows tiles begin anew, for the innermost tiled axis."""
    for axis in reversed(range(len(shape) - 1)):
        if tile[axis]:
            below = math.prod(shape[axis + 1 : -1])
            return tile[axis] * below, shape[axis] * below
    return 0, math.prod(shape[:-1])


def _per_mille(matrix: Tensor, cell: Sequence[int]) -> list[list[int]]:
    rows = (band.split(cell[1], 1) for band in matrix.split(cell[0]))
    return [[_share(int(torch.count_nonzero(part)), part.numel()) for part in row] for row in rows]


def _share(wrong: int, total: int) -> int:
    """Thousandths; 0 and 1000 only where that is exact."""
    if wrong in (0, total):
        return 1000 * (wrong == total)
    return min(999, max(1, round(1000 * wrong / total)))
