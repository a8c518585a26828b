"""What a problem's torch code says: its inputs, its weights, and the right outputs with their bounds."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from gpucheck.checks.arguments import call, pack, tensors, unpack
from gpucheck.checks.base import Allowed
from gpucheck.checks.drawn_device import redirected
from gpucheck.model.errors import UsageError
from gpucheck.verify.digest import differing
from gpucheck.verify.noise_model import UnknownOperation
from gpucheck.verify.views import is_dense

ON_GPU = "drawn on the GPU"
"""Among the inputs where Model was made there: its candidate is too, so that what both draw is the same."""
process_lock = threading.RLock()  # the random state, and how torch computes attention, belong to the whole process


def draw(module: ModuleType, seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """Arguments and weights of ``Model``, and the inputs of one call: ``input0``, ...

    Args:
        device: where they are drawn, whatever device the problem names; numbers of a GPU are other ones.
    """
    with seeded(seed), problems_own("get_init_inputs"), redirected(device):
        init = pack("init", module.get_init_inputs(), getattr(module, "__name__", ""))
    inputs = draw_inputs(module, seed, device)
    with problems_own("Model"):
        state = build(module, init, seed, device=device).state_dict()
    unmade = [name for name, value in state.items() if is_lazy(value)]
    if unmade:
        raise UsageError(
            f"{unmade[0]} of Model gets its shape in the first call, expected weights that Model makes in __init__; "
            "give the layer all its sizes"
        )
    drawn = {ON_GPU: torch.ones(1, dtype=torch.uint8)} if torch.device(device).type == "cuda" else {}
    return {**init, **inputs, **{f"state.{name}": value.detach() for name, value in state.items()}, **drawn}


def draw_inputs(module: ModuleType, seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """The inputs of one call: ``input0``, ..."""
    with seeded(seed), problems_own("get_inputs"), redirected(device):
        return pack("input", module.get_inputs(), getattr(module, "__name__", ""))


@cache
def sizes(module: ModuleType, device: str) -> int:
    """Bytes of inputs, weights and outputs, as a call on a device shows; 0 where the problem's code raises.

    Without numbers, on torch's device "meta", a call of thousands of small operations takes seconds.
    """
    with suppress(Exception), torch.no_grad(), seeded(0), redirected(device):
        model = call(module.Model, module.get_init_inputs()).to(device)
        given = tree_map_only(Tensor, lambda value: value.to(device), module.get_inputs())
        held = [*_tensors(given), *model.state_dict().values()]
        with suppress(torch.cuda.OutOfMemoryError):  # then it is large
            held += _tensors(call(model, given))
        return sum(value.nbytes for value in held)
    return 0


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


@contextmanager
def problems_own(what: str) -> Iterator[None]:
    """Inside, the problem's code runs: what it raises is a fault of that file.

    Raises:
        UsageError: it raised.
        OutOfMemoryError: a GPU has no memory left, for which others may be to blame.
    """
    try:
        yield
    except (UsageError, UnknownOperation, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise UsageError(f"{what} of the problem raised {type(error).__name__}: {error}") from error


def build(
    module: ModuleType, inputs: Mapping[str, Tensor], seed: int, name: str = "Model", device: str = "cpu"
) -> torch.nn.Module:
    """The model called ``name``, made under the seed from the arguments of :func:`draw` on a device.

    Raises:
        TypeError: it is no module of torch.
    """
    with seeded(seed), redirected(device):
        model = call(getattr(module, name), unpack("init", inputs))
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{name} makes a {type(model).__name__}, expected a torch.nn.Module")
    return model


def weights(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that :func:`draw` put among the inputs."""
    return {key.removeprefix("state."): value for key, value in inputs.items() if key.startswith("state.")}


def named(result: Any) -> dict[str, Tensor]:
    """What a model returns, by name: ``out``, or ``out0``, ``out1.logits``, ... of several tensors in whatever form.

    Numbers are tensors without axes; None stands for nothing.

    Raises:
        TypeError: it holds something else, or nothing.
    """
    found = dict(_leaves("out", result))
    if not found:
        raise TypeError(f"a model returned {type(result).__name__} without a tensor")
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            layout = str(value.layout).removeprefix("torch.")
            raise TypeError(f"a model returned a {layout} tensor, expected a dense one")
        yield name, value.resolve_neg()
    elif isinstance(value, (bool, int, float)):
        yield name, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _leaves(f"{name}{number}" if name == "out" else f"{name}.{number}", part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _leaves(f"{name}.{field.name}", getattr(value, field.name))
    elif value is not None:
        raise TypeError(f"a model returned {type(value).__name__}, expected tensors or numbers")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, everything that draws at random from the state of the process does so from this seed."""
    with process_lock:
        of_gpu = torch.cuda.is_initialized()
        before = random.getstate(), torch.get_rng_state(), _numpy_state()
        gpu_state = torch.cuda.get_rng_state() if of_gpu else None
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if of_gpu:
            torch.cuda.manual_seed(seed)
        _numpy_state(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state)
            _numpy_state(state=before[2])


def _numpy_state(seed: int | None = None, state: Any = None) -> Any:
    """The random state of numpy, seeded or set anew where asked for; None where numpy is not installed."""
    try:
        from numpy import random as numpy_random
    except ImportError:
        return None
    if seed is not None:
        numpy_random.seed(seed % 2**32)
    if state is not None:
        numpy_random.set_state(state)
    return numpy_random.get_state()


@torch.no_grad()
def side_effects(module: ModuleType, inputs: Mapping[str, Tensor], seed: int, device: torch.device) -> Allowed:
    """What two calls of ``Model`` do beside answering: which inputs and state they change, where their outputs lie.

    Args:
        inputs: what :func:`draw` gave, on any device.
    """
    model = build(module, inputs, seed).to(device)
    model.load_state_dict(weights(inputs))
    held = {name: value.to(device, copy=True) for name, value in inputs.items()}
    values = unpack("input", held)
    state = {f"state.{name}": value for name, value in model.state_dict().items()}
    given = {**state, **tensors("input", held)}
    first, second = (named(call(model, values)) for _ in range(2))
    changed = {name for name, value in given.items() if not _same_bits(value, inputs[name].to(device))}
    memory = {value.untyped_storage().data_ptr() for value in (*given.values(), *first.values()) if value.numel()}
    return Allowed(
        writes=frozenset(changed),
        shares=frozenset(name for name, value in second.items() if value.untyped_storage().data_ptr() in memory),
        strided=frozenset(name for name, value in second.items() if not is_dense(value)),
    )


def _same_bits(value: Tensor, other: Tensor) -> bool:
    return (value.shape, value.dtype) == (other.shape, other.dtype) and not differing(value, other)
