"""The right outputs of a problem's torch code and their bounds, made on the CPU.

Beside a call as it stands, ``Model`` is called in float64 without and, to derive a bound, SAMPLES times with errors
drawn at random. Those calls cost most: of large problems they are made for a part of the rows or columns at a time,
where that is shown to give the same values, so that what is between two operations fits into a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from gpucheck.checks.arguments import LITERAL, call, tensors, unpack
from gpucheck.checks.drawn_device import redirected
from gpucheck.checks.torch_model import ON_GPU, build, draw_inputs, named, problems_own, process_lock, seeded, weights
from gpucheck.model.errors import UsageError
from gpucheck.verify import bounds, sampled_bounds
from gpucheck.verify.expected import FIXED, Expected
from gpucheck.verify.judge import accepted, judge
from gpucheck.verify.noise_model import NARROW, RandomDraws, UnknownOperation, Wide
from gpucheck.verify.normal_numbers import Normal
from gpucheck.verify.own_errors import OwnErrors
from gpucheck.verify.recurrent_noise import draw_at_once

MANY = {"cpu": 1 << 20, "cuda": 1 << 27}  # numbers in inputs and outputs from which calls are made in parts
PART = {"cpu": 1 << 20, "cuda": 1 << 27}  # of these numbers in a call for a part
COPIES = {"cpu": 1 << 24, "cuda": 1 << 27}  # of these numbers in a call for copies

Tensors = dict[str, Tensor]
Division = tuple[int, list[str]]  # an axis, and the inputs that are divided along it as the outputs are
Made = TypeVar("Made")
INSEPARABLE = "divisions that change its values"
"""Under which a problem's module keeps what was found out about it."""


CHEAP = 2e11  # floating-point operations that a CPU makes in float64 within a second or so
KEPT = 2.0**-6  # difference of two calls, relative to their outputs, that a model makes by what it keeps
FEW = 1 << 24  # numbers in inputs and weights that it goes through within a second or so
EXACT, DRAWN = "each error up and down", f"{sampled_bounds.SAMPLES} runs with errors drawn at random"
AUTO = "auto"
"""Values in float64 are had where that takes seconds: on the CPU, which is trusted more, or else on the GPU."""
WHERE = {
    ("cpu", "cpu"): "float64 values of the CPU",
    ("cuda", "cpu"): "float64 values of the CPU, noise drawn on the GPU",
    ("cuda", "cuda"): "float64 values of this GPU",
}
"""Where a reference comes from: the device of the model, and that of its values."""


class _Operations(TorchDispatchMode):
    """Adds up the floating-point operations of products and convolutions."""

    flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asks torch not to import its compiler; nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            with suppress(Exception):  # one that a release of torch gets wrong counts nothing
                self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


HARDLY = "other inputs change the outputs of Model by less than its rounding errors: who ignores inputs passes"


class Inseparable(Exception):
    """Calls for parts of the inputs do not give the parts of the outputs."""


class Reference:
    """``Model`` in float64, whatever dtype it names itself, on the CPU or on a GPU."""

    def __init__(
        self,
        module: ModuleType,
        inputs: Mapping[str, Tensor],
        seed: int,
        *,
        precision: str = "fp32",
        device: str = "cpu",
        values_on: str = "",
    ) -> None:
        """Args:
        inputs: what :func:`draw` gave.
        precision: the least that products may be computed in, see :func:`sampled_bounds.operand_deviation`.
        device: where the model runs as it is, and with noise.
        values_on: where the values come from that outputs are held against, or AUTO, and bounds say so; "": the same
            device.
        """
        self._device = torch.device(device)
        self._module, self._values_on = module, values_on or self._device.type
        self._tells = bool(values_on)
        self._inputs = {k: v if k.endswith(LITERAL) else v.to(self._device) for k, v in inputs.items()}
        self._drawn_on = str(next((value.device for value in tensors("input", inputs).values()), "cpu"))
        made_on = device if ON_GPU in inputs else "cpu"
        self._model = build(module, inputs, seed, device=made_on).to(self._device)
        self._model.load_state_dict(weights(self._inputs))
        parts = [value.dtype for value in inputs.values() if value.is_floating_point()]
        self._dtype = next((dtype for dtype in reversed(NARROW) if dtype in parts), torch.float32)
        self._precision = precision
        self._seed = seed
        self._draws = RandomDraws()
        self._wide_weights: dict[int, Tensor] = {}  # by id of a parameter
        self._shared: Tensors = {}  # float64 inputs that calls for parts have as they are
        self._writes = False  # to its weights or to these inputs
        self._runs = EXACT  # that bounds are derived from
        self._others_differ = False  # whether the problem draws other inputs at another time

    @property
    def draws_at_random(self) -> bool:
        """Whether the model draws numbers itself; known once it was called."""
        return bool(self._draws.drawn)

    @property
    def where(self) -> str:
        """Where the values come from, in words; known once outputs were asked for."""
        return WHERE[self._device.type, self._values_on]

    def _cheapest(self, flops: int) -> str:
        """The device on which values are had within seconds."""
        numbers = sum(value.numel() for value in self._inputs.values())
        return "cpu" if numbers <= FEW and flops <= CHEAP and not _is_recurrent(self._model) else self._device.type

    def answer(self) -> Tensors:
        """The outputs of the model as it is.

        Raises:
            UsageError: it raises, or they cannot be judged.
        """
        with process_lock, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return self._in_its_own_dtype(self._inputs)[0]

    def must_repeat(self) -> None:
        """Calls a copy of the model twice, unless the problem is large.

        A model may keep numbers between its calls. A candidate with the same code would then be said to keep answers.

        Raises:
            UsageError: its second answer to equal inputs is another one.
        """
        if sum(value.numel() for value in self._inputs.values()) > MANY[self._device.type]:
            return
        model, answers = copy.deepcopy(self._model), list[Tensors]()
        with process_lock, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for _ in range(2):
                with problems_own("Model"), seeded(self._seed), redirected(self._device):
                    copies = {name: value.clone() for name, value in tensors("input", self._inputs).items()}
                    given = call(model, unpack("input", {**self._inputs, **copies}))
                    answers.append({name: value.clone() for name, value in named(given).items()})
            changed = [name for name, value in answers[0].items() if _is_another(value, answers[1].get(name))]
        if changed:
            raise UsageError(
                f"{changed[0]} of Model is another one in a second call with equal inputs, expected outputs that "
                "depend on inputs and weights alone; make what it keeps between calls an input"
            )

    def expected(self, tolerance: Mapping[str, float] | None, bound: str) -> dict[str, Expected]:
        """The right outputs, on the device of the model.

        Args:
            tolerance: as stated in the problem; None derives the bound.
            bound: where the bound comes from, in words.

        Raises:
            UsageError: no bound can be had that tells right from wrong.
        """
        with process_lock, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            own, flops = self._in_its_own_dtype(self._inputs)
            self._values_on = self._cheapest(flops) if self._values_on == AUTO else self._values_on
            bound = f"{bound}; {self.where}" if self._tells else bound
            in_blocks = self._in_blocks(own, tolerance, bound)
            if in_blocks is not None:
                return in_blocks
            try:
                values, others = self._values(own), self._answer_to_others(own)
            except UnknownOperation as error:
                raise UsageError(f"Model calls {error}, and its reference cannot do it alike") from None
            if any(bool(value.isnan().any()) for value in values.values()):
                raise UsageError("Model gives NaN: such outputs cannot be judged")
            squares, longest = self._derived(values) if tolerance is None else ({}, 1)
            self._wide_weights.clear()
        expected = _bounded(values, squares, own, tolerance, bound, longest, self._runs)
        return _told_apart(expected, own, others, refuse=tolerance is not None or not self._others_differ)

    def _in_blocks(self, own: Tensors, tolerance: Mapping[str, float] | None, bound: str) -> dict[str, Expected] | None:
        """As :meth:`expected`, of a large problem on a GPU, block by block; None where it is small or has no blocks.

        That blocks give what the whole gives is seen from the whole that the model computes in its own dtype.
        """
        given = tensors("input", self._inputs)
        size = sum(value.numel() for value in (*given.values(), *own.values()))
        if self._device.type != "cuda" or self._values_on == "cpu" or size <= MANY["cuda"] or self.draws_at_random:
            return None

        def blocks(axis: int, names: Sequence[str]) -> dict[str, Expected]:
            made = self._made_in_blocks(own, axis, names, size, tolerance)
            expected = _bounded(*made[:2], own, tolerance, bound, made[2], self._runs)
            if any(accepted(own[name], item) is None for name, item in expected.items()):
                raise Inseparable
            return self._told_apart_in_block(expected, own, axis, names, made[3], stated=tolerance is not None)

        return self._divided(_divisions(given, own), blocks)

    def _divided(self, divisions: Iterable[Division], make: Callable[[int, Sequence[str]], Made]) -> Made | None:
        """What is made of the first division that leaves values as they are; None where none does.

        Further references of the same problem do not try again what failed, which takes as long as what does not.
        """
        failed = vars(self._module).setdefault(INSEPARABLE, set())
        for axis, names in divisions:
            way = (make.__name__, axis, *names)
            if way not in failed:
                try:
                    return make(axis, names)
                except Inseparable:
                    failed.add(way)
        return None

    def _made_in_blocks(
        self, own: Tensors, axis: int, names: Collection[str], size: int, tolerance: Mapping[str, float] | None
    ) -> tuple[Tensors, Tensors, int, int]:
        """Values and squares from blocks along an axis, the terms of the longest sum, and the extent of a block.

        Raises:
            Inseparable: the first block is already far from what the model gives as a whole.
        """
        values = {
            name: torch.empty(value.shape, dtype=torch.float64, device=self._device) for name, value in own.items()
        }
        squares = {name: torch.zeros_like(value) for name, value in values.items()} if tolerance is None else {}
        extent = next(iter(own.values())).shape[axis]
        step, begin, longest = max(1, extent * PART["cuda"] // size), 0, 1
        self._shared = {k: _widened(v) for k, v in tensors("input", self._inputs).items() if k not in names}
        noise = Normal(torch.Generator(self._device).manual_seed(self._seed))
        try:
            while begin < extent:
                count = min(step, extent - begin)
                inputs = {k: v.narrow(axis, begin, count) if k in names else v for k, v in self._inputs.items()}
                block = {k: v.narrow(axis, begin, count) for k, v in values.items()}
                spread = {k: v.narrow(axis, begin, count) for k, v in squares.items()}
                try:
                    longest = max(longest, self._block(block, spread, inputs, noise))
                except torch.cuda.OutOfMemoryError:
                    if step == 1:
                        raise
                    step = -(-step // 4)
                    torch.cuda.empty_cache()
                    continue
                if not begin:
                    part = {k: v.narrow(axis, 0, count) for k, v in own.items()}
                    first = _bounded(block, {k: v.clone() for k, v in spread.items()}, part, tolerance, "", longest)
                    if any(accepted(part[name], item) is None for name, item in first.items()):
                        raise Inseparable
                begin += count
        finally:
            self._shared = {}
        return values, squares, longest, step

    def _block(self, values: Tensors, squares: Tensors, inputs: Mapping[str, Tensor], noise: Normal) -> int:
        """Fills in the values and squares of a block; gives the terms of the longest sum."""
        watcher = self._watcher() if squares else None
        try:
            alone = self._wide(inputs, watcher)
        except (UsageError, UnknownOperation) as error:
            raise Inseparable from error
        if self._writes or any(name not in alone or alone[name].shape != v.shape for name, v in values.items()):
            raise Inseparable
        for name, value in values.items():
            value.copy_(alone[name])
        for value in squares.values():
            value.zero_()
        if not squares:
            return 1
        try:
            return self._add_squares(squares, alone, inputs, noise, watcher)
        except UnknownOperation as error:
            raise Inseparable from error

    def _told_apart_in_block(
        self,
        expected: dict[str, Expected],
        own: Tensors,
        axis: int,
        names: Collection[str],
        count: int,
        *,
        stated: bool,
    ) -> dict[str, Expected]:
        """As :func:`_told_apart`, by the first block of what other inputs give."""
        drawn = self._draw_others()
        others = {k: v.narrow(axis, 0, count) if k in names else v for k, v in drawn.items()}
        found = self._wide({**self._inputs, **others})
        answers = {name: value.to(own[name].dtype) for name, value in found.items()}
        first = {name: _first(item, axis, count) for name, item in expected.items()}
        mine = {k: v.narrow(axis, 0, count) for k, v in own.items()}
        told = _told_apart(first, mine, answers, refuse=stated or not self._others_differ)
        return {name: replace(item, indifferent=told[name].indifferent) for name, item in expected.items()}

    def _draw_others(self) -> Tensors:
        """Inputs that are not those of the case, as its problem draws them."""
        drawn = draw_inputs(self._module, self._seed ^ 1, self._drawn_on)
        others = {name: value.to(self._device) for name, value in drawn.items()}
        self._others_differ = any(
            value.shape != self._inputs[name].shape or not torch.equal(value, self._inputs[name])
            for name, value in tensors("input", others).items()
        )
        return others

    def _values(self, own: Tensors) -> Tensors:
        """The outputs in float64, on the device of the model wherever they were computed."""
        if self._values_on == self._device.type:
            return self._wide(self._inputs)
        inputs = {name: value.to(self._values_on) for name, value in self._inputs.items()}
        there = Reference(self._module, inputs, self._seed, precision=self._precision, device=self._values_on)
        there._draws.drawn = tree_map_only(Tensor, lambda value: value.to(self._values_on), self._draws.drawn)
        return {name: value.to(self._device) for name, value in there._wide(inputs).items()}

    def _answer_to_others(self, own: Tensors) -> Tensors:
        """The outputs for inputs that are not those of the case, in the dtypes of the outputs."""
        found = self._wide({**self._inputs, **self._draw_others()})
        return {name: value.to(own[name].dtype) for name, value in found.items()}

    def _in_its_own_dtype(self, inputs: Mapping[str, Tensor]) -> tuple[Tensors, int]:
        """The outputs of the model as it is, and its floating-point operations.

        What it draws at random is kept, for its further calls.
        """
        cells, counted = _open_cells(self._model, self._device), _Operations()
        with problems_own("Model"), seeded(self._seed), cells, counted, self._draws:
            own = named(self._fresh(inputs, wide=False)())
        unknown = [f"{name} is {value.dtype}" for name, value in own.items() if value.is_complex()]
        if unknown:
            raise UsageError(f"{unknown[0]}; complex numbers cannot be judged: return their parts")
        return {name: value.to(self._device) for name, value in own.items()}, counted.flops

    def _derived(self, values: Tensors) -> tuple[Tensors, int]:
        """The squared errors of runs with noise, and the terms of the longest sum."""
        generator = torch.Generator(self._device).manual_seed(self._seed)
        try:
            return self._squares(values, generator)
        except UnknownOperation as error:
            raise UsageError(
                f"no bound can be derived: Model calls {error}, whose errors are not known; state tolerance = "
                '{"absolute": ..., "relative": ...} in the problem'
            ) from None

    def _squares(self, values: Tensors, generator: torch.Generator) -> tuple[Tensors, int]:
        """Of the differences that errors drawn at random make, and the terms of the longest sum."""
        given, kind = tensors("input", self._inputs), self._device.type
        size = sum(value.numel() for value in (*given.values(), *values.values()))
        made = None

        def parts(axis: int, names: Sequence[str]) -> tuple[Tensors, int]:
            return self._in_parts(values, generator, axis, names, size)

        def copies(axis: int, names: Sequence[str]) -> tuple[Tensors, int]:
            return self._in_copies(values, generator, axis, names)

        if size > MANY[kind] and not self.draws_at_random:
            made = self._divided(_divisions(given, values), parts)
        elif size * sampled_bounds.SAMPLES <= COPIES[kind]:
            made = self._divided(islice(_divisions(given, values), 1), copies)
        return made or self._noisy(values, self._inputs, Normal(generator, stocked=kind == "cpu"))

    def _in_parts(
        self, values: Tensors, generator: torch.Generator, axis: int, names: Collection[str], size: int
    ) -> tuple[Tensors, int]:
        """As :meth:`_squares`, of parts along an axis of the outputs and of the inputs ``names``, each in a thread.

        Raises:
            Inseparable: a part has other values by itself than in the whole.
        """
        squares = {name: torch.zeros_like(value) for name, value in values.items()}
        extent = next(iter(values.values())).shape[axis]
        step = max(1, extent * PART[self._device.type] // size)
        begins = range(0, extent, step)
        self._shared = {k: _widened(v) for k, v in tensors("input", self._inputs).items() if k not in names}
        seeds = torch.randint(2**62, (len(begins),), generator=generator, device=generator.device).tolist()
        threads = torch.get_num_threads()

        def part(begin: int, seed: int) -> int:
            def cut(whole: Mapping[str, Tensor], cut_ones: Collection[str]) -> Tensors:
                count = min(step, extent - begin)
                return {k: v.narrow(axis, begin, count) if k in cut_ones else v for k, v in whole.items()}

            noise = Normal(torch.Generator(self._device).manual_seed(seed), stocked=self._device.type == "cpu")
            with torch.no_grad():
                return self._part(cut(values, values), cut(self._inputs, names), cut(squares, squares), noise)

        if self._device.type == "cuda":
            try:
                return squares, max(map(part, begins, seeds))
            finally:
                self._shared = {}
        try:
            with ThreadPoolExecutor(threads, "reference", torch.set_num_threads, (1,)) as pool:
                longest = max(_all_or_first_error(pool, part, begins, seeds))
        finally:
            torch.set_num_threads(threads)  # a thread that begins has as many as were set last
            self._shared = {}
        return squares, longest

    def _in_copies(
        self, values: Tensors, generator: torch.Generator, axis: int, names: Collection[str]
    ) -> tuple[Tensors, int]:
        """As :meth:`_squares`, in two calls: a run by itself, then all others as copies of inputs along an axis.

        Small operations take as long as it takes to call them. The last copy has other inputs, which shows whether
        copies have a part in each other's values, and each one has the values of the whole without noise.

        Raises:
            Inseparable: they have not, or some noise is not drawn for each copy.
        """
        noise, count = Normal(generator, stocked=self._device.type == "cpu"), sampled_bounds.SAMPLES
        others = self._draw_others()
        if any(others[name].shape != self._inputs[name].shape for name in names):
            raise Inseparable
        side_by_side = {k: torch.cat([self._inputs[k]] * (count - 1) + [others[k]], axis) for k in names}
        try:
            alone, run = self._call(self._inputs, noise, None)
            mode, runs = self._call({**self._inputs, **side_by_side}, noise, None)
            clean = self._wide({**self._inputs, **side_by_side})
        except (UsageError, torch.cuda.OutOfMemoryError) as error:
            raise Inseparable from error
        if self._writes or mode.noised != [(count * size, deviation) for size, deviation in alone.noised]:
            raise Inseparable
        squares = {name: torch.zeros_like(value) for name, value in values.items()}
        for name, value in values.items():
            extent = value.shape[axis]
            shape = [count * extent if number == axis else each for number, each in enumerate(value.shape)]
            if any(list(made[name].shape) != shape for made in (runs, clean) if name in made):
                raise Inseparable
            each_run, finite = [run[name], *runs[name].split(extent, axis)[:-1]], sampled_bounds.is_finite(value)
            for other in each_run:
                sampled_bounds.add_square(squares[name], value, other, finite=finite)
            copies = clean[name].split(extent, axis)[:-1]
            if any(sampled_bounds.differs(value, copy, squares[name]) for copy in copies):
                raise Inseparable
        self._runs = DRAWN
        return squares, max(alone.longest, mode.longest)

    def _part(self, values: Tensors, inputs: Mapping[str, Tensor], squares: Tensors, noise: Normal) -> int:
        """Adds to the squares of a part, which has these values in the whole; gives the terms of the longest sum."""
        if self._writes:
            raise Inseparable  # which parts share
        watcher = self._watcher()
        try:
            alone = self._wide(inputs, watcher)
        except UsageError as error:
            raise Inseparable from error
        if any(name not in alone or alone[name].shape != value.shape for name, value in values.items()):
            raise Inseparable
        longest = self._add_squares(squares, values, inputs, noise, watcher)
        if self._writes or any(
            sampled_bounds.differs(value, alone[name], squares[name]) for name, value in values.items()
        ):
            raise Inseparable
        return longest

    def _noisy(self, values: Tensors, inputs: Mapping[str, Tensor], noise: Normal) -> tuple[Tensors, int]:
        squares = {name: torch.zeros_like(value) for name, value in values.items()}
        watcher = None if self.draws_at_random or _is_recurrent(self._model) else self._watcher()
        if watcher is not None:
            try:
                self._wide(inputs, watcher)
            except UsageError:
                watcher = None  # what cannot be watched has its errors drawn
        return squares, self._add_squares(squares, values, inputs, noise, watcher)

    def _watcher(self) -> OwnErrors:
        return OwnErrors(sums=self._device.type == "cuda")

    def _add_squares(
        self,
        squares: Tensors,
        values: Tensors,
        inputs: Mapping[str, Tensor],
        noise: Normal,
        watcher: OwnErrors | None = None,
    ) -> int:
        longest, finite = 1, {name: sampled_bounds.is_finite(value) for name, value in values.items()}
        runs = range(sampled_bounds.SAMPLES) if watcher is None else iter(watcher.begins, False)
        self._runs = self._runs if watcher is not None and watcher.by_element else DRAWN
        weight = 1.0 if watcher is None else watcher.weight
        for _ in runs:
            mode, result = self._call(inputs, noise, watcher)
            longest = max(longest, mode.longest)
            for name, value in result.items():
                sampled_bounds.add_square(squares[name], values[name], value, finite=finite[name], weight=weight)
        return longest

    def _wide(self, inputs: Mapping[str, Tensor], watcher: OwnErrors | None = None) -> Tensors:
        return {name: value.double() for name, value in self._call(inputs, None, watcher)[1].items()}

    def _call(
        self, inputs: Mapping[str, Tensor], noise: Normal | None, watcher: OwnErrors | None
    ) -> tuple[Wide, Tensors]:
        model = self._fresh(inputs, wide=True)
        shared = [(each, each.data_ptr()) for each in (*self._wide_weights.values(), *self._shared.values())]
        cells = _open_cells(self._model, self._device) if noise or watcher else nullcontext()
        with cells, Wide(self._dtype, noise, watcher, self._draws, self._precision) as mode:
            result = {name: value.to(self._device) for name, value in named(model()).items()}
        if any(place in mode.written or place != each.data_ptr() for each, place in shared):
            self._writes = True
        return mode, result

    def _fresh(self, inputs: Mapping[str, Tensor], *, wide: bool) -> Callable[[], Any]:
        """A call of a fresh copy of the model with copies of its inputs, made now: that draws no roundings.

        Copies share the memory of their float64 weights unless a call writes to them.
        """
        kept = {id(value) for value in self._shared.values()}
        held = {**inputs, **self._shared}
        if wide:
            if self._writes or not self._wide_weights:
                self._wide_weights = {id(weight): _wide_weight(weight) for weight in self._model.parameters()}
            model = copy.deepcopy(self._model, dict(self._wide_weights)).double()
            _widen_attributes(model)
            copies = {name: v if id(v) in kept else _widened(v) for name, v in tensors("input", held).items()}
        else:
            model = copy.deepcopy(self._model)
            copies = {name: value.to(self._device, copy=True) for name, value in tensors("input", held).items()}
        draw_at_once(model)
        values = unpack("input", {**held, **copies})

        def run() -> Any:
            with problems_own("Model"), redirected(self._device):
                return call(model, values)

        return run


def _widen_attributes(model: torch.nn.Module) -> None:
    """Makes tensors float64 that modules hold beside parameters and buffers: a call may write to them."""
    for part in model.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                vars(part)[name] = _widened(value)


def _is_another(first: Tensor, second: Tensor | None) -> bool:
    """Whether two outputs have more between them than the order of sums makes; integers may be places of equals."""
    if second is None or second.shape != first.shape:
        return True
    if not first.is_floating_point():
        return False
    before, after = (value.to(first.device).double().nan_to_num() for value in (first, second))
    return bool((after - before).norm() > KEPT * before.norm())


def _is_recurrent(model: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.RNNBase) for part in model.modules())


@contextmanager
def _open_cells(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, recurrent layers compute cell by cell: cuDNN makes one operation of all, whose errors are not known."""
    if device.type != "cuda" or not _is_recurrent(model):
        yield
        return
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        yield


def _wide_weight(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    return torch.nn.Parameter(_widened(weight), weight.requires_grad)


def _widened(value: Tensor) -> Tensor:
    """A copy, in float64 of what is floating."""
    return value.detach().to(torch.float64 if value.is_floating_point() else value.dtype, copy=True)


def _all_or_first_error(pool: ThreadPoolExecutor, part: Callable[..., int], *arguments: Iterable[Any]) -> list[int]:
    """What the parts give; after an error no further one begins."""
    futures = [pool.submit(part, *each) for each in zip(*arguments, strict=True)]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


def _divisions(inputs: Mapping[str, Tensor], outputs: Tensors) -> Iterator[Division]:
    """Axes along which all outputs and some inputs are of one extent, and those inputs: together, then each alone."""
    for axis in range(2):
        extents = {value.shape[axis] if value.ndim > axis else 1 for value in outputs.values()}
        (extent,) = extents if len(extents) == 1 else (1,)
        fitting = [name for name, value in inputs.items() if value.ndim > axis and value.shape[axis] == extent]
        if extent > 1 and fitting:
            yield axis, fitting
            yield from ((axis, [name]) for name in fitting if len(fitting) > 1)


def _bounded(
    values: Tensors,
    squares: Tensors,
    own: Tensors,
    tolerance: Mapping[str, float] | None,
    bound: str,
    longest: int,
    runs: str = "",
) -> dict[str, Expected]:
    """The references of outputs that have the dtypes of ``own``."""
    if tolerance is None:
        most = max(value.numel() for value in values.values())
        width = sampled_bounds.WIDTH if runs == EXACT else sampled_bounds.width(most)
        bound += f" ({runs}, {width:.3g} deviations, longest sum {longest})"
        estimates = {name: sampled_bounds.sampled(value, squares[name], width) for name, value in values.items()}
    else:
        stated = {"absolute": tolerance.get("absolute", 0.0), "relative": tolerance.get("relative", 0.0)}
        estimates = {name: bounds.stated(value, **stated) for name, value in values.items()}
    return {name: _expected(estimate, own[name], bound) for name, estimate in estimates.items()}


def _first(item: Expected, axis: int, count: int) -> Expected:
    """The first elements along an axis of a reference."""
    estimate = item.estimate
    error = None if estimate.error is None else estimate.error.narrow(axis, 0, count)
    unknown = None if item.unknown is None else item.unknown.narrow(axis, 0, count)
    return replace(
        item, estimate=replace(estimate, value=estimate.value.narrow(axis, 0, count), error=error), unknown=unknown
    )


def _expected(estimate: bounds.Estimate, own: Tensor, bound: str) -> Expected:
    """The reference of an output that has the dtype of ``own``.

    Whole numbers that come of rounded ones, as the place of a maximum does, are known where no run with noise differs.
    """
    exactly = "derived from Model, which makes no rounding error: none allowed"
    basis = bound if estimate.error is not None else exactly
    if estimate.error is None or own.dtype.is_floating_point:
        if estimate.error is not None and own.dtype == torch.float64:
            narrower = sampled_bounds.in_float64(estimate)
            strict = Expected(narrower, own.dtype, basis=basis)
            if accepted(own, strict) is not None:
                return strict
        return Expected(estimate, own.dtype, basis=basis)
    unknown = estimate.error > bounds.SMALLEST_NORMAL
    return Expected(bounds.Estimate(estimate.value, None), own.dtype, basis=basis, unknown=unknown)


def _told_apart(expected: dict[str, Expected], own: Tensors, others: Tensors, *, refuse: bool) -> dict[str, Expected]:
    """The references, with what is to be said where the bounds accept the answer to other inputs.

    Args:
        own: what Model gives, of the dtypes of the outputs.
        others: what it gives for other inputs.
        refuse: whether it is an error that bounds accept that answer: the problem has stated them, or its other inputs
            are the same.

    Raises:
        UsageError: so it is, or the bounds refuse Model itself.
    """
    for name, item in expected.items():
        if item.dtype.is_floating_point and item.dtype not in (*NARROW, torch.float64):
            raise UsageError(f"{name} of Model is {item.dtype}: bounds are known for fp64, fp32, bf16 and fp16")
    refused = judge(own, expected, {}).mismatches
    if refused:
        raise UsageError(
            f"the bound refuses Model itself, computed in its own dtype: {refused[0].output} is off by "
            f"{abs((refused[0].got or 0.0) - refused[0].expected):.3g}, allowed {refused[0].bound:.3g}; state another "
            "tolerance in the problem"
        )
    alike = all(others[name].shape == own[name].shape for name in own)
    if not alike or any(accepted(others[name], item) is None for name, item in expected.items()):
        return expected
    if refuse:
        raise UsageError(
            "the bound accepts the answer to other inputs, so it cannot tell a right candidate from one that ignores "
            "them: get_inputs must draw at random, and a stated tolerance must be small against the outputs"
        )
    fixed = all(torch.equal(item.estimate.value.to(item.dtype), others[name]) for name, item in expected.items())
    return {name: replace(item, indifferent=FIXED if fixed else HARDLY) for name, item in expected.items()}
