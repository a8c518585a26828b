"""What a problem's torch code says: its inputs, its weights, and the right outputs with their bounds."""

from __future__ import annotations

import ast
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpucheck.checks.base import Allowed
from gpucheck.model.errors import UsageError
from gpucheck.verify.digest import whole
from gpucheck.verify.noise_model import UnknownOperation
from gpucheck.verify.views import is_dense

LITERAL = ".literal"
process_lock = threading.RLock()  # the random state, and how torch computes attention, belong to the whole process


def draw(module: ModuleType, seed: int) -> dict[str, Tensor]:
    """Arguments and weights of ``Model``, and the inputs of one call: ``input0``, ..."""
    with seeded(seed), problems_own("get_init_inputs"):
        init = pack("init", module.get_init_inputs())
    inputs = draw_inputs(module, seed)
    with problems_own("Model"):
        state = build(module, init, seed).state_dict()
    return {**init, **inputs, **{f"state.{name}": value.detach() for name, value in state.items()}}


def draw_inputs(module: ModuleType, seed: int) -> dict[str, Tensor]:
    """The inputs of one call: ``input0``, ..."""
    with seeded(seed), problems_own("get_inputs"):
        return pack("input", module.get_inputs())


@contextmanager
def problems_own(what: str) -> Iterator[None]:
    """Inside, the problem's code runs: what it raises is a fault of that file.

    Raises:
        UsageError: it raised.
    """
    try:
        yield
    except (UsageError, UnknownOperation):
        raise
    except Exception as error:
        raise UsageError(f"{what} of the problem raised {type(error).__name__}: {error}") from error


def build(module: ModuleType, inputs: Mapping[str, Tensor], seed: int, name: str = "Model") -> torch.nn.Module:
    """The model called ``name``, made under the seed from the arguments of :func:`draw`."""
    with seeded(seed):
        model: torch.nn.Module = getattr(module, name)(*unpack("init", inputs))
    return model


def weights(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state that :func:`draw` put among the inputs."""
    return {key.removeprefix("state."): value for key, value in inputs.items() if key.startswith("state.")}


def named(result: Any) -> dict[str, Tensor]:
    """What a model returns, by name: ``out``, or ``out0``, ``out1``, ... of several tensors.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(result, Tensor):
        return {"out": result}
    if isinstance(result, (tuple, list)) and result and all(isinstance(part, Tensor) for part in result):
        return {f"out{number}": part for number, part in enumerate(result)}
    raise TypeError(f"a model returned {type(result).__name__}, expected a tensor or several of them")


def pack(prefix: str, values: Sequence[Any]) -> dict[str, Tensor]:
    """Arguments as tensors: numbers, strings and the like as the bytes of how Python writes them.

    Raises:
        UsageError: an argument that is neither a tensor on the CPU nor a plain value.
    """
    packed = {}
    for number, value in enumerate(values):
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                raise UsageError(f"{prefix} {number} of the problem lies on {value.device}, expected the CPU")
            packed[f"{prefix}{number}"] = value.detach()
            continue
        try:
            plain = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            plain = False
        if not plain:
            kind = type(value).__name__
            raise UsageError(f"{prefix} {number} of the problem is a {kind}, expected a tensor or a plain Python value")
        packed[f"{prefix}{number}{LITERAL}"] = torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)
    return packed


def unpack(prefix: str, inputs: Mapping[str, Tensor]) -> list[Any]:
    """The arguments that :func:`pack` made tensors of, tensors as they are."""
    values: list[Any] = []
    while True:
        name = f"{prefix}{len(values)}"
        if name in inputs:
            values.append(inputs[name])
        elif name + LITERAL in inputs:
            values.append(ast.literal_eval(bytes(inputs[name + LITERAL].tolist()).decode()))
        else:
            return values


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, everything that draws at random from the state of the process does so from this seed."""
    with process_lock:
        before = random.getstate(), torch.get_rng_state(), _numpy_state()
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        _numpy_state(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])
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
    values = unpack("input", {name: value.to(device, copy=True) for name, value in inputs.items()})
    state = {f"state.{name}": value for name, value in model.state_dict().items()}
    given = {**state, **{f"input{number}": value for number, value in enumerate(values) if isinstance(value, Tensor)}}
    first, second = (named(model(*values)) for _ in range(2))
    changed = {name for name, value in given.items() if not _same_bits(value, inputs[name].to(device))}
    memory = {value.untyped_storage().data_ptr() for value in (*given.values(), *first.values()) if value.numel()}
    return Allowed(
        writes=frozenset(changed),
        shares=frozenset(name for name, value in second.items() if value.untyped_storage().data_ptr() in memory),
        strided=frozenset(name for name, value in second.items() if not is_dense(value)),
    )


def _same_bits(value: Tensor, other: Tensor) -> bool:
    return whole(value.cpu()) == whole(other.cpu())
