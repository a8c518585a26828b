"""A run as a bad night leaves it: 8 ranks on 2 hosts, 60 cases, one bad GPU, one bad kernel, and names from hell."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from gpucheck.diagnose.chance import EVERY_TIME
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import ExpectedFailure, Plan, Step
from gpucheck.model.record import Heat, Launch, Mismatch, Outcome, Violation
from gpucheck.records.run_folder import Run, read_run
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from tests.conftest import Synthetic

RANKS = 8
HOSTILE = (
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(2)>",
    "a | b `c` *d* _e_ [f](javascript:alert(3)) ~~g~~ $h$ @i #1",
    "````\n</details>\n# heading\n- item",
    'quote " backslash \\ newline \n tab \t end',
    "controls \x00\x07\x1b[31mred\x1b[0m\x85 \u202ereversed\u202c \ud800 \uffff",
    "]]> &amp; &#0; %s {0} ${1}",
    "=== --- +++ 1. 2) | --- |",
)
"""Strings that break out of one format or another."""

ROWS = (
    ("matmul", "dense bf16"),
    ("matmul", "dense fp16"),
    ("matmul", "batched bf16"),
    ("matmul", "routed bf16"),
    ("matmul", "routed mxfp4"),
    ("routing", ""),
    ("topk", ""),
    ("mxfp", "down"),
    ("swiglu", ""),
    ("moe", "mxfp4"),
    ("attention", "prefill"),
    ("attention", "decode"),
)
SECONDS = {
    "inputs": 0.01,
    "child": 0.006,
    "compile": 0.4,
    "launch": 0.02,
    "reference": 0.03,
    "judge": 0.05,
    "kernel": 0.001,
}


def busy_plan(synthetic: Synthetic) -> Plan:
    """60 cases of 12 rows, one of them under another placement."""
    steps = []
    for number in range(60):
        check, kind = ROWS[number % len(ROWS)]
        data = "exact" if number < 30 else "normal"
        name = "/".join([check, *kind.split(), f"m{64 << number % 5}-n{number}-k2880", data])
        steps.append(Step(Case(check, {"m": number}, data, name, f"{check} {kind}".strip(), 0), Conditions()))
    steps[11] = replace(steps[11], conditions=Conditions("peer", late=True, repeat=10))
    steps[23] = replace(steps[23], expect=ExpectedFailure(ranks="others"))
    plan: Plan = synthetic.plan(
        scenario="gate",
        nproc=RANKS // 2,
        nnodes=2,
        created=1_795_000_000.5,
        steps=tuple(steps),
        command=["gpucheck", "run", "gate", "--nproc", "4", "--seed", "0"],
    )
    return plan


def heat(random: Random, tile: tuple[int, int] | None = None) -> Heat:
    """A 1024 x 5760 output: one wrong tile, or errors all over."""
    per_mille = [
        [
            1000 * ((row // 4, column) == tile) if tile else random.choice((0, 0, 7, 90, 400, 1000))
            for column in range(45)
        ]
        for row in range(32)
    ]
    return Heat([1024, 5760], [32, 128], [128, 128], 1024, per_mille)


def wrong(synthetic: Synthetic, map_: Heat, **changes: Any) -> Mismatch:
    rows, columns = map_.shape
    shares = [share for row in map_.per_mille for share in row]
    known = {
        "wrong": round(rows * columns * sum(shares) / len(shares) / 1000),
        "total": rows * columns,
        "region": "rows 128-255 of 1024, columns 0-127 of 5760, tile (1, 0) of 360",
        "first": [128, 0],
        "worst": [171, 88],
        "expected": -250.0,
        "got": 13.5,
        "heat": map_,
    }
    if shares.count(0) < len(shares) - 4:
        known["region"] = "all 1024 rows, all 5760 columns, 360 of 360 tiles"
    mismatch: Mismatch = synthetic.mismatch(**{**known, **changes})
    return mismatch


def busy_run(synthetic: Synthetic) -> Run:
    """Rank 5 is wrong in one tile of every product, the prefill kernel everywhere; and one of each other outcome."""
    plan, random = busy_plan(synthetic), Random(0)
    ends: dict[tuple[int, int], dict[str, Any]] = {}
    for step, planned in enumerate(plan.steps):
        for rank in range(RANKS):
            exact = planned.case.data == "exact"
            changes: dict[str, Any] = {
                "host": f"node-{rank // 4}",
                "seconds": {stage: value * random.uniform(0.5, 2.0) for stage, value in SECONDS.items()},
                "tightness": 0.0 if exact else random.uniform(0.001, 0.08),
            }
            bound = {} if exact else {"method": "bound", "bound": 0.5, "got": -250.0 + random.uniform(1, 90)}
            if planned.case.row == "attention prefill":
                changes |= {
                    "outcome": Outcome.MISMATCH,
                    "mismatches": [wrong(synthetic, heat(random), output="o", **bound)],
                }
            elif rank == 5 and planned.case.check == "matmul":
                changes |= {
                    "outcome": Outcome.MISMATCH,
                    "mismatches": [wrong(synthetic, heat(random, (1, 0)), **bound)],
                }
            ends[(step, rank)] = changes
    run: Run = synthetic.run(plan, ends | oddities(synthetic, random), seconds=41.7)
    for (step, rank), record in run.records.items():
        if plan.steps[step].case.row == "attention prefill" and record.outcome is Outcome.MISMATCH:
            bare = [replace(mismatch, heat=None) for mismatch in record.mismatches]  # maps of all would take seconds
            again = replace(record, experiment="repeat", mismatches=bare)
            run.experiments[(step, rank)] = {"repeat": [again] * (EVERY_TIME // RANKS)}  # of ranks that fail alike
    return run


def oddities(synthetic: Synthetic, random: Random) -> dict[tuple[int, int], dict[str, Any]]:
    """One of each further way to end."""
    raised = "RuntimeError: PassManager::run failed"
    trace = f'Traceback (most recent call last):\n  File "matmul_ogs.py", line 467, in matmul_ogs\n{raised}\n'
    launch = Launch("_matmul_ogs", 10, 0, ["cuda:3"], 7, "abc", "sm_90", 112_664, 8, [45, 1, 1], "matmul_ogs.py:467")
    away = Violation("device", "_matmul_ogs launched on cuda:0, its tensors on cuda:3")
    nothing = {"got": None, "nan": 4096, "first_nonfinite": [0, 0], "ulps": None}
    made = {
        (5, 1): (Outcome.VIOLATION, {"violations": [Violation("guard", "12 bytes after y were overwritten")]}),
        (6, 2): (Outcome.ERROR, {"message": raised, "traceback": trace}),
        (7, 3): (Outcome.CRASH, {"message": "the process that owns the device was killed by SIGSEGV"}),
        (8, 4): (Outcome.HANG, {"message": "no result within 60 s"}),
        (9, 6): (Outcome.HARNESS, {"message": "MemoryError: "}),
        (11, 3): (
            Outcome.MISMATCH,
            {
                "mismatches": [wrong(synthetic, heat(random), **nothing)],
                "violations": [away],
                "launches": [launch],
                "repeats": 10,
                "wrong": 10,
                "placement": "peer",
            },
        ),
        (17, 7): (Outcome.LOST, {}),
        (18, 0): (Outcome.INAPPLICABLE, {"message": "needs a Triton with dot_scaled"}),
        **{(23, rank): (Outcome.MISMATCH, {}) for rank in range(RANKS) if rank % 4},
    }
    return {key: {"outcome": outcome, **changes} for key, (outcome, changes) in made.items()}


@pytest.fixture(scope="session")
def busy(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the bad night, read from its run folder."""
    run = read_run(synthetic.write(tmp_path_factory.mktemp("busy") / "run", busy_run(synthetic)))
    return blocks.build(run, conclude(run))


@pytest.fixture(scope="session")
def scattered(synthetic: Synthetic) -> Report:
    """60 cases on 8 ranks, all wrong, each in its own way."""
    plan, random = synthetic.plan(cases=60, ranks=RANKS), Random(1)
    ends = {}
    for step in range(60):
        for rank in range(RANKS):
            mismatch = wrong(synthetic, heat(random), region=f"row {rank} of {step}")
            ends[(step, rank)] = {"outcome": Outcome.MISMATCH, "mismatches": [mismatch]}
    run = synthetic.run(plan, ends)
    return blocks.build(run, conclude(run))


@pytest.fixture(scope="session")
def hostile(synthetic: Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report in which every name and message tries to break out; read back from a run folder."""
    steps = tuple(
        Step(Case("matmul", {}, "exact", text, f"row {text}", 0), Conditions()) for number, text in enumerate(HOSTILE)
    )
    everything = " ".join(HOSTILE)
    plan = synthetic.plan(steps=steps, ranks=2, scenario=everything, title=everything, command=["gpucheck", everything])
    plan = replace(plan, environment={"software": {everything: everything}, "host": everything})
    spread = Heat([2, 2], [1, 1], [1, 0], 2, [[0, 9]] * 2)
    ends = {
        (step, 1): {
            "outcome": Outcome.MISMATCH if step % 2 else Outcome.ERROR,
            **dict.fromkeys(["message", "traceback", "host", "device"], text),
            "mismatches": [synthetic.mismatch(output=text, region=text, heat=spread)],
            "violations": [Violation("dtype", text)],
        }
        for step, text in enumerate(HOSTILE)
    }
    ends[(0, 0)] = {"outcome": Outcome.INAPPLICABLE, "message": everything}
    folder = synthetic.write(tmp_path_factory.mktemp("hostile") / "run", synthetic.run(plan, ends))
    run = read_run(folder)
    return blocks.build(run, conclude(run))
