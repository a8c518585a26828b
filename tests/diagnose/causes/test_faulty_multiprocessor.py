"""Wrong tiles of a screen, and whom the report blames for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.case import Case
from gpucheck.model.finding import Finding
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome, Record, Verdict
from gpucheck.model.screened import CHECK, Screened, WrongMultiprocessor
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run, read_run
from gpucheck.report import blocks
from gpucheck.report.formats.text import plain
from tests.conftest import Synthetic

DATAPATHS = ("tensor bf16", "integer")


def screened(datapath: str, rank: int, wrong: list[WrongMultiprocessor], **changes: Any) -> Screened:
    values: dict[str, Any] = {
        "datapath": datapath,
        "tile": "64x64x64 products",
        "tiles_a_digest": 512,
        "numbers": [*range(132)],
        "tiles": [512_000] * 132,
        "multiprocessors": 132,
        "seconds": 10.0,
        "share": 0.5,
        "rate": 700.0,
        "unit": "TFLOP",
        "ceiling": 989.4,
        "source": "the CPU",
        "gpu": "NVIDIA H200",
        "uuid": f"GPU-{rank}",
        "bus": "00000000:3B:00.0",
        "wrong": wrong,
    }
    return Screened(**{**values, **changes})


def wrong(number: int, bits: str = "0x400", count: int = 10) -> WrongMultiprocessor:
    return WrongMultiprocessor(number, count, 1000, [bits], 1, 54, 1755)


def concluded(
    synthetic: Synthetic,
    tmp_path: Any,
    seen: dict[tuple[int, int], list[WrongMultiprocessor]],
    again: dict[tuple[int, int], list[list[WrongMultiprocessor]]] | None = None,
    ranks: int = 2,
) -> tuple[Verdict, list[Finding], Run]:
    """What is concluded of a screen with these wrong multiprocessors by (datapath, rank), and of fresh processes."""
    steps = tuple(
        Step(Case(CHECK, {"datapath": name}, "exact", f"{CHECK}/{name.replace(' ', '-')}", name, 0))
        for name in DATAPATHS
    )
    plan = replace(synthetic.plan(0, ranks), steps=steps, command=["gpucheck", "screen"])

    def record(step: int, rank: int, owners: list[WrongMultiprocessor]) -> Record:
        outcome = Outcome.MISMATCH if owners else Outcome.PASS
        part = screened(DATAPATHS[step], rank, owners)
        return replace(synthetic.record(plan, step, rank), outcome=outcome, screened=part, digests={}, inputs="")

    run = synthetic.run(plan, {(n, r): record(n, r, seen.get((n, r), [])) for n in range(2) for r in range(ranks)})
    for (step, rank), attempts in (again or {}).items():
        fresh = [replace(record(step, rank, each), experiment=ExperimentName.REPEAT) for each in attempts]
        run.experiments[(step, rank)] = {ExperimentName.REPEAT: fresh}
    stored = read_run(synthetic.write(tmp_path / "run", run))  # as a report reads it
    conclusion = conclude(stored)
    return conclusion.verdict, conclusion.findings, stored


def test_a_multiprocessor_that_is_wrong_again_in_fresh_processes_is_named_with_gpu_bits_and_rate(
    synthetic: Synthetic, tmp_path: Any
) -> None:
    one = {(0, 1): [wrong(17)], (1, 1): [wrong(17)]}
    verdict, (finding,), run = concluded(synthetic, tmp_path, one, {key: [[wrong(17)]] * 3 for key in one})
    assert verdict is Verdict.FAIL
    assert finding.title == "faulty multiprocessor: multiprocessor 17 of GPU-1"
    assert (finding.ranks, finding.rows) == ([1], ["tensor bf16", "integer"])
    text = plain(blocks.build(run, conclude(run)), verbose=True)
    for words in (
        "multiprocessor 17: 10 of 1,000 digests of 512 tiles wrong: 2e-05 of tiles, 95% interval 9.4e-06 to 3.6e-05",
        "1 element of one wrong in bits 0x400",
        "NVIDIA H200, GPU-1, PCI 00000000:3B:00.0 at 54 C, 1755 MHz",
        "131 other multiprocessors ran 512,000 tiles each at least without a wrong one",
        "integer: wrong on the same multiprocessor in 3 of 3 fresh processes",
        "gpucheck screen --nproc 2 --seed 0 --datapaths 'tensor bf16'",
    ):
        assert words in text


def test_a_fault_that_fresh_processes_do_not_see_is_not_called_one_of_the_hardware(
    synthetic: Synthetic, tmp_path: Any
) -> None:
    for attempts in ([[], [], []], [[wrong(3)]]):
        verdict, (finding,), _ = concluded(synthetic, tmp_path, {(1, 0): [wrong(17)]}, {(1, 0): attempts})
        assert verdict is Verdict.FAIL
        assert finding.title == "wrong tiles that did not come again: multiprocessor 17 of GPU-0"
        (tmp_path / "run").rename(tmp_path / f"run{len(attempts)}")


@pytest.mark.parametrize(
    ("several", "title"),
    [
        ([wrong(number) for number in (3, 60, 99)], "multiprocessors of a GPU err alike: GPU-0"),
        (
            [wrong(number, hex(1 << number)) for number in (3, 5, 9)],
            "faulty multiprocessor: multiprocessors 3, 5, 9 of GPU-0",
        ),
    ],
    ids=["alike", "each in its way"],
)
def test_several_wrong_multiprocessors_are_a_fault_of_the_gpu_or_named_one_by_one(
    synthetic: Synthetic, tmp_path: Any, several: Any, title: str
) -> None:
    _, (finding,), _ = concluded(synthetic, tmp_path, {(0, 0): several}, {(0, 0): [several]})
    assert finding.title == title


def test_what_every_multiprocessor_of_every_gpu_gets_wrong_is_no_fault_of_gpus(
    synthetic: Synthetic, tmp_path: Any
) -> None:
    everyone = [wrong(number) for number in range(132)]
    _, (finding,), _ = concluded(synthetic, tmp_path, {(0, 0): everyone, (0, 1): everyone})
    assert (finding.title, finding.ranks) == ("screen wrong on every GPU", [0, 1])


def test_two_gpus_with_the_same_faulty_multiprocessor_get_a_finding_each(synthetic: Synthetic, tmp_path: Any) -> None:
    both = {(0, 0): [wrong(17)], (0, 1): [wrong(17)]}
    _, findings, _ = concluded(synthetic, tmp_path, both, {key: [[wrong(17)]] for key in both})
    assert [(finding.title[-5:], finding.ranks) for finding in findings] == [("GPU-0", [0]), ("GPU-1", [1])]


def test_a_damaged_part_of_a_record_does_not_lose_the_failure(synthetic: Synthetic, tmp_path: Any) -> None:
    assert Screened.from_json({"datapath": "integer"}) is None
    assert Screened.from_json([1]) is None
