"""Inputs that are drawn otherwise than a problem does: some candidates leave out work that its draws do not need."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

MOST_VALUES = 16  # of an input that stands for something else than numbers: labels, masks, signs
SHOWN = 1 << 16  # elements, about, that are looked at
FEW_ZEROS = 1e-3  # share of zeros below which none of them is there for its place: no mask, no triangle, no padding

_chance = random.SystemRandom()


@dataclass(frozen=True)
class Unlike:
    """Inputs with other statistics, and what was done to them in words; "" where nothing could be."""

    inputs: dict[str, Tensor]
    words: str


def unlike(inputs: dict[str, Tensor]) -> Unlike:
    """The inputs turned around and made smaller, and moved where they hold hardly a zero.

    Zeros keep their places otherwise, and what is symmetric stays so. Nothing grows: a tolerance that a problem states
    fits the results of its own draws.
    """
    scale, share = -_chance.uniform(0.4, 0.8), _chance.uniform(0.3, 0.8)
    changed, moved = {}, False
    for name, value in inputs.items():
        shown = _shown(value)
        if not _numbers(shown):
            continue
        changed[name] = value.clone().mul_(scale)
        if float((shown == 0).double().mean()) < FEW_ZEROS:
            changed[name].add_(-scale * share * float(shown.double().std()))
            moved = True
    words = f"multiplied by {scale:.2f}" + (f" and moved by {-scale * share:.2f} of their spread" if moved else "")
    return Unlike({**inputs, **changed}, words if changed else "")


def _shown(value: Tensor) -> Tensor:
    """Elements from all over a tensor, no more than can be looked at at once."""
    flat = value.flatten()
    return flat[:: max(1, flat.numel() // SHOWN)]


def _numbers(shown: Tensor) -> bool:
    """Whether these are finite numbers of many values."""
    if not shown.is_floating_point() or not bool(shown.isfinite().all()):
        return False
    return len(shown.double().unique()) > MOST_VALUES
