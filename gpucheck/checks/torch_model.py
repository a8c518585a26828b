"""What a problem's torch code says: its inputs, its weights, and the right outputs with their bounds."""

from __future__ import annotations

import ast
import copy
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpucheck.checks.base import Allowed
from gpucheck.model.errors import UsageError
from gpucheck.verify import bounds
from gpucheck.verify.digest import whole
from gpucheck.verify.expected import Expected
from gpucheck.verify.judge import judge
from gpucheck.verify.noise_model import NARROW, UnknownOperation, Wide
from gpucheck.verify.views import is_dense

LITERAL = ".literal"
_lock = threading.RLock()  # the random state, and how torch computes attention, belong to the whole process


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
    with _lock:
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


class Reference:
    """``Model`` on the CPU, in float64 whatever dtype it names itself."""

    def __init__(self, module: ModuleType, inputs: Mapping[str, Tensor], seed: int) -> None:
        self._inputs, self._others = inputs, draw_inputs(module, seed ^ 1)
        self._model = build(module, inputs, seed)
        self._model.load_state_dict(weights(inputs))
        parts = [value.dtype for value in inputs.values() if value.is_floating_point()]
        self._dtype = next((dtype for dtype in reversed(NARROW) if dtype in parts), torch.float32)
        self._seed = seed

    def expected(self, tolerance: Mapping[str, float] | None, bound: str) -> dict[str, Expected]:
        """The right outputs.

        Args:
            tolerance: as stated in the problem; None derives the bound.
            bound: where the bound comes from, in words.

        Raises:
            UsageError: no bound can be had that tells right from wrong.
        """
        with _lock, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            with problems_own("Model"):
                own = named(self._fresh(self._inputs, wide=False)())
            values, others = self._wide(self._inputs), self._wide(self._others)
            if any(bool(value.isnan().any()) for value in values.values()):
                raise UsageError("Model gives NaN: such outputs cannot be judged")
            if tolerance is None:
                estimates, longest = self._derived(values)
                bound += f" ({bounds.SAMPLES} runs, {bounds.WIDTH} deviations, longest sum {longest})"
            else:
                estimates = {
                    name: bounds.stated(
                        value, absolute=tolerance.get("absolute", 0.0), relative=tolerance.get("relative", 0.0)
                    )
                    for name, value in values.items()
                }
        expected = {
            name: Expected(estimate, own[name].dtype, basis=_exactly(bound, estimate))
            for name, estimate in estimates.items()
        }
        _require_that_it_tells(expected, own, others)
        return expected

    def _derived(self, values: dict[str, Tensor]) -> tuple[dict[str, bounds.Estimate], int]:
        """The estimates, and the terms of the longest sum."""
        generator = torch.Generator().manual_seed(self._seed)
        runs: dict[str, list[Tensor]] = {name: [] for name in values}
        longest = 1
        try:
            for _ in range(bounds.SAMPLES):
                call = self._fresh(self._inputs, wide=True)
                with Wide(self._dtype, generator) as mode:
                    result = named(call())
                longest = max(longest, mode.longest)
                for name, value in result.items():
                    runs[name].append(value.double())
        except UnknownOperation as error:
            raise UsageError(
                f"no bound can be derived: Model calls {error}, whose errors are not known; state tolerance = "
                '{"absolute": ..., "relative": ...} in the problem'
            ) from None
        return {name: bounds.sampled(value, runs[name]) for name, value in values.items()}, longest

    def _wide(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        call = self._fresh(inputs, wide=True)
        with Wide(self._dtype):
            result = named(call())
        return {name: value.double() for name, value in result.items()}

    def _fresh(self, inputs: Mapping[str, Tensor], *, wide: bool) -> Callable[[], Any]:
        """A call of a fresh copy of the model with copies of its inputs, made now: that draws no roundings."""
        model = copy.deepcopy(self._model)
        values = [value.clone() if isinstance(value, Tensor) else value for value in unpack("input", inputs)]
        if wide:
            model = model.double()
            values = [
                value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in values
            ]

        def call() -> Any:
            with problems_own("Model"):
                return model(*values)

        return call


def _exactly(bound: str, estimate: bounds.Estimate) -> str:
    return bound if estimate.error is not None else "derived from Model, which makes no rounding error: none allowed"


def _require_that_it_tells(expected: dict[str, Expected], own: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Raises UsageError where the bounds refuse Model itself, or accept the answer to other inputs."""
    for name, item in expected.items():
        if item.dtype.is_floating_point and item.dtype not in NARROW:
            raise UsageError(f"{name} of Model is {item.dtype}: bounds are known for fp32, bf16 and fp16")
    refused = judge(own, expected, {}).mismatches
    if refused:
        raise UsageError(
            f"the bound refuses Model itself, computed in its own dtype on the CPU: {refused[0].output} is off by "
            f"{abs((refused[0].got or 0.0) - refused[0].expected):.3g}, allowed {refused[0].bound:.3g}; state another "
            "tolerance in the problem"
        )
    answers = {name: others[name].to(item.dtype) for name, item in expected.items()}
    if not judge(answers, expected, {}).mismatches and all(answers[name].shape == own[name].shape for name in own):
        raise UsageError(
            "the bound accepts the answer to other inputs, so it cannot tell a right candidate from one that ignores "
            "them: get_inputs must draw at random, and a stated tolerance must be small against the outputs"
        )
