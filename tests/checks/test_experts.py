from __future__ import annotations

import math

import pytest
import torch

from gpucheck.checks import experts
from gpucheck.verify.bounds import Estimate


def choose(tokens: int, count: int, per_token: int, load: str, seed: int = 0) -> list[list[int]]:
    ids: list[list[int]] = experts.choose(tokens, count, per_token, load, torch.Generator().manual_seed(seed)).tolist()
    return ids


LOADS = ("random", "skewed", "one")


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("tokens", "count", "per_token"), [(0, 4, 2), (1, 1, 1), (37, 16, 4), (9, 8, 8), (5, 3, 2)])
def test_every_token_has_distinct_ascending_experts(load: str, tokens: int, count: int, per_token: int) -> None:
    ids = choose(tokens, count, per_token, load)
    assert len(ids) == tokens
    for row in ids:
        assert row == sorted(set(row)) and len(row) == per_token and row[0] >= 0 and row[-1] < count


def test_loads_are_what_they_say() -> None:
    skewed = choose(64, 12, 3, "skewed")
    assert all(4 in row for row in skewed) and max(max(row) for row in skewed) < 6
    assert choose(3, 8, 2, "one") == [[6, 7]] * 3
    used = {expert for row in choose(200, 8, 2, "random") for expert in row}
    assert used == set(range(8)) and choose(50, 8, 2, "random", 1) != choose(50, 8, 2, "random", 2)


@pytest.mark.parametrize("load", LOADS)
def test_tables_sort_rows_by_expert_and_back(load: str) -> None:
    tokens, count, per_token = 23, 7, 3
    ids = torch.tensor(choose(tokens, count, per_token, load))
    gates = torch.rand(tokens, per_token)
    tables = experts.tables(ids, gates, count)
    flat = [(int(ids[t, s]), t * per_token + s) for t in range(tokens) for s in range(per_token)]
    ordered = sorted(flat)  # by expert, then by flat index
    assert tables["histogram"].tolist() == [sum(expert == e for expert, _ in flat) for e in range(count)]
    assert tables["to_flat"].tolist() == [index for _, index in ordered]
    assert all(tables["to_sorted"][index] == position for position, (_, index) in enumerate(ordered))
    assert tables["gates"].tolist() == [float(gates.flatten()[index]) for _, index in ordered]
    assert {name: table.dtype for name, table in tables.items()} == {
        "histogram": torch.int32,
        "to_flat": torch.int32,
        "to_sorted": torch.int32,
        "gates": torch.float32,
    }
    assert experts.owners(tables).flatten().tolist() == [expert for expert, _ in ordered]
    assert torch.equal(experts.by_token(experts.owners(tables), tables, per_token)[..., 0], ids)


@pytest.mark.parametrize("elsewhere", [1, 4, 7])
def test_rows_of_experts_that_another_rank_holds_have_no_position(elsewhere: int) -> None:
    tokens, count, per_token = 19, 5, 3
    ids = torch.tensor(choose(tokens, count + elsewhere, per_token, "random"))
    ids[ids >= count] = -1
    tables = experts.tables(ids, torch.rand(tokens, per_token), count)
    here = [(expert, flat) for flat, expert in enumerate(ids.flatten().tolist()) if expert >= 0]
    ordered = [flat for _, flat in sorted(here)]
    assert tables["to_flat"].tolist() == ordered + [-1] * (tokens * per_token - len(ordered))
    places = {flat: place for place, flat in enumerate(ordered)}
    assert tables["to_sorted"].tolist() == [places.get(flat, -1) for flat in range(tokens * per_token)]
    assert tables["histogram"].sum() == experts.served(tables) == len(ordered) < tokens * per_token
    members = experts.by_token(experts.owners(tables), tables, per_token)[..., 0]
    assert torch.equal(members, ids)


@pytest.mark.parametrize("counts", [[3, 0, 40, 129, 0], [1], [0, 0, 0], [0, 2, 1], [16, 32, 64, 128], [0, 0, 700]])
def test_the_block_map_gives_each_program_the_next_block_of_the_next_expert(counts: list[int]) -> None:
    flat = torch.arange(sum(counts), dtype=torch.int32)
    histogram = torch.tensor(counts, dtype=torch.int32)
    made = experts.whole({"histogram": histogram, "to_flat": flat, "to_sorted": flat})
    assert made["rows"].tolist() == counts
    assert made["row_offsets"].tolist() == [sum(counts[:e]) for e in range(len(counts) + 1)]
    for number, size in enumerate((16, 32, 64, 128)):
        blocks = [(expert, block) for expert, rows in enumerate(counts) for block in range(math.ceil(rows / size))]
        firsts = [sum(expert < e for expert, _ in blocks) for e in range(len(counts) + 1)]
        programs = made["block_map"][number].tolist()
        assert made["block_offsets"][number].tolist() == firsts
        assert programs[: len(blocks)] == [expert + block * 65536 for expert, block in blocks]
        assert set(programs[len(blocks) :]) <= {-1} and len(programs) >= len(blocks)


def test_tables_of_no_tokens() -> None:
    tables = experts.tables(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2), 4)
    assert tables["histogram"].tolist() == [0] * 4 and tables["to_flat"].numel() == 0


def test_each_expert_sees_its_rows_only() -> None:
    x = Estimate(torch.arange(12.0).reshape(6, 2).double(), torch.ones(6, 2).double())
    inputs = {"histogram": torch.tensor([2, 0, 3, 1])}
    seen: list[tuple[int, list[float]]] = []

    def compute(expert: int, rows: Estimate) -> Estimate:
        seen.append((expert, rows.value[:, 0].tolist()))
        assert rows.error is not None
        return Estimate(rows.value[:, :1] * 10 + expert, rows.error[:, :1] * 2)

    result = experts.each_expert(x, inputs, 1, compute)
    assert seen == [(0, [0.0, 2.0]), (2, [4.0, 6.0, 8.0]), (3, [10.0])]
    assert result.value.flatten().tolist() == [0, 20, 42, 62, 82, 103] and result.error is not None
    assert result.error.flatten().tolist() == [2.0] * 6


def test_take_picks_values_and_errors() -> None:
    x = Estimate(torch.arange(6.0).reshape(3, 2).double(), torch.arange(6.0).reshape(3, 2).double() / 10, 0.5)
    taken = experts.take(x, torch.tensor([2, 0]))
    assert taken.value.tolist() == [[4, 5], [0, 1]] and taken.unit == 0.5 and taken.error is not None
    assert taken.error.tolist() == [[0.4, 0.5], [0.0, 0.1]]
    assert experts.take(x, torch.tensor([2, 0, 1, 1]), (2, 2, 2)).value.shape == (2, 2, 2)
