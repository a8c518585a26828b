"""The library's own way of moving rows to the ranks of their experts and back, where a generation has one.

It writes straight into the memory of other ranks, which torch calls symmetric; without GPUs it is memory of the host.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from gpucheck.library.adapters.common import require
from gpucheck.library.adapters.host_symmetric import symmetric_memory_of_host

POOL = "symm_mem_pool"  # of generations that have one for the whole process


@dataclass(frozen=True)
class ExchangeSizes:
    """What is exchanged; T*k rows, one for each slot of each token."""

    tokens: int  # T, of all ranks, each of which has as many
    per_token: int  # k
    hidden: int
    held: tuple[range, ...]  # the experts of each rank
    rank: int

    @property
    def ranks(self) -> int:
        return len(self.held)


class ExpertExchange(Protocol):
    """Moves rows of bf16; all ranks call it alike."""

    def to_experts(self, x: Tensor, ids: Tensor, to_sorted: Tensor) -> Tensor:
        """(T*k, hidden): rows in order of experts, of which those of this rank's experts are written.

        Args:
            x: this rank's tokens (T/R, hidden).
            ids: (T, k) int32 experts of all tokens.
            to_sorted: (T, k) int32 flat index -> expert-sorted position.
        """

    def to_tokens(self, rows: Tensor, ids: Tensor, to_flat: Tensor) -> Tensor:
        """(T/R*k, hidden): the rows of this rank's tokens, slot by slot.

        Args:
            rows: (T*k, hidden) in order of experts; those of other ranks' experts are not read.
            ids: as above.
            to_flat: (T*k,) int32 expert-sorted position -> flat index.
        """


class LibraryExchange:
    """:class:`ExpertExchange` by ``triton_kernels.distributed``."""

    def __init__(self, sizes: ExchangeSizes, device: torch.device, pool: Any = None) -> None:
        """Args:
        pool: the library's pool of symmetric memory; None: a new one, which all ranks make together.
        """
        for name, number in (("ranks", sizes.ranks), ("experts per token", sizes.per_token)):
            power = number & (number - 1) == 0
            require(power, f"the library's dispatch needs {name} to be a power of two, not {number}")
        even = sizes.tokens % sizes.ranks == 0
        require(even, f"the library's dispatch needs as many tokens on each rank, not {sizes.tokens} on {sizes.ranks}")
        self._module: Any = import_module("triton_kernels.distributed")
        self._shared = hasattr(self._module, POOL)  # by all of the process, with the sizes it had first
        pool = self._pool(sizes, device) if pool is None else pool
        if self._shared:
            setattr(self._module, POOL, pool)
        self._own = () if self._shared else (pool,)
        held = {rank: list(experts) for rank, experts in enumerate(sizes.held)}
        experts = sum(map(len, sizes.held))
        self._assignment = self._module.make_expt_assignment(sizes.ranks, experts, held, device)

    def to_experts(self, x: Tensor, ids: Tensor, to_sorted: Tensor) -> Tensor:
        rows: Tensor = self._module.convert_dp_to_ep(x, self._assignment, ids, to_sorted, *self._own)
        return rows

    def to_tokens(self, rows: Tensor, ids: Tensor, to_flat: Tensor) -> Tensor:
        own: Tensor = self._module.convert_ep_to_dp(rows, self._assignment, ids, to_flat, *self._own)
        return own

    def _pool(self, sizes: ExchangeSizes, device: torch.device) -> Any:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", sizes.ranks))
        require(here == sizes.ranks, "the library's dispatch writes into memory of other GPUs: all ranks on one node")
        import torch.distributed as dist

        what: dict[str, Any] = {
            "n_tokens_global": sizes.tokens,
            "d_input": sizes.hidden,
            "d_model": sizes.hidden,
            "n_expts_act": sizes.per_token,
            "n_expts_tot": sum(map(len, sizes.held)),
            "dtype": torch.bfloat16,
            "device": device,
        }
        require(dist.is_initialized(), "the library's dispatch takes ranks that run together, in one process group")
        mesh: Any = self._module if self._shared else import_module("triton_kernels.distributed_details.mesh")
        with nullcontext() if device.type == "cuda" else symmetric_memory_of_host(mesh):
            if self._shared:
                pool = mesh.SymmetricMemoryPool()
                pool.initialize_matmul_ogs(**what, n_ranks=sizes.ranks, group=dist.group.WORLD)
                return pool
            pool = mesh.SymmetricMemoryPool(mesh.Mesh(dist.group.WORLD))
            pool.initialize_matmul(**what)
            return pool
