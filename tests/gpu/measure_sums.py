"""Measures what fp32 sums of K products stray by, on one GPU: ``python tests/gpu/measure_sums.py``.

Each line of the table is one kind of operand and one K with some 1e8 elements in several orders of summation, each
against a float64 product. ``gpucheck.verify.bounds.product`` takes its constants from this table; it needs torch and
Triton and nothing of gpucheck, and takes nine minutes on an H200.

The error is measured in ``2^-24 sqrt(K) (E + |R| / 2)``, where R is the right sum and E the root of the sum of the
squared products.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TERMS = (1, 2, 3, 4, 8, 16, 32, 64, 96, 128, 144, 176, 256, 512, 720, 1024, 1440, 2880, 4096, 5760, 8192)
ORDERS = ("one by one, products rounded", "one by one, fused", "by 16", "by 32", "by 64", "by 128", "8 parts", "tree")
COLUMNS = 1024  # of one program; the number of columns is a multiple of it
RARE = (1e-4, 1e-5, 1e-6, 1e-7)  # quantiles that 1e8 elements show
FREQUENT = 1e-3  # share of all elements that is kept, about
SAMPLE = 1 << 20  # elements that tell where that share begins
FORMATS = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@triton.jit
def _sums(x_ptr, w_ptr, out_ptr, m, n, k, per_part, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of the product of x (M, K) and w (K, N), all fp32, in seven orders: out is (8, M, N)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    plain = tl.zeros((COLUMNS,), tl.float32)
    fused = tl.zeros((COLUMNS,), tl.float32)
    block16, total16 = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    block32, total32 = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    block64, total64 = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    block128, total128 = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    part, parts = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    in_part = 0
    for term in range(k):
        x = tl.load(x_ptr + row * k + term) + tl.zeros((COLUMNS,), tl.float32)
        w = tl.load(w_ptr + tl.cast(term, tl.int64) * n + column)
        plain += x * w
        fused = tl.fma(x, w, fused)
        block16, block32 = tl.fma(x, w, block16), tl.fma(x, w, block32)
        block64, block128 = tl.fma(x, w, block64), tl.fma(x, w, block128)
        part = tl.fma(x, w, part)
        if term % 16 == 15:
            total16 += block16
            block16 = tl.zeros((COLUMNS,), tl.float32)
        if term % 32 == 31:
            total32 += block32
            block32 = tl.zeros((COLUMNS,), tl.float32)
        if term % 64 == 63:
            total64 += block64
            block64 = tl.zeros((COLUMNS,), tl.float32)
        if term % 128 == 127:
            total128 += block128
            block128 = tl.zeros((COLUMNS,), tl.float32)
        in_part += 1
        if in_part == per_part:
            parts += part
            part = tl.zeros((COLUMNS,), tl.float32)
            in_part = 0
    plane = tl.cast(m, tl.int64) * n
    at = out_ptr + row * n + column
    tl.store(at, plain)
    tl.store(at + plane, fused)
    tl.store(at + 2 * plane, total16 + block16)
    tl.store(at + 3 * plane, total32 + block32)
    tl.store(at + 4 * plane, total64 + block64)
    tl.store(at + 5 * plane, total128 + block128)
    tl.store(at + 6 * plane, parts + part)


@triton.jit
def _tree(x_ptr, w_ptr, out_ptr, n, k, TERMS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row of the product: trees of TERMS products, then the trees one after the other."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, k, TERMS):
        term = first + tl.arange(0, TERMS)
        x = tl.load(x_ptr + row * k + term, mask=term < k, other=0.0)
        w = tl.load(w_ptr + term[:, None].to(tl.int64) * n + column[None, :], mask=term[:, None] < k, other=0.0)
        total += tl.sum(x[:, None] * w, 0)
    tl.store(out_ptr + row * n + column, total)


@triton.jit
def _dot(x_ptr, w_ptr, out_ptr, n, k, TILE: tl.constexpr, TERMS: tl.constexpr, KEPT: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of the product of x (M, K) and w (N, K) by the tensor cores.

    KEPT: ``max_num_imprecise_acc``, -1 for Triton's own choice.
    """
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, k, TERMS):
        term = first + tl.arange(0, TERMS)
        x = tl.load(x_ptr + row[:, None] * k + term[None, :], mask=term[None, :] < k, other=0.0)
        w = tl.load(w_ptr + column[None, :] * k + term[:, None], mask=term[:, None] < k, other=0.0)
        if KEPT < 0:  # noqa: SIM108
            total = tl.dot(x, w, total)
        else:
            total = tl.dot(x, w, total, max_num_imprecise_acc=KEPT)
    tl.store(out_ptr + row[:, None] * n + column[None, :], total)


def operands(kind: str, spread: str, m: int, n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (M, K) and w (K, N) as float32 that hold values of the kind's formats.

    Args:
        kind: of FORMATS; "mxfp4" is bf16 times decoded mxfp4.
        spread: "normal"; "positive", uniform in [0, 1); "mean", normal around 1; "wide", of random sign over 40 powers
            of two; "weights", x are softmax weights.
    """

    def draw(*shape: int) -> Tensor:
        made = torch.empty(shape, device=generator.device)
        if spread == "positive":
            return made.uniform_(generator=generator)
        if spread == "wide":
            return (
                made.uniform_(-20, 20, generator=generator).exp2_() * made.clone().normal_(generator=generator).sign()
            )
        return made.normal_(1.0 if spread == "mean" else 0.0, 1.0, generator=generator)

    stored = FORMATS["bf16" if kind == "mxfp4" else kind]
    x, w = draw(m, k), None
    if spread == "weights":
        x = torch.softmax(2 * x, -1)
    if kind == "mxfp4":
        codes = torch.randint(0, 8, (k, n), generator=generator, device=generator.device)
        sign = 1 if spread == "positive" else torch.randint(0, 2, (k, n), generator=generator, device=x.device) * 2 - 1
        power = torch.randint(-6, 1, (-(-k // 32), n), generator=generator, device=x.device).float().exp2()
        w = torch.tensor(E2M1, device=x.device)[codes] * sign * power.repeat_interleave(32, 0)[:k]
    else:
        w = draw(k, n).to(stored).float()
    return x.to(stored).float(), w


@dataclass(frozen=True)
class Right:
    """The right sums, and what their error is measured in: E + |R| / 2, all float64 (M, N)."""

    value: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, w: Tensor) -> Right:
        value = x.double() @ w.double()
        energy = (x.double().square_() @ w.double().square_()).sqrt_()
        return cls(value, energy.add_(value.abs(), alpha=0.5))


@dataclass(frozen=True)
class Tail:
    """The largest of all ``error / (unit * (E + |R| / 2))``."""

    total: int  # how many there are
    upper: Tensor  # float64, those above about the quantile of FREQUENT, falling

    @classmethod
    def of(cls, got: Tensor, right: Right, unit: float) -> Tail:
        ratio = (got.double() - right.value).abs_().div_(right.scale).div_(unit).nan_to_num_(nan=0.0).flatten()
        some = ratio[:: max(1, len(ratio) // SAMPLE)].sort(descending=True).values
        upper = ratio[ratio >= some[int(2 * FREQUENT * len(some))]]
        return cls(len(ratio), upper.sort(descending=True).values.cpu())

    def quantile(self, share: float) -> float:
        """The ratio that a share of all elements exceeds."""
        return float(self.upper[min(int(share * self.total), len(self.upper) - 1)])

    def beyond(self) -> float:
        """The ratio at 1e-9: a line through the quantiles of 1e-6 and 1e-7, over the logarithm of the share.

        The tail falls off at least exponentially (see ``gpucheck.verify.bounds.product``), so the line is not below it.
        """
        rare, rarer = self.quantile(1e-6), self.quantile(1e-7)
        return rarer + 2 * (rarer - rare)

    def line(self) -> str:
        told = " ".join(f"{self.quantile(share):6.3f}" for share in RARE)
        return f"{told} {float(self.upper[0]):7.3f} {self.beyond():7.3f}"


def in_orders(x: Tensor, w: Tensor) -> Tensor:
    """The sums in each of ORDERS, fp32 (8, M, N)."""
    (m, k), n = x.shape, w.shape[1]
    out = torch.empty((len(ORDERS), m, n), device=x.device)
    grid = (m, n // COLUMNS)
    _sums[grid](x, w, out, m, n, k, -(-k // 8), COLUMNS=COLUMNS, num_warps=4, enable_fp_fusion=False)
    _tree[(m, n // 128)](x, w, out[-1], n, k, TERMS=64, COLUMNS=128, num_warps=4, enable_fp_fusion=False)
    return out


def by_tensor_cores(x: Tensor, w: Tensor, kind: str, kept: int) -> Tensor:
    """The sums as ``tl.dot`` makes them, fp32 (M, N)."""
    (m, k), n = x.shape, w.shape[1]
    out = torch.empty((m, n), device=x.device)
    stored = FORMATS["bf16" if kind == "mxfp4" else kind]
    x, w = x.to(stored), w.to(stored).t().contiguous()  # as wgmma takes fp8
    _dot[(m // 128, n // 128)](x, w, out, n, k, TILE=128, TERMS=128 // x.element_size(), KEPT=kept, num_warps=8)
    return out


def measure(kind: str, spread: str, k: int, elements: int, seed: int) -> list[tuple[str, Tail, float]]:
    """The tail of each way to sum, with the mean of ``error * sign(R)`` in the same unit."""
    n = 12 * COLUMNS if elements >= 1 << 24 else COLUMNS
    m = -(-elements // (128 * n)) * 128
    generator = torch.Generator("cuda").manual_seed(seed)
    x, w = operands(kind, spread, m, n, k, generator)
    right, unit, found = Right.of(x, w), 2.0**-24 * math.sqrt(k), []

    def add(name: str, got: Tensor) -> None:
        lean = ((got.double() - right.value) * right.value.sign() / right.scale).nan_to_num_(nan=0.0).mean() / unit
        found.append((name, Tail.of(got, right, unit), float(lean)))

    for name, got in zip(ORDERS, in_orders(x, w), strict=True):
        add(name, got)
    for name, kept in cores(kind):
        add(name, by_tensor_cores(x, w, kind, kept))
    return found


def cores(kind: str) -> list[tuple[str, int]]:
    """The ways of tensor cores for a kind of operands, with ``max_num_imprecise_acc``."""
    if kind == "fp32":
        return []
    return [("tensor cores", -1)] + ([("tensor cores, 128", 128)] if kind in ("e4m3", "e5m2") else [])


def rows(every: Callable[[str, str, int], Any], only: str) -> None:
    """Goes through all kinds of operands and all K."""
    spreads = [(kind, spread) for kind in (*FORMATS, "mxfp4") for spread in ("normal", "positive")]
    spreads += [(kind, spread) for kind in ("fp32", "fp16") for spread in ("mean", "wide", "weights")]
    for kind, spread in spreads:
        if only in f"{kind} {spread}":
            for k in TERMS:
                every(kind, spread, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=10**8, help="of each kind of operand and K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help='part of a kind and spread, such as "fp32 normal"')
    parser.add_argument("--all", action="store_true", help="one line an order, not the worst order alone")
    options = parser.parse_args()
    begin = time.monotonic()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(f"error / (2^-24 sqrt(K) (E + |R|/2)), {options.elements:.0e} elements a line")
    heads = " ".join(f"{share:6.0e}" for share in RARE)
    print(f"{'operands':<15} {'K':>5} {heads} {'largest':>7} {'1e-9':>7} {'lean':>8}  way", flush=True)

    def every(kind: str, spread: str, k: int) -> None:
        found = measure(kind, spread, k, options.elements, options.seed + k)
        told = found if options.all else [max(found[: len(ORDERS)], key=lambda each: each[1].beyond())]
        for name, tail, lean in told + ([] if options.all else found[len(ORDERS) :]):
            print(f"{kind + ' ' + spread:<15} {k:>5} {tail.line()} {lean:>8.4f}  {name}", flush=True)

    rows(every, options.only)
    print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
