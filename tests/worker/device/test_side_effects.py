"""What a call does beside answering is seen: writes wherever operands hide, shared memory, odd outputs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpucheck.worker.device.side_effects import CallWatch, SideEffect

CPU = torch.device("cpu")


def watch_of(*given: Any) -> CallWatch:
    watch = CallWatch(CPU)
    for each in given:
        watch.hand_in(each)
    return watch


def seen(watch: CallWatch) -> list[tuple[str, str]]:
    watch.compare()
    return [(effect.kind, effect.words) for effect in watch.side_effects()]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_a_written_element_is_named_whatever_its_type(dtype: Any) -> None:
    x = torch.zeros(3, 4).to(dtype)
    watch = watch_of({"x": x})
    x.view(torch.uint8)[1, 2 * x.element_size()] = 1
    assert seen(watch) == [("inputs", "the call changed x: 1 of 12 elements, first at (1, 2)")]


def test_nan_that_stays_is_no_change_and_a_zero_of_the_other_sign_is_one() -> None:
    x = torch.tensor([torch.nan, 0.0, 1.0])
    watch = watch_of({"x": x})
    assert seen(watch) == []
    x[1] = -0.0
    assert seen(watch) == [("inputs", "the call changed x: 1 of 3 elements, first at (1)")]


@dataclass
class Weight:
    operand: Any
    fresh: Any


def test_weights_are_seen_inside_of_objects_and_behind_functions() -> None:
    scale = torch.zeros(2, dtype=torch.uint8)
    weight = Weight(SimpleNamespace(storage=SimpleNamespace(data=torch.zeros(2, 2))), lambda: scale)
    prepared = {"weight": weight}
    watch = watch_of({"x": torch.ones(1)}, prepared)
    weight.operand.storage.data[0, 1] = 5
    scale += 1
    assert [words for _, words in seen(watch)] == [
        "the call changed weight.operand.storage.data: 1 of 4 elements, first at (0, 1)",
        "the call changed weight.fresh.scale: 2 of 2 elements, first at (0)",
    ]


def test_an_operand_that_is_replaced_counts_as_written_and_one_that_is_wrapped_anew_does_not() -> None:
    holder = SimpleNamespace(same=torch.ones(4), other=torch.ones(4), form=torch.ones(4))
    watch = watch_of(holder)
    holder.same = holder.same.clone()
    holder.other = holder.other * 2
    holder.form = holder.form.view(torch.uint8).clone()
    assert seen(watch) == [("inputs", "the call changed other: 4 of 4 elements, first at (0)")]
    holder.form = torch.zeros(3)
    assert (
        "inputs",
        "the call put other content in the place of form: float32 of shape (3,), was float32 of shape (4,)",
    ) in seen(watch)


def test_views_with_gaps_are_watched_where_they_look_and_nowhere_else() -> None:
    whole = torch.zeros(4, 4)
    watch = watch_of({"x": whole[:, ::2]})
    whole[:, 1::2] = 1
    assert seen(watch) == []
    whole[3, 2] = 1
    assert seen(watch) == [("inputs", "the call changed x: 1 of 8 elements, first at (3, 1)")]


def test_equal_paths_of_two_operands_are_told_apart() -> None:
    """Inputs and what was prepared of them may bear one name."""
    assert seen(watch_of({"x": torch.ones(2)}, {"x": torch.zeros(2)}, {"x": torch.zeros(3)})) == []


def test_outputs_are_of_their_own_memory() -> None:
    x, weight = torch.zeros(4, 4), torch.zeros(2, 4)
    watch = watch_of({"x": x}, {"w": weight})
    watch.outputs({"y": x[1:, 1], "z": weight.T, "fine": torch.zeros(4), "none": x[:0]})
    kinds = {(effect.kind, effect.name): effect.words for effect in watch.side_effects()}
    assert set(kinds) == {("alias", "y"), ("layout", "y"), ("alias", "z")}
    assert kinds["alias", "z"] == "z, as the call returned it, shares the memory of w"


def test_memory_that_an_earlier_call_returned_is_not_handed_out_again() -> None:
    buffer = torch.zeros(8)
    watch = CallWatch(CPU)
    watch.outputs({"y": buffer[:4]})
    assert watch.side_effects() == []
    watch.outputs({"y": buffer[2:6]})
    (effect,) = watch.side_effects()
    assert effect.kind == "reused" and "lies in memory that an earlier call returned" in effect.words
    after = CallWatch(CPU, watch.returned)
    after.outputs({"y": buffer[:1]})
    assert [effect.kind for effect in after.side_effects()] == ["reused"], "by a call of the pass before"


def test_a_buffer_that_is_there_before_the_call_is_not_returned_but_may_be_written_to() -> None:
    model = SimpleNamespace(weight=torch.ones(2), scratch=torch.zeros(4))
    watch = watch_of({"weight": model.weight})
    watch.own(model)
    model.scratch += 1
    assert seen(watch) == []
    watch.outputs({"y": model.scratch[1:3]})
    (effect,) = watch.side_effects()
    assert (effect.kind, effect.name) == ("reused", "y") and "lies in scratch, which was there before" in effect.words


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(4, 8)[:, ::2], "with strides (8, 2) for shape (4, 4): its elements do not lie side by side"),
        (torch.zeros(4, 8)[:, :4], "with strides (8, 1) for shape (4, 4): its elements do not lie side by side"),
        (torch.zeros(4, 1).expand(4, 4), "with strides (1, 0) for shape (4, 4): elements share memory"),
        (torch.zeros(4, 4).T, ""),
        (torch.zeros(4, 1, 8)[:, :, :], ""),
        (torch.zeros(()), ""),
    ],
)
def test_outputs_are_dense(output: Any, words: str) -> None:
    watch = CallWatch(CPU)
    watch.outputs({"y": output})
    assert [(e.kind, e.words) for e in watch.side_effects()] == (
        [("layout", f"the call returned y {words}")] if words else []
    )


def test_outputs_lie_on_the_device_under_test() -> None:
    watch = CallWatch(torch.device("cuda", 1))
    watch.outputs({"y": torch.zeros(2)})
    assert watch.side_effects() == [SideEffect("output", "y", "the call returned y on cpu, expected cuda:1")]


class Library:
    """An adapter whose product does what a test says."""

    generation = "v0"

    def __init__(self, deed: Any) -> None:
        self._deed = deed

    def matmul(self, x: Any, weight: Any, *, bias: Any = None) -> Any:
        y = x * 2
        return self._deed(x, weight, y)


def call(deed: Any, x: Any, *, active: bool = True) -> tuple[Any, list[SideEffect]]:
    weight = torch.ones(2)
    watch = watch_of({"w": weight})
    library = watch.library(Library(deed))
    assert library.generation == "v0"
    if not active:
        return library.matmul(x, weight), watch.side_effects()
    with watch.watching():
        y = library.matmul(x, weight, bias=None)
    watch.outputs({"y": y})
    return y, watch.side_effects()


def test_a_call_of_the_library_is_blamed_for_what_it_does_to_numbers_between_calls() -> None:
    """What it damaged is put right, so that what the check computes of it next is not blamed."""
    x = torch.ones(3)

    def zero(x: Any, weight: Any, y: Any) -> Any:
        x[1] = 0
        return y

    y, (effect,) = call(zero, x)
    words = "call 1 of the library's matmul changed x of matmul: 1 of 3 elements, first at (1)"
    assert (effect.kind, effect.words) == ("inputs", words)
    assert x.tolist() == [1, 1, 1] and y.tolist() == [2, 2, 2]
    assert call(zero, x, active=False)[1] == [] and x.tolist() == [1, 0, 1], "nobody looks where calls are timed"


def test_a_call_of_the_library_returns_memory_of_its_own_too() -> None:
    _, effects = call(lambda x, weight, y: x.copy_(y), torch.ones(3))
    assert {effect.kind for effect in effects} == {"alias", "inputs"}
    _, effects = call(lambda x, weight, y: y, torch.ones(3))
    assert effects == [], "the output of the library is that of the call"
