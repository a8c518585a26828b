"""The operations, on the CPU: right there, and caught when the arithmetic is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.tools.doctor import operations


@pytest.mark.parametrize("operation", [operations.allocate, operations.matmul, operations.seed])
def test_a_sound_device(operation: Any) -> None:
    found = operation("cpu")
    assert found["problem"] == "" and found["value"]


def test_the_survey_of_a_machine_without_gpus() -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    assert operations.survey("") == {**operations.survey(""), "problem": "", "devices": [], "peers": []}


@pytest.mark.parametrize("dtype", operations.DTYPES)
def test_one_wrong_element_of_a_product_is_seen(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    right = torch.Tensor.__matmul__

    def wrong(left: Any, other: Any) -> Any:
        product = right(left, other)
        if product.dtype is getattr(torch, dtype):
            product[17, 5] += product[17, 5].abs() / 128 + 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    problem = operations.matmul("cpu")["problem"]
    assert problem.startswith(f"{dtype}: 1 of {512 * 384} elements wrong, first at (17, 5): expected ")


def test_memory_that_forgets_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fill = torch.Tensor.fill_

    def forgetful(block: Any, value: Any) -> Any:
        fill(block, value)
        block[12345] = 0
        return block

    monkeypatch.setattr(torch.Tensor, "fill_", forgetful)
    problem = operations.allocate("cpu")["problem"]
    assert problem == f"1 of {operations.BLOCK} bytes lost the pattern 0xFF"


def test_a_seed_that_does_not_hold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda _: None)
    assert "other numbers" in operations.seed("cpu")["problem"]


@pytest.mark.parametrize(("lost", "problem"), [(0, ""), (3, f"3 of {operations.COPY} bytes differ, the first at 1000")])
def test_copies_are_compared_with_what_was_sent(monkeypatch: pytest.MonkeyPatch, lost: int, problem: str) -> None:
    def to(tensor: Any, device: str) -> Any:
        """Stands in for two GPUs; the second loses bits of what arrives."""
        arrived = tensor.clone()
        if device == "cuda:1":
            arrived[1000 : 1000 + lost] ^= 0x40
        return arrived

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert operations.copy((0, 1))["problem"] == problem
