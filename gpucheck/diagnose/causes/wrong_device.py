"""Kernels launched on another device than the one that holds their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.undetermined import UNDETERMINED
from gpucheck.diagnose.finding_cases import Key, by_step, clean_line, failed_case, merged_lines
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import lines_of, mismatches_lines, rank_list
from gpucheck.model.finding import Finding
from gpucheck.model.placement_table import placement_named
from gpucheck.model.record import Launch, Outcome, Record
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import Run

WRONG_DEVICE = Cause(
    "wrong device context",
    means="A kernel was launched while the current device was another GPU than the one that holds its tensors. Triton "
    "launches on the current device and never looks at where the tensors are; a rank that allocates on cuda:RANK "
    "without making it current launches on cuda:0. On rank 0 both are the same, so rank 0 is right.",
    shows="In three ways, depending on what the process did before. If nothing ever touched device 0, the result is "
    "right by luck, since the driver's context is still the one of the tensors (latent). If device 0 has a "
    "context, Triton refuses with 'Pointer argument cannot be accessed from Triton (cpu tensor?)', though no "
    "tensor is on the CPU. If peer access is on, as after any copy between the two GPUs, the kernel runs on GPU "
    "0, on a stream that does not wait for the tensors' stream, and silently computes from whatever is in memory "
    "at that moment.",
    confirm="gpucheck run device-context: the launch records name launch device, argument devices and source line; "
    "the same cases under --placement pinned and visible are right.",
    fix="In the library: with torch.cuda.device(x.device): around the launch. In the caller: "
    "torch.cuda.set_device(local_rank) before the first CUDA call of each process and thread. Prove it with the "
    "same command and --patch FILE.",
)
CAUSES = (WRONG_DEVICE,)

POINTER = re.compile(r"Pointer argument \(at -?\d+\) cannot be accessed from Triton")
MOST_LAUNCHES = 3  # told of one failed case


class State(str, Enum):
    """What came of it."""

    CORRUPTED = "corrupted"
    REFUSED = "refused"
    LATENT = "latent"
    UNCLEAR = "unclear"


TITLES = {
    State.CORRUPTED: f"{WRONG_DEVICE.title}: corrupted",
    State.REFUSED: f"{WRONG_DEVICE.title}: launch refused",
    State.LATENT: f"{WRONG_DEVICE.title}: latent, right by luck",
    State.UNCLEAR: f"{UNDETERMINED.title}: launched on another device than its tensors, "
    "but ranks that were not fail too",
}
FIX = (
    "with torch.cuda.device(x.device): around the call, or torch.cuda.set_device(local_rank) before the first CUDA call"
)
NEXT = "next: the same cases with --placement pinned; wrong there too is the kernel, right there is the device"


@dataclass(frozen=True)
class Evidence:
    """One record of a rank whose launches went elsewhere."""

    state: State

    @property
    def cause(self) -> Cause:
        return UNDETERMINED if self.state is State.UNCLEAR else WRONG_DEVICE


def recognise(run: Run, record: Record) -> Evidence | None:
    """What the record shows about devices; None where its launches were right or nothing is known of them."""
    if not record.outcome.failed:
        return None
    if _refused(run, record):
        return Evidence(State.REFUSED)
    kinds = {violation.kind for violation in record.violations}
    if ViolationKind.DEVICE not in kinds and not any(launch.away and not launch.refused for launch in record.launches):
        return None
    if record.outcome is Outcome.VIOLATION and kinds == {ViolationKind.DEVICE}:
        return Evidence(State.LATENT)
    return Evidence(State.UNCLEAR if _fails_at_home(run, record) else State.CORRUPTED)


def findings(run: Run, evidence: dict[Key, Evidence]) -> list[Finding]:
    """One finding for each thing that came of it."""
    found = []
    for state in State:
        steps = by_step(key for key, item in evidence.items() if item.state is state)
        if not steps:
            continue
        ranks = sorted({rank for of_step in steps.values() for rank in of_step})
        found.append(
            Finding(
                TITLES[state],
                fails=True,
                ranks=ranks,
                rows=list(dict.fromkeys(run.plan.steps[step].case.row for step in steps)),
                cases=[
                    failed_case(run, step, of_step, _lines(run, state, step, of_step))
                    for step, of_step in steps.items()
                ],
                evidence=_answers(run, steps),
                fix=NEXT if state is State.UNCLEAR else FIX,
                cause=(UNDETERMINED if state is State.UNCLEAR else WRONG_DEVICE).title,
            )
        )
    return found


def _answers(run: Run, steps: Mapping[int, list[int]]) -> list[str]:
    """What experiments answered, of the first case that any were made with."""
    for step, ranks in steps.items():
        told = merged_lines([run.records[(step, rank)] for rank in ranks], lambda r: answers(run, r).lines())
        if told:
            return told
    return []


def _refused(run: Run, record: Record) -> bool:
    """Whether Triton refused a pointer because it is another GPU's; a tensor on the CPU gets the same words."""
    if record.outcome is not Outcome.ERROR or not POINTER.search(record.message):
        return False
    refused = [launch for launch in record.launches if launch.refused]
    if refused:
        return any(launch.away and "cpu" not in launch.argument_devices for launch in refused)
    return placement_named(record.placement).context_on_0 and run.plan.local_rank(record.rank) > 0


def _fails_at_home(run: Run, record: Record) -> bool:
    """Whether the same case fails alike on some rank or placement where every launch was on its tensors' device."""
    return any(
        other.case == record.case
        and other.outcome is record.outcome
        and bool(other.launches)
        and not any(launch.away for launch in other.launches)
        for other in run.records.values()
    )


def _lines(run: Run, state: State, step: int, ranks: list[int]) -> list[str]:
    records = [run.records[(step, rank)] for rank in ranks]
    lines = merged_lines(records, lambda record: [_result(state, record)])
    lines += _launch_lines([launch for record in records for launch in record.launches if launch.away])
    if state is State.LATENT:
        lines += merged_lines(records, _luck)
    elif state is not State.REFUSED:
        first = f"rank {ranks[0]}: " if len(ranks) > 1 else ""
        shown = mismatches_lines(records[0].mismatches)
        lines += [first + line for line in shown or _beside(records[0])]
    return lines + clean_line(run, step)


def _result(state: State, record: Record) -> str:
    if state is State.LATENT:
        return "outputs are right"
    if record.mismatches:
        words = f"{record.wrong} of {record.repeats} repeats wrong" if record.repeats > 1 else "wrong output"
        return words + (f"; {record.message}" if record.message else "")
    return record.message or "right output with a violation"


def _beside(record: Record) -> list[str]:
    """What else a record without mismatches says."""
    return [line for line in lines_of(record) if line != record.message and not line.startswith("device: ")]


def _luck(record: Record) -> list[str]:
    """Why a launch on the wrong device was right all the same."""
    contexts = {launch.context for launch in record.launches if launch.away}
    if contexts and all(context is not None for context in contexts):
        return ["the driver's context happened to be the one of the tensors"] if _at_tensors(record) else []
    return []


def _at_tensors(record: Record) -> bool:
    return all([f"cuda:{launch.context}"] == launch.away for launch in record.launches if launch.away)


def _launch_lines(launches: list[Launch]) -> list[str]:
    """``KERNEL launched on cuda:0, its tensors on cuda:1 (file:line)``, each kernel and place once for all ranks."""
    devices: dict[tuple[str, str, int | None], set[str]] = {}
    for launch in launches:
        devices.setdefault((launch.kernel, launch.source, launch.device), set()).update(launch.away)
    lines = [
        f"{kernel} launched on cuda:{device}, its tensors on {_device_list(away)}" + (f" ({source})" if source else "")
        for (kernel, source, device), away in devices.items()
    ]
    more = len(lines) - MOST_LAUNCHES
    return lines[:MOST_LAUNCHES] + ([f"and {more} more kernels alike"] if more > 0 else [])


def _device_list(names: Iterable[str]) -> str:
    """``cuda:1`` or ``cuda:1-7``."""
    numbers = rank_list(int(name.partition(":")[2] or 0) for name in names)
    return "cuda:" + numbers.partition(" ")[2]
