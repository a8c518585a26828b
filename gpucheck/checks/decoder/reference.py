"""The transformer on the CPU in float64, one operation after the other.

Each operation is computed as an :class:`Estimate` of what it gives for what it is given, and whoever calls says what
goes on to the next: the rounded value, where the reference computes by itself, or what a device recorded, where each
of its operations is judged by what that very operation was given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gpucheck.checks import experts, operands
from gpucheck.checks.decoder.shape import EPSILON, EXPERTS, ROUTING, SWIGLU, UNEMBEDDING, Shape
from gpucheck.checks.routing import reference_topk
from gpucheck.verify import bounds
from gpucheck.verify.bounds import Estimate


class Continue(Protocol):
    """Decides what the next operation is given."""

    def __call__(self, operation: str, layer: int | None, estimate: Estimate) -> Tensor:
        """The float64 numbers to go on with, in place of what an operation of a layer gave.

        Axis 0 of the estimate are the steps; ``layer`` is None before and after the layers.
        """


@dataclass(frozen=True)
class Rows:
    """The rows of the experts, expert-sorted within each step."""

    owners: Tensor  # (T*B*k,) expert of each
    gates: Estimate  # (T*B*k, 1)
    places: Tensor  # (T*B*k,) where the row of each token and slot is
    shape: tuple[int, int, int, int]  # T, B, k, hidden


class Reference:
    """The weights, and a pass through them."""

    def __init__(self, shape: Shape, inputs: dict[str, Tensor]) -> None:
        self.shape, self.inputs, self.caller = shape, inputs, shape.caller
        self._decoded: dict[tuple[str, int, int], Estimate] = {}

    def run(
        self, tokens: Tensor, proceed: Continue, cache: Cache | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        """Computes steps that follow those in the cache.

        Args:
            tokens: (T, B) int64 given to these steps; B may be any multiple of the batch.
            proceed: see :class:`Continue`.
            cache: keys and values of earlier steps, which those of these are added to.
            chosen: (T, L, B, k) experts of each token, ascending; those of the largest router logits if None.

        Returns:
            (T, B, V) logits that were gone on with.
        """
        cache = cache if cache is not None else Cache(self.shape.layers)
        positions = torch.arange(cache.length, cache.length + len(tokens))
        x = proceed("embedding", None, Estimate(self.inputs["embedding"].double()[tokens], None))
        for layer in range(self.shape.layers):
            x = self._attention_block(layer, x, positions, cache, proceed)
            x = self._expert_block(layer, x, None if chosen is None else chosen[:, layer], proceed)
        x = proceed("final norm", None, self._norm(x, self.inputs["final_norm"]))
        return self._logits(x, proceed)

    def _logits(self, x: Tensor, proceed: Continue) -> Tensor:
        return proceed(UNEMBEDDING, None, self._product(x, self._weight(UNEMBEDDING)))

    def _attention_out(self, layer: int, mixed: Tensor, proceed: Continue) -> Tensor:
        """(T, B, hidden) of what the heads give (T, B, H*D)."""
        return proceed("attention out", layer, self.linear("out", layer, mixed))

    def _experts_down(self, layer: int, inner: Estimate, rows: Rows, proceed: Continue) -> Tensor:
        """(T, B, hidden) of what the first product gives (T*B*k, I)."""
        return proceed("experts down" if self._apart else EXPERTS, layer, self.down(layer, inner, rows))

    @property
    def _apart(self) -> bool:
        """Whether the operations of the expert block are recorded one by one."""
        return EXPERTS not in self.caller.layer

    def _attention_block(self, layer: int, x: Tensor, positions: Tensor, cache: Cache, proceed: Continue) -> Tensor:
        shape, steps, batch = self.shape, *x.shape[:2]
        normed = proceed("attention norm", layer, self._norm(x, self.inputs["norms"][layer, 0]))
        qkv = proceed("qkv", layer, self.linear("qkv", layer, normed))
        turned, v = qkv[..., : shape.turned], qkv[..., shape.turned :]
        cos, sin = (self.inputs[name].double()[positions][:, None, None] for name in ("cos", "sin"))
        rotated = bounds.rope(
            turned.reshape(steps, batch, -1, shape.head_dim),
            *(cos, sin),
            stored=self.caller.stored,
            angle=positions.double()[:, None, None, None] if self.caller.yarn else None,
        )
        turned = proceed("rope", layer, rotated.reshaped(steps, batch, -1))
        heads = turned.reshape(steps, batch, -1, shape.head_dim)
        q, k = heads[:, :, : shape.heads], heads[:, :, shape.heads :]
        keys, values = cache.extended(layer, k, v.reshape(steps, batch, -1, shape.head_dim))
        mixed = proceed("attention", layer, self._attention(layer, q, keys, values, positions))
        out = self._attention_out(layer, mixed, proceed)
        return proceed("attention residual", layer, bounds.add(plain(x), out))

    def _attention(self, layer: int, q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Estimate:
        """(T, B, H*D) of queries (T, B, H, D), keys and values (P, B, KV, D)."""
        shape, window = self.shape, self.shape.window_of(layer)
        distance = positions[:, None] - torch.arange(len(keys))
        visible = (distance >= 0) & (distance < window) if window else distance >= 0
        value, error = torch.empty_like(q), torch.empty_like(q)
        for sequence in range(q.shape[1]):
            for head in range(shape.heads):
                own = head // (shape.heads // shape.kv_heads)
                part = bounds.attention(
                    q[:, sequence, head],
                    keys[:, sequence, own],
                    values[:, sequence, own],
                    visible,
                    scale=shape.head_dim**-0.5,
                    dtype=torch.bfloat16,
                    sink=float(self.inputs["sinks"][layer, head]),
                    stored=self.caller.scores,
                )
                assert part.error is not None
                value[:, sequence, head], error[:, sequence, head] = part.value, part.error
        return Estimate(value, error).reshaped(*q.shape[:2], -1)

    def _expert_block(self, layer: int, x: Tensor, chosen: Tensor | None, proceed: Continue) -> Tensor:
        k, (steps, batch, hidden) = self.shape.top_k, x.shape
        normed = proceed("expert norm", layer, self._norm(x, self.inputs["norms"][layer, 1]))
        logits = proceed("router", layer, self.linear("router", layer, normed))
        ids = reference_topk(logits.flatten(0, 1), k)[1].reshape(steps, batch, k) if chosen is None else chosen
        apart = self._apart

        def inside(operation: str, estimate: Estimate) -> Estimate:
            """To go on with: what an operation gave that is recorded by itself, else all that it may give."""
            return plain(proceed(operation, layer, estimate)) if apart else bounds.rounded(estimate, torch.bfloat16)

        order, places = self._tables(layer, ids, proceed if apart and chosen is None else None)
        gates = bounds.softmax(logits.gather(-1, ids)).reshaped(steps, -1)
        sorted_gates = bounds.rounded(experts.take(gates.flat(), _whole(order)), torch.bfloat16)
        gate = inside("routing gates", sorted_gates.reshaped(steps, -1))

        owners = ids.reshape(steps, -1).gather(1, order).flatten()
        given = plain(normed.reshape(-1, hidden)[_whole(order) // k])
        up = self._each_expert(given, owners, self.shape.intermediate, partial(self._up, layer))
        inner = inside("experts up", up.reshaped(steps, batch * k, -1)).reshaped(steps * batch * k, -1)
        rows = Rows(owners, gate.reshaped(-1, 1), _whole(places), (steps, batch, k, hidden))
        mixed = self._experts_down(layer, inner, rows, proceed)
        return proceed("expert residual", layer, bounds.add(plain(x), mixed))

    def down(self, layer: int, inner: Estimate, rows: Rows) -> Estimate:
        """(T, B, hidden): the second product of all rows, and the sums over the experts of a token."""
        down = self._each_expert(inner, rows.owners, self.shape.hidden, partial(self._down, layer))
        down = bounds.times(down, rows.gates)
        stored = bounds.rounded(down, torch.bfloat16) if self._apart else bounds.either(down, self.caller.stored)
        return bounds.summed(experts.take(stored, rows.places, rows.shape), dim=2)

    def _tables(self, layer: int, ids: Tensor, proceed: Continue | None) -> tuple[Tensor, Tensor]:
        """The order of the rows of each step by expert and its inverse, both (T, B*k); from ids (T, B, k).

        Nothing is told of them where ``proceed`` is None.
        """
        gates = torch.zeros(ids.shape[1:])
        tables = [experts.tables(step, gates, self.shape.experts) for step in ids]
        if proceed is not None:
            whole = [experts.whole(table) for table in tables]
            for operation, name in ROUTING.items():
                proceed(operation, layer, Estimate(torch.stack([table[name] for table in whole]).double(), None))
        order, places = (torch.stack([table[name] for table in tables]).long() for name in ("to_flat", "to_sorted"))
        return order, places

    def _each_expert(self, rows: Estimate, owners: Tensor, columns: int, compute: experts.Compute) -> Estimate:
        """What each row's expert makes of it: (R, columns) of rows (R, K) in any order."""
        order = owners.argsort(stable=True)
        histogram = {"histogram": torch.bincount(owners, minlength=self.shape.experts)}
        by_expert = experts.each_expert(experts.take(rows, order), histogram, columns, compute)
        return experts.take(by_expert, order.argsort())

    def _up(self, layer: int, expert: int, rows: Estimate) -> Estimate:
        up = bounds.product(rows, self._expert("up", layer, expert))
        return bounds.swiglu(bounds.add(up, self.inputs["up_bias"][layer, expert].double()), *SWIGLU)

    def _down(self, layer: int, expert: int, rows: Estimate) -> Estimate:
        down = bounds.product(rows, self._expert("down", layer, expert))
        return bounds.add(down, self.inputs["down_bias"][layer, expert].double())

    def linear(self, name: str, layer: int, x: Tensor) -> Estimate:
        product = bounds.either(self._product(x, self._weight(name, layer)), self.caller.stored)
        return bounds.add(product, self.inputs[f"{name}_bias"][layer].double())

    def _product(self, x: Tensor, weight: Estimate) -> Estimate:
        product, stored = bounds.product(plain(x), weight), self.caller.stored
        if stored is None:
            return product
        assert product.error is not None
        return replace(product, error=product.error + bounds.in_parts(x, weight.value, stored))

    def _norm(self, x: Tensor, weight: Tensor) -> Estimate:
        return bounds.rms_norm(x, weight.double(), EPSILON, stored=self.caller.stored)

    def _weight(self, name: str, layer: int | None = None) -> Estimate:
        held = self.inputs[name] if layer is None else self.inputs[name][layer]
        return plain(held.double())

    def _expert(self, name: str, layer: int, expert: int) -> Estimate:
        key = (name, layer, expert)
        if key not in self._decoded:
            codes, scales = self.inputs[name][layer, expert], self.inputs[f"{name}_scale"][layer, expert]
            self._decoded[key] = plain(operands.decode_weight("mxfp4", codes, scales))
        return self._decoded[key]


class Cache:
    """Keys and values of the steps so far, each (P, B, KV, D) a layer."""

    def __init__(self, layers: int) -> None:
        self._held: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def length(self) -> int:
        """Steps so far, those of a pass under way not counted before its first layer is done."""
        first = self._held[0]
        return 0 if first is None else len(first[0])

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, these at the end."""
        before = self._held[layer]
        both = (keys, values) if before is None else (torch.cat([before[0], keys]), torch.cat([before[1], values]))
        self._held[layer] = both
        return both


def plain(value: Tensor) -> Estimate:
    """Numbers that are given, as the start of an estimate."""
    return operands.as_estimate(value, "normal")


def _whole(order: Tensor) -> Tensor:
    """Indices within each step (T, R) as indices into all rows of all steps (T*R,)."""
    return (order + torch.arange(len(order))[:, None] * order.shape[1]).flatten()
