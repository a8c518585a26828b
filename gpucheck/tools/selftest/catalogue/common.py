"""What the declarations of faults share: cases, and places in the source that they change."""

from __future__ import annotations

from typing import Any

from gpucheck.tools.selftest.fault import Target

KERNEL = "matmul_ogs_details/_matmul_ogs.py"
HOST = "matmul_ogs.py"
TOPK = "topk_details/_topk_forward.py"
BOTH = (Target.EACH, Target.ALL)

HONEST: dict[str, Any] = {"check": "honest", "trial": 1, "data": "normal"}
"""The case of the candidate that stays green beside those that cheat."""

TAIL = 96  # terms of a sum that end within a block of 64 or 128


def dense(columns: int, **changes: Any) -> dict[str, Any]:
    """A small dense product, told by its number of columns, in the kernel that the edits are made for."""
    usual = {"check": "matmul", "weight": "bf16", "persistent": "no", "m": 20, "n": columns, "k": TAIL}
    return {**usual, "data": "exact", **changes}


def routed(columns: int, **changes: Any) -> dict[str, Any]:
    """A small product routed to experts."""
    usual = {"mode": "routed", "weight": "fp16", "m": 24, "experts": 6, "top_k": 2, "gather": True}
    return dense(columns, **{**usual, **changes})


def decoding(vocabulary: int) -> dict[str, Any]:
    """A decoding of two tokens by two layers, told by its vocabulary."""
    return {
        "check": "generation",
        "layers": 2,
        "batch": 1,
        "tokens": 2,
        "hidden": 64,
        "heads": 1,
        "kv_heads": 1,
        "window": 2,
        "experts": 8,
        "intermediate": 32,
        "vocabulary": vocabulary,
        "layout": "strided",
        "data": "normal",
    }


def attention(queries: int, **changes: Any) -> dict[str, Any]:
    """Attention of one head, told by its number of queries; from 17 to 128 they make one tile."""
    usual = {"check": "attention", "batch": 1, "q_heads": 1, "kv_heads": 1, "q_len": queries, "k_len": queries}
    return {**usual, "data": "exact", **changes}
