"""How fast the calls of a run were, by check and rank: the block of ``--bench``, and its cells for every format.

A row sums the cases of a row of the matrix that passed and were timed on that rank, so that long calls weigh most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpucheck.diagnose.speeds import call_seconds, ceilings
from gpucheck.diagnose.wording import took
from gpucheck.model.record import Ceilings, Outcome, Record
from gpucheck.records.run_folder import Run

COLUMNS = ("check", "rank", "cases", "time", "TFLOP/s", "GB/s", "of ceiling", "torch")
UNKNOWN = "–"


@dataclass(frozen=True)
class Pace:
    """The timed cases of a row of the matrix on one rank; None stands for what is not known of any of them."""

    row: str
    rank: int
    cases: int
    seconds: float  # of one call of each
    flops: float | None  # /s
    bytes: float | None  # /s
    share: float | None  # of the measured ceilings: 1 where each call takes just what the one that binds it allows
    binding: str  # the ceiling that binds most of that time, "compute" or "memory"; "" where share is None
    torch: float | None  # time of the same work in plain torch over that of the calls
    joint: bool = False  # what all ranks do together: bytes are those of links, of the largest case of the row alone


@dataclass(frozen=True)
class RankCeilings:
    """What a rank's GPU reached in plain torch."""

    rank: int
    flops: float  # /s, of a large bf16 product
    bytes: float  # /s, of a large copy


@dataclass(frozen=True)
class Speed:
    """What ``--bench`` tells; empty without it."""

    paces: list[Pace] = field(default_factory=list)  # by row, then rank
    ceilings: list[RankCeilings] = field(default_factory=list)  # of the ranks where they were measured
    of_gpus: bool = True  # else of processes of a machine's CPU


def measured(run: Run, rows: Sequence[tuple[str, Sequence[int]]]) -> Speed:
    """The block.

    Args:
        rows: name and steps of each row of the matrix.
    """
    if not run.plan.bench:
        return Speed()
    known = {rank: ceilings(run, rank) for rank in run.ranks}
    paces = []
    for name, steps in rows:
        for rank in run.ranks:
            records = [run.records[(step, rank)] for step in steps]
            timed = [each for each in records if each.outcome is Outcome.PASS and call_seconds(each) is not None]
            if timed and run.plan.steps[timed[0].step].together:
                paces.append(_joint_pace(run, name, timed))
            elif timed:
                paces.append(_pace(name, rank, timed, known[rank]))
    of_gpus = run.plan.device != "cpu"
    return Speed(paces, [RankCeilings(r, best.flops, best.bytes) for r, best in known.items() if best], of_gpus)


def _joint_pace(run: Run, row: str, records: list[Record]) -> Pace:
    """The largest case: what small ones take is no bandwidth."""
    largest = max(records, key=lambda each: each.cost.bytes if each.cost else 0.0)
    params, seconds = run.plan.steps[largest.step].case.params, largest.timings["call"]
    size = " x ".join(str(params[name]) for name in ("n", "flights", "dtype") if name in params)
    moved = largest.cost.bytes / seconds if largest.cost else None
    name = f"{row}, {size}" if size else row
    return Pace(name, largest.rank, 1, seconds, None, moved, share=None, binding="", torch=None, joint=True)


def _pace(row: str, rank: int, records: list[Record], best: Ceilings | None) -> Pace:
    costs = [(each.cost, each.timings["call"]) for each in records if each.cost is not None]
    working = sum(seconds for cost, seconds in costs if cost.flops)
    spent = sum(seconds for _, seconds in costs)
    share, binding = None, ""
    if best and costs:
        least = [best.seconds(cost) for cost, _ in costs]
        share = sum(map(max, least)) / spent
        computing = sum(compute for compute, memory in least if compute > memory)
        binding = "compute" if 2 * computing > sum(map(max, least)) else "memory"
    beside = [(plain, each.timings["call"]) for each in records if (plain := call_seconds(each, "plain")) is not None]
    return Pace(
        row=row,
        rank=rank,
        cases=len(records),
        seconds=sum(each.timings["call"] for each in records),
        flops=sum(cost.flops for cost, _ in costs) / working if working else None,
        bytes=sum(cost.bytes for cost, _ in costs) / spent if spent else None,
        share=share,
        binding=binding,
        torch=sum(plain for plain, _ in beside) / sum(call for _, call in beside) if beside else None,
    )


def cells(pace: Pace) -> list[str]:
    """A row of the table, under :data:`COLUMNS`."""
    return [
        pace.row,
        str(pace.rank),
        str(pace.cases),
        took(pace.seconds),
        UNKNOWN if pace.flops is None else f"{pace.flops / 1e12:.3g}",
        UNKNOWN if pace.bytes is None else _gigabytes(pace.bytes),
        UNKNOWN if pace.share is None else f"{pace.share:.0%} {pace.binding}",
        UNKNOWN if pace.torch is None else f"{pace.torch:.2f}x",
    ]


def _gigabytes(speed: float) -> str:
    return f"{speed / 1e9:.0f}" if speed >= 99.5e9 else f"{speed / 1e9:.3g}"


def legend(speed: Speed) -> list[str]:
    """What the numbers mean, and the ceilings; nothing where there are none."""
    if not speed.paces:
        return []
    lines = [
        "time: GPU time of one call of each case, after a flush of the L2 cache; torch: time of the same work in plain "
        "torch, divided by that",
        "TFLOP/s and GB/s: the least operations and bytes that any implementation needs, divided by that time",
    ] * any(not pace.joint for pace in speed.paces)
    if any(pace.joint for pace in speed.paces):
        lines += [
            "collectives: time of one call of the largest case, of many in turn; GB/s: bandwidth of the bus as NCCL's "
            "tests count it, for an all_reduce of S bytes on n ranks 2 S (n-1)/n",
            "peer: GB/s that each rank gets from all others, while they get as much",
        ]
    if not speed.of_gpus:
        lines.append("on the CPU: gloo between processes of this machine, which says nothing about GPUs")
    return lines + [
        f"ceilings of rank {each.rank}: {each.flops / 1e12:.0f} TFLOP/s in a large bf16 product, "
        f"{each.bytes / 1e9:.0f} GB/s in a large copy"
        for each in speed.ceilings
    ]
