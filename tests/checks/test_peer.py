"""The check ``peer`` without any group: what each rank gives and gets, and what wrong copies are told to be."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")

from gpucheck import checks  # noqa: E402
from gpucheck.checks.peer import neighbours  # noqa: E402
from gpucheck.model.case import Case  # noqa: E402
from gpucheck.verify.judge import judge  # noqa: E402

CHECK = checks.load("peer")


def case(rank: int, ranks: int = 3, **params: object) -> Case:
    return CHECK.spec.case({"n": 40, "flights": 2, "dtype": "bf16", **params}, "exact", 0).at(rank, ranks)  # type: ignore[arg-type]


def test_each_rank_gets_what_the_others_give_it() -> None:
    given = [CHECK.inputs(case(rank), torch.Generator())["source"] for rank in range(3)]
    for rank in range(3):
        expected = CHECK.reference(case(rank), {"source": given[rank]})
        for flight in range(2):
            came = torch.stack([source[rank, flight] for source in given]).double()
            assert torch.equal(expected[f"flight{flight}"].estimate.value, came)


def test_only_ranks_of_one_node_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [neighbours(case(rank, 4)) for rank in range(4)] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert neighbours(case(0, 1)) == (0,)


@pytest.mark.parametrize(("sender", "receiver"), [*itertools.permutations(range(3), 2)])
def test_a_wrong_copy_names_its_pair(sender: int, receiver: int) -> None:
    each = case(receiver)
    inputs = CHECK.inputs(each, torch.Generator())
    expected = CHECK.reference(each, inputs)
    right = {name: item.estimate.value.to(item.dtype) for name, item in expected.items()}
    assert not judge(right, expected, {}).mismatches
    other = right["flight0"][sender].clone()
    for fault, wrong in {
        "swapped": other,
        "dropped": torch.zeros_like(other),
        "early": torch.full((80,), 0xFF, dtype=torch.uint8).view(torch.bfloat16),
        "corrupt": (right["flight1"][sender].view(torch.int16) ^ 64).view(torch.bfloat16),
    }.items():
        outputs = {**right, "flight1": right["flight1"].clone()}
        outputs["flight1"][sender] = wrong
        assert judge(outputs, expected, {}).mismatches
        (told,) = CHECK.transfers(each, inputs, outputs, expected)  # type: ignore[attr-defined]
        assert (str(told.fault), told.sender, told.receiver, told.output) == (fault, sender, receiver, "flight1")
        assert (told.first, told.last) == (80 * sender, 80 * sender + 79)
