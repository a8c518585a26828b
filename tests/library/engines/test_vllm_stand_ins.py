"""What stands for vLLM's compiled operators does what its documentation says of them."""

from __future__ import annotations

import torch

from gpucheck.library.engines import vllm_stand_ins


def aligned(ids: list[list[int]], block: int, expert_map: list[int] | None = None) -> tuple[list[int], list[int], int]:
    given = torch.tensor(ids, dtype=torch.int32)
    experts = 4
    slots = torch.full((given.numel() + experts * (block - 1),), -7, dtype=torch.int32)
    blocks = torch.full((-(-len(slots) // block),), -7, dtype=torch.int32)
    padded = torch.zeros(1, dtype=torch.int32)
    held = None if expert_map is None else torch.tensor(expert_map, dtype=torch.int32)
    vllm_stand_ins.moe_align_block_size(given, experts, block, slots, blocks, padded, held)
    return slots.tolist(), blocks.tolist(), int(padded)


def test_slots_are_sorted_by_expert_and_filled_up_to_blocks() -> None:
    slots, blocks, padded = aligned([[3, 1], [1, 0], [1, 3]], 2)
    assert padded == 8 and slots == [3, 6, 1, 2, 4, 6, 0, 5, 6, 6]
    assert blocks == [0, 1, 1, 3, 0], "no block of expert 2, which has no tokens"


def test_slots_of_experts_elsewhere_are_left_out() -> None:
    slots, blocks, padded = aligned([[3, 1], [1, 0], [1, 3]], 2, [-1, 1, -1, 0])
    assert padded == 6 and slots[:padded] == [0, 5, 1, 2, 4, 6]
    assert blocks == [0, 1, 1, -1, -1], "ids of the experts that are held here, in their order"


def test_the_largest_weights_come_first_and_add_up_to_one_if_asked() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    weights, ids = torch.empty(1, 2), torch.empty(1, 2, dtype=torch.int32)
    rows = torch.empty(1, 2, dtype=torch.int32)
    vllm_stand_ins.topk_softmax(weights, ids, rows, logits, True)
    assert ids.tolist() == [[1, 2]] and weights.tolist() == [[0.5, 0.5]]
    vllm_stand_ins.topk_softmax(weights, ids, rows, logits, False)
    assert torch.equal(weights, logits.softmax(-1)[:, 1:3])


def test_rows_of_experts_elsewhere_are_not_added() -> None:
    rows, y = torch.tensor([[[1.0], [float("nan")]]]), torch.empty(1, 1)
    vllm_stand_ins.moe_sum(rows, y, torch.tensor([[1, 0]]), torch.tensor([-1, 0]))
    assert y.tolist() == [[1.0]]
