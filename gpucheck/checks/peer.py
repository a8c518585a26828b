"""``peer``: copies between the devices of each pair of ranks of a node, in both directions, many of them at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from gpucheck.checks.base import JointCheck, Runtime
from gpucheck.checks.on_use import torch
from gpucheck.model.case import Case, CheckSpec, Param
from gpucheck.model.errors import Inapplicable
from gpucheck.model.record import Cost
from gpucheck.verify.expected import Axes, Expected

if TYPE_CHECKING:
    from torch import Tensor

    from gpucheck.model.record import Transfer

WAYS = ("pull", "push", "staged", "symmetric")


class Peer(JointCheck):
    """Each rank of a node gives each one some chunks; the source and all memory around both must stay as they are."""

    needs_library = False
    usual = ({"way": "staged"},)

    spec = CheckSpec(
        name="peer",
        summary="copies between the devices of each pair of ranks of a node",
        data_kinds=("exact",),
        sizes=("n", "flights"),
        params=(
            Param("way", "pull", "read from the other device, written to it, through the host, symmetric memory", WAYS),
            Param("dtype", "int32", "of what is copied", ("bf16", "fp16", "fp32", "int32")),
            Param("n", 1000, "elements of a copy", label="n"),
            Param("flights", 4, "copies from each rank to each other one, all at once", label="flights"),
        ),
        rows=("way",),
    )

    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """What this rank gives: by receiver and flight."""
        given = [[_chunk(case, flight, case.rank, to) for flight in range(case["flights"])] for to in neighbours(case)]
        return {"source": torch.stack([torch.stack(chunks) for chunks in given])}

    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        from gpucheck.checks.rank_data import exact

        source = inputs["source"]
        expected = {"source": exact(source, source.dtype)}
        for flight in range(case["flights"]):
            came = torch.stack([_chunk(case, flight, sender, case.rank) for sender in neighbours(case)])
            expected[f"flight{flight}"] = exact(came, source.dtype)
        return expected

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        if case["way"] != "staged" and runtime.device.type != "cuda":
            raise Inapplicable(f"{case['way']} copies are between GPUs")
        if case["way"] in ("pull", "push") and torch.cuda.device_count() < len(neighbours(case)):
            raise Inapplicable(f"{case['way']} copies need the GPUs of all ranks of the node to be visible to each")
        return inputs

    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        copies = _copies(case, prepared, runtime)
        copies.make(case["way"])
        outputs = {f"flight{flight}": copies.received[:, flight].clone() for flight in range(case["flights"])}
        return {"source": copies.source, **outputs}

    @contextmanager
    def exchange(self, case: Case, prepared: Any, runtime: Runtime) -> Iterator[Callable[[], Any] | None]:
        with _copies(case, prepared, runtime).opened(case["way"]) as copy:
            yield copy

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost | None:
        """The bytes that a rank gets from the others, while each of them gets as many."""
        source = inputs["source"]
        return Cost(0.0, float((len(source) - 1) * source[0].numel() * source.itemsize))

    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        pairs = {f"flight{flight}": Axes(("sender", "element"), (1, 0)) for flight in range(case["flights"])}
        return {"source": Axes(("receiver", "flight", "element"), (1, 1, 0)), **pairs}

    def transfers(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> list[Transfer]:
        from gpucheck.checks.wrong_chunks import wrong_chunks

        found = []
        for flight in range(case["flights"]):
            name = f"flight{flight}"
            output, right = outputs.get(name), expected[name].estimate.value
            if output is None or output.shape != right.shape or output.dtype != expected[name].dtype:
                continue
            wrong = (output.double() != right).flatten()
            parts = {sender: _chunk(case, flight, sender, case.rank) for sender in neighbours(case)}
            found += wrong_chunks(case, name, output.flatten(), wrong, parts, partial(_elsewhere, case, flight))
        return found


def _copies(case: Case, prepared: Any, runtime: Runtime) -> Any:
    """What a rank gives and gets, in buffers of its own."""
    from gpucheck.checks.peer_copies import Copies

    shape = len(neighbours(case)), case["flights"], case["n"]
    source = torch.empty(shape, dtype=prepared["source"].dtype, device=runtime.device)
    source.copy_(prepared["source"])
    received = torch.empty(shape, dtype=source.dtype, device=runtime.device)
    received.view(torch.uint8).fill_(0xFF)
    runtime.synchronize()
    return Copies(source, received, neighbours(case), case.rank, runtime.synchronize)


def neighbours(case: Case) -> tuple[int, ...]:
    """The ranks of this rank's node, itself included."""
    size = min(int(os.environ.get("LOCAL_WORLD_SIZE", case.ranks)), case.ranks)
    first = case.rank // size * size
    return tuple(range(first, first + size))


def _chunk(case: Case, flight: int, sender: int, receiver: int) -> Tensor:
    from gpucheck.checks.rank_data import chunk

    return chunk(case, flight, sender, receiver, case["n"])


def _elsewhere(case: Case, flight: int, sender: int) -> Iterator[tuple[str, Tensor]]:
    """What may have come in place of a copy: other flights of the pair, and other pairs."""
    for other in range(case["flights"]):
        if other != flight:
            yield f"what the sender gave in flight {other}", _chunk(case, other, sender, case.rank)
    for rank in neighbours(case):
        if rank != case.rank:
            yield f"what the sender gave to rank {rank}", _chunk(case, flight, sender, rank)
        if rank != sender:
            yield f"what rank {rank} gave to this rank", _chunk(case, flight, rank, case.rank)
