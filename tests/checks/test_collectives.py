"""The check ``collectives`` without any group: its data, its references, and what wrong bytes are told to be."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from gpucheck import checks  # noqa: E402
from gpucheck.checks import collectives  # noqa: E402
from gpucheck.checks.rank_data import ALL, chunk, exact  # noqa: E402
from gpucheck.checks.wrong_transfers import transfers  # noqa: E402
from gpucheck.model.case import Case  # noqa: E402
from gpucheck.verify.judge import judge  # noqa: E402
from gpucheck.verify.views import PIECE  # noqa: E402

CHECK = checks.load("collectives")


def case(operation: str, rank: int = 0, ranks: int = 3, **params: Any) -> Case:
    return CHECK.spec.case({"operation": operation, "n": 40, **params}, "exact", 0).at(rank, ranks)


def right(each: Case) -> dict[str, Any]:
    """Outputs as a rank must have them."""
    generator = torch.Generator().manual_seed(each.input_seed)
    expected = CHECK.reference(each, CHECK.inputs(each, generator))
    return {name: item.estimate.value.to(item.dtype) for name, item in expected.items()}


def found(each: Case, outputs: dict[str, Any]) -> set[tuple[str, int, int]]:
    generator = torch.Generator().manual_seed(each.input_seed)
    expected = CHECK.reference(each, CHECK.inputs(each, generator))
    assert judge(outputs, expected, {}).mismatches, "only what is wrong is looked at"
    return {(str(t.fault), t.sender, t.receiver) for t in transfers(each, outputs, expected)}


def every_case() -> Iterator[Case]:
    for operation, dtype, ranks in itertools.product(collectives.OPERATIONS, ("bf16", "fp16", "int32"), (2, 5, 16)):
        if operation != "barrier":
            yield case(operation, ranks - 1, ranks, dtype=dtype)


@pytest.mark.parametrize("each", [*every_case()], ids=lambda each: f"{each.id}-{each.ranks}")
def test_what_is_right_is_held_exactly_by_its_dtype(each: Case) -> None:
    generator = torch.Generator().manual_seed(each.input_seed)
    expected = CHECK.reference(each, CHECK.inputs(each, generator))
    for item in expected.values():
        value = item.estimate.value
        assert bool((value.to(item.dtype).double() == value).all())
    assert not judge(right(each), expected, {}).mismatches


class Made(TorchDispatchMode):
    """Takes down how many bytes each new tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
            self.sizes.append(result.numel() * result.itemsize)
        return result


@pytest.mark.parametrize("operation", ["all_reduce", "all_gather"])
def test_data_of_a_rank_take_no_more_memory_than_they_must(operation: str) -> None:
    """A node has as many of them as it has ranks, so what is needed in between counts as often."""
    n = 4 * PIECE
    each = case(operation, 1, n=n, dtype="fp32")
    with Made() as inputs:
        held = CHECK.inputs(each, torch.Generator())
    assert [size for size in inputs.sizes if size > 8 * PIECE] == [4 * n] * 2, "one for each round"
    with Made() as reference:
        expected = CHECK.reference(each, held)
    assert max(reference.sizes) == 8 * n * (3 if operation == "all_gather" else 1)
    assert all(item.estimate.value.dtype == torch.float32 for item in expected.values())


def test_a_reference_that_its_output_cannot_hold_stays_as_it_is() -> None:
    wide = exact(torch.tensor([2.0**24 + 1, 1.0], dtype=torch.float64), torch.float32)
    assert wide.estimate.value.tolist() == [2.0**24 + 1, 1.0]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "int32"])
def test_what_is_wrong_is_told_alike_whatever_dtype_holds_the_reference(dtype: str) -> None:
    each = case("all_reduce", 1, dtype=dtype)
    expected = CHECK.reference(each, CHECK.inputs(each, torch.Generator()))
    outputs = right(each)
    outputs["out1"][3:9] += 1 if dtype == "int32" else 64
    wide = {name: item.widened() for name, item in expected.items()}
    assert {item.estimate.value.dtype for item in wide.values()} == {torch.float64}
    assert judge(outputs, expected, {}) == judge(outputs, wide, {})
    assert [mismatch.wrong for mismatch in judge(outputs, expected, {}).mismatches] == [6]


@pytest.mark.parametrize("ranks", [128, 256, 1000])
def test_sums_over_very_many_ranks_stay_exact(ranks: int) -> None:
    parts = [chunk(case("all_reduce", rank, ranks), 0, rank, ALL, 40, summed=True) for rank in range(ranks)]
    sums = torch.stack(parts).double().cumsum(0)
    assert bool((sums.to(torch.bfloat16).double() == sums).all()) and bool((parts[0] != 0).all())


def test_what_a_rank_gives_is_what_the_others_expect() -> None:
    for operation in ("all_to_all", "all_gather"):
        parts = [case(operation, rank) for rank in range(3)]
        given = [CHECK.inputs(part, torch.Generator())["round1"] for part in parts]
        for part in parts:
            chunk = slice(40 * part.rank, 40 * (part.rank + 1)) if operation == "all_to_all" else slice(None)
            assert torch.equal(right(part)["out1"], torch.stack([each[chunk] for each in given]))


@pytest.mark.parametrize("sender", range(3))
@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_a_contribution_that_is_missing_is_told_from_a_stale_one(reduce: str, sender: int) -> None:
    each = case("all_reduce", 1, reduce=reduce, dtype="fp32")
    outputs, parts = right(each), collectives.chunks(each, 1)
    rest = {rank: part for rank, part in parts.items() if rank != sender}
    lacking = {**outputs, "out1": collectives.reduced(each, rest.values()).float()}
    assert found(each, lacking) == {("missing", sender, 1)}
    before = {**parts, sender: collectives.chunks(each, 0)[sender]}
    stale = {**outputs, "out1": collectives.reduced(each, before.values()).float()}
    assert found(each, stale) == {("stale", sender, 1)}


def test_a_contribution_may_be_there_twice() -> None:
    each = case("reduce_scatter", 2, dtype="int32")
    outputs = right(each)
    outputs["out0"][7:9] += collectives.chunks(each, 0)[1][7:9]
    assert found(each, outputs) == {("twice", 1, 2)}


def test_a_result_that_is_none_of_what_was_given_is_reduced_wrongly() -> None:
    each = case("all_reduce", 2, dtype="fp32")
    outputs = right(each)
    outputs["out0"][3] += 1
    assert found(each, outputs) == {("reduced wrongly", 2, 2)}


def test_a_buffer_that_is_read_too_early_holds_what_it_held_before() -> None:
    each = case("all_reduce", 0, dtype="fp16")
    outputs = {**right(each), "out1": collectives.chunks(each, 1)[0].clone()}
    assert found(each, outputs) == {("early", 0, 0)}
    each = case("all_gather", 0, dtype="fp32")
    outputs = right(each)
    outputs["out0"][2].view(torch.uint8).fill_(0xFF)
    assert found(each, outputs) == {("early", 2, 0)}


@pytest.mark.parametrize(("sender", "receiver"), [*itertools.permutations(range(3), 2)])
def test_chunks_that_are_swapped_dropped_or_changed_name_their_pair(sender: int, receiver: int) -> None:
    each = case("all_to_all", receiver, dtype="bf16")
    for fault, change in {
        "dropped": lambda chunk: chunk.zero_(),
        "corrupt": lambda chunk: chunk.view(torch.int16)[5:9].bitwise_xor_(64),
        "swapped": lambda chunk: chunk.copy_(chunk.roll(20)),
        "stale": lambda chunk: chunk.copy_(collectives.chunks(each, 0)[sender]),
    }.items():
        outputs = right(each)
        change(outputs["out1"][sender])
        assert found(each, outputs) == {(fault, sender, receiver)}
    outputs, other = right(each), ({0, 1, 2} - {sender, receiver}).pop()
    outputs["out0"][sender] = collectives.chunks(each.at(other, 3), 0)[sender]
    assert found(each, outputs) == {("swapped", sender, receiver)}


def test_few_elements_of_few_bits_say_nothing_of_where_they_come_from() -> None:
    each = case("all_reduce", 0, 8, dtype="bf16")
    outputs, lacking = (
        right(each),
        collectives.reduced(each, {**collectives.chunks(each, 0), 3: torch.zeros(40)}.values()),
    )
    outputs["out0"][5] = lacking[5].bfloat16()
    assert found(each, outputs) == {("reduced wrongly", 0, 0)}
    outputs["out0"] = lacking.bfloat16()
    assert found(each, outputs) == {("missing", 3, 0)}


def test_the_bytes_of_a_wrong_transfer_are_named() -> None:
    each = case("all_gather", 0, dtype="int32")
    outputs = right(each)
    outputs["out0"][1, 10:12] = 0
    generator = torch.Generator().manual_seed(each.input_seed)
    (told,) = transfers(each, outputs, CHECK.reference(each, CHECK.inputs(each, generator)))
    assert (told.first, told.last, told.wrong, told.total) == (4 * 50, 4 * 52 - 1, 2, 40)


def test_uneven_chunks_have_some_that_are_empty() -> None:
    sizes = {collectives.size(case("all_to_all", uneven=True), a, b) for a in range(4) for b in range(4)}
    assert 0 in sizes and len(sizes) > 4


@pytest.mark.parametrize(
    ("params", "ranks", "size"),
    [
        ({"operation": "all_reduce", "dtype": "fp32", "n": 1024}, 2, 4096.0),  # 2 S (n-1)/n of S = 4 KiB
        ({"operation": "all_reduce", "dtype": "fp32", "n": 1024}, 8, 2 * 7 / 8 * 4096),
        ({"operation": "all_gather", "dtype": "bf16", "n": 1024}, 4, 3 / 4 * 4 * 2048),  # S (n-1)/n of S = n chunks
        ({"operation": "reduce_scatter", "dtype": "bf16", "n": 1024}, 4, 3 / 4 * 4 * 2048),
        ({"operation": "all_to_all", "dtype": "int32", "n": 7}, 2, 28.0),
        ({"operation": "broadcast", "dtype": "int32", "n": 7}, 2, None),
    ],
)
def test_bytes_of_the_bus_are_counted_as_the_tests_of_nccl_count_them(
    params: dict[str, Any], ranks: int, size: float | None
) -> None:
    cost = CHECK.cost(case(ranks=ranks, **params), {})
    assert (cost and cost.bytes) == (None if size is None else pytest.approx(size))
    assert cost is None or cost.flops == 0


def test_uneven_chunks_count_with_their_sizes() -> None:
    each = case("all_to_all", 1, n=70, dtype="int32", uneven=True)
    sent = sum(collectives.size(each, 1, other) for other in (0, 2))
    cost = CHECK.cost(each, {})
    assert cost and cost.bytes == 4 * sent


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_a_reference_of_many_ranks_holds_one_contribution_at_a_time(reduce: str) -> None:
    """Else eight ranks of a node would hold 64 large buffers, and more while they are made."""
    each, alive, most = case("all_reduce", ranks=8, reduce=reduce), 0, 0
    drawn = [part.clone() for _, part in collectives.given(each, 0)]

    def parts() -> Iterator[Any]:
        nonlocal alive, most
        for part in drawn:
            held = part.clone()
            alive, most = alive + 1, max(most, alive + 1)
            weakref.finalize(held, gone)
            yield held
            del held

    def gone() -> None:
        nonlocal alive
        alive -= 1

    total = collectives.reduced(each, parts())
    whole = torch.stack(drawn).double()
    assert torch.equal(total, whole.sum(0) if reduce == "sum" else whole.amax(0))
    assert most <= 2
