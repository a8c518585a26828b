"""Guards and fills of watched memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpucheck.worker.device.guarded_memory import ALIGNMENT, GuardedMemory, WatchedAllocation

DTYPES = [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int32, torch.float64, torch.bool]


@pytest.fixture(params=[0xFF, 0x00], ids=["filled", "zeroed"])
def memory(request: pytest.FixtureRequest) -> GuardedMemory:
    made = GuardedMemory(torch.device("cpu"))
    made.reset(request.param)
    return made


def at(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """The byte ``offset`` bytes after the first byte of a tensor, also outside of it."""
    first = tensor.storage_offset() * tensor.element_size()
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage(), first + offset, (1,))


def write(tensor: torch.Tensor, offset: int) -> None:
    """Changes a byte near a tensor, as a stray store would."""
    at(tensor, offset).fill_(0x5A)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fresh_memory_is_aligned_and_holds_the_fill(memory: GuardedMemory, dtype: torch.dtype) -> None:
    held = memory.empty((3, 5), (5, 1), dtype)
    assert (held.shape, held.stride(), held.dtype) == ((3, 5), (5, 1), dtype)
    assert held.data_ptr() % ALIGNMENT == 0
    assert bool((held.view(torch.uint8) == memory.fill).all())
    assert int(at(held, 15 * held.element_size())) == memory.fill, "a read past the end does not see the fill"
    assert int(at(held, -1)) == memory.fill, "a read before the start does not see the fill"
    assert memory.broken_guards() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_placed_copy_has_the_bytes_and_strides(memory: GuardedMemory, dtype: torch.dtype) -> None:
    source = torch.arange(24, dtype=torch.uint8).view(4, 6).to(dtype).mT
    held = memory.place(source)
    assert held.stride() == source.stride()
    assert torch.equal(held.contiguous().view(torch.uint8), source.contiguous().view(torch.uint8))
    assert held.data_ptr() != source.data_ptr()
    assert memory.broken_guards() == []


@pytest.mark.parametrize(
    ("offset", "side", "distance"), [(-1, "before", 1), (-4096, "before", 4096), (30, "after", 1), (31, "after", 2)]
)
def test_stray_store_is_found_with_side_and_distance(
    memory: GuardedMemory, offset: int, side: str, distance: int
) -> None:
    held = memory.empty((3, 5), (5, 1), torch.bfloat16)
    write(held, offset)
    words = f"1 bytes written {side} the bfloat16 tensor of shape (3, 5), nearest {distance} off"
    assert memory.broken_guards() == [words]


def test_far_end_of_the_guard_is_watched(memory: GuardedMemory) -> None:
    held = memory.empty((3, 5), (5, 1), torch.bfloat16)
    write(held, 30 + memory.guard - 1)
    assert len(memory.broken_guards()) == 1


def test_only_the_tensor_concerned_is_named(memory: GuardedMemory) -> None:
    tensors = [memory.place(torch.ones(size, dtype=torch.int32)) for size in (7, 11, 13)]
    for byte in range(44, 48):
        write(tensors[1], byte)
    assert memory.broken_guards() == ["4 bytes written after the int32 tensor of shape (11,), nearest 1 off"]


def test_stores_within_tensors_break_nothing(memory: GuardedMemory) -> None:
    tensors = [memory.empty((3, 5), (5, 1), dtype) for dtype in DTYPES]
    for held in tensors:
        held.view(torch.uint8).fill_(0x5A)
    assert memory.broken_guards() == []


def test_reset_forgets_and_fills_anew(memory: GuardedMemory) -> None:
    held = memory.empty((8,), (1,), torch.int8)
    write(held, 8)
    other = 0xFF - memory.fill
    memory.reset(other)
    assert memory.broken_guards() == []
    assert bool((memory.empty((8,), (1,), torch.int8).view(torch.uint8) == other).all())


def test_tensors_outlive_a_reset(memory: GuardedMemory) -> None:
    held = memory.place(torch.arange(1000))
    memory.reset(0x00)
    for _ in range(20):
        memory.empty((1000,), (1,), torch.int64)
    assert torch.equal(held, torch.arange(1000))


def test_zero_size(memory: GuardedMemory) -> None:
    assert memory.empty((0, 5), (5, 1), torch.bfloat16).shape == (0, 5)
    assert memory.place(torch.empty(4, 0)).shape == (4, 0)
    assert memory.broken_guards() == []


def test_scalar(memory: GuardedMemory) -> None:
    held = memory.place(torch.tensor(2.5))
    assert (held.shape, float(held)) == ((), 2.5)
    write(held, 4)
    assert len(memory.broken_guards()) == 1


VIEWS = {
    "one value for all": torch.full((1, 1), 3.0).expand(3, 5),
    "a row for all": torch.arange(5.0).expand(3, 5),
    "windows": torch.arange(7.0).unfold(0, 5, 1),
    "every other": torch.arange(40.0).view(5, 8)[:, ::2],
    "columns of a wider one": torch.arange(40.0).view(5, 8)[:, 2:5],
    "transposed columns": torch.arange(40.0).view(5, 8)[:, 2:5].mT,
    "expanded columns": torch.arange(40.0).view(5, 8)[:, 2:5].expand(2, 5, 3),
}


@pytest.mark.parametrize("source", VIEWS.values(), ids=VIEWS)
def test_views_keep_their_strides(memory: GuardedMemory, source: torch.Tensor) -> None:
    held = memory.place(source)
    assert held.stride() == source.stride() and torch.equal(held, source)
    assert memory.broken_guards() == []


@pytest.mark.parametrize("source", VIEWS.values(), ids=VIEWS)
def test_what_no_element_of_a_view_holds_is_full_of_the_fill_and_watched(
    memory: GuardedMemory, source: torch.Tensor
) -> None:
    held = memory.place(source)
    places = {sum(i * s for i, s in zip(index, held.stride(), strict=True)) for index in np.ndindex(*held.shape)}
    unused = sorted(set(range(-4, max(places) + 5)) - places)
    for place in unused:
        assert int(at(held, 4 * place)) == memory.fill
    gap = next((place for place in unused if 0 < place < max(places)), None)
    write(held, 4 * (max(places) + 1) if gap is None else 4 * gap)
    words = f"float32 tensor of shape {tuple(source.shape)}"
    assert memory.broken_guards() == [
        f"1 bytes written after the {words}, nearest 1 off"
        if gap is None
        else f"1 bytes written between the elements of the {words}"
    ]


def test_a_slice_starts_as_far_behind_an_aligned_address_as_it_does_in_its_own_memory(memory: GuardedMemory) -> None:
    held = memory.place(torch.arange(40, dtype=torch.int16).view(5, 8)[1:, 3:])
    assert held.data_ptr() % ALIGNMENT == 22 and int(held[0, 0]) == 11
    write(held, -1)
    assert memory.broken_guards() == ["1 bytes written before the int16 tensor of shape (4, 5), nearest 1 off"]


def test_a_read_between_elements_is_named(memory: GuardedMemory) -> None:
    memory.place(VIEWS["columns of a wider one"])
    assert memory.words(0) == "outside of, or between the elements of, the float32 tensor of shape (5, 3)"
    memory.place(torch.ones(5, 3))
    assert memory.words(1) == "outside of the float32 tensor of shape (5, 3)"


def test_storage_offset_of_the_source_is_not_kept_as_slack(memory: GuardedMemory) -> None:
    held = memory.place(torch.arange(100, dtype=torch.uint8)[3:50])
    write(held, 47)
    assert memory.broken_guards() == ["1 bytes written after the uint8 tensor of shape (47,), nearest 1 off"]


MAKERS = {
    "empty": lambda like: torch.empty(3, 4),
    "empty_strided": lambda like: torch.empty_strided((3, 4), (1, 3)),
    "empty_like": torch.empty_like,
    "new_empty": lambda like: like.new_empty(3, 4),
    "zeros": lambda like: torch.zeros(3, 4),
    "zeros_like": torch.zeros_like,
    "new_zeros": lambda like: like.new_zeros(3, 4),
    "full": lambda like: torch.full((3, 4), 2.0),
    "new_full": lambda like: like.new_full((3, 4), 2.0),
    "ones": lambda like: torch.ones(3, 4),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_is_made_inside_is_watched(memory: GuardedMemory, make: object) -> None:
    like = torch.randn(3, 4)
    plain = make(like)  # type: ignore[operator]
    with WatchedAllocation(memory):
        watched = make(like)  # type: ignore[operator]
    assert (watched.shape, watched.stride(), watched.dtype) == (plain.shape, plain.stride(), plain.dtype)
    write(watched, 48)
    assert memory.broken_guards() == ["1 bytes written after the float32 tensor of shape (3, 4), nearest 1 off"]


def test_filled_tensors_keep_their_values(memory: GuardedMemory) -> None:
    with WatchedAllocation(memory):
        made = [torch.zeros(5), torch.full((5,), 3.0), torch.ones(5, dtype=torch.int32)]
    assert [tensor.tolist() for tensor in made] == [[0.0] * 5, [3.0] * 5, [1] * 5]


def test_what_is_made_outside_or_elsewhere_is_not_watched(memory: GuardedMemory) -> None:
    torch.empty(3, 4)
    with WatchedAllocation(memory):
        assert torch.empty(3, 4, device="meta").device.type == "meta"
        torch.empty(0, 4)
    torch.zeros(3, 4)
    assert memory._slots == []


def test_arithmetic_inside_is_left_alone(memory: GuardedMemory) -> None:
    x = torch.arange(6.0).view(2, 3)
    with WatchedAllocation(memory):
        assert torch.equal(x @ x.mT, torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
        assert torch.equal(x.sum(1), torch.tensor([3.0, 12.0]))
    assert memory.broken_guards() == []
