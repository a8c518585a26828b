"""Recurrent layers with errors drawn at random, by a few operations a step instead of all that torch makes of a cell.

:mod:`gpucheck.verify.noise_model` handles each operation by itself, which takes many times as long as the operation: a
network of six layers and 512 steps has 3,072 cells. Here errors of many steps are drawn at once, those that the
products, sums and functions of a cell get there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from gpucheck.verify.noise_model import Wide
from gpucheck.verify.sampled_bounds import ELEMENTARY_DEVIATION

STEPS = 16  # whose errors are drawn at once

State = tuple[Tensor, ...]  # h, and c of an LSTM, of shape (batch, hidden)
Step = Callable[[int, Tensor, Tensor, State], State]


def draw_at_once(model: nn.Module) -> None:
    """Changes how the recurrent layers of a model are called, as far as they are torch's own and draw no numbers."""
    for part in model.modules():
        if isinstance(part, nn.RNNBase) and type(part).forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward):
            draws = part.dropout > 0 and part.training
            if not draws and not part.proj_size:
                part.forward = partial(_forward, part)  # type: ignore[method-assign]


def _forward(part: nn.RNNBase, input: Any, hx: Any = None) -> Any:
    own: Any = torch._C
    mode, usual = _get_current_dispatch_mode(), partial(type(part).forward, part, input, hx)
    if not isinstance(input, Tensor) or (isinstance(mode, Wide) and mode.watches):  # a packed sequence, or looked at
        return usual()
    with own.DisableTorchFunction(), own._DisableTorchDispatch():
        return _noisy(part, mode, input, hx) if isinstance(mode, Wide) and mode.draws_noise else usual()


def _noisy(part: nn.RNNBase, mode: Wide, input: Tensor, hx: Any) -> Any:
    """What the layers give for an input and a state of the shapes that torch documents."""
    steps = input[:, None] if input.ndim == 2 else input.transpose(0, 1) if part.batch_first else input
    ways = 2 if part.bidirectional else 1
    states, ended = _states(part, hx, steps, part.num_layers * ways), list[State]()
    for layer in range(part.num_layers):
        outputs = []
        for way in range(ways):
            number = layer * ways + way
            given = steps.flip(0) if way else steps
            output, last = _layer(
                part.mode, mode, given, tuple(each[number] for each in states), part.all_weights[number]
            )
            outputs.append(output.flip(0) if way else output)
            ended.append(last)
        steps = torch.cat(outputs, -1)
    finals = tuple(torch.stack(each) for each in zip(*ended, strict=True))
    if input.ndim == 2:
        steps, finals = steps[:, 0], tuple(each[:, 0] for each in finals)
    elif part.batch_first:
        steps = steps.transpose(0, 1)
    return steps, finals if part.mode == "LSTM" else finals[0]


def _states(part: nn.RNNBase, hx: Any, steps: Tensor, count: int) -> State:
    """The states before the first step, each of shape (layers and ways, batch, hidden)."""
    if hx is None:
        zeros = steps.new_zeros(count, steps.shape[1], part.hidden_size)
        return (zeros, zeros) if part.mode == "LSTM" else (zeros,)
    given = hx if part.mode == "LSTM" else (hx,)
    return tuple(each if each.ndim == 3 else each[:, None] for each in given)


def _layer(kind: str, mode: Wide, steps: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """The outputs of a layer in one direction, of shape (steps, batch, hidden), and its last state."""
    into, onto, *biases = weights
    onto, width, hidden, outputs = onto.T, onto.shape[0], onto.shape[1], []
    for begin, end in pairwise([*range(0, len(steps), STEPS), len(steps)]):
        part = steps[begin:end]
        before, behind, beside = _errors_of_product(mode, part.shape[:2], into.shape[1], width, biases[:1])
        given = (part * before) @ into.T * behind + beside
        before, behind, beside = _errors_of_product(mode, part.shape[:2], hidden, width, biases[1:])
        step = CELLS[kind](mode, part.shape[:2], hidden)
        for number in range(len(part)):
            carried = torch.mm(state[0] * before[number], onto).mul_(behind[number]).add_(beside[number])
            state = step(number, given[number], carried, state)
            outputs.append(state[0])
    return torch.stack(outputs), state


def _errors_of_product(mode: Wide, lead: tuple[int, ...], terms: int, width: int, biases: Sequence[Tensor]) -> State:
    """What the operand and the result of a product are multiplied by, and its bias with what that errs."""
    errs = mode.errors_of_product(terms)
    before, behind = mode.draw((*lead, terms), 1, errs.operand), mode.draw((*lead, width), 1, errs.result)
    if errs.leaning:  # all results of a step alike
        behind.mul_(mode.draw((lead[0], 1, 1), 1, errs.leaning))
    if not biases:
        return before, behind, behind.new_zeros(1).expand(lead[0], 1, 1)
    beside = mode.draw((*lead, width), 0, errs.result).mul_(biases[0].abs()).add_(biases[0])
    return before, behind, beside


def _lstm(mode: Wide, lead: tuple[int, ...], hidden: int) -> Step:
    of_gates, (of_c, of_h) = _of_results(mode, lead, 4 * hidden), (_of_results(mode, lead, hidden) for _ in "ch")
    of_tanh, of_tanh_c = (_of_tanh(mode, lead, hidden) for _ in range(2))

    def step(number: int, given: Tensor, carried: Tensor, state: State) -> State:
        gates = given + carried
        open_ = gates.sigmoid()
        torch.tanh(gates[:, 2 * hidden : 3 * hidden], out=open_[:, 2 * hidden : 3 * hidden])
        i, f, g, o = open_.mul_(of_gates[number]).chunk(4, 1)
        c = (f * state[1]).addcmul_(i, g.add_(of_tanh[number])).mul_(of_c[number])
        return c.tanh().add_(of_tanh_c[number]).mul_(o).mul_(of_h[number]), c

    return step


def _gru(mode: Wide, lead: tuple[int, ...], hidden: int) -> Step:
    of_gates, (of_n, of_h) = _of_results(mode, lead, 2 * hidden), (_of_results(mode, lead, hidden) for _ in "nh")
    of_tanh = _of_tanh(mode, lead, hidden)

    def step(number: int, given: Tensor, carried: Tensor, state: State) -> State:
        both = 2 * hidden
        r, z = (given[:, :both] + carried[:, :both]).sigmoid_().mul_(of_gates[number]).chunk(2, 1)
        n = torch.addcmul(given[:, both:], r, carried[:, both:]).tanh_().add_(of_tanh[number]).mul_(of_n[number])
        return ((state[0] - n).mul_(z).add_(n).mul_(of_h[number]),)

    return step


def _tanh(mode: Wide, lead: tuple[int, ...], hidden: int) -> Step:
    of_tanh, of_h = _of_tanh(mode, lead, hidden), _of_results(mode, lead, hidden)
    return lambda number, given, carried, state: ((given + carried).tanh_().add_(of_tanh[number]).mul_(of_h[number]),)


def _relu(mode: Wide, lead: tuple[int, ...], hidden: int) -> Step:
    of_h = _of_results(mode, lead, hidden)
    return lambda number, given, carried, state: ((given + carried).relu_().mul_(of_h[number]),)


CELLS: dict[str, Callable[[Wide, tuple[int, ...], int], Step]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _tanh,
    "RNN_RELU": _relu,
}
"""By what torch names them: gives a step of a cell, with its errors in some steps."""


def _of_results(mode: Wide, lead: tuple[int, ...], width: int) -> Tensor:
    """What results of functions, or sums of a few terms, are multiplied by."""
    return mode.draw((*lead, width), 1, max(mode.rounding, ELEMENTARY_DEVIATION))


def _of_tanh(mode: Wide, lead: tuple[int, ...], width: int) -> Tensor:
    """What is added to a tanh: usual formulas add up parts of about 1."""
    return mode.draw((*lead, width), 0, ELEMENTARY_DEVIATION)
