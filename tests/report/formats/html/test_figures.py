from __future__ import annotations

import base64
import math
import re
import struct
import zlib

import pytest

from gpucheck.model.record import Heat, Outcome
from gpucheck.report.formats.html.figures import (
    FAINTEST,
    LEVELS,
    MOST_LINES,
    WIDTH,
    error_to_bound,
    heat_figure,
    place,
    png,
    scale,
    strip,
)
from tests.conftest import Synthetic


def opacities(uri: str) -> list[list[int]]:
    """The opacity of each pixel, read as a viewer of PNG files does."""
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        assert struct.unpack(">I", content[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + data)
        chunks[kind], at = data, at + 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    width, height, depth, colour = struct.unpack(">2I2B", chunks[b"IHDR"][:10])
    assert (depth, colour, len(chunks[b"PLTE"])) == (8, 3, 3 * len(chunks[b"tRNS"]))
    lines = zlib.decompress(chunks[b"IDAT"])
    assert len(lines) == height * (width + 1) and not any(lines[:: width + 1])
    return [[chunks[b"tRNS"][lines[row * (width + 1) + 1 + x]] for x in range(width)] for row in range(height)]


def picture(heat: Heat) -> list[list[int]]:
    found = re.search(r'href="(data:[^"]+)"', heat_figure(heat, "a map"))
    assert found
    return opacities(found[1])


def lines(heat: Heat) -> tuple[list[float], list[float]]:
    """Where tile lines lie, in cells from the top and from the left."""
    found = re.search(r'<path d="([^"]*)" class="tiles"', heat_figure(heat, "a map"))
    assert found
    across = re.findall(r"M0 ([\d.]+)H", found[1])
    down = re.findall(r"M([\d.]+) 0V", found[1])
    return [float(place) for place in across], [float(place) for place in down]


def test_the_opacity_of_a_cell_is_its_share() -> None:
    heat = Heat([3, 3], [1, 1], [0, 0], 3, [[0, 1, 500], [999, 1000, 0], [250, 750, 30]])
    shown = picture(heat)
    faintest = round(255 * FAINTEST)
    assert (shown[0][0], shown[1][2], shown[1][1]) == (0, 0, 255)
    assert shown[0][1] == faintest and shown[1][0] == 255
    ordered = [shown[row][column] for row, column in ((0, 1), (2, 2), (2, 0), (0, 2), (2, 1), (1, 1))]
    assert ordered == sorted(ordered) and len(set(ordered)) >= 5
    assert len(opacities(png([bytes(range(LEVELS + 1))]))[0]) == LEVELS + 1


def test_tile_lines_lie_where_tiles_meet() -> None:
    assert lines(Heat([512, 384], [16, 8], [128, 128], 512, [[0] * 48] * 32)) == ([8, 16, 24], [16, 32])
    assert lines(Heat([64, 64], [2, 2], [128, 128], 64, [[0] * 32] * 32)) == ([], [])
    assert lines(Heat([96, 8], [2, 1], [0, 3], 96, [[0] * 8] * 48)) == ([], [3, 6])


def test_tiles_begin_anew_in_each_batch() -> None:
    heat = Heat([300, 64], [10, 2], [64, 0], 100, [[0] * 32] * 30)
    assert lines(heat) == ([6.4, 10, 16.4, 20, 26.4], [])


def test_lines_never_hide_the_map() -> None:
    wide = Heat([1, 201_088], [1, 4224], [0, 128], 1, [[0] * 48])
    _, down = lines(wide)
    assert len(down) <= MOST_LINES and down == sorted(down)
    assert all(round(place * 4224) % 128 == 0 for place in down)


def test_a_cut_cell_at_the_edge_is_cut_in_the_picture() -> None:
    figure = heat_figure(Heat([101, 97], [3, 3], [0, 0], 101, [[0] * 33] * 34), "a <map>")
    assert 'viewBox="0 0 32.3333 33.6667"' in figure and 'aria-label="a &lt;map&gt;"' in figure


def test_places_on_a_strip_are_in_order() -> None:
    ratios = [0.0, 1e-9, 1e-3, 0.01, 0.1, 0.5, 1.0, 1.0001, 2.0, 100.0, 1e3, 1e9, math.inf]
    places = [place(ratio) for ratio in ratios]
    assert places == sorted(places) and places[0] > 0 and places[-1] < WIDTH
    assert place(1.0) == WIDTH / 2 and place(math.nan) == place(math.inf) > place(1e9) > place(1.0001) > WIDTH / 2


def test_the_share_of_a_bound(synthetic: Synthetic) -> None:
    plan = synthetic.plan()

    def ratio(*mismatches: object, **changes: object) -> float:
        outcome = Outcome.MISMATCH if mismatches else Outcome.PASS
        return error_to_bound(synthetic.record(plan, 0, 0, outcome, mismatches=list(mismatches), **changes))

    assert ratio(tightness=0.25) == 0.25
    bound = {"method": "bound", "expected": 1.0, "bound": 0.5}
    assert ratio(synthetic.mismatch(got=3.0, **bound)) == 4.0
    assert ratio(synthetic.mismatch(got=3.0, **bound), synthetic.mismatch(got=-9.0, **bound)) == 20.0
    assert ratio(synthetic.mismatch(got=None, **bound)) == ratio(synthetic.mismatch()) == math.inf


def test_a_strip_has_a_line_for_each_case() -> None:
    shown = strip([0.0, 0.01, 0.01, 0.5], [7.0, math.inf], "rank 1")
    right = re.search(r'd="([^"]*)" class="right"', shown)
    wrong = re.search(r'd="([^"]*)" class="wrong"', shown)
    assert right and wrong and right[1].count("M") == 3 and wrong[1].count("M") == 2  # equal ones share a line
    assert 'aria-label="rank 1"' in shown and 'd=""' in strip([], [], "none")


@pytest.mark.parametrize("word", ["0", "1%", "bound", "∞"])
def test_the_scale_names_places(word: str) -> None:
    assert f">{word}</span>" in scale()
