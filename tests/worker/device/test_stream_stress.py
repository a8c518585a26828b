"""Producers and consumers, with a stand-in for the stream of a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gpucheck.worker.device import stream_stress as ordering


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was put on the stream, in order."""
    seen: list[str] = []

    @contextmanager
    def device(which: Any) -> Iterator[None]:
        seen.append(f"enter {which}")
        yield
        seen.append("leave")

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seen.append(f"sleep {cycles}"))
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.uint8])
def test_inputs_are_nan_until_they_are_produced(order: list[str], dtype: torch.dtype) -> None:
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    held = whole.t()  # strides other than row-major
    produce = ordering.hold_back([held], torch.device("cuda", 1))
    bits = held.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize])
    assert set(bits.flatten().tolist()) == {255 if dtype.itemsize == 1 else -1}
    if dtype.is_floating_point:
        assert bool(held.float().isnan().all())
    assert order == []
    produce()
    assert torch.equal(held.float(), torch.arange(24).reshape(4, 6).to(dtype).t().float())
    assert order == ["enter cuda:1", f"sleep {ordering.DELAY}", "leave"]


def test_a_consumer_has_poison_until_it_reads() -> None:
    outputs = {"y": torch.arange(6.0).view(2, 3), "n": torch.arange(4)}
    read = ordering.reader(outputs)
    ready = read.__closure__ and next(cell.cell_contents for cell in read.__closure__)
    assert bool(ready["y"].isnan().all()) and set(ready["n"].tolist()) == {-1}
    later = {"y": outputs["y"] + 1, "n": outputs["n"] * 2}
    got = read(later)
    assert all(torch.equal(got[name], later[name]) for name in later)
    later["y"].zero_()
    assert bool((got["y"] == torch.arange(6.0).view(2, 3) + 1).all()), "what was read stays as it was"


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.float64)])
def test_a_consumer_says_what_changed_its_form(other: Any) -> None:
    read = ordering.reader({"y": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"y is torch.float\d\d .*, was torch.float32 \(2, 3\) a launch before"):
        read({"y": other})


def test_launches_are_delayed_where_they_go_and_inputs_where_they_lie(order: list[str]) -> None:
    ordering.delay_launches()
    ordering.delay(torch.device("cuda", 3))
    sleep = f"sleep {ordering.DELAY}"
    assert order == [sleep, "enter cuda:3", sleep, "leave"]
