"""Attention inputs whose softmax is one-hot in fp32: each output row is one value row, bit for bit.

A key holds its position as a ramp and a code. A query asks for the largest position it sees, for the smallest, or for
the code of one key: keys it must not see, before and after, would win if it saw them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

SYMBOL = 16  # coordinates of one symbol of a key's code
RAMP = 16  # coordinates that hold a key's position: half of them the high digit, half the low one
RAMP_BASE = 128
RAMP_STEP = 256.0
CODE_FACTOR = 128.0
FAR_LOGIT = 2.0**22  # beyond every score


@dataclass(frozen=True)
class KeyBook:
    """The keys of one head, and what to ask them with."""

    keys: Tensor  # (count, head_dim)
    codes: Tensor  # (count, head_dim): the product with a key is largest for its own
    ramp: Tensor  # (head_dim,): the product with a key grows with its position

    def ask(self, targets: Tensor, generator: Generator) -> Tensor:
        """Queries (n, head_dim), each in one of three ways drawn at random.

        Args:
            targets: (n,) int64, the key whose code is asked for; the query must see it.
        """
        way = torch.randint(3, (len(targets), 1), generator=generator)
        by_position = torch.where(way == 0, self.ramp, -self.ramp)
        return torch.where(way == 2, self.codes[targets] * CODE_FACTOR, by_position)


def key_book(head_dim: int, count: int, generator: Generator) -> KeyBook:
    """Keys with their coordinates shuffled and signed at random.

    A code is made of symbols, each one of 32 rows (a 16 x 16 Hadamard matrix and its negative) of which any two differ
    by at least SYMBOL in their product: the three symbols of a key name its number, and are repeated to fill head_dim.
    """
    hadamard = torch.ones(1, 1)
    while len(hadamard) < SYMBOL:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    symbols = torch.cat([hadamard, -hadamard])
    number = torch.randperm(count, generator=generator)
    blank = torch.zeros(count, RAMP)
    groups = (head_dim - RAMP) // SYMBOL
    codes = torch.cat([blank, *(symbols[number // len(symbols) ** (i % 3) % len(symbols)] for i in range(groups))], 1)

    position = torch.arange(count)[:, None].float()
    keys = codes.clone()
    keys[:, : RAMP // 2] = position // RAMP_BASE
    keys[:, RAMP // 2 : RAMP] = position % RAMP_BASE
    ramp = torch.zeros(head_dim)
    ramp[: RAMP // 2] = RAMP_BASE * RAMP_STEP
    ramp[RAMP // 2 : RAMP] = RAMP_STEP

    order = torch.randperm(head_dim, generator=generator)
    sign = torch.randint(2, (head_dim,), generator=generator) * 2.0 - 1
    return KeyBook(keys[:, order] * sign, codes[:, order] * sign, ramp[order] * sign)


def sinks(q_heads: int) -> Tensor:
    """(q_heads,) float32: those of every fourth head beat all keys (its output is zero), the others weigh nothing."""
    return torch.where(torch.arange(q_heads) % 4 == 1, FAR_LOGIT, -FAR_LOGIT)


def draw(visible: Tensor, generator: Generator) -> Tensor:
    """For each row of (n, keys) bool one of its keys at random; key 0 where it has none."""
    return ((1 + torch.rand(visible.shape, generator=generator)) * visible).argmax(1)
