"""What ranks send each other: exact values that tell round, sender, receiver and place apart."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.on_use import bounds
from gpucheck.model.case import Case
from gpucheck.verify.views import PIECE

DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int32": torch.int32,
}
LARGEST = {"bf16": 2**8, "fp16": 2**11, "fp32": 2**24, "int32": 2**30}
"""Up to these each dtype holds every integer, so every sum of integers that stays below is exact."""
ALL = -1  # in place of a receiver: the same data go to all


def chunk(case: Case, round: int, sender: int, receiver: int, count: int, *, summed: bool = False) -> Tensor:
    """What a rank gives another one, or all: integers, none of them zero; 1 or -1 where very many ranks add them up.

    Args:
        summed: the data of all ranks are added up, and their sum must be exact too.
    """
    dtype = str(case["dtype"])
    most = max(2, LARGEST[dtype] // max(1, case.ranks)) if summed else LARGEST[dtype]
    seed = hashlib.blake2b(f"{case.input_seed}:{round}:{sender}:{receiver}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
    made = torch.empty(count, dtype=DTYPES[dtype])
    for part in made.split(PIECE):  # every rank of a node makes its own: each byte counts as often as there are ranks
        drawn = torch.randint(1, 2 * most - 1, (len(part),), generator=generator, dtype=torch.int32)
        part.copy_(torch.where(drawn < most, drawn, most - 1 - drawn))
    return made


def exact(value: Tensor, dtype: torch.dtype) -> Any:
    """The reference that allows for no error; in the dtype of the output where that holds it, which takes less memory.

    Args:
        value: what is right, of any dtype.
        dtype: of the output.
    """
    from gpucheck.verify.expected import Expected

    narrow = value.to(dtype)
    pairs = zip(narrow.flatten().split(PIECE), value.flatten().split(PIECE), strict=True)
    held = all(torch.equal(one.double(), other.double()) for one, other in pairs)
    return Expected(bounds.Estimate(narrow if held else value.double(), None), dtype)
