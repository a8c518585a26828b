"""Three ways through the reference: by itself, along what a device recorded, and beside itself with other roundings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from gpucheck.checks.decoder.reference import Cache, Reference
from gpucheck.checks.decoder.shape import (
    ARGMAX,
    EXPERTS,
    IN_LAYER,
    LOGITS,
    OWN,
    ROUTING,
    TOKENS,
    UNEMBEDDING,
    Caller,
    Shape,
)
from gpucheck.checks.decoder.tensor_parallel import OfAllRanks, OfOneRank, recorded_by_one
from gpucheck.checks.routing import reference_topk
from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected

MEMBERS = 8  # passes with other roundings, of which the spread of the logits is measured
Recorded = Mapping[str, Tensor]
"""Operation -> what it gave: (S, L, ...) for those of LAYER, else (S, ...)."""


@dataclass
class Alone:
    """Goes on with the rounded value, and keeps it."""

    caller: Caller = OWN
    kept: dict[str, list[Tensor]] = field(default_factory=dict)  # operation -> its results, call by call

    def __call__(self, operation: str, layer: int | None, estimate: Estimate) -> Tensor:
        dtype = self.caller.dtype_of(operation)
        value = bounds.round_to(dtype, estimate.value) if dtype.is_floating_point else estimate.value
        self.kept.setdefault(operation, []).append(value)
        return value


@dataclass
class Along:
    """Goes on with what was recorded, and keeps what each operation should have made of it."""

    recorded: Recorded
    kept: dict[str, list[Estimate]] = field(default_factory=dict)  # operation -> one a layer, or one

    def __call__(self, operation: str, layer: int | None, estimate: Estimate) -> Tensor:
        self.kept.setdefault(operation, []).append(estimate)
        steps = self.recorded[operation]
        return (steps if layer is None else steps[:, layer]).double()


@dataclass
class Beside:
    """Goes on with any value that its operation could rightly have given."""

    caller: Caller
    generator: Generator

    def __call__(self, operation: str, layer: int | None, estimate: Estimate) -> Tensor:
        if estimate.error is None:
            return estimate.value
        allowed = bounds.tolerance(self.caller.dtype_of(operation), estimate.value, estimate.error)
        return estimate.value + allowed * (2 * torch.rand(allowed.shape, generator=self.generator).double() - 1)


def decode(shape: Shape, inputs: dict[str, Tensor], rank: int = 0, ranks: int = 0) -> dict[str, Tensor]:
    """Greedy decoding by the reference alone: what a device would record that rounds as little as it may.

    Args:
        shape: of the whole model, as the inputs are.
        rank: the one whose record it is, of so many ranks that share the model; 0 ranks: one has all of it.
    """
    reference, alone, cache = _of_all(shape, inputs, ranks), Alone(shape.caller), Cache(shape.layers)
    token, tokens = _given(shape, inputs), []
    with one_thread():
        while cache.length < shape.tokens:
            tokens.append(reference.run(token, alone, cache).argmax(-1))
            token = tokens[-1][-1:]
    recorded = {}
    for operation, values in alone.kept.items():
        if operation in IN_LAYER:  # all layers of a run, then those of the next
            whole = torch.stack([torch.cat(values[layer :: shape.layers]) for layer in range(shape.layers)], 1)
        else:
            whole = torch.cat(values)
        recorded[operation] = whole.to(shape.caller.dtype_of(operation))
    recorded[ARGMAX] = torch.cat(tokens)
    return recorded_by_one(shape, recorded, rank, ranks) if ranks else recorded


def _of_all(shape: Shape, inputs: dict[str, Tensor], ranks: int) -> Reference:
    return OfAllRanks(shape, inputs, ranks) if ranks else Reference(shape, inputs)


def _given(shape: Shape, inputs: dict[str, Tensor]) -> Tensor:
    """The tokens (P, B) of the first steps, which are not decoded."""
    return inputs["start"].reshape(shape.prompt, shape.batch)


def judge_by(
    shape: Shape, inputs: dict[str, Tensor], recorded: Recorded, rank: int = 0, ranks: int = 0
) -> dict[str, Expected]:
    """The references of what was recorded: of each operation given what it was given, and of the whole decoding.

    What an operation makes of numbers that are wrong beyond use (not finite, or rows in a wrong order) is not known.
    For ``rank`` and ``ranks`` see :func:`decode`.
    """
    tokens = torch.cat([_given(shape, inputs), recorded[ARGMAX][shape.prompt - 1 : -1]])
    tokens = tokens.clamp(0, shape.vocabulary - 1)
    along = Along(recorded)
    with one_thread():
        reference = _of_all(shape, inputs, ranks)
        (OfOneRank(shape, inputs, recorded, rank, ranks) if ranks else reference).run(tokens, along)
        expected = {name: _expected(shape.caller, name, estimates) for name, estimates in along.kept.items()}
        _leave_open(expected, recorded)
        expected[ARGMAX] = _argmax(recorded)
        expected.update(_whole(reference, tokens, recorded))
    return expected


def _expected(caller: Caller, operation: str, estimates: list[Estimate]) -> Expected:
    value = torch.stack([estimate.value for estimate in estimates], 1)
    errors = [estimate.error for estimate in estimates if estimate.error is not None]
    error = torch.stack(errors, 1) if errors else None
    if operation not in IN_LAYER:
        value, error = value[:, 0], None if error is None else error[:, 0]
    known = torch.isfinite(value) if error is None else torch.isfinite(value) & torch.isfinite(error)
    return Expected(Estimate(value, error), caller.dtype_of(operation), unknown=~known)


def _leave_open(expected: dict[str, Expected], recorded: Recorded) -> None:
    """Marks what follows from router logits that are not finite, and from rows in a wrong order."""
    blind = ~torch.isfinite(recorded["router"]).flatten(2).all(2)
    diverged = blind.clone()
    for operation in (name for name in ROUTING if name in expected):
        diverged |= (recorded[operation] != expected[operation].estimate.value).flatten(2).any(2)
    down = "experts down part" if "experts down part" in expected else "experts down"
    for names, unknown in (((*ROUTING, "routing gates"), blind), (("experts up", down, EXPERTS), diverged)):
        for operation in (name for name in names if name in expected):
            _mark(expected[operation], unknown)


def _mark(expected: Expected, unknown: Tensor) -> None:
    assert expected.unknown is not None
    expected.unknown[unknown] = True


def _argmax(recorded: Recorded) -> Expected:
    """Any of the largest logits is right."""
    logits, token = recorded[UNEMBEDDING], recorded[ARGMAX]
    return Expected(
        _one_of(logits.double(), token, torch.zeros(())),
        torch.int64,
        unknown=~torch.isfinite(logits).all(-1),
    )


def _one_of(logits: Tensor, token: Tensor, slack: Tensor) -> Estimate:
    """``token`` where its logit is within ``slack`` of the largest, else the largest one's."""
    chosen = logits.gather(-1, token.clamp(0, logits.shape[-1] - 1)[..., None])[..., 0]
    good = (token >= 0) & (token < logits.shape[-1]) & (logits.amax(-1) - chosen <= slack)
    return Estimate(torch.where(good, token, logits.argmax(-1)).double(), None)


def _whole(reference: Reference, tokens: Tensor, recorded: Recorded) -> dict[str, Expected]:
    """Logits and tokens as the reference computes them from the same tokens with the same choice of experts.

    Choices have no bound: a token or expert that is the best by less than roundings is right either way. What
    continues from them has: logits of passes that round otherwise, each number within what its operation is allowed.
    """
    shape = reference.shape
    chosen = reference_topk(recorded["router"].flatten(0, 2), shape.top_k)[1]
    chosen = chosen.reshape(*recorded["router"].shape[:3], shape.top_k)
    logits = reference.run(tokens, Alone(shape.caller), chosen=chosen)
    beside = Beside(shape.caller, Generator().manual_seed(0))
    members = reference.run(tokens.repeat(1, MEMBERS), beside, chosen=chosen.repeat(1, 1, MEMBERS, 1))
    estimate = bounds.spread(logits, members.unflatten(1, (MEMBERS, shape.batch)).movedim(1, 0))
    assert estimate.error is not None
    return {
        LOGITS: Expected(estimate, shape.caller.logits),
        TOKENS: Expected(_one_of(logits, recorded[ARGMAX], 2 * estimate.error[..., 0]), torch.int64),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
