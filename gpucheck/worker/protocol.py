"""The messages between a supervisor and its child: Setup, then Requests, each answered by Replies."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field, replace
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, PlannedEngine, Step
from gpucheck.model.record import Ceilings, Cost, EnginePart, NeededLaunches
from gpucheck.model.vocabulary import ViolationKind

CANDIDATE, BASELINE, REFERENCE, BUILD = "candidate", "baseline", "reference", "build"
TEMPORARY = "tmp"  # what a process that runs a candidate takes for temporary files, in ``Setup.own_folder``
ARGUMENT = "argument-{}.pt"  # file with an argument of a recorded call, see ``Inspection.calls``


@dataclass(frozen=True)
class Setup:
    """Everything a child needs before its first case; cases whose setups are equal share a child."""

    conditions: Conditions  # those that a process keeps for life, see :attr:`Conditions.lifelong`
    device: str  # "cuda" or "cpu"
    local_rank: int
    local_ranks: int
    rank: int
    world_size: int
    library_root: str
    generation: str
    stacks: str  # file for its Python stacks, written on a signal
    journal: str  # file in which it notes each launch
    attempt: str = ""  # the experiment that it is for: each one has its own process
    cache: str = ""  # folder of Triton's kernel cache; "": the usual one
    meeting: str = ""  # file where the ranks of a process group meet
    collectives: str = ""  # file in which it notes each collective call of joint cases; "": it runs none
    precision: str = ""  # the least that torch's own products may be computed in; "": as torch has it
    candidate: str = ""  # name of the candidate that it runs: each one has its own process
    own_folder: str = ""  # the only one of the run that it may write to; "": it runs no candidate and is not shut in
    files_walled: bool = True  # such a process writes nowhere else, where the kernel offers that
    calls: str = (
        ""  # for a process that answers single calls: CANDIDATE or BASELINE; REFERENCE: it answers Questions; BUILD
    )
    extensions: str = ""  # folder where torch keeps what it builds; "": the usual one
    launches: str = "run"  # what launches do from its first call on, see ``Call.launches``
    partner: int = -1  # the local rank whose environment or device it gets; -1: the next one
    engine: PlannedEngine | None = None  # that it imports; None: none
    turns: str = ""  # begins the names of files by which it shares its GPU with others of its rank; "": there are none


@dataclass(frozen=True)
class Ahead:
    """Sent instead of a Setup: the process compiles these cases ahead of the ranks, and answers nothing."""

    cases: tuple[Case, ...]
    device: int  # number of the GPU to compile for
    claims: str  # folder in which the processes of a node divide the cases among themselves
    library_root: str
    generation: str
    processes: int = 1  # at most, with this one
    basis: str = ""  # what decides about kernels beside the case, the GPU and gpucheck, see known_kernels


@dataclass(frozen=True)
class Inspection:
    """What to find out about a case, instead of its result."""

    device: int  # which one of the process, see ``Request.outputs``
    calls: str = ""  # folder that the calls of the launch are written to
    elements: tuple[tuple[str, tuple[int, ...]], ...] = ()  # output and index: which programs write them


AFTER = "after the call: "
"""Begins the names of inputs among the outputs of a call, see ``Call.compared``."""
RUN, IDLE, CHANGED, DELAYED = "run", "idle", "changed", "delayed"
"""What Triton launches do in a call of a candidate: run, do nothing, write other values, or start late."""


PLACE, GO, FETCH = "place", "go", "fetch"
"""The steps of a timed call: its sealed inputs are put on the device, the call is made, its outputs are written."""


@dataclass(frozen=True)
class Call:
    """One further call of a candidate, or a step of a timed one, that its supervisor asks for."""

    inputs: str  # file with the inputs of this call; "" in the later steps of a timed one
    launches: str = RUN
    in_place: bool = False  # inputs are put into the memory of the call before
    late: bool = False  # inputs are produced on the device right before the call, after a delay
    prompt: bool = False  # outputs are read on the caller's stream right after the call, without waiting
    compared: bool = False  # what the inputs hold after the call is written beside the outputs
    step: str = ""  # of a timed call, whose memory is not watched; "": it is none
    held: bool = True  # the device is held back until the host has launched the call
    key: int = 0  # that its inputs are sealed with, told when the call is to be made


@dataclass(frozen=True)
class Allowance:
    """How long a call may be timed once it has run."""

    repeats: int  # at most
    seconds: float  # of the host, about
    thorough: bool = False  # plain torch and the GPU's ceilings are measured too, each for as long
    clocked: bool = True  # else further calls are made and held against the first ones, and no time is taken


ALWAYS = Allowance(repeats=5, seconds=0.02)
UNTIMED = Allowance(repeats=5, seconds=0.02, clocked=False)
BENCH = Allowance(repeats=30, seconds=0.2, thorough=True)


def allowance(plan: Plan, step: Step, experiment: str, *, compared: bool = True) -> Allowance | None:
    """How long the call of a step may be timed; None: its time would mean nothing.

    That is so without a GPU, in experiments, if every launch is waited for, and under conditions that stress the code
    under test. A candidate is timed apart, with inputs that no call had before. On a single rank, whose time nothing is
    compared with, the further calls are made without a clock. What ranks do together is timed where that is asked for,
    on the CPU too: its time is that of their processes and of what connects them.

    Args:
        compared: ranks are compared by this step. They are by few: whatever is timed has the GPU for itself meanwhile.
    """
    if step.together:
        asked = plan.bench and not plan.debug and not experiment and step.conditions.timed
        return BENCH if asked else None
    if (
        plan.device != "cuda"
        or plan.debug
        or experiment
        or step.case.check in plan.candidates
        or not step.conditions.timed
    ):
        return None
    if plan.bench:
        return BENCH
    return ALWAYS if plan.world_size > 1 and compared else UNTIMED


@dataclass(frozen=True)
class Request:
    """One case to run."""

    case: Case
    conditions: Conditions
    inputs: str  # file with the inputs
    outputs: tuple[str, ...]  # for each device, the file for the first outputs; for further ones see outputs_file
    timed: Allowance | None = None  # None: not at all
    inspection: Inspection | None = None
    call: Call | None = None  # of a process that answers single calls, see ``Setup.calls``
    box: str = ""  # file that tells of shared memory for the outputs; "": they go into a file
    known: dict[str, str] = field(default_factory=dict)  # output -> digest; a first call that gives these is the last
    group: str = ""  # name of the process group of all ranks that a joint case runs in; "": it runs in none
    deadline: float = 0.0  # s that a joint case may take
    suspect: int | None = None  # tensor whose fill changed the outputs in an earlier process: tried before any other


@dataclass(frozen=True)
class Draw:
    """Which inputs a call of a candidate gets."""

    seed: int | None = None  # None: those of the case
    unlike: int | None = None  # seed by which they get other statistics than the problem gives them; None: they do not


OWN = Draw()


@dataclass(frozen=True)
class Sent:
    """What there is to know of inputs that were handed over."""

    form: str  # names, dtypes and shapes
    size: int  # bytes
    words: str = ""  # what gave them other statistics


@dataclass(frozen=True)
class Taken:
    """The outputs of a call, as bytes that its process can change no more."""

    digest: str
    bits: int  # sum of them, see :func:`gpucheck.worker.sealed_inputs.bit_sum`
    varies: bool  # they are more than one value everywhere, which nobody wrote, say, or NaN
    size: int = 0  # bytes
    changed: dict[str, tuple[int, int]] = field(default_factory=dict)  # inputs that the call changed: elements, of all
    values: dict[str, Any] | None = None  # the outputs; None: the process that makes references keeps them


class Ask(str, Enum):
    """What a supervisor asks the process that makes the references of a pair."""

    SIZE = "size"  # whether a pair is large
    PLACE = "place"  # draw the inputs of a case, in shared memory if they are large
    OPEN = "open"  # inputs that another such process placed: whether they arrive as they are
    EXPECTED = "expected"  # the reference, to judge by on the CPU
    SEND = "send"  # draw the inputs of a further call into shared memory
    TAKE = "take"  # copy outputs out of shared memory
    COMPARE = "compare"  # two outputs that were taken
    JUDGE = "judge"  # outputs that were taken


@dataclass(frozen=True)
class Question:
    """Asked of the process that makes references; it has never run a candidate."""

    what: Ask
    case: Case
    path: str = ""  # of the file with inputs or outputs
    inputs: bytes = b""  # of a further call, as torch saves them; b"": those of the case
    folder: str = ""  # where shared memory for outputs may have its files
    draw: Draw = OWN  # the inputs to send, or those of the outputs to judge
    key: int | None = None  # to seal them with; None: they are sent as they are
    outputs: tuple[str, ...] = ()  # digests of those to judge or to compare
    keep: bool = False  # what is taken is compared or judged later


@dataclass(frozen=True)
class Answer:
    """What that process answers."""

    problem: str = ""  # why it cannot: a fault of the problem's file
    failure: str = ""  # why it cannot: anything else
    traceback: str = ""
    where: str = ""  # where values and noise were computed, in words
    large: bool = False  # the inputs lie in shared memory, and so may outputs
    size: int = 0  # bytes of inputs, weights and outputs of a large pair, once they are placed
    box: str = ""  # file that tells of the shared memory for outputs
    inputs: str = ""  # digest of the inputs
    content: bytes = b""  # of the reference, as torch saves it
    sent: Sent | None = None
    taken: Taken | None = None
    unreadable: str = ""  # why outputs cannot be taken: a fault of the process that wrote them
    differing: tuple[int, int] = (0, 0)  # elements of two outputs, of all
    judged: Any = None  # Judgement
    bases: dict[str, str] = field(default_factory=dict)  # output -> where its bound comes from
    indifferent: str = ""  # see Expected, of all outputs
    digests: dict[str, str] = field(default_factory=dict)  # output -> hash
    rule: dict[str, Any] = field(default_factory=dict)  # what the published rule says that was asked for
    memory: dict[str, int] = field(default_factory=dict)  # whose -> bytes at most
    seconds: float = 0.0


def outputs_file(outputs: str, number: int) -> str:
    """The file of the ``number``-th distinct outputs of a case that runs more than once."""
    return f"{outputs}.{number}" if number else outputs


@dataclass
class Reply:
    """The answer to a Request from one device; the outputs are in the files that the Request names."""

    status: str  # "ran", "inapplicable", "error", or "harness": files that gpucheck itself needs failed
    message: str = ""
    traceback: str = ""
    digests: list[str] = field(default_factory=list)  # of all outputs, one a launch
    fills: list[int] = field(default_factory=list)  # what memory was filled with, one a launch
    tuned: int = 0  # how many of the first ones were measured by an autotuner
    saved: list[str] = field(
        default_factory=list
    )  # digests of the outputs that were written, in the order of their files
    by_fill: dict[int, int] = field(default_factory=dict)  # fill -> number of the file of outputs made in such memory
    guards: list[str] = field(default_factory=list)  # broken guard bands
    blamed: list[tuple[ViolationKind, str]] = field(default_factory=list)  # with details; what the check saw among them
    timings: dict[str, float] = field(default_factory=dict)  # "call", "plain", ... -> s it takes on the GPU
    sensitive: str = ""  # memory whose fill changes the outputs, in words
    suspect: int | None = None  # the number of that tensor among those of a pass
    expected_kernels: tuple[str, ...] = ()
    needed: tuple[NeededLaunches, ...] = ()  # launches of each call
    calls: int = 0  # that were made
    launches: list[dict[str, Any]] = field(default_factory=list)
    device_kernels: list[str] | None = None  # that the driver saw in a candidate's first pass; None: nobody looked
    launched: int = 0  # launches of a single call, replays of CUDA graphs included
    bit_sum: int = 0  # of the outputs of a timed call, which are sent later
    stream: int | None = None  # of the inputs and the consumer on their device
    device: str = ""
    compiled: int = 0  # kernels that no cache had
    gpu: str = ""  # UUID
    bus: str = ""  # PCI address
    cost: Cost | None = None
    ceilings: Ceilings | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    engine: EnginePart | None = None
    memory: dict[str, int] = field(default_factory=dict)  # whose -> bytes at most, of host and GPU
    fatal: bool = False  # the process can no longer be used
    sticky: bool = False  # since its CUDA context is lost
    source: str = ""  # "file:line" of the library that raised
    writers: list[str] = field(default_factory=list)  # of the elements asked for, in words

    @property
    def settled(self) -> tuple[list[str], list[int]]:
        """Digests and fills of the launches that no autotuner had a part in."""
        return self.digests[self.tuned :], self.fills[self.tuned :]


def for_one_device(request: Request, index: int) -> Request:
    """A request to several devices as one of them sees it."""
    inspection = request.inspection if request.inspection and request.inspection.device == index else None
    return replace(request, outputs=(request.outputs[index],), inspection=inspection)


class NoReply(Exception):
    """What a child sent is not a list of replies."""


class _OfReplies(pickle.Unpickler):
    """Makes replies and what they hold, and nothing else: code under test has the connection at hand too."""

    ALLOWED: ClassVar[dict[tuple[str, str], type]] = {
        (kind.__module__, kind.__qualname__): kind
        for kind in (Reply, Cost, Ceilings, EnginePart, NeededLaunches, ViolationKind)
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise NoReply(f"it holds a {module}.{name}") from None


def receive(connection: Connection) -> list[Reply]:
    """The replies that a child sent.

    Raises:
        NoReply: it sent something else.
        EOFError: it closed the connection.
    """
    sent = connection.recv_bytes()
    try:
        replies = _OfReplies(io.BytesIO(sent)).load()
    except NoReply:
        raise
    except Exception as error:
        raise NoReply(f"{type(error).__name__}: {error}") from None
    if not isinstance(replies, list) or not all(isinstance(reply, Reply) for reply in replies):
        raise NoReply(f"it is a {type(replies).__name__}")
    return replies
