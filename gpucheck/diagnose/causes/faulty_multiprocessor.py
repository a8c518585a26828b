"""Wrong tiles of a screen: one multiprocessor again and again, several alike, all of them, or once and not again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.chance import exact_interval, one_of
from gpucheck.diagnose.finding_cases import Key
from gpucheck.diagnose.page import Cause
from gpucheck.diagnose.wording import counted
from gpucheck.model.finding import FailedCase, Finding
from gpucheck.model.record import Record
from gpucheck.model.screened import Screened, WrongMultiprocessor
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run

ALIKE = 3  # multiprocessors with equal wrong bits, from which on the GPU as a whole is blamed
MOST_NAMED = 8

_REPLACE = "Take this GPU out of service and have it replaced; name its UUID. Nothing that it computed since its last "
FAULTY_MULTIPROCESSOR = Cause(
    "faulty multiprocessor",
    means="A multiprocessor of a GPU computes wrong bits where the right ones were known before it began, and a fresh "
    "process sees it again on the same one.",
    shows="gpucheck screen finds wrong tiles on one multiprocessor, or a few, of one GPU; the others run as many tiles "
    "without one. The bits, and the rate with its exact interval, are in the finding.",
    confirm="The command under replay again, after a reset of the GPU and after a cold start; then on another machine.",
    fix=_REPLACE + "clean screen can be trusted.",
)
FAULTY_GPU = Cause(
    "multiprocessors of a GPU err alike",
    means="Several multiprocessors of one GPU give wrong bits of one kind: what they share is at fault, such as L2, "
    "memory, its links, clock or supply.",
    shows=f"At least {ALIKE} multiprocessors have the same wrong bits, or all of them are wrong, in a screen; other "
    "GPUs are right.",
    confirm="gpucheck doctor shows memory errors and row remapping; nvidia-smi -q -d ECC,ROW_REMAPPER, PERFORMANCE.",
    fix=_REPLACE + "clean screen can be trusted.",
)
WRONG_EVERYWHERE = Cause(
    "screen wrong on every GPU",
    means="All multiprocessors of all GPUs are wrong in the same datapath: the kernel, the compiler or the driver is "
    "at fault rather than so many GPUs at once.",
    shows="Every multiprocessor of every GPU of the run has wrong tiles of this datapath.",
    confirm="The same screen with another Triton or driver, and on another machine.",
    fix="Report it with the versions of gpucheck, Triton and the driver; do not take GPUs out of service for it.",
)
NOT_AGAIN = Cause(
    "wrong tiles that did not come again",
    means="A multiprocessor gave wrong bits, and fresh processes that ran as long saw none: a fault that is rarer than "
    "they could see, or an upset from outside that does not come again.",
    shows="Wrong tiles in the screen, none in the fresh processes.",
    confirm="gpucheck screen --until with a rate well below the one in the finding.",
    fix="Screen longer, as under confirm in gpucheck explain; keep the GPU out of service until that was clean.",
)
CAUSES = (FAULTY_MULTIPROCESSOR, FAULTY_GPU, WRONG_EVERYWHERE, NOT_AGAIN)


def recognise(run: Run, record: Record) -> Evidence | None:
    """What wrong tiles of a screen tell; ranks are GPUs, and none is blamed for what another shows."""
    seen = record.screened
    if seen is None or not seen.wrong:
        return None
    others = [run.records[(record.step, rank)].screened for rank in run.ranks]
    if len(others) > 1 and all(each is not None and _all_wrong(each) for each in others):
        return Evidence(WRONG_EVERYWHERE)
    gpu = seen.uuid or f"rank {record.rank}"
    if _all_wrong(seen) or _alike(seen):
        return Evidence(FAULTY_GPU, gpu)
    cause = FAULTY_MULTIPROCESSOR if _again(run, record) else NOT_AGAIN
    several = "multiprocessors" if len(seen.wrong) > 1 else "multiprocessor"
    return Evidence(cause, f"{several} {_numbers(seen.wrong)} of {gpu}")


def findings(run: Run, evidence: Mapping[Key, Evidence]) -> list[Finding]:
    """One finding for each GPU and set of multiprocessors, with all datapaths where they are wrong."""
    found: dict[Evidence, Finding] = {}
    for (step, rank), seen in sorted(evidence.items(), key=lambda pair: pair[0]):
        record = run.records[(step, rank)]
        finding = found.setdefault(seen, Finding(seen.title, True, [], [], [], seen.cause.fix, cause=seen.cause.title))
        case = run.plan.steps[step].case
        finding.ranks.extend({rank} - {*finding.ranks})
        finding.rows.extend({case.row} - {*finding.rows})
        finding.cases.append(FailedCase(case.id, [rank], _lines(record), _command(run, case.row)))
        finding.evidence.extend(_repeats(run, record))
    return [*found.values()]


def _command(run: Run, datapath: str) -> str:
    command = ["gpucheck", "screen", "--nproc", str(run.plan.nproc), "--seed", str(run.plan.seed)]
    command += ["--device", "cpu"] if run.plan.device == "cpu" else []
    return shlex.join([*command, "--datapaths", datapath])


def _all_wrong(seen: Screened) -> bool:
    return len(seen.wrong) == seen.multiprocessors > 1


def _alike(seen: Screened) -> bool:
    patterns = Counter(bits for each in seen.wrong for bits in set(each.bits))
    return any(count >= ALIKE for count in patterns.values())


def _again(run: Run, record: Record) -> bool:
    """Whether a fresh process was wrong on one of the same multiprocessors."""
    numbers = _owners(record)
    return any(numbers & _owners(fresh) for fresh in _fresh(run, record))


def _fresh(run: Run, record: Record) -> list[Record]:
    return run.experiments.get((record.step, record.rank), {}).get(ExperimentName.REPEAT, [])


def _owners(record: Record) -> set[int]:
    return {each.number for each in record.screened.wrong} if record.screened else set()


def _repeats(run: Run, record: Record) -> list[str]:
    fresh, first = _fresh(run, record), _owners(record)
    if not fresh:
        return [f"{run.plan.steps[record.step].case.row}: not run again in a fresh process"]
    same = sum(bool(first & _owners(each)) for each in fresh)
    other = sorted(set[int]().union(*map(_owners, fresh)) - first)
    name = run.plan.steps[record.step].case.row
    lines = [f"{name}: wrong on the same multiprocessor in {same} of {len(fresh)} fresh processes"]
    if other:
        lines.append(f"{name}: and there on others too: {', '.join(map(str, other[:MOST_NAMED]))}")
    return lines


def _lines(record: Record) -> list[str]:
    seen = record.screened
    assert seen is not None
    lines = [_line(each, seen) for each in seen.wrong[:MOST_NAMED]]
    if len(seen.wrong) > MOST_NAMED:
        lines.append(f"... and {len(seen.wrong) - MOST_NAMED} more multiprocessors")
    lines += _state(seen)
    clean = len(seen.numbers) - len(seen.wrong)
    fewest = min((count for number, count in zip(seen.numbers, seen.tiles, strict=True)), default=0)
    return lines + [f"{clean} other multiprocessors ran {fewest:,} tiles each at least without a wrong one"] * (
        clean > 0
    )


def _line(each: WrongMultiprocessor, seen: Screened) -> str:
    rate, (low, high) = each.wrong / each.digests, exact_interval(each.wrong, each.digests)
    of_tile = [one_of(share, seen.tiles_a_digest) for share in (rate, low, high)]
    words = (
        f"multiprocessor {each.number}: {each.wrong:,} of {each.digests:,} digests of {seen.tiles_a_digest} tiles "
        f"wrong: {of_tile[0]:.2g} of tiles, 95% interval {of_tile[1]:.2g} to {of_tile[2]:.2g}"
    )
    if each.bits:
        words += f"; {counted(each.elements, 'element')} of one wrong in bits {', '.join(dict.fromkeys(each.bits))}"
    return words


def _state(seen: Screened) -> list[str]:
    first = seen.wrong[0]
    known = [f"{first.temperature} C"] * (first.temperature is not None)
    known += [f"{first.sm_clock} MHz"] * (first.sm_clock is not None)
    at = f" at {', '.join(known)}" if known else ""
    return [f"{seen.gpu}, {seen.uuid}, PCI {seen.bus}{at}"] if seen.uuid else []


def _numbers(wrong: list[WrongMultiprocessor]) -> str:
    shown = ", ".join(str(each.number) for each in wrong[:MOST_NAMED])
    return shown + f" and {len(wrong) - MOST_NAMED} more" * (len(wrong) > MOST_NAMED)
