"""What there is to know of the outputs of a call once they are where its process can change them no more."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from gpucheck.verify import digest
from gpucheck.worker.protocol import AFTER, Taken
from gpucheck.worker.sealed_inputs import bit_sum

Tensors = dict[str, Tensor]


def look(
    written: Tensors,
    own: Callable[[], Tensors],
    allowed: Callable[[], Collection[str]],
    hashed: Callable[[Tensors], str],
) -> tuple[Tensors, Taken]:
    """The outputs among what a call has written, and what there is to know of them.

    Of an output that is one value everywhere, as kernels that did nothing leave it, that value alone is kept.

    Args:
        written: the outputs, and with :data:`AFTER` before their names what inputs of the case held after the call.
        own: those inputs.
        allowed: the names of those that the plain code changes too.
        hashed: a hash of outputs in the order of their names.
    """
    after = {name.removeprefix(AFTER): value for name, value in written.items() if name.startswith(AFTER)}
    outputs = {name: written[name] for name in sorted(written) if not name.startswith(AFTER)}
    everywhere = {name: _first(value) for name, value in outputs.items()}
    constant = {name: value for name, value in everywhere.items() if not digest.differing(outputs[name], value)}
    return {**outputs, **constant}, Taken(
        hashed(outputs),
        bit_sum(outputs),
        len(constant) < len(outputs),
        sum(value.nbytes for value in outputs.values()),
        _changed(after, own(), allowed) if after else {},
    )


def _first(value: Tensor) -> Tensor:
    """The first element of a tensor in place of all others, in memory of its own."""
    return value[(slice(1),) * value.ndim].clone().expand(value.shape) if value.numel() else value


def _changed(after: Tensors, own: Tensors, allowed: Callable[[], Collection[str]]) -> dict[str, tuple[int, int]]:
    """Inputs that the call changed and the plain code leaves alone: how many elements, of how many."""
    changed = {
        name: (digest.differing(value, own[name].to(value.device)), value.numel())  # a form's text is on the host
        for name, value in after.items()
        if (value.shape, value.dtype) == (own[name].shape, own[name].dtype)
    }
    changed = {name: count for name, count in changed.items() if count[0]}
    fine = allowed() if changed else ()
    return {name: count for name, count in changed.items() if name not in fine}


def differing(outputs: Tensors, others: Tensors) -> tuple[int, int]:
    """How many elements differ, of how many."""
    wrong = 0
    for name, value in outputs.items():
        other = others.get(name)
        alike = other is not None and (other.shape, other.dtype) == (value.shape, value.dtype)
        wrong += digest.differing(value, other) if other is not None and alike else value.numel()
    return wrong, sum(value.numel() for value in outputs.values())
