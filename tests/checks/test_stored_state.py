"""What a loader stored otherwise than it was given is named by tensor and expert, and what is right is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpucheck.checks.stored_state import AS_GIVEN, differences, loader_words, scale_groups
from gpucheck.library.engines.base import STORED
from gpucheck.model.record import EnginePart, Launch

E, K, N = 3, 64, 8
SCALES = STORED["up_scale"]


def given() -> dict[str, Tensor]:
    """A checkpoint of 3 experts, 64 terms and 8 columns."""
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(1, 200, shape, generator=generator, dtype=torch.uint8)

    held = {name: drawn(E, K // 2, N) for name in ("up", "down")}
    held |= {name: drawn(E, K // 32, N) for name in ("up_scale", "down_scale")}
    return held | {name: drawn(E, N).bfloat16() for name in ("up_bias", "down_bias", "router")}


def padded(held: dict[str, Tensor], value: int = 0, scale: int = 127) -> dict[str, Tensor]:
    """As an engine stores it: more rows and columns than the checkpoint has, and biases in fp32."""
    made = {}
    for name, tensor in held.items():
        fill = scale if name.endswith("_scale") else value
        size = (0, 2) if tensor.ndim == 2 else (0, 2, 0, 2)
        made[name] = torch.nn.functional.pad(tensor.float(), size, value=float(fill)).to(
            torch.float32 if tensor.ndim == 2 else torch.uint8
        )
    return made


def test_what_is_stored_with_a_padding_that_does_no_harm_is_as_given() -> None:
    held = given()
    assert not list(differences(held, held))
    assert not list(differences(padded(held), held))
    assert scale_groups(padded(held), ", tp rank 1")[f"{SCALES}, tp rank 1"] == 4


@pytest.mark.parametrize("name", STORED)
def test_a_value_of_one_expert_that_differs_is_named(name: str) -> None:
    held = given()
    stored = padded(held)
    stored[name][1].flatten()[0] += 1
    (line,) = differences(stored, held, ", ep rank 1")
    assert line.startswith(f"{STORED[name]}, ep rank 1 differ in ") and line.endswith("of values, of expert 1")


def test_an_exchange_of_experts_a_missing_tensor_and_a_wrong_shape_are_named() -> None:
    held = given()
    stored = {**held, "down": held["down"].roll(1, 0), "up_scale": held["up_scale"].mT}
    del stored["down_bias"]
    missing, down, scales = sorted(differences(stored, held), key=lambda line: "weights" in line)[0:3]
    assert missing == "biases of the second product are not there"
    assert "weights of the second product differ in" in f"{down} {scales}" and "of every expert" in f"{down} {scales}"
    assert "have shape (3, 8, 2), expected at least (3, 2, 8)" in f"{down} {scales}"


def test_a_padding_that_does_harm_is_named() -> None:
    held = given()
    lines = list(differences(padded(held, value=3, scale=255), held))
    assert f"{SCALES} are padded with 255, which is NaN" in lines and len(lines) == len(STORED)
    assert f"{STORED['down']} are padded with other values than 0" in lines
    assert not list(differences(padded(held, scale=254), held)), "times values of zero, that is zero"


def launched(block: int) -> Launch:
    """A launch of a product that adds up so many terms at once."""
    none: dict[str, Any] = {"device": None, "argument_devices": [], "stream": None, "hash": "", "arch": ""}
    return Launch("_matmul", 2, **none, shared=0, warps=4, grid=[1], configuration={"BLOCK_K": block})


def part(**facts: Any) -> EnginePart:
    return EnginePart("vllm", "1.0", **facts)


def test_the_loader_is_told_by_what_it_stored_and_by_what_is_read_behind_that() -> None:
    launch = launched(128)
    ten = part(stored=AS_GIVEN, scale_groups={SCALES: 10, STORED["down_scale"]: 4})
    around = f"outside of the uint8 tensor of shape (3, 320, 8), {SCALES}"
    told = f"loader: {SCALES} are 10 groups, a product reads 12, and nothing pads them"
    assert loader_words(ten, around, [launch]) == told
    assert loader_words(part(stored="scales differ"), "", [launch]) == "loader: scales differ"
    said = loader_words(part(stored="scales differ"), "", [launch], explained=True)
    assert said == "loader: what is stored is not as in the checkpoint"
    assert loader_words(part(), around, [launch]) == loader_words(None, around, [launch]) == ""


@pytest.mark.parametrize(
    ("groups", "around", "block"),
    [
        pytest.param(10, "", 128, id="nothing is read behind them"),
        pytest.param(12, SCALES, 128, id="they fill what a product reads at once: an expert that is not there is read"),
        pytest.param(10, SCALES, 64, id="likewise, of a product that reads less"),
        pytest.param(10, STORED["up_bias"], 128, id="what is read lies behind another tensor"),
    ],
)
def test_the_loader_is_not_blamed_for_what_is_no_padding(groups: int, around: str, block: int) -> None:
    launch = launched(block)
    held = part(stored=AS_GIVEN, scale_groups={SCALES: groups})
    assert loader_words(held, around, [launch]) == f"not the loader: {AS_GIVEN}"
