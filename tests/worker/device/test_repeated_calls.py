"""Calls on the same operands must give the bits that were judged, whichever call it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.worker.device.repeated_calls import RepeatedCalls


def differences(*later: dict[str, Any]) -> list[str]:
    judged = {"y": torch.tensor([1.0, torch.nan]), "ids": torch.tensor([3])}
    repeats = RepeatedCalls(judged)
    for outputs in later:
        repeats.add({**judged, **outputs})
    judged["y"].zero_()
    return repeats.differences(2)


@pytest.mark.parametrize(
    "other", [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, torch.nan]), torch.zeros(3), torch.zeros(2).double()]
)
def test_the_first_call_with_other_bits_is_named(other: Any) -> None:
    words = "call 4 of 5 with equal inputs gave other bits than those judged: "
    assert differences({}, {"y": other}, {"y": other}) == [words + "y"]
    assert differences({}, {"y": other, "ids": torch.tensor([4])}, {}) == [words + "y, ids"]


def test_equal_bits_are_no_difference_and_nan_equals_itself() -> None:
    assert differences() == differences({}, {}) == []
    nothing = RepeatedCalls({})
    nothing.add({})
    assert nothing.differences(2) == []


def test_an_output_that_is_missing_later_differs() -> None:
    repeats = RepeatedCalls({"y": torch.ones(2)})
    repeats.add({})
    assert repeats.differences(2) == ["call 3 of 3 with equal inputs gave other bits than those judged: y"]


def test_memory_that_a_later_call_writes_again_does_not_hide_it() -> None:
    y = torch.ones(2)
    repeats = RepeatedCalls({"y": y})
    repeats.add({"y": y.add_(1)})
    assert len(repeats.differences(2)) == 1


def test_the_same_outputs_have_all_names_forms_and_bits_of_those_judged() -> None:
    judged = {"y": torch.tensor([1.0, torch.nan]), "ids": torch.tensor([3])}
    repeats = RepeatedCalls(judged)
    copies = {name: value.clone() for name, value in judged.items()}
    judged["y"].zero_()
    assert repeats.same(copies)
    others = [{"y": copies["y"]}, {**copies, "z": copies["y"]}, dict(reversed(copies.items()))]
    others += [{**copies, "y": y} for y in (judged["y"], copies["y"].double(), copies["y"][None])]
    assert not any(map(repeats.same, others))
    assert not RepeatedCalls({}).same({})
