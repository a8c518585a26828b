from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpucheck.verify import regions
from gpucheck.verify.expected import Axes


def wrong(shape: tuple[int, ...], *places: tuple[int | slice, ...]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        mask[place] = True
    return mask


ALL = slice(None)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([3], "row 3 of 64"),
        ([0], "row 0 of 64"),
        ([8, 9, 10, 11, 12, 13, 14, 15], "rows 8-15 of 64"),
        ([62, 63], "rows 62-63 of 64"),
        ([1, 5], "2 of 64 rows (1, 5)"),
        ([0, 2, 4, 6, 8, 10], "6 of 64 rows (0, 2, 4, 6, 8, 10)"),
        ([0, 2, 4, 6, 8, 10, 12], "7 of 64 rows (0, 2, 4, 6, 8, 10, ...)"),
        (list(range(64)), "all 64 rows"),
    ],
)
def test_spans(rows: list[int], words: str) -> None:
    assert regions.spans(wrong((64,), *((row,) for row in rows)), "row") == words


def test_spans_of_one_place_and_odd_plurals() -> None:
    assert regions.spans(torch.tensor([True]), "row") == "the only row"
    assert regions.spans(torch.ones(3, dtype=torch.bool), "batch") == "all 3 batches"
    assert regions.spans(torch.tensor([False, True, True]), "query") == "queries 1-2 of 3"
    assert regions.spans(torch.ones(8, dtype=torch.bool), "place on axis 0") == "all 8 places on axis 0"


def test_box_is_tight_in_every_axis() -> None:
    mask = wrong((4, 5, 6), (1, 2, 3), (2, 0, 5))
    assert regions.box(mask) == [[1, 2], [0, 2], [3, 5]]
    assert regions.box(wrong((7,), (4,))) == [[4, 4]]


def test_tiles_count_over_the_tiled_axes_only() -> None:
    mask = wrong((2, 300, 300), (0, 0, 0), (1, 127, 127), (1, 128, 299))
    tiles, bad, total = regions.wrong_tiles(mask, Axes(("batch", "row", "column"), (0, 128, 128)))
    assert (tiles, bad, total) == ([[0, 0], [1, 2]], 2, 9)
    assert regions.wrong_tiles(mask, Axes(("batch", "row", "column"), (0, 0, 0))) == ([], 0, 0)


def test_at_most_sixteen_tiles_are_listed() -> None:
    tiles, bad, total = regions.wrong_tiles(torch.ones(10, 10, dtype=torch.bool), Axes(("row", "column"), (2, 2)))
    assert (len(tiles), bad, total) == (16, 25, 25)


def test_describe_names_rows_columns_and_tiles() -> None:
    axes = Axes(("row", "column"), (128, 128))
    assert (
        regions.describe(wrong((256, 512), (slice(128, 256), slice(256, 384))), axes)
        == "rows 128-255 of 256, columns 256-383 of 512, tile (1, 2) of 8"
    )
    assert regions.describe(wrong((256, 512), (0, 0), (255, 511)), axes).endswith("2 of 8 tiles")
    assert "tile" not in regions.describe(wrong((64, 64), (0, 0)), axes)  # one tile is no news


def sorted_rows(*counts: int) -> Axes:
    """Rows sorted by expert, ``counts`` rows each."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))[:, None]
    return Axes(("row", "column"), (0, 0), {"expert": owner})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (range(4, 8), "exactly expert 1"),
        ([*range(4), *range(8, 12)], "exactly experts 0, 3"),
        ([4], "touching expert 1"),
        ([3, 4], "touching experts 0, 1"),
        ([0, 1, 2, 3, 4], "touching experts 0, 1"),  # one whole, one in part
        (range(12), "every expert"),
    ],
)
def test_wrong_rows_are_put_down_to_experts(rows: range | list[int], words: str) -> None:
    mask = wrong((12, 3), *((row, 1) for row in rows))
    assert regions.owners(mask, sorted_rows(4, 4, 0, 4)) == [words]


def test_tokens_belong_to_several_experts() -> None:
    membership = torch.tensor([[0, 1], [0, 2], [1, 2], [1, 3]])
    axes = Axes(("token", "column"), (0, 0), {"expert": membership})
    assert regions.owners(wrong((4, 2), (0, 0), (2, 0), (3, 0)), axes) == ["exactly experts 1, 3"]
    assert regions.owners(wrong((4, 2), (1, 0)), axes) == ["touching experts 0, 2"]


def test_rows_without_an_owner_are_nobodys() -> None:
    none = torch.full((4, 1), -1)
    assert regions.owners(wrong((4, 2), (0, 0)), Axes(("row", "column"), (0, 0), {"expert": none})) == []
    some = torch.tensor([[0], [0], [1], [-1]])
    mask = wrong((4, 2), (0, 0), (1, 1), (3, 0))
    assert regions.owners(mask, Axes(("row", "column"), (0, 0), {"expert": some})) == ["touching expert 0"]
    assert regions.owners(wrong((4, 2), (3, 0)), Axes(("row", "column"), (0, 0), {"expert": some})) == [
        "touching no expert"
    ]


def test_many_experts_are_cut() -> None:
    text = regions.owners(wrong((20, 1), *((row, 0) for row in range(0, 20, 2))), sorted_rows(*[1] * 20))
    assert text == ["exactly experts 0, 2, 4, 6, 8, 10, ..."]
