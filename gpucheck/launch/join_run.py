"""What ``gpucheck run`` does on further nodes: it joins the run that node 0 has planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.model.errors import ExitCode, InfrastructureError
from gpucheck.model.plan import Plan, PlannedEngine

if TYPE_CHECKING:
    from gpucheck.launch.gpus import Choice
    from gpucheck.launch.node_channel import RecordClient, RecordServer
    from gpucheck.launch.torchrun import Ending, Rendezvous
    from gpucheck.library.copies import LibraryCopy

WAIT_FOR_NODE_0 = 120.0  # s


def server(rendezvous: Rendezvous, plan: Plan, folder: Path) -> AbstractContextManager[RecordServer | None]:
    """What takes the records of other nodes on node 0; None where there are no others."""
    from gpucheck.launch.node_channel import RecordServer, address_of

    if rendezvous.nnodes == 1:
        return nullcontext()
    return RecordServer(address_of(rendezvous.endpoint)[1], rendezvous.id, rendezvous.nnodes, plan.to_json(), folder)


@dataclass(frozen=True)
class Joined:
    """A run that this node takes part in."""

    plan: Plan
    folder: Path
    client: RecordClient


def join(
    rendezvous: Rendezvous,
    copy: LibraryCopy | None,
    patches: Sequence[Path],
    choice: Choice,
    out: Path | None,
    new_folder: Callable[[Path | None], Path],
    engines: Sequence[PlannedEngine] = (),
) -> Joined:
    """Meets node 0 and takes its plan; the folder is node 0's where that is shared, else a new one.

    Args:
        copy: the library on this node; None where no case needs one.
        choice: what this node's ranks run on.
        out: as given to ``--out``.
        new_folder: makes a run folder of that name.
        engines: those on this node.

    Raises:
        InfrastructureError: node 0 is not to be reached, or this node is not like it.
    """
    from gpucheck.host.software import software
    from gpucheck.launch.node_channel import RecordClient, address_of
    from gpucheck.records.run_folder import read_plan, write_json

    host, port = address_of(rendezvous.endpoint)
    known = software(copy.package if copy else None)
    try:
        client = RecordClient.connect((host, port), rendezvous.id, rendezvous.node_rank, known, WAIT_FOR_NODE_0)
    except TimeoutError:
        raise InfrastructureError(
            f"node 0 did not answer at {host}:{port} in {WAIT_FOR_NODE_0:g} s: is gpucheck run --node-rank 0 running "
            "there, and is the port after the one of --rdzv-endpoint open?"
        ) from None
    plan = Plan.from_json(client.plan)
    if plan.nproc != choice.nproc:
        raise InfrastructureError(
            f"node 0 has {plan.nproc} rank(s), this node {choice.nproc}: give --nproc on every node"
        )
    if plan.device != choice.device:
        raise InfrastructureError(
            f"node 0 runs on {plan.device}, this node on {choice.device}: give the same --device on every node"
        )
    plan = replace(plan, engines=_own_engines(plan, engines))
    if out is not None and (out / "plan.json").is_file() and read_plan(out).id == plan.id:
        return Joined(plan, out.resolve(), client)
    folder = new_folder(out)
    copy = _patched(copy, patches, folder) if copy else None
    if (copy.content if copy else "") != plan.library["content"]:
        here = f"has the library with content {copy.content[:12]} ({copy.package})" if copy else "takes no library"
        there = f"that with content {plan.library['content'][:12]}" if plan.has_library else "none"
        raise InfrastructureError(
            f"this node {here}, node 0 {there}: give the same scenario, --library and --patch on every node"
        )
    if copy:
        plan = replace(plan, library={**plan.library, "root": str(copy.root), "package": str(copy.package)})
    write_json(folder / "plan.json", plan.to_json())
    client.follow(folder)
    return Joined(plan, folder, client)


def _own_engines(plan: Plan, engines: Sequence[PlannedEngine]) -> tuple[PlannedEngine, ...]:
    """The engines of the plan as this node has them."""
    here = {f"{each['name']} {each['version']}": each for each in engines}
    asked = [f"{each['name']} {each['version']}" for each in plan.engines]
    if not here.keys() >= {*asked}:
        found = " and ".join(here) or "none"
        raise InfrastructureError(
            f"node 0 tests {' and '.join(asked)}, this node has {found}: give the same --engine on every node"
        )
    return tuple(here[words] for words in asked)


def exit_code(joined: Joined, ending: Ending) -> int:
    """Of a further node: how its ranks ended, since the verdict is node 0's."""
    if ending.signal:
        return 128 + ending.signal
    return ExitCode.PASS if ending.code == 0 and not joined.client.cut else ExitCode.INCONCLUSIVE


def _patched(copy: LibraryCopy, patches: Sequence[Path], folder: Path) -> LibraryCopy:
    from gpucheck.library.patches import patched_files, write_patched

    changed = patched_files(copy.package, patches)
    return write_patched(copy, changed, folder / "library") if changed else copy
