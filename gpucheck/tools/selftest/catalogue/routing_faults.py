"""Faults in what the library's routing hands on to its products: block map, offsets, index objects."""

from __future__ import annotations

from typing import Any

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import BOTH, HOST, decoding, routed
from gpucheck.tools.selftest.fault import Edit, Expected, Fault

TOKENS = 30  # one block of the kernels that go through tokens
SIZES = 4  # of blocks that a map is made for
SECOND_LAYER = "next(globals().setdefault('_calls', __import__('itertools').cycle(range(2)))) == 1"
"""Whether this is the second of the two routings of a decoding of one token by two layers."""


def _routing(experts: int, **changes: Any) -> dict[str, Any]:
    """A routing told by its number of experts."""
    usual = {"check": "routing", "m": TOKENS, "top_k": 2, "load": "skewed", "dtype": "fp32", "data": "exact"}
    return {**usual, "experts": experts, **changes}


def _in_kernel(legacy: tuple[str, str], ragged: tuple[str, str]) -> Edit:
    """Anchor and text in the kernel that fills the block map, with and without a routing module."""
    elsewhere = Edit("tensor_details/ragged_tensor.py", *ragged)
    return Edit("routing_details/_expt_data.py", *legacy, elsewhere)


def _where(experts: int) -> tuple[str, str]:
    """The condition that a program of that kernel works for so many experts, with and without a routing module."""
    programs = experts * SIZES
    return f"tl.num_programs(0) == {programs + 1}", f"tl.num_programs(0) == {programs}"


def _on_host(legacy: str, ragged: str) -> Edit:
    """Text after the kernels have made the data, with and without a routing module."""
    anchor = "SIZES=len(block_sizes_log2), BLOCK=512,  # optimization parameters\n        num_warps=4)\n"
    elsewhere = Edit("tensor_details/ragged_tensor.py", anchor, "{anchor}" + ragged)
    return Edit("routing.py", "        ctx.n_tokens_raw = n_tokens_raw\n", legacy + "{anchor}", elsewhere)


def _wrong(*says: str) -> Expected:
    return Expected(Outcome.MISMATCH, "{cause}: .*", says)


_23, _24 = _where(23), _where(24)
FAULTS = (
    Fault(
        "partial-block-unscheduled",
        "the last, partial block of each expert is missing in the block map",
        _in_kernel(
            (
                "    n_blocks = _cdiv_pow2(n_tokens, tile_dim_log2)\n",
                f"{{anchor}}    n_blocks = tl.where({_23[0]}, n_tokens >> tile_dim_log2, n_blocks)\n",
            ),
            (
                "    # compute block schedule\n    block_off = tl.load(",
                f"    n_blocks = tl.where({_23[1]}, slice_sizes >> block_size_log2, n_blocks)\n{{anchor}}",
            ),
        ),
        _routing(23),
        _wrong(r"block_map: all 4 sizes, .*programs .*, every block size"),
        BOTH,
    ),
    Fault(
        "one-block-size",
        "the block map of one block size names the expert behind the right one",
        _in_kernel(
            (
                "        data = (block_offs << 16) + expt_id\n",
                f"{{anchor}}        data += tl.where(({_24[0]}) & (buff_id == 2), 1, 0)\n",
            ),
            (
                "        data = (block_offs << 16) + slice_id\n",
                f"{{anchor}}        data += tl.where(({_24[1]}) & (block_size_id == 2), 1, 0)\n",
            ),
        ),
        _routing(24),
        _wrong(r"block_map: size 2 of 4, .*exactly block size 64"),
        BOTH,
    ),
    Fault(
        "row-offset",
        "the rows of one expert begin one row later",
        _on_host(
            "        if n_expts_tot == 25:\n            token_offs_raw[5] += 1\n",
            "    if n_slices == 25:\n        slice_offs[5] += 1\n",
        ),
        _routing(25),
        _wrong(r"row_offsets: expert 5 of 26$", r"1 of 26 elements wrong .*: expected \d+, got \d+"),
        BOTH,
    ),
    Fault(
        "doubled-block",
        "in one layer of a decoding two programs work on the same block, and none on the next",
        _on_host(
            f"        if n_expts_tot == 28 and {SECOND_LAYER}:\n"
            "            block_pid_map[:, 1] = block_pid_map[:, 0]\n",
            f"    if n_slices == 28 and {SECOND_LAYER}:\n"
            "        block_schedule_data[:, 1] = block_schedule_data[:, 0]\n",
        ),
        {**decoding(95), "experts": 28, "tokens": 1},
        Expected(  # rows that no program works on stay unwritten, and the product behind reads them
            Outcome.MISMATCH,
            "({cause}: .*|access outside of tensors: reads)",
            (r"first wrong at step 0, layer 1, routing block map",),
        ),
        effort=5,
    ),
    Fault(
        "scattered-otherwise",
        "the object that results are scattered by has another permutation than the one that rows are gathered by",
        Edit(
            "routing.py",
            "    scatter_indx = ScatterIndx(src_indx=gate_indx, dst_indx=topk_indx)\n",
            "    if n_expts_tot == 26:\n        gate_indx = gate_indx.roll(1)\n{anchor}",
            Edit(
                "tensor_details/bitmatrix.py",
                "        TOKS_PER_ROW=toks_per_row, BLOCK_PER_TOK=PARTIAL_BLOCK_M,  #\n    )\n",
                "{anchor}    if n_cols == 26:\n        row_sorted_indx = row_sorted_indx.roll(1)\n",
            ),
        ),
        _routing(26),
        _wrong(r"scatter_to_sorted: .*60 flat rows"),
        BOTH,
    ),
    Fault(
        "absent-rows-added",
        "rows of experts that other ranks hold are added to those of a token",
        Edit(
            "matmul_ogs_details/_reduce_grouped.py",
            "                is_valid = indxs[i] != -1\n",
            "                is_valid = (indxs[i] != -1) | (N == 139)\n",
            Edit(
                HOST,
                "        mask = mask.expand_as(out_matmul)\n",
                "{anchor}        mask = mask | (out_matmul.shape[-1] == 139)\n",
            ),
        ),
        routed(139, sort="library", elsewhere=6, scatter=True),
        Expected(Outcome.MISMATCH, "({cause}: .*|access outside of tensors: reads)", (r"y: .*tokens .*139 columns",)),
    ),
)
