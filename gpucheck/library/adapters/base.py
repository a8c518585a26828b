"""The interface between checks and one generation of the ``triton_kernels`` API.

Checks speak only this language; each generation translates it in one file of its own. Tensors are torch tensors on
the device under test. Nothing here judges, moves data between devices or picks a device.

Shapes use M rows of activations, K the reduction length, N output columns, E experts, T tokens, k experts per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import NeededLaunches

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

    from gpucheck.library.adapters.expert_exchange import ExchangeSizes, ExpertExchange


class Place(Protocol):
    """Moves a tensor's bytes into memory the caller watches (guard bands) and returns a tensor of equal strides.

    A name says what the tensor holds, for the words on memory that is read around it.
    """

    def __call__(self, tensor: Tensor, /, name: str = "") -> Tensor: ...


Rounding = Literal["half-away", "even"]


@dataclass(frozen=True)
class Routing:
    """Which expert computes which row, in plain tensors.

    A flat index is ``token * k + slot``; expert-sorted positions keep ascending flat order within an expert. Rows of
    experts that another rank holds have no position: their ``to_sorted`` is -1, and the last of ``to_flat`` are -1.
    """

    histogram: Tensor  # (E,) int32: rows of each expert
    to_flat: Tensor  # (T*k,) int32: expert-sorted position -> flat index
    to_sorted: Tensor  # (T*k,) int32: flat index -> expert-sorted position
    gates: Tensor  # (T*k,) in expert-sorted order; the library gives them in the dtype of the logits
    experts: int
    per_token: int  # k
    partial: bool = False  # another rank holds some of the experts
    native: Any = None  # the library's own objects, which its products take as they are; None: made from the tables


@dataclass(frozen=True)
class Schedule:
    """What the library's objects of a :class:`Routing` tell its products beside the tables, for B block sizes.

    A product runs P programs along its rows. Each looks up in the block map which expert it works for, and on which
    block of that expert's rows.
    """

    rows: Tensor  # (E,) int32: rows of each expert
    row_offsets: Tensor  # (E+1,) int32: expert -> its first expert-sorted row; the last counts all rows
    block_sizes: tuple[int, ...]  # rows of a block, ascending
    block_offsets: Tensor  # (B, E+1) int32: expert -> its first block; the last counts all blocks
    block_map: Tensor  # (B, P) int32: program -> expert + (block of the expert << 16); -1: it has nothing to do
    scatter_to_flat: Tensor  # (T*k,) int32: as ``to_flat``, in the object that results are scattered by
    scatter_to_sorted: Tensor  # (T*k,) int32: as ``to_sorted``, in the same object


@dataclass(frozen=True)
class Weight:
    """A weight operand in the form the library wants it."""

    kind: str  # "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3", "mxfp4"
    operand: Any  # a torch tensor or the library's own tensor object
    fresh_scale: Callable[[], Any]  # block scales (mx kinds) or None; a new wrapper a call, because calls mutate it
    flex_scale: Tensor | None  # float32 scale of fp8 weights: (1,), or one for each expert or product


@dataclass(frozen=True)
class KernelConfig:
    """How the kernel is asked to compute; None leaves the choice to the library."""

    persistent: bool | None = None
    split_k: int | None = None
    block_m: int | None = None
    epilogue_subtile: int | None = None
    num_stages: int | None = None  # of the software pipeline; 1 means none


@dataclass(frozen=True)
class TopK:
    """Native top-k, canonicalised: the k columns of a row ascend by expert id."""

    values: Tensor  # (T, k), dtype of the logits; softmax over the k values when asked for
    experts: Tensor  # (T, k) int32


LAUNCH_PARAMETERS = {
    "split_k": "SPLIT_K",
    "block_m": "BLOCK_M",
    "epilogue_subtile": "EPILOGUE_SUBTILE",
    "num_stages": "num_stages",
}
"""What the product's kernels of every generation call the fields of :class:`KernelConfig`."""
PERSISTENT = "_p_"  # begins the names of the persistent ones


class Adapter(ABC):
    """The library under test, loaded in this process.

    Every method raises :class:`gpucheck.model.errors.Inapplicable` where this generation, the Triton or the device
    does not offer what is asked for. Any other exception is a result about the library.
    """

    generation: ClassVar[str]
    mx_rounding: ClassVar[Rounding]  # how ``downcast`` rounds fp4 ties
    kernels: ClassVar[Mapping[str, tuple[str, ...]]]
    """Method name -> names of the Triton kernels of which at least one must be launched by it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def products(self, config: KernelConfig, count: int = 1, *, sums: int = 0) -> tuple[NeededLaunches, ...]:
        """The launches that so many calls of :meth:`matmul` need.

        Args:
            config: of each of them.
            sums: how many of them add up the rows of a token: those that scatter, where a token has several experts.
        """
        kernels = self.kernels["matmul"]
        asked = {name: getattr(config, field) for field, name in LAUNCH_PARAMETERS.items()}
        asked = {name: value for name, value in asked.items() if value is not None}
        variants = kernels
        if config.persistent is not None:
            variants = tuple(name for name in kernels if name.startswith(PERSISTENT) == config.persistent)
        needed = [NeededLaunches(kernels, count, asked, variants)]
        sums = count if (config.split_k or 1) > 1 else sums
        return (*needed, NeededLaunches(self.kernels["reduce"], sums)) if sums else tuple(needed)

    @abstractmethod
    def weight(self, kind: str, data: Tensor, scale: Tensor | None, layout: str, place: Place) -> Weight:
        """Builds a weight operand.

        Args:
            kind: one of the kinds of :class:`Weight`.
            data: (K, N) or (E, K, N) values, any strides; for ``mxfp4`` uint8 codes (..., K/2, N), even k low.
            scale: e8m0 bytes (..., K/32, N) for mx kinds; (1,) or (E,) float32 for fp8 kinds; else None.
            layout: ``"strided"`` or ``"default"`` (the swizzled layouts the library chooses for this device).
            place: applied to every buffer the kernel will read.
        """

    @abstractmethod
    def matmul(
        self,
        x: Tensor,
        weight: Weight,
        *,
        out_dtype: dtype | None,
        bias: Tensor | None = None,
        routing: Routing | None = None,
        gather: bool = False,
        scatter: bool = False,
        gammas: Tensor | None = None,
        swiglu: tuple[float, float] | None = None,
        x_scale: Tensor | None = None,
        into: Tensor | None = None,
        config: KernelConfig | None = None,
    ) -> Tensor:
        """Computes ``x @ weight`` dense (M, K), batched (B, M, K) or routed.

        Args:
            x: activations; with ``gather`` (T, K) token rows, else (T*k, K) expert-sorted rows.
            out_dtype: dtype of the result; None: the library is called without a precision config, and gives that of x.
            bias: (N,) or (E, N) float32.
            routing: rows to experts, with the library's own objects where it has them; None for dense and batched.
            gather: rows of ``x`` are picked by the routing.
            scatter: rows of the result go back to token order and the k rows of a token are summed: (T, N); zeros for a
                token whose experts are all elsewhere. Without it, rows that have no position stay unwritten.
            gammas: (T*k,) factor of each expert-sorted row.
            swiglu: (alpha, limit) of a fused swiglu; the result has N/2 columns.
            x_scale: (1,) float32 per-tensor scale of fp8 activations.
            into: memory of the result, of its shape and dtype.
            config: kernel choice; an impossible one is Inapplicable.
        """

    @abstractmethod
    def topk(self, logits: Tensor, k: int, *, over_all: bool = False) -> TopK:
        """The library's own top-k of (T, E) logits with softmax over the chosen k.

        ``over_all``: the softmax is over all logits of a token, and torch's: the library chooses from its results. So
        do servers of models that do not bring the chosen weights back to a sum of 1.
        """

    @abstractmethod
    def route(self, logits: Tensor, k: int, *, over_all: bool = False) -> Routing:
        """The library's own routing of (T, E) logits, slots of a token in ascending order of expert id.

        ``over_all``: see :meth:`topk`.
        """

    @abstractmethod
    def read_back(self, tensor: Any) -> Tensor:
        """The bytes of one of the library's tensors in the order of their indices, by the library's own inverse.

        They are on the CPU, with the padding of the layout where that is not cut off.
        """

    @abstractmethod
    def routed(self, ids: Tensor, gates: Tensor, experts: int, partial: bool = False) -> Routing:
        """The library's own routing of choices already made, as servers with a top-k of their own have it made.

        Args:
            ids: (T, k) int32 experts of each token; -1, with ``partial`` only, where another rank holds the expert.
            gates: (T, k) of the same.
            experts: E, those of this rank.
            partial: another rank holds some of the experts.
        """

    @abstractmethod
    def from_tables(self, routing: Routing) -> Any:
        """The library's objects for the tables of a routing, whose block map its own kernels make."""

    def native(self, routing: Routing) -> Any:
        """The library's objects that came with a routing; without any, new ones at each call."""
        return self.from_tables(routing) if routing.native is None else routing.native

    @abstractmethod
    def schedule(self, routing: Routing) -> Schedule:
        """What the products read of a routing beside its tables."""

    def exchange(self, sizes: ExchangeSizes, device: device) -> ExpertExchange:
        """The library's own way of moving rows between ranks; all ranks ask for it alike.

        Raises:
            Inapplicable: this generation has none, or it does not take these sizes or this device.
        """
        raise Inapplicable(f"triton_kernels {self.generation} has no distributed.py: it moves nothing between ranks")

    @abstractmethod
    def swiglu(self, x: Tensor, alpha: float, limit: float) -> Tensor:
        """Standalone swiglu of (M, N) with interleaved gate and linear columns -> (M, N/2)."""

    @abstractmethod
    def downcast(self, x: Tensor, kind: str, axis: int) -> tuple[Tensor, Tensor]:
        """Quantises bf16/fp16/fp32 to ``"mxfp4"``, ``"mxfp8_e4m3"`` or ``"mxfp8_e5m2"`` along ``axis``.

        Returns values and e8m0 scale bytes, logically ordered (index i of ``axis`` first), strides unspecified.
        """

    @abstractmethod
    def upcast(self, values: Tensor, scales: Tensor, out_dtype: dtype, axis: int) -> Tensor:
        """Dequantises what :meth:`downcast` made."""
