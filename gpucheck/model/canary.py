"""The canary: a case that is wrong on purpose, in one place that everybody knows.

A run that holds one proves that its detector sees: a rank on which the canary is not found just as it was made has
proved nothing by what it calls right.
"""

from __future__ import annotations

CHECK = "canary"
INDEX = (0, 0, 3, 5)  # batch, head, query, dimension of the one wrong element
BIT = 7  # that is flipped in it: in bfloat16 it doubles or halves the value
PARAMS: dict[str, int | float | bool | str] = {
    "mask": "full",
    "batch": 1,
    "q_heads": 1,
    "kv_heads": 1,
    "q_len": 16,
    "k_len": 16,
    "head_dim": 64,
}
