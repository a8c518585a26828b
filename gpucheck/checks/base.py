"""The protocol of a check: one kernel family, its inputs, its launch and its reference.

A check never sets a tolerance (``gpucheck.verify.bounds`` does) and never knows about ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gpucheck.model.case import Case, CheckSpec, Scalar
from gpucheck.model.record import Cost, NeededLaunches
from gpucheck.model.vocabulary import ViolationKind

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpucheck.library.adapters.base import Adapter
    from gpucheck.model.record import EnginePart, Mismatch, Transfer
    from gpucheck.verify.expected import Axes, Expected


OPERANDS = ("bf16", "fp16", "fp32")
"""Dtypes that kernels of our own take."""


class Runtime(Protocol):
    """What a check may use on the device under test. What runs checks implements it; static types hold it to this."""

    @property
    def device(self) -> torch.device: ...

    @property
    def library(self) -> Adapter:
        """The library under test; checks with kernels of their own never touch it.

        Raises:
            Inapplicable: the library does not run with this Triton.
        """

    def place(self, tensor: Tensor, /, name: str = "") -> Tensor:
        """The tensor between guard bands, strides kept; the name says what it holds."""

    def synchronize(self) -> None:
        """Waits for all that was launched, whatever GPU it went to."""

    def report_violation(self, kind: ViolationKind, detail: str, /) -> None:
        """Notes a violation beside wrong numbers."""

    def note(self, text: str, /) -> None:
        """Adds a line to the failure report."""

    def engine_part(self, part: EnginePart, /) -> None:
        """Says what part a serving engine has in the case; the record keeps it."""


@dataclass(frozen=True)
class Allowed:
    """Side effects that are no violation, since the reference has them too."""

    writes: frozenset[str] = frozenset()  # names of the inputs, or of parts of what was prepared, that it changes
    shares: frozenset[str] = frozenset()  # outputs that lie in memory of those, or in what an earlier call returned
    strided: frozenset[str] = frozenset()  # outputs with gaps, or whose elements share memory


ANY_KERNEL = "any Triton kernel"
"""Returned by :meth:`Check.kernels` where the launch of any Triton kernel is enough."""
GIVES = "that gives exactly these outputs"
"""Says of a known fault, in brackets behind it, that it explains what is wrong."""
OUTPUTS = "outputs"
"""Attribute of an error with the outputs that were there before it."""


LAYER = "layer"
"""Attribute of an error with the layer of a caller that raised it, in the words of the report."""


def leave_layer(error: Exception, layer: str) -> None:
    """Attaches the layer that raised an error to it, unless it has one or the layer is not known ("")."""
    if layer and not getattr(error, LAYER, ""):
        with suppress(Exception):
            setattr(error, LAYER, layer)


@contextmanager
def raising_in(layer: str) -> Iterator[None]:
    """Inside, errors are of this layer."""
    try:
        yield
    except Exception as error:
        leave_layer(error, layer)
        raise


def leave_outputs(error: Exception, make: Callable[[], dict[str, Tensor]]) -> None:
    """Attaches the outputs that were computed before an error to it, if the device can still be read."""
    with suppress(Exception):
        setattr(error, OUTPUTS, make())


class Check(ABC):
    """One kernel family."""

    spec: ClassVar[CheckSpec]
    needs_library: ClassVar[bool] = True
    """False: the check launches no kernel of the library."""
    usual: ClassVar[tuple[Mapping[str, Scalar], ...]] = ({},)
    """Parameters of the cases that run without a scenario; missing ones take their defaults."""
    engine: ClassVar[str] = ""
    """The engine whose own path it calls: its cases run in a process that has imported that; "": none."""
    together: ClassVar[bool] = False
    """Whether all ranks run a case at once, each its part: see :class:`JointCheck`."""
    late_inputs: ClassVar[tuple[str, ...]]
    """Inputs that the kernel under test reads itself: those that come late where a scenario asks for late inputs."""

    def reason_against(self, params: Mapping[str, Any], data: str) -> str | None:
        """Why these parameters cannot make a case, or None: a size below 1, or what :meth:`validate` says."""
        return self.spec.too_small(params) or self.validate(params, data)

    def validate(self, params: Mapping[str, Any], data: str) -> str | None:
        """What speaks against parameters whose sizes are right, or None; called while planning, without torch."""
        return None

    def needs_memory(self, case: Case) -> int:
        """Bytes of GPU memory that a case may take, where only what leaves as much can run beside it; 0: little."""
        return 0

    def needs_idle_gpu(self, case: Case) -> bool:
        """Whether nothing else may run on the GPU meanwhile."""
        return False

    def takes_long(self, case: Case) -> bool:
        """Whether a case launches so many kernels that it is begun early: at the end nothing would run beside it."""
        return False

    @abstractmethod
    def inputs(self, case: Case, generator: torch.Generator) -> dict[str, Tensor]:
        """The inputs on the CPU; equal seeds give equal bytes."""

    @abstractmethod
    def reference(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Expected]:
        """The trusted outputs, computed on the CPU in float64 or integers, never by the code under test."""

    def prepare(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        """Brings inputs on the device into the form the kernel takes (swizzling, wrapping); not timed as kernel."""
        return inputs

    def operands(self, case: Case, prepared: Any) -> Any:
        """The part of ``prepared`` that a launch may read but not write, with every tensor reachable from it."""
        return prepared

    def allowed(self, case: Case, prepared: Any, inputs: dict[str, Tensor], runtime: Runtime) -> Allowed:
        """The side effects that a launch may have; asked only if it had some.

        Args:
            inputs: on the device, as they were before the launch.
        """
        return Allowed()

    @abstractmethod
    def launch(self, case: Case, prepared: Any, runtime: Runtime) -> dict[str, Tensor]:
        """Runs the kernel under test once and returns its outputs on the device."""

    def inspect(self, case: Case, prepared: Any, outputs: dict[str, Tensor], runtime: Runtime) -> None:  # noqa: B027
        """Looks for further faults after a launch and reports them to ``runtime``; what it does is not timed.

        Args:
            outputs: what the launch returned, copied to the CPU.
        """

    @abstractmethod
    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        """Names of the Triton kernels of which at least one must be launched; none launched is a silent fallback."""

    def needed_launches(self, case: Case, runtime: Runtime) -> tuple[NeededLaunches, ...]:
        """How many launches of which kernels a call needs at least, and the configuration that the case asks for."""
        kernels = self.kernels(case, runtime)
        return (NeededLaunches(kernels),) if kernels else ()

    def cost(self, case: Case, inputs: dict[str, Tensor]) -> Cost | None:
        """The least work of one call; None: not known. ``inputs`` are on the CPU."""
        return None

    def plain(self, case: Case, inputs: dict[str, Tensor]) -> Callable[[], Any] | None:
        """The same work in plain torch, which is timed and never judged by; None: there is none worth timing.

        Args:
            inputs: on the device under test; what is done here, outside of the returned call, is not timed.
        """
        return None

    def twins(self, case: Case) -> tuple[str, ...]:
        """The library's products of the case, by operand types, layout and sizes: names of ``model.product``.

        Cases of the bare library and of an engine with a product in common show whether a fault of the library reaches
        the engine's path. Callers that are neither have none: their own fault is not the library's.
        """
        return ()

    def references_given_outputs(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> dict[str, Expected]:
        """The references of outputs that depend on other outputs, computed from the outputs under judgement.

        ``expected`` are those of :meth:`reference`. Outputs may be missing and have any shape and dtype.
        """
        return expected

    def order_mismatches(
        self,
        case: Case,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        expected: dict[str, Expected],
        mismatches: list[Mismatch],
    ) -> tuple[list[Mismatch], str]:
        """Mismatches in the order in which they arose, and where the first one is; "" if they have no order."""
        return mismatches, ""

    @abstractmethod
    def axes(self, case: Case, inputs: dict[str, Tensor]) -> dict[str, Axes]:
        """How to name places in the outputs; one that is left out gets plain words."""


class JointCheck(Check):
    """A check of what ranks compute together; the rank's part follows from ``case.rank`` and ``case.ranks`` alone.

    Inputs, reference and outputs are those of this rank. The default process group of ``torch.distributed`` holds
    all ranks before :meth:`prepare` is called: NCCL on GPUs, gloo on the CPU. Every rank makes as many passes, so what
    a pass does must not depend on what one rank alone sees. :class:`Inapplicable` is raised on all ranks alike.
    """

    together = True

    def kernels(self, case: Case, runtime: Runtime) -> tuple[str, ...]:
        return ()

    def host_memory(self, case: Case) -> int:
        """Bytes that all processes of a rank take at most for a case on the CPU; 0: no more than any small case does.

        Args:
            case: as one rank sees it.
        """
        return 0

    @contextmanager
    def exchange(self, case: Case, prepared: Any, runtime: Runtime) -> Iterator[Callable[[], Any] | None]:
        """Gives the communication of the case alone, which all ranks make as often, to be timed; None: it has none.

        The bytes of :meth:`cost` are those that its bandwidth is counted in.
        """
        yield None

    def transfers(
        self, case: Case, inputs: dict[str, Tensor], outputs: dict[str, Tensor], expected: dict[str, Expected]
    ) -> list[Transfer]:
        """From which sender which bytes of wrong outputs are not what it gave; [] where that cannot be told."""
        return []


class CandidateCheck(Check):
    """A check of code that was handed in to be judged.

    Its process gets inputs and weights only: no file that it can open holds the answer before it has answered. Its
    supervisor finds out by further calls what it does beside answering.
    """

    traced: bool = False
    """Whether the driver is asked what ran: where kernels are not launched by Triton, whose launches are seen."""

    def fallback(self, launched: Sequence[str], device_kernels: Sequence[str] | None) -> tuple[str, str]:
        """What it means that these kernels were launched by Triton, and that the driver saw those: fault and remark.

        Both are "" where the candidate's own kernels ran.

        Args:
            device_kernels: None where the driver was not asked.
        """
        return "", ""

    precision: str = ""
    """The least that its products may be computed in."""
    declares_triton: bool = True
    """Whether its source declares Triton kernels, as far as can be told."""
    rule: str = ""
    """A published rule whose verdict is asked for beside ours."""
    on_gpu_only: bool = False
    """Whether references must be made with the GPU, where there is one."""

    def large(self, case: Case, device: str) -> int:
        """Bytes of inputs, weights and outputs that are drawn on the device and never leave it; 0: it is not large."""
        return 0

    def inputs_on(self, case: Case, device: str) -> dict[str, Tensor]:
        """As :meth:`inputs`, drawn on a device."""
        import torch

        return self.inputs(case, torch.Generator().manual_seed(case.input_seed))

    def reference_on(
        self, case: Case, inputs: dict[str, Tensor], device: str, *, large: bool
    ) -> tuple[dict[str, Expected], str]:
        """As :meth:`reference`, computed with a GPU, and where its values come from, in words.

        Args:
            large: values and bounds stay on the device.
        """
        return self.reference(case, inputs), "float64 values of the CPU"

    @abstractmethod
    def fresh_inputs(self, case: Case, seed: int, device: str = "cpu") -> dict[str, Tensor]:
        """Inputs of one more call of the same model, drawn on a device, as part of what :meth:`inputs_on` gives.

        With the seed of the case's own inputs they are these.
        """

    def must_answer(self, case: Case, inputs: dict[str, Tensor]) -> None:
        """Calls the plain code once where that takes no time: a candidate that raised is not to blame if it does too.

        Args:
            inputs: of :meth:`inputs`; {} where they are not on the host.

        Raises:
            UsageError: it raises, or what it returns cannot be judged.
        """

    def build(self, case: Case, inputs: dict[str, Tensor]) -> None:
        """Loads the candidate and makes its model on the CPU, so that what it has built is there."""

    @abstractmethod
    def call(self, prepared: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of one more call, for inputs of :meth:`fresh_inputs` on the device."""

    @abstractmethod
    def baseline(self, case: Case, inputs: dict[str, Tensor], runtime: Runtime) -> Any:
        """As :meth:`prepare`, of the plain code that the candidate replaces, to be timed beside it."""
