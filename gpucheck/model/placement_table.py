"""Placements: how processes hold the GPUs of a node. One row each, and everything that depends on a placement asks it.

To add one, add a row here, and in :mod:`gpucheck.worker.device.placements` what ties a process to its GPU so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """How one process holds one GPU, or all GPUs of a node; the defaults claim nothing for a new one."""

    name: str
    summary: str
    whole_node: bool = False  # one process holds all GPUs of the node
    threads: bool = False  # that process has a thread for each GPU, and they work at once; else each has its turn
    device_current: bool = False  # the GPU of the tensors is the current one; else device 0 stays it
    one_visible: bool = False  # no other GPU exists for the process
    context_on_0: bool = False  # device 0 has a live context, whichever GPU the tensors are on
    peer_access: bool = False  # device 0 may access the GPU of the tensors
    without_gpus: str = ""  # the placement that it is on a machine without GPUs; "": there it means nothing
    scripted: bool = False  # a stand-alone script can hold its GPU so, from what is said here alone
    in_scenarios: bool = True  # a scenario can ask for it
    usual: bool = False  # goes without saying in a report

    @property
    def timed(self) -> bool:
        """Whether the time of a call tells something: one process to a GPU, which is the current one."""
        return self.device_current and not self.whole_node

    @property
    def warms_up(self) -> bool:
        """Whether a case may run on device 0 first: the process sees it, and makes each GPU current at its turn."""
        return self.timed and not self.one_visible


PLACEMENTS: dict[str, Placement] = {
    placement.name: placement
    for placement in (
        Placement(
            "pinned",
            "torch.cuda.set_device(local_rank), as servers do it",
            device_current=True,
            without_gpus="cpu",
            scripted=True,
            usual=True,
        ),
        Placement(
            "visible",
            "CUDA_VISIBLE_DEVICES holds the rank's GPU alone",
            device_current=True,
            one_visible=True,
            without_gpus="cpu",
            scripted=True,
        ),
        Placement(
            "unpinned",
            "tensors on the rank's GPU, the current device left at 0, and nothing ever on device 0",
            scripted=True,
        ),
        Placement("context0", "as unpinned, but a tensor lies on device 0", context_on_0=True, scripted=True),
        Placement(
            "peer",
            "as context0, and device 0 may access the rank's GPU",
            context_on_0=True,
            peer_access=True,
            scripted=True,
        ),
        Placement(
            "threads",
            "one process, a thread for each GPU, and each thread makes its own GPU current",
            whole_node=True,
            threads=True,
            device_current=True,
            without_gpus="threads",
        ),
        Placement(
            "threads-unpinned",
            "one process, a thread for each GPU, and no thread makes its GPU current: a thread starts out on device 0",
            whole_node=True,
            threads=True,
        ),
        Placement(
            "sequential",
            "one process walks over all GPUs and makes each current at its turn",
            whole_node=True,
            device_current=True,
        ),
        Placement(
            "sequential-unpinned",
            "one process walks over all GPUs with the current device left at 0",
            whole_node=True,
        ),
        Placement(
            "cpu",
            "no GPU: Triton's interpreter runs the kernels",
            device_current=True,
            without_gpus="cpu",
            scripted=True,
            in_scenarios=False,
            usual=True,
        ),
    )
}
"""By name, the usual ones first."""


def placement_named(name: str) -> Placement:
    """The row of a placement; of one that only another version knows, a row that claims nothing."""
    return PLACEMENTS.get(name) or Placement(name, "a placement of another version of gpucheck", in_scenarios=False)


def scenario_placements() -> tuple[str, ...]:
    """The names that a scenario can ask for."""
    return tuple(placement.name for placement in PLACEMENTS.values() if placement.in_scenarios)
