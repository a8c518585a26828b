"""The GPUs that can be compiled for: what Triton and the library's host code ask of each, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from gpucheck.model.errors import UsageError
from gpucheck.model.versions import major_minor
from gpucheck.triton_hooks.compiled_kernel import MOST_WORK_ITEMS, Limits

KIB = 1024


@dataclass(frozen=True)
class Target:
    """An architecture, with the figures of the card of it that servers mostly use."""

    name: str  # "sm_90" or "gfx942"
    capability: tuple[int, int]  # as torch.cuda.get_device_capability gives it
    sms: int  # multiprocessors or compute units of the card; tiles, split-k and grids depend on it
    shared_memory: int  # bytes that one block may use
    card: str
    first_triton: tuple[int, int] = (3, 1)  # the oldest release that compiles for it
    registers: int = 65_536  # of 32 bits that one block may use
    tensor_memory: int = 0  # columns; 0 where there is none

    @property
    def amd(self) -> bool:
        return self.name.startswith("gfx")

    @property
    def limits(self) -> Limits:
        """What a block and a launch may use of it."""
        work_items = MOST_WORK_ITEMS if self.amd else 0
        return Limits(
            self.shared_memory, registers=self.registers, tensor_memory=self.tensor_memory, work_items=work_items
        )

    def unknown_to(self, triton_version: str) -> str:
        """That a Triton is older than the target, in words; "" where it compiles for it or does not say what it is."""
        found = major_minor(triton_version)
        if found is None or found >= self.first_triton:
            return ""
        first = "{}.{}".format(*self.first_triton)
        return f"Triton {triton_version} does not know {self.name} ({self.card}): {first} is the first that does"

    def lacks(self, error: str) -> str:
        """What an error says that the hardware or this machine lacks, in words, or "": no kernel is to blame for it."""
        if not self.amd and self.capability < (8, 9) and "type fp8e4nv not supported" in error:
            return f"{self.name} has no fp8 e4m3: NVIDIA GPUs have it from 8.9 on"
        if self.amd and "ROCm linker" in error and "not found" in error:
            return "this Triton links AMD kernels with the ld.lld of ROCm, which this machine does not have"
        return ""


CDNA_REGISTERS = 4 * 512 * 64  # SIMDs of a compute unit, vector registers of each, lanes

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_80", (8, 0), 108, 163 * KIB, "A100"),
        Target("sm_86", (8, 6), 84, 99 * KIB, "A40"),
        Target("sm_89", (8, 9), 142, 99 * KIB, "L40S"),
        Target("sm_90", (9, 0), 132, 227 * KIB, "H100, H200"),
        Target("sm_100", (10, 0), 148, 227 * KIB, "B200", (3, 3), tensor_memory=512),
        Target("sm_120", (12, 0), 170, 99 * KIB, "RTX 5090", (3, 3)),
        Target("sm_121", (12, 1), 48, 99 * KIB, "DGX Spark", (3, 6)),
        Target("gfx942", (9, 4), 304, 64 * KIB, "MI300X", registers=CDNA_REGISTERS),
        Target("gfx950", (9, 5), 256, 160 * KIB, "MI355X", (3, 3), registers=CDNA_REGISTERS),
    )
}
"""By name. Sources of shared memory and registers of NVIDIA GPUs: CUDA C++ Programming Guide, technical specifications
per compute capability, "maximum amount of shared memory" and "maximum number of 32-bit registers per thread block". Of
AMD GPUs: instruction set architecture documents of CDNA 3 and CDNA 4, local data share of a workgroup and vector
registers of a SIMD, of which the waves of a workgroup take their shares. Of tensor memory: PTX ISA, tcgen05.alloc. Of
the oldest Triton: ``tests/checks/test_compile.py`` compiles for each target with releases from 3.1 on."""
DEFAULT = "sm_80,sm_90,sm_100,gfx942"


def parse_targets(names: list[str]) -> list[Target]:
    """The targets of ``--target``, each once.

    Raises:
        UsageError: one that is not in the table.
    """
    for name in names:
        if name not in TARGETS:
            known = ", ".join(f"{target.name} ({target.card})" for target in TARGETS.values())
            raise UsageError(f"--target: unknown target {name!r}; known: {known}")
    return [TARGETS[name] for name in dict.fromkeys(names)]
