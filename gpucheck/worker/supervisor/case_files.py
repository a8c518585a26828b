"""Inputs and references of cases: made once per node, mapped by all its ranks.

A file appears complete or not at all. Whoever holds the lock of a missing file makes it; the kernel releases the lock
of a process that dies, so the next one takes over.

The reference of a candidate is never in a file, and never made before the candidate has answered: each rank's
supervisor makes it in its own memory, since a candidate's process can read every file of its user. It can write them
too, so inputs are drawn anew for that.
"""

from __future__ import annotations

import fcntl
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpucheck import checks
from gpucheck.checks.base import CandidateCheck
from gpucheck.host.resources import usable_processors
from gpucheck.model.case import Case
from gpucheck.model.plan import Plan
from gpucheck.verify import bounds, digest
from gpucheck.verify.bounds import Estimate
from gpucheck.verify.expected import Expected
from gpucheck.worker import further_inputs
from gpucheck.worker.protocol import OWN, Answer, Ask, Draw
from gpucheck.worker.supervisor import reference_desk
from gpucheck.worker.supervisor.attempt import Attempt
from gpucheck.worker.supervisor.child_setup import folder_of_candidate
from gpucheck.worker.supervisor.gpu_snapshot import Adders
from gpucheck.worker.supervisor.reference_desk import ReferenceDesk

SHARED = "shared"  # folder with one for each rank, with files that tell of shared memory
KINDS = ("inputs", "digest", "reference")
PART = "part"  # before the rank in names of files
LOCK, DONE = ".lock", ".done"  # in names of empty files: whoever holds it makes a file; a rank needs a case no more
POLL = 0.05  # s between looks whether files were removed
MOST_HELD = 2 << 30  # bytes of inputs and references that a rank keeps for experiments


class CaseFiles:
    """The files of one run on one node, as one rank sees them."""

    def __init__(
        self, folder: Path, local_ranks: int, arithmetic: Callable[[], bounds.Arithmetic] = lambda: bounds.ANY_DEVICE
    ) -> None:
        """Args:
        arithmetic: says how the devices add up whose outputs are judged; asked when a reference is made.
        """
        self.folder = folder
        self.local_ranks = local_ranks
        self.arithmetic = arithmetic
        self._with_gpu = False  # whether pairs are judged with the help of a GPU
        self._held: dict[str, int] = {}  # key -> bytes
        self._in_parts: set[str] = set()  # keys of cases of which each rank has a part of its own
        self._of_candidates: dict[str, dict[str, Expected]] = {}  # key -> references that no file may hold
        self.desk: ReferenceDesk | None = None  # where a GPU helps to make those
        self._drawn: dict[str, tuple[Path, Answer]] = {}  # key -> inputs of a large pair, in shared memory of the GPU
        self._judged: dict[tuple[str, Draw, str], Answer] = {}  # by case, inputs and digest of outputs that were taken
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, plan: Plan) -> CaseFiles:
        """Those of a plan, as the rank of this process sees them; its environment names folder and ranks."""
        scratch = Path(os.environ["GPUCHECK_SCRATCH"])
        files = cls(scratch, int(os.environ["LOCAL_WORLD_SIZE"]), Adders(plan, scratch).arithmetic)
        files._with_gpu = plan.device == "cuda"
        return files

    def inputs(self, key: str, case: Case) -> Path:
        """The file with the inputs of a case, made if it is not there yet."""
        if self.desk is not None and isinstance(checks.load(case.check), CandidateCheck):
            path = self.folder / SHARED / str(self.desk.local_rank) / f"{key}.{case.check}.inputs"
            if key not in self._drawn:
                path.parent.mkdir(parents=True, exist_ok=True)
                folder = folder_of_candidate(self.folder, case.check, self.desk.local_rank)
                answer = self.desk.place(case, str(path), str(folder))
                if answer is not None:  # in the place of any other, which is drawn anew when it is asked for again
                    self._drawn = {key: (path, answer)}
            if key in self._drawn:
                return path
        return self._ensure(self._name(key, case, "inputs"), lambda: _make_inputs(case))

    def has_inputs(self, key: str, case: Case) -> bool:
        """Whether the inputs of a case are made."""
        return (self.folder / self._name(key, case, "inputs")).exists()

    def box(self, key: str) -> str:
        """The file that tells of the shared memory for the outputs of a large pair; "" for any other case."""
        return self._drawn[key][1].box if key in self._drawn else ""

    def bytes_on_gpu(self, key: str) -> int:
        """Bytes of inputs, weights and outputs of a large pair; 0 for any other case."""
        return self._drawn[key][1].size if key in self._drawn else 0

    def take(self, attempt: Attempt) -> Attempt:
        """The attempt, whose outputs are copied out of shared memory if they lie there, since the next call writes it.

        Raises:
            NoOutputs: there are none.
        """
        ran = attempt.reply is not None and attempt.reply.status == "ran"
        if attempt.taken or not ran or attempt.key not in self._drawn:
            return attempt
        assert self.desk is not None
        return replace(attempt, taken=self.desk.take(attempt.step.case, attempt.outputs, keep=True).digest)

    def judged(self, case: Case, outputs: str, draw: Draw = OWN) -> Answer:
        """What outputs are that the process which makes references has taken, by their digest."""
        assert self.desk is not None
        known = case.id, draw, outputs
        if known not in self._judged:
            self._judged[known] = self.desk.ask(Ask.JUDGE, case, outputs=(outputs,), draw=draw)
        return self._judged[known]

    def memory(self) -> dict[str, int]:
        """Bytes that this process held at most, and the one that makes references of pairs with the GPU."""
        held = {"supervisor, host": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
        return held | (self.desk.memory if self.desk else {})

    def reference_of(self, case: Case, inputs: dict[str, torch.Tensor], draw: Draw) -> Any:
        """The reference of a further call of a candidate.

        Args:
            inputs: of the case.
            draw: of the call, instead of some of these.
        """
        check = checks.load(case.check)
        assert isinstance(check, CandidateCheck)
        others = further_inputs.drawn(check, case, draw).inputs

        def on_cpu() -> dict[str, Expected]:
            return check.reference(case, {**inputs, **others})

        if self.desk is None:
            return on_cpu()
        return reference_desk.reference(self.desk, case, others, on_cpu, gpu=check.on_gpu_only)

    def input_digest(self, key: str, case: Case) -> str:
        """Hash of the input bytes."""
        if key in self._drawn:
            return self._drawn[key][1].inputs
        return self._ensure(self._name(key, case, "digest"), lambda: _digest(case, self.given(key, case))).read_text()

    def reference(self, key: str, case: Case) -> dict[str, Expected]:
        """The references of a case, made if they are not there yet; of a candidate's case ask when it has answered."""
        if isinstance(checks.load(case.check), CandidateCheck):
            if key not in self._of_candidates:
                self._of_candidates[key] = self._of_candidate(key, case)
            return self._of_candidates[key]
        return _unpack(torch.load(self._reference_file(key, case), mmap=True, weights_only=True))

    def _of_candidate(self, key: str, case: Case) -> dict[str, Expected]:
        check = checks.load(case.check)
        assert isinstance(check, CandidateCheck)

        def on_cpu() -> dict[str, Expected]:
            with all_processors(self.local_ranks):
                return self._reference(key, case)

        if self.desk is None:
            return on_cpu()
        found: dict[str, Expected] = reference_desk.reference(self.desk, case, None, on_cpu, gpu=check.on_gpu_only)
        return found

    def given(self, key: str, case: Case) -> dict[str, torch.Tensor]:
        """The inputs to judge by, in this process; a candidate's are drawn anew, whatever has become of the file."""
        if key in self._drawn:
            return {}  # nothing of them is on the host
        if isinstance(checks.load(case.check), CandidateCheck):
            return _make_inputs(case)
        held: dict[str, torch.Tensor] = torch.load(self.inputs(key, case), mmap=True, weights_only=True)
        return held

    def _reference(self, key: str, case: Case) -> dict[str, Expected]:
        inputs = self.given(key, case)
        with bounds.computed_by(self.arithmetic()):
            return checks.load(case.check).reference(case, inputs)

    def _reference_file(self, key: str, case: Case) -> Path:
        return self._ensure(self._name(key, case, "reference"), lambda: _pack(self._reference(key, case)))

    def make_ahead(self, key: str, case: Case) -> None:
        """Makes what is missing of inputs, digest and reference and nobody is at; none of a candidate's references."""
        if self._with_gpu and isinstance(checks.load(case.check), CandidateCheck):
            return  # they may be too large for the host
        kept: list[dict[str, torch.Tensor]] = []

        def make() -> dict[str, torch.Tensor]:
            kept.append(_make_inputs(case))
            return kept[0]

        inputs, digests, reference = (self._name(key, case, kind) for kind in KINDS)
        if self._try(inputs, make):  # whoever waits for them has them now
            self._try(digests, lambda: _digest(case, kept[0]))  # to map the file for it takes as long again
            kept.clear()
        elif not (self.folder / inputs).exists():
            return
        else:
            self._try(digests, lambda: _digest(case, self.given(key, case)))
        if not isinstance(checks.load(case.check), CandidateCheck):
            self._try(reference, lambda: _pack(self._reference(key, case)))
        self._sweep(key)  # the ranks may have finished the case meanwhile

    def hold(self, key: str) -> bool:
        """Keeps the files of a case for experiments with it, where there is room; such a case is never done."""
        size = sum(path.stat().st_size for path in self._files(key))
        fits = sum(self._held.values()) + size <= MOST_HELD
        if fits:
            self._held[key] = size
        return fits

    def release(self, key: str) -> None:
        """Keeps the files of a case no longer."""
        del self._held[key]

    def holds(self, key: str) -> bool:
        """Whether the files of a case are kept."""
        return key in self._held

    def done(self, key: str, rank: int, *, entirely: bool = False) -> None:
        """Says that a local rank needs a case no more; the last one removes its files.

        Args:
            entirely: also what says that ranks are done with it, which nobody will ask for.
        """
        self._of_candidates.pop(key, None)
        if key in self._drawn:
            self._drawn.pop(key)[0].unlink(missing_ok=True)
        self._done(key, rank).touch()
        if self._sweep(key) and entirely:
            for path in self.folder.glob(f"{key}.*"):
                path.unlink(missing_ok=True)

    def is_done(self, key: str, rank: int) -> bool:
        """Whether a rank has said that it needs a case no more."""
        return self._done(key, rank).exists()

    def _done(self, key: str, rank: int) -> Path:
        return self.folder / f"{key}{DONE}{rank}"

    def remove(self, key: str) -> None:
        """Removes the files of a case."""
        for path in self._files(key):
            path.unlink(missing_ok=True)

    def _sweep(self, key: str) -> bool:
        """Removes the files of a case that every rank is done with; says whether it is one."""
        if sum(name.startswith(f"{key}{DONE}") for name in os.listdir(self.folder)) < self.local_ranks:
            return False
        self.remove(key)
        return True

    def _files(self, key: str) -> list[Path]:
        """The files of a case that there are: of the ranks of a node, or of each rank's part."""
        parts = self.folder.glob(f"{key}.{PART}*") if key in self._in_parts else ()
        found = [path for path in parts if path.suffix.removeprefix(".") in KINDS]
        return [*found, *(path for kind in KINDS if (path := self.folder / f"{key}.{kind}").exists())]

    def _name(self, key: str, case: Case, kind: str) -> str:
        """The name of a file: shared by the ranks of a node, or of one rank's part where they run the case together."""
        if not case.ranks:
            return f"{key}.{kind}"
        self._in_parts.add(key)
        return f"{key}.{PART}{case.rank}.{kind}"

    def size(self) -> int:
        """Bytes held at present."""
        total = 0
        for entry in os.scandir(self.folder):
            if entry.name.endswith(LOCK) or DONE in entry.name:  # most of the names, and empty
                continue
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def wait_for_room(self, limit: int) -> None:
        """Returns when at most ``limit`` bytes are held.

        One process of the node looks, all others wait for it and take no processor: looking means to list the folder.
        """
        if self.size() <= limit:
            return
        with open(self.folder / f"room{LOCK}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while self.size() > limit:
                time.sleep(POLL)

    def _ensure(self, name: str, make: Callable[[], Any]) -> Path:
        path = self.folder / name
        if not path.exists():
            self._locked(path, make, fcntl.LOCK_EX)
        return path

    def _try(self, name: str, make: Callable[[], Any]) -> bool:
        path = self.folder / name
        return not path.exists() and self._locked(path, make, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _locked(self, path: Path, make: Callable[[], Any], mode: int) -> bool:
        with open(path.with_name(path.name + LOCK), "w") as lock:
            try:
                fcntl.flock(lock, mode)
            except BlockingIOError:
                return False
            if not path.exists():
                partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
                made = make()
                partial.write_text(made) if isinstance(made, str) else torch.save(made, partial)
                partial.rename(path)
        return True


@contextmanager
def all_processors(local_ranks: int) -> Iterator[None]:
    """Inside, torch computes with this rank's share of the processors: references of whole problems are large."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, usable_processors() // local_ranks))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_inputs(case: Case) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(case.input_seed)
    return checks.load(case.check).inputs(case, generator)


def _digest(case: Case, inputs: dict[str, torch.Tensor]) -> str:
    part = [torch.tensor([case.rank, case.ranks])] if case.ranks else []  # which is given too, and sets ranks apart
    return digest.whole(*(inputs[name] for name in sorted(inputs)), *part)


def _pack(expected: dict[str, Expected]) -> dict[str, Any]:
    return {
        name: {
            "dtype": item.dtype,
            "basis": item.basis,
            "also": item.also,
            "unknown": item.unknown,
            "estimates": [(part.value, part.error, part.unit) for part in (item.estimate, *item.alternatives)],
        }
        for name, item in expected.items()
    }


def _unpack(packed: dict[str, Any]) -> dict[str, Expected]:
    expected = {}
    for name, item in packed.items():
        first, *rest = (Estimate(*part) for part in item["estimates"])
        expected[name] = Expected(first, item["dtype"], tuple(rest), item["basis"], item["unknown"], item["also"])
    return expected
