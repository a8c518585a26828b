"""What happened to one case on one rank: the JSON line a rank writes and everyone else reads."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar

from gpucheck.model.screened import Screened
from gpucheck.model.vocabulary import Attempted, ExperimentName, TransferFault, ViolationKind

T = TypeVar("T")

SCHEMA = 1  # of plan.json and of every record line
OLD_NAMES = {"speed": "timings"}  # what fields were called in record lines of earlier versions
DAMAGED_ENTRY = "damaged cache entry"  # in a message, before the cache file that explains the error
OOM_KILLER = "kernel's out-of-memory killer"  # in the message of a process that it may have killed
NO_MEMORY = ("out of memory", "memoryerror", OOM_KILLER)  # in what an attempt that lacked memory says, lower case


def lacks_memory(message: str) -> bool:
    """Whether an attempt says that it came to nothing for want of memory."""
    return any(words in message.lower() for words in NO_MEMORY)


class Outcome(str, Enum):
    """How a case ended on a rank."""

    PASS = "pass"
    MISMATCH = "mismatch"  # an output differs from its reference
    VIOLATION = "violation"  # output right, but memory, launches or repeats were not
    ERROR = "error"  # the code under test raised
    CRASH = "crash"  # the process that owns the device died, or its CUDA context did
    HANG = "hang"  # no result before the deadline
    INAPPLICABLE = "inapplicable"  # library or machine does not offer what the case asks for
    HARNESS = "harness"  # gpucheck itself failed; says nothing about the device
    LOST = "lost"  # planned, but no result was written

    @property
    def failed(self) -> bool:
        """Whether this is a failure of the code under test."""
        return self in _FAILED


_FAILED = (Outcome.MISMATCH, Outcome.VIOLATION, Outcome.ERROR, Outcome.CRASH, Outcome.HANG)


@dataclass(frozen=True)
class Heat:
    """How wrong each part of an output is: the output as a matrix of (rows, last axis), cut into equal cells."""

    shape: list[int]  # rows and columns of the matrix
    cell: list[int]  # rows and columns of a cell; those at the far edges may be cut
    tile: list[int]  # rows and columns of a tile; 0 where the axis is not tiled
    block: int  # rows after which tiles start again: no tile crosses from one batch or head into the next
    per_mille: list[list[int]]  # wrong elements of each cell, in thousandths; 0 where none and 1000 where all are wrong


@dataclass(frozen=True)
class Mismatch:
    """Where and how far one output is off."""

    output: str
    method: str  # "exact", "bound" or "integer"
    wrong: int  # elements outside their bound
    total: int
    region: str  # in the words of the case
    first: list[int]  # index of the first wrong element
    worst: list[int]  # index of the element furthest outside its bound
    expected: float  # at the worst index
    got: float | None  # at the worst index; None is NaN
    bound: float  # largest allowed |got - expected| there; 0 for exact data
    ulps: int | None  # distance at the worst index in units of the output's last place; None: no sensible number
    box: list[list[int]]  # per axis [first, last] wrong index
    tiles: list[list[int]]  # coordinates of the first wrong tiles, at most 16
    bits: list[int]  # bit positions flipped, where every wrong element differs in one bit only
    bias: float  # mean sign of (got - expected) over wrong finite elements, -1 to 1
    nan: int  # wrong elements that are NaN
    inf: int
    first_nonfinite: list[int] | None
    poison: int  # wrong elements that hold what their memory was filled with, whatever it was filled with
    exactly: dict[str, list[int]] = field(default_factory=dict)  # grouping -> the groups whose rows are the wrong ones
    inward: float = 0.0  # mean sign of |got| - |expected|; -1 is always towards zero
    correlation: float | None = None  # of got and expected; None: no sensible number, as for the next three
    relative: float | None = None  # rms of the error over rms of the reference
    ratio: float | None = None  # got / expected, where nearly all share it
    shift: int | None = None  # distance in rows that nearly all of the moved ones share
    moved: int = 0  # wrong rows that are the reference of another row
    sampled: int = 0  # wrong rows that were searched for that
    zeros: int = 0  # wrong elements that are zero
    scaled: int = 0  # wrong elements that are the reference times a power of two, or whose reference is zero
    step: float | None = None  # got - expected, where all of several wrong elements share it
    span: list[float] = field(default_factory=list)  # smallest and largest value of a reference of integers
    outside: int = 0  # wrong integers beyond that span
    reordered: bool = False  # each wrong row of integers holds the values of its reference in another order
    follows: int = 0  # elements that change with what memory held before, the unwritten ones too; 0: none known
    wraps: str = ""  # that an offset of 32 bits explains it, in words
    heat: Heat | None = None  # None in records of versions that drew no map

    def __post_init__(self) -> None:
        if isinstance(self.heat, dict):  # as read from a record line
            names = [f.name for f in fields(Heat)]
            whole = all(name in self.heat for name in names)  # a failure is not lost for its map
            object.__setattr__(self, "heat", Heat(*(self.heat[name] for name in names)) if whole else None)


@dataclass(frozen=True)
class Violation:
    """A fault other than wrong numbers."""

    kind: ViolationKind
    detail: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ViolationKind(self.kind))  # as read from a record line


@dataclass(frozen=True)
class LargeTensor:
    """An argument of a launch that offsets of 32 bits cannot reach all of, in elements or in bytes."""

    name: str  # of the kernel's parameter
    dtype: str
    itemsize: int  # bytes of an element
    shape: list[int]
    stride: list[int]  # in elements

    @property
    def words(self) -> str:
        """``cache_ptr, int8 of shape (2054, 1048576)``."""
        return f"{self.name}, {self.dtype} of shape ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class Launch:
    """One distinct Triton launch of a case and how often it was made."""

    kernel: str
    count: int
    device: int | None  # current device at launch; None in the interpreter
    argument_devices: list[str]
    stream: int | None
    hash: str  # of the compiled kernel; "" in the interpreter
    arch: str
    shared: int  # bytes
    warps: int
    grid: list[int]
    source: str = ""  # "file:line" of the call, relative to the library or to our own kernels
    context: int | None = None  # device of the driver's current context at the first such launch
    refused: str = ""  # what Triton raised instead of launching
    tried: int = 0  # configurations that its autotuner tried on the tensors of the case; 0: none was left to choose
    large: list[LargeTensor] = field(default_factory=list)  # arguments beyond what 32 bits can address
    configuration: dict[str, int] = field(default_factory=dict)  # SPLIT_K, BLOCK_M, num_stages, ... -> its value

    def __post_init__(self) -> None:
        if any(isinstance(item, dict) for item in self.large):  # as read from a record line
            read = (_read_large(item) for item in self.large)
            object.__setattr__(self, "large", [tensor for tensor in read if tensor is not None])

    @property
    def away(self) -> list[str]:
        """The GPUs of its tensors that are not the launch device."""
        if self.device is None:
            return []
        return [name for name in self.argument_devices if name.startswith("cuda") and name != f"cuda:{self.device}"]


@dataclass(frozen=True)
class NeededLaunches:
    """Launches that each call of a case must make at least."""

    kernels: tuple[str, ...]  # any of them counts
    count: int = 1  # of a call, at least
    asked: dict[str, int] = field(default_factory=dict)  # configuration that the case asks for, of each such launch
    variants: tuple[str, ...] = ()  # those of the kernels that the case asks for; (): any


@dataclass(frozen=True)
class Underway:
    """The last launch that a process had begun before it died or hung."""

    kernel: str
    source: str  # "file:line" of the call
    open: int  # launches that may not have ended; with N it may be any of the last N; 0: it had ended


@dataclass(frozen=True)
class Cost:
    """What one call of a case has to do at least, however it is implemented."""

    flops: float  # of its matrix products, a multiplication and an addition counting as two; 0 where it has none
    bytes: float  # each part of an input that is needed, read once, and each output, written once


@dataclass(frozen=True)
class Ceilings:
    """What a GPU reached in plain torch during the run."""

    flops: float  # /s, of a large bf16 matrix product
    bytes: float  # /s, read and written by a large copy within its memory

    def seconds(self, cost: Cost) -> tuple[float, float]:
        """How long these speeds would take for the products and for the bytes; the larger one binds."""
        return cost.flops / self.flops, cost.bytes / self.bytes


@dataclass(frozen=True)
class EnginePart:
    """What part a serving engine had in a case."""

    name: str  # "vllm"
    version: str
    depth: str = ""  # how much of its own code ran: "model", "module", "method" or "functions"
    lacking: list[str] = field(default_factory=list)  # what kept more of its code from being called
    backend: str = ""  # what it chose to compute the experts by, in its own words
    configuration: str = ""  # of a kernel of its own: the file of tuned ones that it is from, or default, and values
    layouts: list[str] = field(default_factory=list)  # of weights and scales, with the shapes of their storages
    stand_ins: list[str] = field(default_factory=list)  # what was not its own; empty where it is installed
    left_behind: list[str] = field(default_factory=list)  # what it changed in the library, for all later calls
    reload: str = ""  # what took another checkpoint before this one: "the same module" or a new one; "": nothing did
    identity: str = ""  # whether its files are those of a release that is known, in words
    group: str = ""  # what it was told of ranks that share the block, which are all computed here; "": none do
    stored: str = ""  # how what its loader stored differs from the checkpoint, or that it does not; "": not looked at
    scale_groups: dict[str, int] = field(default_factory=dict)  # of each product's scales, with what pads them


@dataclass(frozen=True)
class Progress:
    """How far one rank came in a case that ranks run together."""

    rank: int
    state: str  # "ran", "raised", "crashed", "stopped", "waited", "gone" or "never ready"
    operation: str = ""  # the last one it came to: "all_reduce"; "" for none
    signature: str = ""  # the same with what must agree on all of its ranks: "all_reduce bf16 x1024 sum"
    members: list[int] = field(default_factory=list)  # the ranks of its group, or of its pair
    number: int = 0  # of the operation in that group, from 1
    inside: bool = False  # it had entered the operation, or waited for it, and had not left
    message: str = ""  # what it raised or how it died


@dataclass(frozen=True)
class Transfer:
    """Bytes that a rank has from another one and that are not what that one gave."""

    sender: int
    receiver: int
    fault: TransferFault
    output: str
    first: int  # byte of the output
    last: int  # likewise, included
    wrong: int  # elements
    total: int  # elements that came from this sender
    detail: str = ""  # what the bytes are instead, in words

    def __post_init__(self) -> None:
        object.__setattr__(self, "fault", TransferFault(self.fault))  # as read from a record line


@dataclass(frozen=True)
class Record:
    """The result line of one attempt of one case on one rank."""

    step: int  # index into the plan
    case: str
    rank: int
    outcome: Outcome
    message: str = ""
    experiment: Attempted = ""  # of a follow-up attempt; "": the attempt that the plan asks for
    round: int = 0  # number of the pass over the plan
    placement: str = ""
    host: str = ""
    device: str = ""
    gpu: str = ""  # UUID of the GPU, or of the MIG instance, as the driver gives it; "": not known
    bus: str = ""  # its PCI address
    pid: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    stream: int | None = None  # that inputs and outputs were produced and read on
    digests: dict[str, str] = field(default_factory=dict)  # output -> hash of its bytes
    tiles: dict[str, list[str]] = field(default_factory=dict)  # output -> hashes of its tiles, row by row
    inputs: str = ""  # hash of the input bytes
    repeats: int = 1  # times the case ran
    wrong: int = 0  # of them with a wrong output
    distinct: int = 1  # different outputs among them
    calls: list[str] = field(default_factory=list)  # short hash of the outputs of each call; empty: all are equal
    bad_calls: list[int] = field(default_factory=list)  # calls with a wrong output, from 0; empty: all or none
    by_fill: bool = False  # outputs depend on what memory held before the call, and on nothing else
    asked: int = 0  # calls that were to be made, all in one process; 0: not known
    before: int = -1  # cases that its process had run before; -1: not known
    after: list[int] = field(default_factory=list)  # the steps its process ran before, where an experiment chose them
    partner: int | None = None  # the local rank whose environment or device an experiment lent
    tightness: float = 0.0  # largest share of an error bound used, beyond final rounding
    arithmetic: str = ""  # the GPU architectures that the bounds hold for; "": not known
    bounds: dict[str, str] = field(default_factory=dict)  # output -> where its bound comes from, if not from gpucheck
    timings: dict[str, float] = field(default_factory=dict)  # "call", "plain", ... -> s it takes on the GPU
    cost: Cost | None = None  # of a call; None: not timed, or not known
    ceilings: Ceilings | None = None  # measured right after this case
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> s: inputs, prepare, compile, kernel, ...
    engine: EnginePart | None = None  # None: the case is of no engine
    twins: list[str] = field(default_factory=list)  # products of the case: equal ones are computed from equal operands
    walls: list[str] = field(default_factory=list)  # between a candidate and its judge that stood, see containment
    transfers: list[Transfer] = field(default_factory=list)  # wrong ones, of a case that ranks run together
    progress: list[Progress] = field(default_factory=list)  # of all ranks, where one did not come to the end
    screened: Screened | None = None  # None: the case is no datapath of a screen
    precision: str = ""  # the least that a candidate's products may be computed in; "": the case is of none
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)  # published rule -> what it says of a candidate
    memory: dict[str, int] = field(default_factory=dict)  # whose -> bytes at most, of host and GPU
    traceback: str = ""
    sticky: bool = False  # a CUDA error that no later call of the process survives
    kernels: list[str] = field(default_factory=list)  # under test; of attempts that gave no output
    underway: Underway | None = None  # None: no launch had begun, or all had ended
    source: str = ""  # "file:line" of the library that raised
    said: list[str] = field(default_factory=list)  # lines that its process printed before it died or hung
    log: str = ""  # paths, in the run folder, of the files with all that it printed
    victim_of: int | None = None  # the rank whose death ended this one before its case, or whose fault explains it

    @cached_property
    def bits(self) -> str:
        """What wrong outputs of equal inputs share where they are the same bits; "" without wrong outputs."""
        if not self.mismatches or not self.digests:
            return ""
        return hashlib.sha256(repr((self.inputs, sorted(self.digests.items()))).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The plain form of a result line."""
        item = asdict(self)
        item["outcome"] = self.outcome.value
        return {"event": "result", "schema": SCHEMA, **item}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Record:
        """The record that :meth:`to_json` wrote; keys of newer versions are left out."""
        known = {f.name for f in fields(cls)}
        values = {OLD_NAMES.get(key, key): value for key, value in item.items() if key in known or key in OLD_NAMES}
        values["outcome"] = Outcome(values["outcome"])
        for key, kind in (("mismatches", Mismatch), ("violations", Violation), ("launches", Launch)):
            names = {f.name for f in fields(kind)}
            values[key] = [kind(**{k: v for k, v in part.items() if k in names}) for part in values.get(key, [])]
        for key, joint in (("transfers", Transfer), ("progress", Progress)):
            values[key] = [each for each in (_read_part(joint, part) for part in values.get(key, [])) if each]
        values["experiment"] = ExperimentName(values["experiment"]) if values.get("experiment") else ""
        if values.get("underway"):
            values["underway"] = Underway(**{name: values["underway"][name] for name in ("kernel", "source", "open")})
        if part := values.get("engine"):
            names = {f.name for f in fields(EnginePart)}
            values["engine"] = EnginePart(**{name: value for name, value in part.items() if name in names})
        values["screened"] = Screened.from_json(values["screened"]) if values.get("screened") else None
        values["cost"] = _read(Cost, values.get("cost"))
        values["ceilings"] = _read(Ceilings, values.get("ceilings"))
        return cls(**values)


def _read_large(item: Any) -> LargeTensor | None:
    names = [f.name for f in fields(LargeTensor)]
    return LargeTensor(**{name: item[name] for name in names}) if all(name in item for name in names) else None


def _read_part(kind: type[T], item: Any) -> T | None:
    """A dataclass as read from a record line; None where it is damaged: a failure is not lost for that."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in item.items() if name in names})
    except (TypeError, AttributeError):
        return None


def _read(kind: type[T], item: Any) -> T | None:
    """A dataclass of numbers as read from a record line; None where it is damaged: a failure is not lost for that."""
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    whole = isinstance(item, dict) and all(isinstance(item.get(name), (int, float)) for name in names)
    return kind(**{name: item[name] for name in names}) if whole else None


class Verdict(str, Enum):
    """The answer of a run."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOTHING_RAN = "NOTHING RAN"
