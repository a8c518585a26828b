"""What a case runs under: placement of its process, and what is changed in order, threads and caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from gpucheck.model.placement_table import Placement, placement_named

FILLS = (0xFF, 0x00)
"""Bytes that memory is filled with before a pass. Each case has at least one pass with each: FF 00 00 FF 00 FF ..."""

PROCESS_GROUPS = ("none", "initialised")
"""Those that a scenario may ask for."""
TOGETHER = "together"
"""The process group of a joint case: all ranks run it at once, each its part, and their processes are connected."""
LONELY = "it takes two ranks or more, this run has one"
"""Why a joint case is inapplicable where there is nobody to run it with."""
CONSUMERS = ("waits", "prompt", "delayed")
STREAMS = ("default", "side")
CACHES = ("shared", "cold", "fresh")


OF_PROCESS, WORDS = "of the process", "words"
"""What the metadata of each condition says."""
C = TypeVar("C")


def of_process(default: Any, words: str) -> Any:
    """A condition that a process keeps for life: a case under another value needs another process.

    Args:
        words: how a report names what is unusual; ``{}`` stands for the value.
    """
    return field(default=default, metadata={OF_PROCESS: True, WORDS: words})


def of_case(default: Any, words: str) -> Any:
    """A condition that may change from case to case in one process; ``words`` as in :func:`of_process`."""
    return field(default=default, metadata={OF_PROCESS: False, WORDS: words})


def stated(kind: type[C]) -> type[C]:
    """Returns the dataclass, after a check that each field was made by :func:`of_process` or :func:`of_case`.

    Raises:
        TypeError: one was not: processes would be reused under wrong conditions, and reports would not show it.
    """
    silent = [each.name for each in fields(kind) if not {OF_PROCESS, WORDS} <= each.metadata.keys()]  # type: ignore[arg-type]
    if silent:
        raise TypeError(f"{kind.__name__}: {', '.join(silent)} must be made by of_process() or of_case()")
    return kind


@stated
@dataclass(frozen=True)
class Conditions:
    """How a case runs; the defaults are how a server runs a kernel.

    A prompt consumer reads the outputs at once, while the launch is still held back; a delayed one reads them only
    after a second launch on other data.
    """

    placement: str = of_process("pinned", "{}")  # name of a Placement; "cpu" once bound to a machine without GPUs
    process_group: str = of_process(
        "none", "process group"
    )  # "initialised": torch.distributed has one of all ranks; TOGETHER: and the ranks meet in it
    late: bool = of_case(False, "late")  # the main input is made on the device right before the launch, after a delay
    consumer: str = of_case("waits", "{} consumer")  # one of CONSUMERS
    stream: str = of_case("default", "{} stream")  # "side": producer, launch and consumer are on a stream of their own
    concurrency: int = of_case(1, "{} at once")  # threads of a process that launch at once
    cache: str = of_process("shared", "{} cache")  # Triton's; "cold": empty, filled by all ranks at once; "fresh": own
    warm_up: bool = of_case(False, "after cuda:0")  # the case runs on device 0 first
    repeat: int = of_case(1, "x{}")  # times it runs, on each rank
    synchronised: bool = of_process(False, "synchronised")  # every launch is waited for
    in_step: bool = of_process(False, "in step")  # ranks wait for each other before and after each collective call
    guarded: bool = of_case(False, "guarded")  # the call is made with the device of its tensors current
    alone: bool = of_case(False, "alone")  # no other rank of the node runs anything meanwhile
    engine: str = of_process("", "in {}")  # name of the engine that its process has imported; "": none
    swap: str = of_process("", "another {}")  # whose environment ("rank") or GPU ("device") of another rank it has

    @property
    def placed(self) -> Placement:
        """Everything that follows from the placement."""
        return placement_named(self.placement)

    @property
    def whole_node(self) -> bool:
        """Whether one process holds all GPUs of a node."""
        return self.placed.whole_node

    @property
    def together(self) -> bool:
        """Whether all ranks run the case at once, each its part."""
        return self.process_group == TOGETHER

    @property
    def timed(self) -> bool:
        """Whether calls may be timed: nothing is to put stress on the code under test, or waits for each launch."""
        usual = Conditions(self.placement, self.process_group, repeat=self.repeat, engine=self.engine)
        return self == usual and self.placed.timed

    @property
    def lifelong(self) -> Conditions:
        """Those that a process has for life, the others as a server has them."""
        return type(self)(**{each.name: getattr(self, each.name) for each in fields(self) if each.metadata[OF_PROCESS]})

    @property
    def words(self) -> str:
        """What is unusual, as a report names it, repeats last; "" where nothing is."""
        unusual = [each for each in fields(self) if getattr(self, each.name) != each.default]
        usual = {"placement"} if self.placed.usual else set()
        usual |= {"process_group"} if self.together else set()  # as the check always has it
        unusual = [each for each in unusual if each.name not in usual]
        unusual.sort(key=lambda each: each.name == "repeat")
        return ", ".join(each.metadata[WORDS].format(getattr(self, each.name)) for each in unusual)

    def to_json(self) -> dict[str, Any]:
        """The plain form."""
        return asdict(self)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Conditions:
        """The conditions among the keys of a mapping; those that older versions did not write take their defaults."""
        return cls(**{each.name: item[each.name] for each in fields(cls) if each.name in item})
