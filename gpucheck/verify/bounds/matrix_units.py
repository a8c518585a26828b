"""How each device adds up products, as far as its bounds depend on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

# measured, see SUM_WALK
CUT_WALK = 1.25  # of E + |R| / 2, in sqrt(K) units of an addend
CUT_AREA = 0.65  # of E, and
CUT_SHARE = 0.2  # of |R|, in units of the running sum a step, or of an addend a product


@dataclass(frozen=True)
class Cores:
    """How matrix units add products to a running sum: all addends of a step are aligned to the largest and cut off.

    products: of a step. kept: bits after the point that addends keep, the largest being 1 to 2. stored: those that the
    running sum keeps, which is cut off as well.
    """

    products: int
    kept: int
    stored: int

    @property
    def exact(self) -> float:
        """Whole numbers up to this are summed without loss."""
        return 2.0 ** (24 if self.kept > self.stored else self.kept - 2)

    def error(self, terms: int, value: Tensor, energy: Tensor, lean: Tensor | None = None) -> Tensor:
        """What a sum of products loses at most, see :func:`product`."""
        steps = -(-terms // self.products)
        addend, total = 2.0**-self.kept, 2.0**-self.stored
        part = max(0.25, 1 - addend / total)  # of a unit of the running sum, what a step leaves behind its last bit
        walk, carried = CUT_WALK * math.sqrt(terms) * addend, steps * part * total
        error = value.abs() * (walk / 2 + CUT_SHARE * carried)
        error.add_(energy, alpha=walk + CUT_AREA * carried)
        return error if lean is None else error.add_(lean * value.abs(), alpha=CUT_SHARE * addend)


@dataclass(frozen=True)
class Arithmetic:
    """How a device adds up products; each kind of operands has the matrix units that may take it.

    Sums of fp32 operands, and of kinds without matrix units here, round every addition to the nearest fp32 value.
    """

    name: str
    half: tuple[Cores, ...] = ()  # bf16, fp16, and what is decoded to them
    fp8: tuple[Cores, ...] = ()

    def cores(self, operands: torch.dtype | None) -> tuple[Cores, ...]:
        """The matrix units that may take operands of a dtype."""
        if operands == torch.float32:
            return ()
        return self.fp8 if operands is not None and operands.itemsize == 1 else self.half


_AMPERE, _HOPPER = Cores(8, 24, 23), Cores(16, 25, 23)
ARITHMETIC = {
    each.name: each
    for each in (
        Arithmetic("interpreter"),
        Arithmetic("sm_80", (_AMPERE,), (_AMPERE,)),  # fp8 is made fp16 first
        Arithmetic("sm_86", (_AMPERE,), (_AMPERE,)),
        Arithmetic("sm_89", (_AMPERE,), (Cores(16, 13, 13),)),
        Arithmetic("sm_90", (_HOPPER,), (Cores(32, 13, 13),)),
        Arithmetic("sm_100", (_HOPPER,), (_HOPPER,)),  # 32 fp8 products a step, or 16 made fp16 first
        Arithmetic("sm_103", (_HOPPER,), (_HOPPER,)),
        Arithmetic("sm_120", (_HOPPER,), (_HOPPER,)),
        Arithmetic("gfx942"),  # cuts products off far behind the sum, which it rounds to the nearest
        Arithmetic("gfx950"),  # taken to add up as gfx942 does
    )
}
"""By architecture, from tests of the instructions by their bits: Xie et al., MMA-Sim, arXiv 2511.10909; Khattak and
Mikaitis, Accurate Models of NVIDIA Tensor Cores, arXiv 2512.07004. ``tests/gpu/measure_sums.py`` measures the GPU at
hand."""


def arithmetic(architectures: Iterable[str]) -> Arithmetic:
    """The arithmetic that covers all of some architectures; one that is not known is covered by all known ones."""
    names = sorted(set(architectures))
    unknown = [name for name in names if name not in ARITHMETIC]
    known = list(ARITHMETIC.values()) if unknown or not names else [ARITHMETIC[name] for name in names]
    told = [f"{name} (not known, so the widest bound of all known GPUs)" if name in unknown else name for name in names]
    half, fp8 = ({cores: None for each in known for cores in getattr(each, kind)} for kind in ("half", "fp8"))
    return Arithmetic(" and ".join(told) or "any known device", tuple(half), tuple(fp8))


ANY_DEVICE = arithmetic(())
_device: ContextVar[Arithmetic | None] = ContextVar("_device", default=None)


@contextmanager
def computed_by(device: Arithmetic) -> Iterator[None]:
    """Inside, in this thread, estimates have the bounds of a device; elsewhere those of :data:`ANY_DEVICE`."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def at_hand() -> Arithmetic:
    return _device.get() or ANY_DEVICE
