"""Bounds for a computation of which only the torch code is known: its rounding errors, drawn at random.

The code runs in float64 several times. In each run every operation gets, at random, the errors that a right computation
with fp32 accumulation may make in it, and they spread through what follows as real ones do. The spread of the results
is the scale of the error that a right result may have, see :func:`gpucheck.verify.sampled_bounds.sampled`. For a single
matrix product this comes to the bound of :func:`gpucheck.verify.bounds.product`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gpucheck.verify import bounds, sampled_bounds
from gpucheck.verify.normal_numbers import Normal
from gpucheck.verify.own_errors import OwnErrors

NARROW = (torch.float32, torch.bfloat16, torch.float16)
Arguments = Sequence[Any]


class UnknownOperation(Exception):
    """The code calls something for which no error model is known; the text names it."""


@dataclass(frozen=True)
class Rule:
    """The errors of one operation.

    terms: how many terms each result adds up, from the arguments; None adds nothing up.
    operand: argument whose elements err as the terms of such a sum do; -1 for none.
    elementary: it is, or contains, a function that hardware approximates.
    product: it multiplies two operands, which hardware may take with less precision.
    offset: what the error is relative to beside the result itself, from the arguments: where a usual formula adds up
        parts that are larger than the result; None where there is no such part.
    """

    terms: Callable[[Arguments], int] | None = None
    operand: int = -1
    elementary: bool = False
    product: bool = False
    offset: Callable[[Arguments], Tensor | None] = lambda args: None


@dataclass(frozen=True)
class ErrorsOfProduct:
    """Deviations of what is multiplied in a product: of one operand, of its results, and of all of these alike."""

    operand: float
    result: float
    leaning: float


@cache
def rule_of(func: Any) -> Rule | None:
    """The rule of an ATen operation; None where it makes no error.

    Raises:
        UnknownOperation: no rule is known.
    """
    name = func._schema.name.removeprefix("aten::")
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise UnknownOperation(f"{name}, which draws at random")
    if func.is_view or name in EXACT:
        return None
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in func.tags:
        return Rule(elementary=True)
    raise UnknownOperation(name)


class RandomDraws(TorchDispatchMode):
    """Keeps what a call draws at random, so that calls in float64 go on with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Any] = []  # of the operations that draw, in their order: for what shape, and the result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asks torch not to import its compiler; nothing here is compiled."""
        return False

    def __enter__(self) -> Any:
        self.drawn = []
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.drawn.append((_shape(args), tree_map_only(Tensor, torch.clone, result)))
        return result


def _shape(args: Arguments) -> tuple[int, ...]:
    """The shape of the first tensor that an operation is given, or the one that it names."""
    first = next((each for each in args if isinstance(each, (Tensor, list, tuple))), ())
    return tuple(first.shape) if isinstance(first, Tensor) else tuple(first)


def _drawn_before(func: Any, args: Any, drawn: tuple[tuple[int, ...], Any]) -> Any:
    """The result of an operation that draws at random, with the numbers that were drawn before.

    Where it is asked for so many times as much along an axis, for as many copies of the inputs, each copy has them.

    Raises:
        UnknownOperation: what it draws does not show in its result.
    """
    shape, result = drawn
    name = func._schema.name.removeprefix("aten::")
    if name == "native_dropout":
        mask = _of_copies(result[1], shape, _shape(args))
        scale = 1 / (1 - args[1]) if args[2] is not False and args[1] < 1 else 1.0
        return args[0] * mask * scale, mask
    if not isinstance(result, Tensor) or name.startswith(("rrelu", "_")):
        raise UnknownOperation(f"{name}, which draws at random")
    wide = _of_copies(_widened(result), shape, _shape(args))
    return args[0].copy_(wide) if func._schema.is_mutable else wide


def _of_copies(drawn: Tensor, shape: tuple[int, ...], asked: tuple[int, ...]) -> Tensor:
    """Numbers drawn for a shape, again and again along the axis on which more is asked for."""
    if len(asked) != len(shape):
        return drawn
    for axis, (own, now) in enumerate(zip(shape, asked, strict=True)):
        if own and now > own and not now % own and axis < drawn.ndim and drawn.shape[axis] == own:
            drawn = torch.cat([drawn] * (now // own), axis)
    return drawn


class Wide(TorchDispatchMode):
    """Inside, torch code computes in float64, whatever floating dtype it names; with a source of noise, with that."""

    def __init__(
        self,
        dtype: torch.dtype,
        noise: Normal | None = None,
        own: OwnErrors | None = None,
        draws: RandomDraws | None = None,
        precision: str = "fp32",
    ) -> None:
        """Args:
        dtype: that the code would compute in by itself; each operation may round its result to it.
        noise: where its numbers come from; None for none.
        own: watches without noise, and says with noise what errs by how much.
        draws: what an earlier call drew at random; without them no call may draw.
        precision: the least that hardware may take operands of products in, see ``operand_deviation``.
        """
        super().__init__()
        self.longest = 1  # terms of the longest sum so far
        self.noised: list[tuple[int, float]] = []  # how many numbers of noise were drawn each time, of what deviation
        self.written: set[int] = set()  # addresses of the memory that operations wrote to beside that of their results
        self._noise = noise
        self._own = own
        self._first = own is not None and own.known  # a product that errs is still to come
        self._finite = noise is not None and own is not None and not own.by_element and own.finite
        self._drawn = list(draws.drawn) if draws is not None else []
        self._operands = sampled_bounds.operand_deviation(precision)
        self._leaning = sampled_bounds.truncation_deviation(precision)
        self.rounding = max(bounds.rounding_deviation(dtype), sampled_bounds.storage_deviation(precision))

    @property
    def draws_noise(self) -> bool:
        return self._noise is not None

    @property
    def watches(self) -> bool:
        """Whether single operations are looked at, or not all of them draw their errors."""
        own = self._own
        return own is not None and (self._noise is None or self._first or own.by_element)

    def errors_of_product(self, terms: int) -> ErrorsOfProduct:
        """Those of a product of so many terms, which are taken note of."""
        self.longest = max(self.longest, terms)
        summing = sampled_bounds.summing_deviation(terms)
        return ErrorsOfProduct(max(summing, self._operands), max(self.rounding, summing), self._leaning)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asks torch not to import its compiler; nothing here is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        narrow = [value for value in kwargs.values() if value in NARROW]
        kwargs = {key: torch.float64 if value in NARROW else value for key, value in kwargs.items()}
        if func._schema.is_mutable:
            self.written |= _written(func, args, kwargs)
        args = _wide_ones(args)
        stored = 0.0
        if func._schema.name == "aten::_to_copy":  # a value that the code itself stores with less precision
            stored = max((bounds.rounding_deviation(dtype) for dtype in narrow), default=0.0)
        stored = stored if stored > self.rounding else 0.0
        if self._drawn and torch.Tag.nondeterministic_seeded in func.tags:
            return _drawn_before(func, args, self._drawn.pop(0))
        if self._noise is None and self._own is None:
            return _wide_ones(func(*args, **kwargs))
        if not _floating([args, kwargs]):
            result = _wide_ones(func(*args, **kwargs))
            if not _floating(result):
                return result  # whole numbers make no error
        rule = rule_of(func)
        if rule is not None:
            result = self._noisy(func, args, kwargs, rule)
        else:
            result = _wide_ones(func(*args, **kwargs))
            if stored:
                self._first = False
                self._disturbed(result, result, stored, in_place=True)
        if self._noise is None and self._own is not None:
            self._own.watch(func, args, kwargs, result, errs=bool(stored) or rule is not None)
        return result

    def _noisy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], rule: Rule) -> Any:
        function = sampled_bounds.ELEMENTARY_DEVIATION if rule.elementary else 0.0
        terms = 1 if rule.terms is None else max(1, rule.terms(args))
        summing = 0.0 if rule.terms is None else sampled_bounds.summing_deviation(terms)
        operands = max(summing, self._operands) if rule.product else summing
        self.longest = max(self.longest, terms)
        offset = rule.offset(args)
        first, self._first = self._first, False
        if first and self._own is not None and self._noise is not None:
            result: Any = self._own.product(self._noise, operands)
        else:
            given = list(args)
            for number, argument in enumerate(args):
                deviation = max(function, operands if number == rule.operand else 0.0)
                written = number == 0 and func._schema.is_mutable
                if deviation and not written and isinstance(argument, Tensor) and argument.is_floating_point():
                    given[number] = self._disturbed(argument, argument, deviation)
            result = func(*given, **kwargs)
        offsets = [] if offset is None else [offset]  # of the first output
        for output in [result] if isinstance(result, Tensor) else result:
            if isinstance(output, Tensor) and output.is_floating_point():
                self._disturbed(output, output, max(self.rounding, function, summing), in_place=True)
                if rule.product and self._leaning:  # operands that are cut off all shrink
                    self._lean(output)
                if offsets:
                    self._disturbed(output, offsets.pop(), max(function, summing), in_place=True)
        return result

    def _disturbed(self, tensor: Tensor, scale: Tensor, deviation: float, *, in_place: bool = False) -> Tensor:
        """A tensor with errors of a deviation relative to a scale, which are taken note of."""
        self.noised.append((tensor.numel(), deviation))
        own = self._own.deviations() if self._own is not None else None
        if own is None:
            assert self._noise is not None, "who only watches is given a number"
            return self._noise.disturbed(tensor, scale, deviation, in_place=in_place, finite=self._finite)
        if not own:
            return tensor
        if tensor is scale:
            return tensor.mul_(1 + deviation * own) if in_place else tensor * (1 + deviation * own)
        return tensor.add_(scale, alpha=deviation * own) if in_place else tensor.add(scale, alpha=deviation * own)

    def _lean(self, product: Tensor) -> None:
        """Multiplies all elements alike, with an error."""
        own = self._own.deviations() if self._own is not None else None
        product.mul_(self.draw((), 1, self._leaning) if own is None else 1 + self._leaning * own)

    def draw(self, shape: Sequence[int], mean: float, deviation: float) -> Tensor:
        """Errors of a mean and a deviation, which are taken note of."""
        assert self._noise is not None
        self.noised.append((math.prod(shape), deviation))
        return self._noise.draw(shape, mean, deviation)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> set[int]:
    """The addresses of the memory of those arguments that an operation writes to."""
    named = {argument.name: argument for argument in func._schema.arguments}
    given = {**dict(zip(named, args, strict=False)), **kwargs}
    written = [value for name, value in given.items() if (alias := named[name].alias_info) and alias.is_write]
    flat = (part for value in written for part in (value if isinstance(value, (list, tuple)) else [value]))
    return {part.untyped_storage().data_ptr() for part in flat if isinstance(part, Tensor)}


def _floating(values: Any) -> bool:
    """Whether a tensor among these, in whatever form, is floating."""
    return any(isinstance(each, Tensor) and each.is_floating_point() for each in tree_leaves(values))


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype in NARROW else tensor


def _wide_ones(value: Any) -> Any:
    """Arguments or results, with float64 tensors for narrower ones; ATen has tensors by themselves or in lists."""
    if isinstance(value, Tensor):
        return _widened(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map(_wide_ones, value)) if any(isinstance(each, (Tensor, list)) for each in value) else value
    return value


_MOVES = (
    "where masked_fill masked_fill_ gather scatter index index_select index_put index_put_ take cat stack embedding "
    "transpose_ t_ squeeze_ unsqueeze_ tril triu copy copy_ clone contiguous roll flip repeat rot90 im2col "
    "constant_pad_nd reflection_pad1d  reflection_pad2d replication_pad2d upsample_nearest2d pixel_shuffle "
    "pixel_unshuffle channel_shuffle  _unsafe_view _reshape_alias unsafe_split unsafe_split_with_sizes split_copy "
    "unfold_copy masked_scatter  masked_select"
)
_COMPARES = (
    "max min amax amin argmax argmin maximum minimum aminmax clamp clamp_ clamp_min clamp_max relu relu_ hardtanh "
    "hardshrink threshold sort topk kthvalue median cummax cummin max_pool2d_with_indices max_pool3d_with_indices neg "
    "abs sign floor ceil trunc eq ne lt le gt ge isnan isinf isfinite nan_to_num logical_and logical_or logical_not "
    "bitwise_and bitwise_or bitwise_not bitwise_xor any all nonzero"
)
_STORES = (
    "_to_copy detach arange zeros ones full empty eye zeros_like ones_like full_like empty_like new_zeros new_ones "
    "new_full new_empty new_empty_strided empty_strided scalar_tensor lift_fresh lift_fresh_copy fill fill_ zero_ "
    "_local_scalar_dense"
)
EXACT = frozenset(f"{_MOVES} {_COMPARES} {_STORES}".split())
"""Operations that move, compare or store values."""


def _axes(position: int) -> Callable[[Arguments], int]:
    """Terms of a reduction over the axes that argument ``position`` names, else over all."""

    def terms(args: Arguments) -> int:
        axes = args[position] if len(args) > position else None
        if axes is None or axes == []:
            return int(args[0].numel())
        return math.prod(args[0].shape[axis] for axis in ([axes] if isinstance(axes, int) else axes))

    return terms


def _filter(args: Arguments) -> int:
    """Terms of a convolution, transposed or not: a filter is (out, in, ...) or (in, out, ...)."""
    return int(args[1].numel() // min(args[1].shape[:2]))


def _pooled(args: Arguments) -> int:
    """Terms of an adaptive pooling to the sizes that the second argument gives."""
    sizes = zip(args[0].shape[-len(args[1]) :], args[1], strict=True)
    return math.prod(-(-before // after) + 1 for before, after in sizes)


def _one(args: Arguments) -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _size(args: Arguments) -> Tensor:
    return torch.abs(args[0])


def _bias(args: Arguments) -> Tensor | None:
    """The size of what the third argument adds along the channels, the second axis, of the first."""
    bias = args[2]
    return None if bias is None else bias.abs().reshape(bias.shape + (1,) * (args[0].ndim - 1 - bias.ndim))


def _table() -> dict[str, Rule]:
    product = Rule(lambda args: args[0].shape[-1], 0, product=True)
    added = Rule(lambda args: args[1].shape[-1] + 1, 1, product=True, offset=_size)
    reduced, weighed = Rule(_axes(1), 0), Rule(_axes(1), elementary=True)
    layers = Rule(lambda args: math.prod(args[1]), 0, offset=lambda args: None if args[3] is None else args[3].abs())
    groups = Rule(lambda args: args[4] * args[5] // args[6], 0, offset=_bias)
    channels = Rule(lambda args: args[0].numel() // args[0].shape[1], 0, offset=_bias)
    rules = {
        "mm bmm mv dot vdot": product,
        "addmm addmv baddbmm": added,
        "convolution _convolution mkldnn_convolution": Rule(_filter, 0, product=True, offset=_bias),
        "sum mean cumsum var std var_mean std_mean": reduced,
        "avg_pool2d avg_pool3d": Rule(lambda args: math.prod(args[1]), 0),
        "_adaptive_avg_pool2d _adaptive_avg_pool3d": Rule(_pooled, 0),
        "nll_loss_forward nll_loss2d_forward": Rule(lambda args: args[1].numel(), 0),
        "mse_loss smooth_l1_loss huber_loss": Rule(lambda args: args[0].numel(), 0),
        "prod cumprod": Rule(_axes(1)),
        "linalg_vector_norm norm": Rule(_axes(2)),
        "native_layer_norm": layers,
        "native_group_norm": groups,
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
        "_batch_norm_with_update _batch_norm_no_update": channels,
        "_softmax _safe_softmax logsumexp logcumsumexp": weighed,
        "_log_softmax": Rule(_axes(1), elementary=True, offset=_one),
        "add add_ sub sub_ rsub mul mul_ div div_ floor_divide addcmul addcdiv lerp sqrt reciprocal square hardswish "
        "hardsigmoid leaky_relu _prelu_kernel": Rule(),
        "glu _thnn_fused_lstm_cell _thnn_fused_gru_cell": Rule(elementary=True),
        "gelu mish": Rule(elementary=True, offset=_size),
        "elu selu celu softplus log_sigmoid_forward tanh expm1 log1p": Rule(elementary=True, offset=_one),
    }
    return {name: rule for names, rule in rules.items() for name in names.split()}


RULES = _table()
"""Operations that round; others that work element by element are taken as functions that hardware approximates."""
