"""Inputs of further calls of a candidate: other draws of its problem, and such as its problem does not draw.

Some candidates leave out work that the draws of a problem do not need.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import Tensor

from gpucheck.checks.base import CandidateCheck
from gpucheck.model.case import Case
from gpucheck.worker.protocol import Draw, Sent

MOST_VALUES = 16  # of an input that stands for something else than numbers: labels, masks, signs
SHOWN = 1 << 16  # elements, about, that are looked at
FEW_ZEROS = 1e-3  # share of zeros below which none of them is there for its place: no mask, no triangle, no padding


@dataclass(frozen=True)
class Drawn:
    """Inputs, and what was done to them to give them other statistics in words; "" where nothing was."""

    inputs: dict[str, Tensor]
    words: str = ""


def drawn(check: CandidateCheck, case: Case, draw: Draw, device: str = "cpu") -> Drawn:
    """The inputs that a draw names, drawn on a device: a GPU draws other numbers than the CPU."""
    seed = case.input_seed if draw.seed is None else draw.seed
    inputs = check.fresh_inputs(case, seed, device)
    return Drawn(inputs) if draw.unlike is None else unlike(inputs, draw.unlike)


def unlike(inputs: dict[str, Tensor], seed: int) -> Drawn:
    """The inputs turned around and made smaller, and moved where they hold hardly a zero.

    Zeros keep their places otherwise, and what is symmetric stays so. Nothing grows: a tolerance that a problem states
    fits the results of its own draws.

    Args:
        seed: of how much smaller they become and how far they move; whoever has it makes the same ones again.
    """
    chance = random.Random(seed)
    scale, share = -chance.uniform(0.4, 0.8), chance.uniform(0.3, 0.8)
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
    return Drawn({**inputs, **changed}, words if changed else "")


def _shown(value: Tensor) -> Tensor:
    """Elements from all over a tensor, no more than can be looked at at once."""
    flat = value.flatten()
    return flat[:: max(1, flat.numel() // SHOWN)]


def _numbers(shown: Tensor) -> bool:
    """Whether these are finite numbers of many values."""
    if not shown.is_floating_point() or shown.element_size() == 1 or not bool(shown.isfinite().all()):
        return False  # torch computes nothing in formats of 8 bits
    return len(shown.double().unique()) > MOST_VALUES


def sent(drawn: Drawn) -> Sent:
    """What there is to know of inputs."""
    form = " ".join(f"{name} {value.dtype} {tuple(value.shape)}" for name, value in drawn.inputs.items())
    return Sent(form, sum(value.nbytes for value in drawn.inputs.values()), drawn.words)
