from __future__ import annotations

from gpucheck.model.record import Heat
from gpucheck.tools.replay.ascii_heatmap import PLAIN, TALLEST, lines


def heat(per_mille: list[list[int]], cell: tuple[int, int] = (8, 4), tile: tuple[int, int] = (16, 0)) -> Heat:
    shape = [len(per_mille) * cell[0], len(per_mille[0]) * cell[1]]
    return Heat(shape, list(cell), list(tile), shape[0], per_mille)


def test_each_cell_is_a_character_with_the_first_row_beside() -> None:
    drawn = list(lines(heat([[0, 1, 333], [334, 999, 1000]]), plain=True))
    assert drawn[:4] == ["  +---+", "0 |.--|", "8 |+#@|", "  +---+"]
    assert drawn[4].startswith("16 x 12, a character is 8 x 4, tiles of 16 x 12; '.' right")


def test_blocks_on_a_utf8_terminal() -> None:
    drawn = list(lines(heat([[0, 1, 500, 999, 1000]], tile=(0, 0)), plain=False))
    assert drawn[1] == "0 │ ░▒▓█│" and "tiles" not in drawn[-1]


def test_plain_is_ascii() -> None:
    assert "".join(lines(heat([[0, 500, 1000]] * 3), plain=True)).isascii()


def test_a_tall_map_is_folded_and_loses_no_error() -> None:
    cells = [[0] for _ in range(48)]
    cells[17] = [1]
    drawn = list(lines(heat(cells), plain=True))
    body = [line for line in drawn if "|" in line]
    assert len(body) == 24 <= TALLEST and body[8].endswith(f"|{PLAIN[1]}|") and body[8].startswith("128 ")
    assert sum(PLAIN[0] not in line for line in body) == 1
