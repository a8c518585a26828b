"""The interface between checks and a whole model of an engine: it decodes, and shows what each operation gives.

The operations are the modules of the engine's own model, and are watched by hooks of torch; nothing of the engine is
replaced for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import Facts

if TYPE_CHECKING:
    from torch import Tensor

Seen = dict[str, list["Tensor"]]
"""Operation -> what it gave, call by call."""
Take = Callable[[tuple[Any, ...], Any], "Tensor"]
"""From arguments and result of a module, the tensor that an operation gave."""
Place = tuple[str, Any, Take]
"""An operation, the module that shows it, and how."""


class ServedModel(ABC):
    """A loaded model of gpt-oss with a cache of keys and values."""

    facts: Facts

    @abstractmethod
    def begin(self, batch: int, tokens: int) -> None:
        """Forgets all tokens: makes room for so many of each sequence, in memory that nothing was written to."""

    @abstractmethod
    def forward(self, tokens: Tensor, first: int) -> Seen:
        """What each operation gives for the next tokens of every sequence, by the engine's own forward.

        Args:
            tokens: (B, T) int64.
            first: how many tokens of each sequence came before.

        Returns:
            By operation, one tensor for each time it is computed, of B * T rows, those of a sequence together:
            ``embedding``, ``attention norm``, ``qkv``, ``rope``, ``attention``, ``attention out``,
            ``attention residual``, ``expert norm``, ``router``, ``experts`` and ``expert residual`` of each layer,
            ``final norm``, and the logits as ``unembedding``.
        """

    @abstractmethod
    def operands(self) -> dict[str, Tensor]:
        """What a forward reads and may not write, by name."""


@contextmanager
def watching(places: Iterable[Place]) -> Iterator[Seen]:
    """Inside, what the modules give is kept: copies, since callers write into results of the operation before.

    Engines choose experts by the logits of a router's module, and indices made of NaN lead outside of memory: zeros go
    on in place of what is not finite, so that a run ends and tells where NaN came from.
    """
    import torch

    seen: Seen = defaultdict(list)

    def keeping(name: str, take: Take) -> Callable[..., Any]:
        def keep(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            seen[name].append(take(args, output).clone())
            if name != "router" or take is not result:
                return None
            finite = torch.nan_to_num(result(args, output), 0.0, 0.0, 0.0)
            return (finite, *output[1:]) if isinstance(output, tuple) else finite

        return keep

    modules = {(name, id(module)): (module, take) for name, module, take in places}  # layers may share one
    handles = [module.register_forward_hook(keeping(name, take)) for (name, _), (module, take) in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def result(args: tuple[Any, ...], output: Any) -> Tensor:
    """What a module returns, the first where it returns several."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def second(args: tuple[Any, ...], output: Any) -> Tensor:
    """The second of what it returns."""
    found: Tensor = output[1]
    return found


def given(args: tuple[Any, ...], output: Any) -> Tensor:
    """What a module is given first."""
    found: Tensor = args[0]
    return found


def joined(args: tuple[Any, ...], output: Any) -> Tensor:
    """Queries and keys in one tensor of as many rows as there are tokens."""
    import torch

    return torch.cat([part.reshape(part.shape[0], -1) for part in output], -1)


def places_of(
    body: Any, embedding: Any, of_layer: Callable[[Any], Iterable[Place]], residual: Take = second
) -> Iterator[Place]:
    """Where a gpt-oss computes what, but for its head.

    Args:
        body: the model without its head.
        embedding: of the tokens.
        of_layer: what callers have at other places: the attention and the router of a layer.
        residual: how a norm shows the residual that it is given: engines return it beside what they make of it.
    """
    yield "embedding", embedding, result
    for number, layer in enumerate(body.layers):
        if number:  # the first norm is given none
            yield "expert residual", layer.input_layernorm, residual
        yield "attention norm", layer.input_layernorm, result
        yield from of_layer(layer)
        yield "attention residual", layer.post_attention_layernorm, residual
        yield "expert norm", layer.post_attention_layernorm, result
        yield "experts", layer.mlp, result
    yield "expert residual", body.norm, residual
    yield "final norm", body.norm, result


def engine_places(body: Any, embedding: Any, attention: str) -> Iterator[Place]:
    """The same of vLLM or SGLang.

    Args:
        attention: the name that a layer has for its attention.
    """

    def of_layer(layer: Any) -> Iterator[Place]:
        own = getattr(layer, attention)
        yield "qkv", own.qkv_proj, result
        yield "rope", own.rotary_emb, joined
        yield "attention", own.attn, result
        yield "attention out", own.o_proj, result
        yield "router", layer.mlp.router, result

    return places_of(body, embedding, of_layer)
