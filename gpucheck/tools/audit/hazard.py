"""A hazard: a place in the library where the device of the tensors does not decide, though it should."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """What sort of hazard; the value is its stable name."""

    FIXED_DEVICE = "fixed-device"
    FIXED_DEVICE_USER = "fixed-device-user"
    CURRENT_DEVICE = "current-device"
    CAPABILITY_CACHE = "capability-cache"
    KERNEL_CACHE = "kernel-cache"
    MODULE_REGISTRATION = "module-registration"
    PROCESS_OPTION = "process-option"
    ALLOCATOR = "allocator"
    SCRATCH_CACHE = "scratch-cache"
    BUFFER_CACHE = "buffer-cache"
    METADATA_SWITCH = "metadata-switch"
    METADATA_SYNC = "metadata-sync"
    DISTRIBUTED_SINGLETON = "distributed-singleton"
    GLOBAL_RNG = "global-rng"
    ENVIRONMENT = "environment"
    GLOBAL_RANK = "global-rank"
    NO_DEVICE_GUARD = "no-device-guard"
    ALLOCATION = "allocation"


@dataclass(frozen=True)
class Meaning:
    """What a kind of hazard means, for people."""

    title: str
    causes: str
    fix: str


MEANINGS: dict[Kind, Meaning] = {
    Kind.FIXED_DEVICE: Meaning(
        "properties of a fixed device",
        "every GPU is tuned with the multiprocessors, memory or capability of one: other tiles and split-k on a mixed"
        " node or under MIG, so other rounding, slower kernels or a launch that does not fit",
        "ask for the device of the tensors: torch.cuda.get_device_properties(x.device)",
    ),
    Kind.FIXED_DEVICE_USER: Meaning(
        "use of a helper that asks a fixed device",
        "the grid or the tile choice made here follows that one device, whatever device the tensors are on",
        "give the helper a device argument and pass x.device",
    ),
    Kind.CURRENT_DEVICE: Meaning(
        "capability of the current device instead of the tensors' device",
        "with tensors on another GPU than the current one the code path of the wrong architecture is chosen",
        "pass the tensors' device, or enter torch.cuda.device(x.device) before asking",
    ),
    Kind.CAPABILITY_CACHE: Meaning(
        "capability cache without a device in the key",
        "the first device that asks decides for all others: wrong kernels on a node with mixed GPUs",
        "put the device into the key, or do not cache",
    ),
    Kind.KERNEL_CACHE: Meaning(
        "kernel cache without a device in the key",
        "a kernel made while one device was current is handed to another: wrong as soon as what was bound into it"
        " depends on the device (binaries alone are kept for each device by Triton); two threads can fill it at once",
        "put device and capability into the key and fill it under a lock",
    ),
    Kind.MODULE_REGISTRATION: Meaning(
        "module registered in sys.modules",
        "a module made at run time replaces one of the same name, also one made for another device or by another"
        " copy of the library",
        "keep made modules in a private dictionary, or put the device into the name",
    ),
    Kind.PROCESS_OPTION: Meaning(
        "option flag of the whole process or context",
        "what one caller sets for its device steers the kernels of every other; a context variable is lost in"
        " worker threads instead",
        "pass options as arguments; else set them in a scope that restores them",
    ),
    Kind.ALLOCATOR: Meaning(
        "Triton's allocator set inside a call",
        "the allocator of the last caller serves the next launch, whatever its device: scratch on the wrong GPU",
        "set it in the same context as the launch and let it ask for the current device when it is called",
    ),
    Kind.SCRATCH_CACHE: Meaning(
        "scratch buffers kept for good",
        "buffers stay allocated for each device and stream ever used, and launches that overlap share them",
        "let torch's caching allocator own scratch; use few streams",
    ),
    Kind.BUFFER_CACHE: Meaning(
        "buffers kept without a device in the key",
        "a second GPU gets the first one's buffer: the launch is refused, or with peer access it works in another GPU's"
        " memory, where two launches can meet; and buffers stay allocated for good",
        "put the device (and the stream) into the key, or let torch's caching allocator own scratch",
    ),
    Kind.METADATA_SWITCH: Meaning(
        "launch-metadata switch of the whole process",
        "the environment is read once and one caller's setting changes whether launches on all devices wait for it",
        "read it at each use or pass it",
    ),
    Kind.METADATA_SYNC: Meaning(
        "launch metadata that waits for the device",
        "with a profiler or launch hook set, every launch reads device memory on the host: other timing, hidden"
        " races, a deadlock inside a captured graph",
        "set PROTON_LAUNCH_METADATA_NOSYNC=1 where it is honoured; keep counters on the device",
    ),
    Kind.DISTRIBUTED_SINGLETON: Meaning(
        "one distributed object a process",
        "the buffers of the first process group and device serve every later one",
        "make the object for each group and device and pass it",
    ),
    Kind.GLOBAL_RNG: Meaning(
        "random state of the whole process is reset",
        "the numbers of every rank and thread start over: equal data where it should differ, unrepeatable tests",
        "use a torch.Generator of its own",
    ),
    Kind.ENVIRONMENT: Meaning(
        "assumption about the environment",
        "the code takes which GPU is whose from an environment variable: a child that gets another environment, or a"
        " caller that numbers devices differently, uses another GPU",
        "pass the device explicitly and hand the whole environment to children",
    ),
    Kind.GLOBAL_RANK: Meaning(
        "global rank used as the number of a GPU",
        "on the second node of a job the global rank is no device number: rank 8 asks for cuda:8 on a node whose GPUs"
        " are 0 to 7",
        "take LOCAL_RANK, which torchrun sets",
    ),
    Kind.NO_DEVICE_GUARD: Meaning(
        "launch without a device guard",
        "Triton launches on the current device: with tensors on another GPU the launch is refused, or with peer access"
        " runs on the wrong GPU and stream and the output is silently wrong",
        "with torch.cuda.device(x.device): around the launch; callers: torch.cuda.set_device(local_rank)",
    ),
    Kind.ALLOCATION: Meaning(
        "allocation that does not follow the tensors' device",
        "with tensors on another GPU than the current one outputs and scratch lie on the wrong GPU: the launch is"
        " refused, or with peer access each access crosses between GPUs, and callers get tensors of two devices",
        "device=x.device, or torch.empty_like(x), x.new_empty(...) and the like",
    ),
}


@dataclass(frozen=True)
class Hazard:
    """One place of one kind."""

    file: str  # relative to the package, POSIX
    line: int
    kind: Kind
    code: str  # the source line
    function: str = ""  # qualified name of the function around it; "" at module level
    detail: str = ""  # what was seen, in words
    also: tuple[int, ...] = ()  # further lines of the same hazard: where a cache is filled, a flag set
    expression: str = ""  # what a probe evaluates in the module, or the name it looks at
    filled_by: str = ""  # the function, method or bound method that fills a cache
    confirmed: bool | None = None  # by a probe; None: not probed
    evidence: str = ""  # what the probe saw, or why there was none

    @property
    def meaning(self) -> Meaning:
        """What its kind means."""
        return MEANINGS[self.kind]

    def to_json(self) -> dict[str, Any]:
        """As plain data, with cause and fix."""
        return {**asdict(self), **asdict(self.meaning)}
