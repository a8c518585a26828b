"""What a case runs under: how processes hold their GPUs, and what is done to order, threads and caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpucheck.model.placement import Placement, placement_named

PROCESS_GROUPS = ("none", "initialised")
CONSUMERS = ("waits", "prompt", "delayed")
STREAMS = ("default", "side")
CACHES = ("shared", "cold", "fresh")


@dataclass(frozen=True)
class Conditions:
    """How a case runs; the defaults are how a server runs a kernel."""

    placement: str = "pinned"  # name of a Placement; "cpu" once bound to a machine without GPUs
    process_group: str = "none"  # "initialised": torch.distributed has a group of all ranks
    late: bool = False  # the main input is produced on the device right before the launch, behind a delay
    consumer: str = "waits"  # "prompt": outputs are read right behind a launch that is held back; "delayed": only after
    #   a second launch on other data
    stream: str = "default"  # "side": producer, launch and consumer are on a stream of their own
    concurrency: int = 1  # threads of a process that launch at once
    cache: str = "shared"  # Triton's; "cold": empty, and all ranks of a node fill it at once; "fresh": empty, own
    warm_up: bool = False  # the case runs on device 0 first
    repeat: int = 1  # times it runs, on each rank
    synchronised: bool = False  # every launch is waited for
    guarded: bool = False  # the call is made with the device of its tensors current
    alone: bool = False  # no other rank of the node runs anything meanwhile
    swap: str = ""  # "rank": with the environment of another rank; "device": on the GPU of another rank

    @property
    def placed(self) -> Placement:
        """Everything that follows from the placement."""
        return placement_named(self.placement)

    @property
    def whole_node(self) -> bool:
        """Whether one process holds all GPUs of a node."""
        return self.placed.whole_node

    @property
    def timed(self) -> bool:
        """Whether calls may be timed: nothing is to put stress on the code under test, or waits for each launch."""
        usual = Conditions(self.placement, self.process_group, repeat=self.repeat)
        return self == usual and self.placed.timed

    @property
    def words(self) -> str:
        """What is unusual, as a report names it; "" where nothing is."""
        words = [self.placement] if not self.placed.usual else []
        words += ["process group"] * (self.process_group == "initialised") + ["late"] * self.late
        words += [f"{self.consumer} consumer"] * (self.consumer != "waits")
        words += [f"{self.stream} stream"] * (self.stream != "default")
        words += [f"{self.concurrency} at once"] * (self.concurrency > 1)
        words += [f"{self.cache} cache"] * (self.cache != "shared") + ["after cuda:0"] * self.warm_up
        words += ["synchronised"] * self.synchronised + ["guarded"] * self.guarded + ["alone"] * self.alone
        words += [f"another {self.swap}"] * bool(self.swap)
        return ", ".join(words + [f"x{self.repeat}"] * (self.repeat > 1))

    def to_json(self) -> dict[str, Any]:
        """The plain form."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Conditions:
        """The conditions among the keys of a mapping; those that older versions did not write take their defaults."""
        return cls(**{field.name: item[field.name] for field in fields(cls) if field.name in item})
