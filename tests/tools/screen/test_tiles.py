"""The kernels of the screen against what the CPU knows beforehand, and plants in each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gpucheck.tools.screen import known_tiles
from gpucheck.tools.screen.datapaths import DATAPATHS, Datapath, ceiling, chosen
from gpucheck.tools.screen.tally import Tally

SMALL = {path.name: path for path in chosen((9, 0), small=True)}
BITS = 0x410


def screened(launches: Any, path: Datapath, times: int, plant: Any = None) -> Tally:
    device = launches.Device(3, [plant] if plant else [])
    right = known_tiles.known_bits(path, 3)
    known = known_tiles.known_digests(right)
    ready = device.prepare(path, [int(each) for each in known])
    if not right:
        known = ready.expected.numpy().copy()
    tally = Tally(path, known, right)
    for _ in range(times):
        launched = device.launch(ready, 2)
        came = device.finish(launched)
        details = [[program, group] for program, (group, _) in came["details"].items()]
        header = {"start": launched.start, "groups": 2, "seconds": 1.0, "details": details}
        header["multiprocessors"] = came["multiprocessors"].tolist()
        bits = [each.tobytes() for _, each in came["details"].values()]
        tally.take(header, came["digests"].tobytes(), bits, {"temperature": 40, "sm_clock": 1980})
    return tally


@pytest.mark.parametrize("name", SMALL)
def test_a_kernel_gives_the_digests_that_were_known_before_on_every_multiprocessor(launches: Any, name: str) -> None:
    tally = screened(launches, SMALL[name], 4)
    assert not tally.wrong
    assert tally.tiles == dict.fromkeys(range(launches.STAND_INS), 8 * SMALL[name].tiles)


@pytest.mark.parametrize("name", SMALL)
def test_flipped_bits_are_found_on_the_multiprocessor_that_flips_them_and_named(launches: Any, name: str) -> None:
    tally = screened(launches, SMALL[name], 3, launches.Plant(name, 2, BITS, 1.0))
    (wrong,) = tally.wrong_multiprocessors()
    assert (wrong.number, wrong.wrong, wrong.digests) == (2, 6, 6)
    assert (wrong.temperature, wrong.sm_clock) == (40, 1980)
    if SMALL[name].exact:
        assert (wrong.bits, wrong.elements) == ([hex(BITS)], 1)


def test_one_flipped_bit_anywhere_changes_the_digest() -> None:
    made = np.random.default_rng(5)
    for dtype, width in ((np.int32, 32), (np.int64, 64)):
        bits = made.integers(-(2**31), 2**31, 64).astype(dtype)
        before = known_tiles.known_digests([bits])[0]
        for bit in range(width):
            for element in (0, 17, 63):
                changed = bits.copy().view(np.uint32 if width == 32 else np.uint64)
                changed[element] ^= changed.dtype.type(1) << changed.dtype.type(bit)
                assert known_tiles.known_digests([changed.view(dtype)])[0] != before


def test_elements_that_change_places_change_the_digest() -> None:
    bits = np.arange(64, dtype=np.int32)
    assert known_tiles.known_digests([bits])[0] != known_tiles.known_digests([bits[::-1].copy()])[0]


@pytest.mark.parametrize(
    "path", [path for path in DATAPATHS if path.kernel == "tensor_core"], ids=lambda path: path.name
)
def test_no_sum_of_a_product_can_round_at_the_size_that_gpus_run(path: Datapath) -> None:
    """The sizes of the GPU with fewer columns: what a sum holds does not depend on these."""
    narrow = replace(path, block=(16, 16, path.block[2]))
    assert len(known_tiles.known_bits(narrow, 0)) == narrow.numbers
    with pytest.raises(AssertionError, match="is added exactly"):
        known_tiles.known_bits(replace(narrow, largest=1 << 30), 0)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "float64", "float32"])
def test_operands_fit_their_format(name: str) -> None:
    torch = pytest.importorskip("torch")
    path = next(path for path in DATAPATHS if path.format == name and path.kernel == "tensor_core")
    for values in known_tiles.operands(replace(path, block=(16, 16, path.block[2])), 0):
        held = torch.from_numpy(values).to(getattr(torch, name))
        assert torch.equal(held.to(torch.float64), torch.from_numpy(values))
        if name == "float32":  # tf32 keeps 10 bits behind the point
            assert not (held.view(torch.int32) & 0x1FFF).any()


def test_the_patterns_of_a_walk_depend_on_the_address_and_each_has_its_inverse() -> None:
    address = np.arange(4096, dtype=np.uint32)
    words = [known_tiles.pattern(number, address) for number in range(8)]
    assert all((words[number] == ~words[number + 1]).all() for number in (0, 2, 4, 6))
    assert all(len(np.unique(each)) >= 2 for each in words)


def test_a_gpu_is_asked_for_the_datapaths_that_it_has() -> None:
    older = {path.name for path in chosen((8, 0))}
    assert "tensor bf16" in older and not [name for name in older if "fp8" in name]
    assert {path.name for path in chosen((7, 5))} == older - {"tensor bf16", "tensor tf32", "tensor fp64"}


def test_a_ceiling_is_told_for_the_cards_whose_data_sheet_is_known() -> None:
    assert ceiling("sm_90", "tensor bf16", 132) == pytest.approx(989.4)
    assert ceiling("sm_90", "tensor bf16", 66) == pytest.approx(989.4 / 2)
    assert ceiling("sm_999", "tensor bf16", 132) == 0.0


def test_a_digest_that_was_not_written_is_wrong(launches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that does nothing must not pass for one that found nothing."""
    path = SMALL["integer"]
    known = known_tiles.known_digests(known_tiles.known_bits(path, 3))
    device = launches.Device(3)
    ready = device.prepare(path, [int(each) for each in known])
    monkeypatch.setitem(launches.KERNELS, "chain", {(device.programs,): lambda *_, **__: None})
    launched = device.launch(ready, 2)
    came = device.finish(launched)
    tally = Tally(path, known, [])
    header = {"start": launched.start, "groups": 2, "seconds": 1.0, "details": [], "multiprocessors": [0, 1, 2, 3]}
    tally.take(header, came["digests"].tobytes(), [], {})
    assert [tally.wrong[number] for number in range(4)] == [2, 2, 2, 2]


def test_a_walk_visits_each_block_of_its_region_once_and_leaves_the_cache(launches: Any) -> None:
    for path in DATAPATHS:
        if path.kernel == "walk":
            for number in range(path.numbers):
                assert len({(step * 5 + number * 3 + 1) % path.steps for step in range(path.steps)}) == path.steps
    region = {path.name: 4 * path.words * 132 / 2**20 for path in DATAPATHS}  # MiB on an H200, whose L2 has 50
    assert region["L2"] < 50 < 100 < region["device memory"] < 256  # idle-time screens are to stay below 1 GiB
