"""The transformer on the device under test, recording what each operation gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from gpucheck.checks.base import Runtime, leave_outputs
from gpucheck.checks.decoder.shape import (
    ARGMAX,
    EMBEDDING,
    EPSILON,
    IN_LAYER,
    LOGITS,
    ROUTING,
    SWIGLU,
    TOKENS,
    UNEMBEDDING,
    UNWRITTEN,
    Shape,
)
from gpucheck.checks.kernels.flash_attention_kernel import flash_attention
from gpucheck.library.adapters.base import KernelConfig, Weight
from gpucheck.model.errors import Inapplicable

BLOCK_ROWS = 16  # of the attention kernel: a step has one query


class Ranks(Protocol):
    """What ranks that share the model do together."""

    def summed(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, by an all-reduce."""

    def gathered(self, part: Tensor) -> Tensor:
        """All ranks' parts (R, ...), by an all-gather."""


class TorchRanks:
    """:class:`Ranks` by torch.distributed, all ranks of the run."""

    def summed(self, part: Tensor) -> Tensor:
        import torch.distributed as dist

        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    def gathered(self, part: Tensor) -> Tensor:
        import torch.distributed as dist

        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts)


class Decoder:
    """Weights on the device, in the form the library wants them."""

    def __init__(
        self,
        shape: Shape,
        inputs: dict[str, Tensor],
        runtime: Runtime,
        *,
        layout: str,
        guard: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        """Args:
        shape: of what this rank has of the model.
        inputs: the same.
        layout: of the experts' weights, see :meth:`gpucheck.library.adapters.base.Adapter.weight`.
        guard: attention is launched with the device of its tensors current.
        ranks: those that share the model; None: this one has all of it.
        """
        self.guard = guard and runtime.device.type == "cuda"
        self.shape, self.inputs, self.runtime = shape, inputs, runtime
        self.library = runtime.library
        self.ranks = ranks
        self._weights: dict[tuple[str, int | None], Weight] = {(UNEMBEDDING, None): self._dense(inputs[UNEMBEDDING])}
        for layer in range(shape.layers):
            for name in ("qkv", "out", "router"):
                self._weights[name, layer] = self._dense(inputs[name][layer])
            for name in ("up", "down"):
                held, scale = inputs[name][layer], inputs[f"{name}_scale"][layer]
                self._weights[name, layer] = self.library.weight("mxfp4", held, scale, layout, runtime.place)

    def _dense(self, weight: Tensor) -> Weight:
        return self.library.weight("bf16", weight, None, "strided", self.runtime.place)

    def decode(self) -> dict[str, Tensor]:
        """Decodes greedily without a look at any number in between.

        Returns:
            What every operation gave, as :data:`OPERATIONS` names them, stacked over steps and layers; and the results
            once more by the names of the whole.
        """
        shape, runtime = self.shape, self.runtime
        recorder = _Recorder(shape, runtime)
        size = (shape.layers, 2, shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        cache = torch.empty(size, dtype=torch.bfloat16, device=runtime.device)
        token = self.inputs["start"]
        try:
            for step in range(shape.tokens):
                token = self._step(step, token, cache, recorder)
            return recorder.outputs()
        except Inapplicable:
            raise
        except Exception as error:
            leave_outputs(error, recorder.left)
            raise

    def _step(self, step: int, token: Tensor, cache: Tensor, record: _Recorder) -> Tensor:
        """The next token of each sequence (B,), from the last one (B,)."""
        x = record(EMBEDDING, lambda: self.inputs["embedding"].index_select(0, token))
        for layer in range(self.shape.layers):
            x = self._attention_block(step, layer, x, cache[layer], record)
            x = self._expert_block(layer, x, record)
        normed = record("final norm", lambda: _norm(x, self.inputs["final_norm"]))
        logits = self._joined(
            UNEMBEDDING,
            lambda: self.library.matmul(normed, self._weights[UNEMBEDDING, None], out_dtype=torch.float32),
            record,
        )
        return record(ARGMAX, lambda: logits.argmax(-1))

    def _attention_block(self, step: int, layer: int, x: Tensor, cache: Tensor, record: _Recorder) -> Tensor:
        """The residual stream (B, hidden) after attention; the cache is (2, B, KV, S, D)."""
        shape, inputs = self.shape, self.inputs
        normed = record("attention norm", lambda: _norm(x, inputs["norms"][layer, 0]))
        qkv = record("qkv", lambda: self._linear("qkv", layer, normed))
        cos, sin = inputs["cos"][step], inputs["sin"][step]
        turned = record("rope", lambda: _rope(qkv[:, : shape.turned], cos, sin))

        def attention() -> Tensor:
            heads = turned.view(shape.batch, -1, shape.head_dim)
            cache[0, :, :, step] = heads[:, shape.heads :]
            cache[1, :, :, step] = qkv[:, shape.turned :].view(shape.batch, -1, shape.head_dim)
            keys, values = cache[:, :, :, : step + 1]
            with torch.cuda.device(self.runtime.device) if self.guard else nullcontext():
                mixed = flash_attention(
                    heads[:, : shape.heads, None],
                    keys,
                    values,
                    causal=True,
                    window=shape.window_of(layer),
                    sinks=inputs["sinks"][layer],
                    block_rows=BLOCK_ROWS,
                )
            return mixed.flatten(1)

        mixed = record("attention", attention)
        out = self._joined("attention out", lambda: self._linear("out", layer, mixed), record)
        return record("attention residual", lambda: x + out)

    def _expert_block(self, layer: int, x: Tensor, record: _Recorder) -> Tensor:
        """The residual stream (B, hidden) after the experts."""
        normed = record("expert norm", lambda: _norm(x, self.inputs["norms"][layer, 1]))
        logits = record("router", lambda: self._linear("router", layer, normed))
        routing = record.routing(lambda: self.library.route(logits, self.shape.top_k))
        config = KernelConfig(split_k=1)  # split sums would leave rows unrounded, which the reference must know
        inner = record(
            "experts up",
            lambda: self.library.matmul(
                normed,
                self._weights["up", layer],
                out_dtype=torch.bfloat16,
                bias=self.inputs["up_bias"][layer],
                routing=routing,
                gather=True,
                swiglu=SWIGLU,
                config=config,
            ),
        )
        mixed = self._joined(
            "experts down",
            lambda: self.library.matmul(
                inner,
                self._weights["down", layer],
                out_dtype=torch.bfloat16,
                bias=self.inputs["down_bias"][layer],
                routing=routing,
                scatter=True,
                gammas=routing.gates,
                config=config,
            ),
            record,
        )
        return record("expert residual", lambda: x + mixed)

    def _joined(self, operation: str, compute: Callable[[], Tensor], record: _Recorder) -> Tensor:
        """What an operation of PARTS gives: where ranks share the model, what their parts make together."""
        ranks = self.ranks
        if ranks is None:
            return record(operation, compute)
        part = record(f"{operation} part", compute)
        if operation == UNEMBEDDING:
            return record(operation, lambda: ranks.gathered(part).movedim(0, -2).flatten(-2))
        record(f"{operation} parts", lambda: ranks.gathered(part))
        return record(operation, lambda: ranks.summed(part))

    def _linear(self, name: str, layer: int, x: Tensor) -> Tensor:
        bias = self.inputs[f"{name}_bias"][layer]
        return self.library.matmul(x, self._weights[name, layer], out_dtype=torch.bfloat16, bias=bias)


class _Recorder:
    """Keeps every result, and a copy of each on the host, made as soon as the device has it.

    The copies outlive a device that an operation breaks, and tell what the operations before it gave.
    """

    def __init__(self, shape: Shape, runtime: Runtime) -> None:
        self.shape, self.runtime = shape, runtime
        self._kept: dict[str, list[Tensor]] = {operation: [] for operation in shape.caller.operations}
        self._copies = {operation: self._unwritten(operation) for operation in shape.caller.operations}

    def __call__(self, operation: str, compute: Callable[[], Tensor]) -> Tensor:
        result = compute()
        self._keep(operation, result)
        return result

    def routing(self, compute: Callable[[], Any]) -> Any:
        """Records a :class:`gpucheck.library.adapters.base.Routing` and its schedule."""
        routing = compute()
        tables = {**vars(routing), **vars(self.runtime.library.schedule(routing))}
        for operation, name in ROUTING.items():
            self._keep(operation, tables[name])
        self._keep("routing gates", routing.gates)
        return routing

    def outputs(self) -> dict[str, Tensor]:
        """Everything recorded, once the device is done with it."""
        self.runtime.synchronize()
        kept = {
            operation: torch.stack(results).unflatten(0, self._lead(operation))
            for operation, results in self._kept.items()
        }
        return _with_results(kept)

    def left(self) -> dict[str, Tensor]:
        """What an error left, on the host; NaN and UNWRITTEN stand where nothing was computed."""
        with suppress(Exception):
            self.runtime.synchronize()
        return _with_results({operation: copies.clone() for operation, copies in self._copies.items()})

    def _keep(self, operation: str, result: Tensor) -> None:
        copies, number = self._copies[operation].flatten(0, len(self._lead(operation)) - 1), len(self._kept[operation])
        self._kept[operation].append(result)
        if result.shape == copies[number].shape:
            copies[number].copy_(result, non_blocking=True)

    def _lead(self, operation: str) -> tuple[int, ...]:
        return (self.shape.tokens, self.shape.layers) if operation in IN_LAYER else (self.shape.tokens,)

    def _unwritten(self, operation: str) -> Tensor:
        """(S, L, ...) or (S, ...)."""
        dtype = self.shape.caller.dtype_of(operation)
        filler = math.nan if dtype.is_floating_point else UNWRITTEN
        size = (*self._lead(operation), *self.shape.result(operation))
        return torch.full(size, filler, dtype=dtype, pin_memory=self.runtime.device.type == "cuda")


def _with_results(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**recorded, LOGITS: recorded[UNEMBEDDING], TOKENS: recorded[ARGMAX]}


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * weight).to(x.dtype)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each head of (B, heads * D) by the angles of cos and sin (D/2,)."""
    first, second = x.float().unflatten(1, (-1, 2, cos.numel())).unbind(2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], 2).flatten(1).to(x.dtype)
