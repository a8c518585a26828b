"""Faults that engines add to attention: which of them gives exactly what was computed.

Compared with what each such fault gives, wrong outputs say what the engine did otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gpucheck.checks.base import GIVES
from gpucheck.checks.engine_attention import Change, attention_reference
from gpucheck.checks.on_use import torch
from gpucheck.model.case import Case
from gpucheck.verify.expected import Expected

if TYPE_CHECKING:
    from torch import Tensor

    Inputs = dict[str, Tensor]

TOKENS = 4  # wrong ones, and right ones, that are computed again


def explanation(case: Case, inputs: Inputs, output: Tensor, expected: Expected) -> str:
    """``attention: the sink is left out (that gives exactly these outputs)``; at least the name of the layer.

    Args:
        output: (T, H, D), of the expected shape and dtype.
        expected: what it should be.
    """
    from gpucheck.verify.judge import accepted, closest

    finite = output.isfinite().flatten(1).all(1)
    wrong = closest(output, expected)[1].flatten(1).any(1)
    told = [which.nonzero().flatten()[:TOKENS] for which in (wrong & finite, ~wrong)]
    tokens = torch.cat(told).sort().values
    for fault, change in faults(case) if len(told[0]) else ():
        if accepted(output[tokens], attention_reference(case, inputs, change, tokens)) is not None:
            return f"attention: {fault} ({GIVES})"
    if not finite.all():
        return "attention: NaN lies where no sequence has keys, and in memory that was never written"
    return "attention: no known fault gives these outputs"


def faults(case: Case) -> Iterator[tuple[str, Change]]:
    """Words, and what is computed otherwise, of each known fault that the case can show."""
    if case["sinks"]:
        yield "the sinks are left out", Change(_without_sinks)
    if case["window"]:
        yield "the window is one key too wide", Change(window=1)
        yield "the window is one key too narrow", Change(window=-1)
        yield "the window is not applied", Change(window=case["k_len"])
    if case["soft_cap"]:
        yield "the soft cap is not applied", Change(soft_cap=False)
    yield "a token does not see its own key", Change(later=-1)
    if case["queries"] != "decode":  # else no key is behind it
        yield "a token sees the key behind its own", Change(later=1)
    yield "tokens are taken to stand one key too early", Change(shift=-1)
    if case["queries"] != "decode" or case["window"]:
        yield "tokens are taken to stand one key too late", Change(shift=1)
    yield "the last key of a sequence is left out", Change(seen=_without_last)
    if case["q_heads"] != case["kv_heads"]:
        yield "query head h attends to head h % kv_heads", Change(kv_head=lambda head, heads, groups: head % groups)
    if case.data != "exact":  # whose largest score is the largest by far
        yield "scores are not scaled", Change(scale=case["head_dim"] ** 0.5)
        yield "scores are scaled twice", Change(scale=case["head_dim"] ** -0.5)
    yield "each sequence has the pages of the next one", Change(_table(lambda table: table.roll(-1, 0)))
    yield "each sequence has the pages of the one before", Change(_table(lambda table: table.roll(1, 0)))
    yield "pages of a sequence are taken one too late", Change(_table(lambda table: table.roll(-1, 1)))
    yield "pages of a sequence are taken one too early", Change(_table(lambda table: table.roll(1, 1)))


def _without_sinks(inputs: Inputs) -> Inputs:
    return {name: value for name, value in inputs.items() if name != "sinks"}


def _without_last(seen: Tensor) -> Tensor:
    kept = torch.ones_like(seen)
    kept[:, -1] = False
    return seen & kept


def _table(edit: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Inputs]:
    return lambda inputs: {**inputs, "table": edit(inputs["table"])}
