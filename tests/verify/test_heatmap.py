from __future__ import annotations

import pytest
import torch

from gpucheck.model.record import Heat
from gpucheck.verify.expected import Axes
from gpucheck.verify.heatmap import MOST_CELLS, cell_size, heat_map


def map_of(wrong: torch.Tensor, *tile: int) -> Heat:
    names = ("batch", "head", "row", "column")[-wrong.ndim :]
    heat = heat_map(wrong, Axes(names, tile or (0,) * wrong.ndim))
    assert heat is not None
    return heat


def none_wrong(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def test_a_wrong_tile_is_a_sharp_square() -> None:
    wrong = none_wrong(512, 384)
    wrong[128:256, 256:384] = True
    heat = map_of(wrong, 128, 128)
    assert (heat.shape, heat.cell, heat.tile, heat.block) == ([512, 384], [16, 8], [128, 128], 512)
    marked = {(r, c) for r, row in enumerate(heat.per_mille) for c, share in enumerate(row) if share}
    assert marked == {(r, c) for r in range(8, 16) for c in range(32, 48)}
    assert {share for row in heat.per_mille for share in row} == {0, 1000}


def test_shares_are_those_of_each_cell_also_at_the_edges() -> None:
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand((101, 97), generator=generator) < 0.3
    heat = map_of(wrong)
    assert heat.cell == [3, 3] and (len(heat.per_mille), len(heat.per_mille[0])) == (34, 33)
    for row, column in ((0, 0), (10, 20), (33, 5), (5, 32), (33, 32)):
        part = wrong[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert heat.per_mille[row][column] == round(1000 * float(part.double().mean()))


def test_one_wrong_element_among_millions_shows_and_one_right_one_too() -> None:
    wrong = none_wrong(4800, 4800)
    wrong[4799, 0] = True
    heat = map_of(wrong)
    assert heat.per_mille[-1][0] == 1 and sum(map(sum, heat.per_mille)) == 1
    heat = map_of(~wrong)
    assert heat.per_mille[-1][0] == 999 and sum(map(sum, heat.per_mille)) == 48 * 48 * 1000 - 1


@pytest.mark.parametrize("extent", [1, 7, 47, 48, 49, 64, 129, 1000, 5760, 201_088])
@pytest.mark.parametrize("tile", [0, 1, 16, 48, 100, 128])
def test_cells_are_few_and_line_up_with_tiles(extent: int, tile: int) -> None:
    size = cell_size(extent, tile)
    assert 1 <= -(-extent // size) <= MOST_CELLS
    assert not tile or size % tile == 0 or tile % size == 0


def test_leading_axes_become_rows_and_tiles_begin_anew_in_each() -> None:
    wrong = none_wrong(2, 3, 64, 8)
    wrong[1, 0, 32:64] = True
    heat = map_of(wrong, 0, 0, 32, 0)
    assert (heat.shape, heat.tile, heat.block, heat.cell) == ([384, 8], [32, 0], 64, [8, 1])
    assert [row for row, shares in enumerate(heat.per_mille) if any(shares)] == [28, 29, 30, 31]


def test_tiles_that_do_not_line_up_with_the_matrix_are_still_told() -> None:
    heat = map_of(none_wrong(2, 3, 100, 64), 0, 0, 64, 0)
    assert (heat.shape, heat.tile, heat.block, heat.cell) == ([600, 64], [64, 0], 100, [13, 2])


def test_a_tiled_axis_above_others_counts_their_rows() -> None:
    heat = map_of(none_wrong(10, 4, 16), 5, 0, 0)
    assert (heat.shape, heat.tile, heat.block) == ([40, 16], [20, 0], 40)


def test_vectors_are_one_row_and_single_numbers_have_no_map() -> None:
    wrong = none_wrong(96)
    wrong[95] = True
    heat = map_of(wrong)
    assert (heat.shape, heat.cell, heat.block) == ([1, 96], [1, 2], 1) and heat.per_mille == [[0] * 47 + [500]]
    assert heat_map(torch.tensor(True), Axes((), ())) is None
    assert heat_map(none_wrong(0, 5), Axes(("row", "column"), (0, 0))) is None
