"""The expert block that ranks share: its data, its shares, its reference, and each rank's part by threads and gloo."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from gpucheck.checks.decoder.passes import one_thread
from gpucheck.checks.operands import decode_weight
from gpucheck.checks.sharded import dispatch, exact_block, shares
from gpucheck.checks.sharded.shard_reference import one_part, references
from gpucheck.checks.sharded_moe import ShardedMoe
from gpucheck.library.adapters.base import Routing
from gpucheck.model.case import Case
from gpucheck.model.errors import Inapplicable
from gpucheck.model.vocabulary import TransferFault
from tests.checks.shared_block import (
    Outputs,
    PlainLibrary,
    PlainRuntime,
    Threads,
    case_of,
    in_threads,
    inputs_of,
    judged,
    over_gloo,
)

WAYS: tuple[dict[str, Any], ...] = (
    {"parallel": "tensor"},
    {"parallel": "tensor", "empty": True, "combine": "own", "weight": "bf16"},
    {"parallel": "expert"},
    {"parallel": "expert", "empty": True, "combine": "own"},
    {"parallel": "expert", "load": "one", "weight": "bf16"},
    {"parallel": "dispatch"},
    {"parallel": "dispatch", "empty": True, "combine": "own", "m": 3},
    {"parallel": "dispatch", "load": "skewed", "top_k": 2, "m": 17},
    {"parallel": "dispatch", "load": "one", "top_k": 1, "weight": "bf16"},
)
RANKS = (1, 2, 3, 4, 8)
EIGHT = [(params, 8) for params in (WAYS[1], WAYS[3], WAYS[7])]


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Products this small are slower on several threads."""
    with one_thread():
        yield


def test_shares_are_all_there_is_and_nothing_twice() -> None:
    for size in RANKS:
        for total in (1, 5, 8, 13, 40):
            held = [place for rank in range(size) for place in range(total)[shares.share(total, rank, size)]]
            assert held == list(range(total))
            lengths = [len(range(total)[shares.share(total, rank, size)]) for rank in range(size)]
            assert max(lengths) - min(lengths) <= 1
        widths = [shares.width_share(256, rank, size) for rank in range(size)]
        assert all(part.start % 32 == 0 and part.stop % 32 == 0 for part in widths)
    assert shares.owners(8, 3).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def test_numbers_in_a_table_are_those_of_its_own_experts() -> None:
    ids = torch.tensor([[0, 3, -1], [2, 4, 7]], dtype=torch.int32)
    assert shares.local_ids(ids, slice(2, 5)).tolist() == [[-1, 1, -1], [0, 2, -1]]


@pytest.mark.parametrize("weight", ["bf16", "mxfp4"])
def test_no_sum_of_the_data_can_leave_what_bf16_holds(weight: str) -> None:
    """The magnitudes of all that a column of a token adds up, in whatever parts, stay below 2^8."""
    for seed in range(2):
        case = case_of(seed, weight=weight, m=24)
        inputs = inputs_of(case)
        assert torch.equal(inputs["bias2"].abs().clamp(1, 3), inputs["bias2"].abs())
        largest = torch.zeros(24, 32, dtype=torch.float64)
        for token, (ids, gates) in enumerate(zip(inputs["ids"].tolist(), inputs["id_gates"].tolist(), strict=True)):
            for expert, gate in zip(ids, gates, strict=True):
                w1, w2 = (plain(inputs, name, expert) for name in ("w1", "w2"))
                both = inputs["x"][token].double() @ w1 + inputs["bias1"][expert].double()
                inner = both[0::2].clamp(0, 2) * (both[1::2].clamp(-2, 2) + 1)
                largest[token] += gate * (inner.abs() @ w2.abs() + inputs["bias2"][expert].double().abs())
        assert largest.max() <= 256 and set(w2.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_the_worst_that_the_data_can_be_is_exact_in_bf16() -> None:
    low, high = -2, 6  # of the ramp
    of_expert = exact_block.PARTS * max(-low, high) + exact_block.BIAS[1]
    assert of_expert * (exact_block.MOST_PER_TOKEN + 1) <= 256  # one gate is 2, the others 1


def plain(inputs: dict[str, torch.Tensor], name: str, expert: int) -> torch.Tensor:
    scale = inputs.get(f"{name}_scale")
    kind = "bf16" if scale is None else "mxfp4"
    return decode_weight(kind, inputs[name][expert], None if scale is None else scale[expert])


def test_every_slice_has_a_share_in_every_column() -> None:
    """A rank that is missing from a sum shows in each column in which its slice of the tokens is not zero."""
    case = case_of(intermediate=256)
    inputs = inputs_of(case)
    for size in (3, 8):
        for rank in range(size):
            part = shares.width_share(256, rank, size)
            assert (plain(inputs, "w2", 0)[part] != 0).any(0).all()
            assert (one_part(case.at(rank, size), inputs, rank, with_bias=rank == 0).value != 0).any(1).all()


@pytest.mark.parametrize(("params", "ranks"), [*zip(WAYS, itertools.cycle((8, 3, 1)), strict=False)], ids=str)
def test_the_parts_of_all_ranks_add_up_to_the_block_of_one(params: dict[str, Any], ranks: int) -> None:
    case = case_of(**params)
    inputs = inputs_of(case)
    alone = exact_block.block(inputs, inputs["x"], inputs["ids"], inputs["id_gates"]).value
    parts = [one_part(case.at(rank, ranks), inputs, rank, with_bias=rank == 0).value for rank in range(ranks)]
    assert torch.equal(sum(parts), alone) and alone.count_nonzero() > alone.numel() / 2
    wholes = [references(case.at(rank, ranks), inputs)["y"].estimate.value for rank in range(ranks)]
    if params["parallel"] == "dispatch":
        assert torch.equal(torch.cat(wholes), alone)
    else:
        assert all(torch.equal(whole, alone) for whole in wholes)


@pytest.mark.parametrize(("params", "ranks"), [*zip(WAYS, itertools.cycle((2, 3)), strict=False), *EIGHT], ids=str)
def test_each_rank_gives_exactly_its_reference(params: dict[str, Any], ranks: int) -> None:
    case = case_of(**params)
    for rank, outputs in enumerate(in_threads(case, ranks)):
        found = judged(case, rank, ranks, outputs)
        assert not found.mismatches and not found.violations, (rank, found)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("params", [{"load": "one"}, {"combine": "own", "weight": "bf16"}], ids=str)
def test_by_the_librarys_dispatch_each_rank_gives_exactly_its_reference(params: dict[str, Any], ranks: int) -> None:
    """A row for each slot, sorted by expert; one rank has all rows, or none."""
    case = case_of(parallel="dispatch", through="library", m=16, top_k=2, **params)
    given = in_threads(case, ranks)
    for rank, outputs in enumerate(given):
        found = judged(case, rank, ranks, outputs)
        assert not found.mismatches and not found.violations, (rank, found)
    assert sum(len(outputs["received"]) for outputs in given) == 32
    wrong = {**given[0], "partial": given[0]["partial"] + 1}
    if len(wrong["partial"]):
        assert blamed(case, 0, ranks, wrong) == [(0, TransferFault.COMPUTED, "partial")]


def test_a_rank_without_tokens_or_experts_of_any_token_takes_part() -> None:
    case = case_of(parallel="dispatch", load="one", top_k=1, m=2)
    given = in_threads(case, 4)
    assert [len(outputs["received"]) for outputs in given] == [0, 0, 0, 2]
    assert [len(outputs["y"]) for outputs in given] == [0, 1, 0, 1]


def test_over_gloo_each_rank_gives_exactly_its_reference(tmp_path: Path) -> None:
    ranks, cases = 3, [case_of(**params) for params in (WAYS[0], WAYS[3], WAYS[7])]
    arguments = (ranks, str(tmp_path / "meeting"), cases, str(tmp_path))
    torch.multiprocessing.start_processes(over_gloo, arguments, nprocs=ranks, start_method="fork")
    for number, case in enumerate(cases):
        for rank in range(ranks):
            found = judged(case, rank, ranks, torch.load(tmp_path / f"{number}-{rank}.pt"))
            assert not found.mismatches and not found.violations, (case.id, rank, found)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"hidden": 48}, "multiples of 32"),
        ({"top_k": 5}, "at most 4"),
        ({"m": 0}, "at least 1"),
        ({"weight": "bf16", "layout": "default"}, "mx weights"),
        ({"through": "library", "parallel": "expert"}, "parallel = dispatch"),
        ({"through": "library", "parallel": "dispatch", "empty": True}, "an expert for each slot"),
    ],
)
def test_what_makes_no_case_is_refused(params: dict[str, Any], says: str) -> None:
    check = ShardedMoe()
    assert says in str(check.reason_against({**check.spec.defaults, **params}, "exact"))


def test_a_width_that_the_library_does_not_take_is_inapplicable_on_all_ranks() -> None:
    """Of three ranks, two have 64 of the width and one has 96: that one alone meets the refusal by itself."""
    case = case_of(intermediate=224, layout="default")
    assert [shares.width_share(224, rank, 3) for rank in range(3)] == [slice(0, 64), slice(64, 128), slice(128, 224)]
    for rank in range(3):
        runtime: Any = PlainRuntime(PlainLibrary())
        with pytest.raises(Inapplicable):
            dispatch.Shared(case.at(rank, 3), inputs_of(case), runtime, Threads(3).of(rank))


def blamed(case: Case, rank: int, ranks: int, outputs: Outputs) -> list[tuple[int, TransferFault, str]]:
    """Sender, fault and output of each wrong transfer of a rank."""
    own, check = case.at(rank, ranks), ShardedMoe()
    expected = check.reference(own, inputs_of(case))
    return [(each.sender, each.fault, each.output) for each in check.transfers(own, inputs_of(case), outputs, expected)]


@pytest.mark.parametrize("way", ["tensor", "expert", "dispatch"])
@pytest.mark.parametrize("rank", range(3))
def test_a_rank_that_takes_the_share_of_another_is_told(way: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is called by stays right, as where a caller slices by another variable."""
    case, other, whole = case_of(parallel=way, m=12), (rank + 2) % 3, dispatch.Shared.__init__

    def wrong(self: Any, given: Case, *arguments: Any) -> None:
        whole(self, replace(given, rank=other) if given.rank == rank else given, *arguments)
        self.tokens = shares.share(given["m"], given.rank, given.ranks)

    monkeypatch.setattr(dispatch.Shared, "__init__", wrong)
    outputs = in_threads(case, 3)
    name = "partial" if way == "tensor" else "slots"
    assert blamed(case, rank, 3, outputs[rank]) == [(other, TransferFault.OTHER_SHARE, name)]
    for innocent in {0, 1, 2} - {rank}:
        assert {fault for _, fault, _ in blamed(case, innocent, 3, outputs[innocent])} <= {TransferFault.REDUCED}


@pytest.mark.parametrize("way", ["expert", "dispatch"])
def test_rows_that_nobody_wrote_are_told_where_they_are_summed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(parallel=way, combine="own", m=24, top_k=2)

    def wrong(rows: torch.Tensor, routing: Routing) -> torch.Tensor:
        return rows[routing.to_sorted.view(-1, routing.per_token).long()].float().sum(1).to(rows.dtype)

    monkeypatch.setattr(dispatch, "summed_slots", wrong)
    for rank, outputs in enumerate(in_threads(case, 2)):
        assert blamed(case, rank, 2, outputs) == [(1 - rank, TransferFault.UNWRITTEN, "partial")]


@pytest.mark.parametrize("way", ["tensor", "expert", "dispatch"])
@pytest.mark.parametrize("fault", [TransferFault.MISSING, TransferFault.TWICE])
def test_a_sum_that_lacks_a_rank_or_has_it_twice_is_told(way: str, fault: TransferFault) -> None:
    case = case_of(parallel=way)
    inputs, outputs = inputs_of(case), in_threads(case, 3)
    for rank, sender in ((0, 2), (1, 1), (2, 0)):
        part = one_part(case.at(rank, 3), inputs, sender, with_bias=sender == 0).value
        part = part[shares.share(case["m"], rank, 3)] if way == "dispatch" else part
        wrong = outputs[rank]["y"].double() + (part if fault is TransferFault.TWICE else -part)
        changed = {**outputs[rank], "y": wrong.to(torch.bfloat16)}
        assert blamed(case, rank, 3, changed) == [(sender, fault, "y")]


def test_other_wrong_numbers_are_the_ranks_own_or_the_sums() -> None:
    case = case_of(parallel="dispatch")
    outputs = in_threads(case, 2)[0]
    for name, fault in (("partial", TransferFault.COMPUTED), ("y", TransferFault.REDUCED)):
        wrong = {**outputs, name: outputs[name].clone()}
        wrong[name][0, 0] += 1
        assert blamed(case, 0, 2, wrong) == [(0, fault, name)]
    held = outputs["received"]
    for rows, fault in ((held.roll(1, 0), TransferFault.SWAPPED), (held + 8, TransferFault.CORRUPT)):
        assert {each[:2] for each in blamed(case, 0, 2, {**outputs, "received": rows})} == {(0, fault), (1, fault)}
    assert blamed(case, 0, 2, outputs) == []


def test_the_ids_of_the_model_in_a_ranks_own_table_are_told() -> None:
    case = case_of(parallel="expert")
    inputs, outputs = inputs_of(case), in_threads(case, 2)
    check, own = ShardedMoe(), case.at(1, 2)
    changed = {**outputs[1], "slots": inputs["ids"]}
    (told,) = check.transfers(own, inputs, changed, check.reference(own, inputs))
    assert (told.sender, told.fault) == (1, TransferFault.COMPUTED) and "numbers of the whole model" in told.detail
