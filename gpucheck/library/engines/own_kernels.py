"""The interface between checks and an engine's own Triton kernels: for unquantized experts, and for fp8 in blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpucheck.library.engines.base import Facts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Which experts one of several ranks holds, in vLLM's words."""

    ranks: int
    rank: int
    strategy: str  # "linear": neighbours; "round_robin": every ``ranks``-th one


class FusedExperts(ABC):
    """Unquantized experts by an engine's own choice of experts and its own functions above its own kernel."""

    facts: Facts

    @abstractmethod
    def forward(self, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """``y`` (T, H) of tokens ``x`` (T, H) of router logits (T, E), and the choice: ``ids``, ``weights`` (T, k)."""

    @abstractmethod
    def operands(self) -> dict[str, Tensor]:
        """What a forward reads and may not write, by name."""


class BlockFp8(ABC):
    """A weight in fp8 with a scale for each block of it, and an engine's own functions above its own kernels."""

    facts: Facts

    @abstractmethod
    def quantise(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (M, K) in bf16 as fp8, and a scale (M, ceil(K / block)) for each group of a token's columns."""

    @abstractmethod
    def multiply(self, x: Tensor, scales: Tensor) -> Tensor:
        """The product (M, N) in bf16 of what :meth:`quantise` gives."""

    @abstractmethod
    def operands(self) -> dict[str, Tensor]:
        """What a product reads and may not write, by name."""


def in_words(file: str, tuned: Any, chosen: dict[str, int]) -> str:
    """``E=8,N=96,...json: BLOCK_SIZE_M 16, ...`` or ``default, there is no E=...``."""
    values = ", ".join(f"{name} {value}" for name, value in chosen.items())
    return ": ".join(filter(None, (file if tuned else f"default, there is no {file}", values)))
