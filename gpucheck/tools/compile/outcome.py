"""What compiling gave: one kernel, one case, and all cases of one library with one Triton for one target."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gpucheck.triton_hooks.compiled_kernel import in_words


class Built(str, Enum):
    """How one kernel or one case ended."""

    COMPILED = "compiled"
    FAILED = "failed"  # does not compile, or compiles to what the target cannot launch
    INAPPLICABLE = "inapplicable"  # the library or the target does not offer what the case asks for
    NOT_REACHED = "not reached"  # host code ended before it launched the kernel under test; cases only


class Kind(str, Enum):
    """What is wrong with a kernel."""

    ERROR = "error"  # the compiler refuses it
    CRASH = "crash"  # the compiler dies of it
    HANG = "hang"  # the compiler does not come to an end
    RESOURCE = "resource"  # it compiles, and asks for more than the GPU has
    REFUSED = "refused"  # Triton does not take the arguments or options that it is launched with


@dataclass(frozen=True)
class Problem:
    """Why a kernel failed."""

    kind: Kind
    error: str  # what the compiler said, first things first
    place: str = ""  # "package/file.py:line" in the source of the kernel, or of its launch
    code: str = ""  # the line of source there
    hint: str = ""  # in plain words, for known errors


@dataclass(frozen=True)
class Kernel:
    """One distinct kernel: a source with one specialisation and one set of options."""

    key: str  # tells it from others: equal keys, equal machine code
    name: str  # as in its source
    built: Built
    seconds: float | None = None  # for compiling it; None where Triton's own cache had it
    shared: int | None = None  # bytes of shared memory
    registers: int | None = None  # of a thread; AMD: vector registers
    spilled: int | None = None  # bytes of local memory of a thread
    warps: int | None = None
    stages: int | None = None
    config: dict[str, Any] = field(default_factory=dict)  # its compile-time constants
    launched: str = ""  # "package/file.py:line" of its first launch
    problem: Problem | None = None

    @property
    def shape(self) -> str:
        """What it was compiled with, in words."""
        return in_words(self.config, self.warps, self.stages)


@dataclass(frozen=True)
class CaseBuilt:
    """One case: what its host code launched."""

    case: str
    built: Built
    reason: str = ""  # why it is inapplicable or was not reached
    place: str = ""  # "package/file.py:line" where host code ended
    launches: int = 0
    kernels: tuple[str, ...] = ()  # keys


@dataclass(frozen=True)
class Combination:
    """One library with one Triton for one target."""

    library: str  # as it is called in the report; OWN for gpucheck's own kernels
    triton: str  # version
    target: str

    def __str__(self) -> str:
        return f"{self.library}, Triton {self.triton}, {self.target}"


OWN = "own"


@dataclass
class Result:
    """What a combination gave."""

    combination: Combination
    inapplicable: str = ""  # why this library and Triton do not go together
    cases: dict[str, CaseBuilt] = field(default_factory=dict)  # by id
    kernels: dict[str, Kernel] = field(default_factory=dict)  # by key
    compiled_now: int = 0  # kernels that were not in a cache
    seconds: float = 0.0  # spent now

    def count(self, built: Built) -> int:
        """Distinct kernels that compiled or failed; cases that are inapplicable or were not reached."""
        counted = self.kernels if built in (Built.COMPILED, Built.FAILED) else self.cases
        return sum(entry.built is built for entry in counted.values())
