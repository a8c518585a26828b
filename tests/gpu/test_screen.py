"""Faulty multiprocessors planted in screens of a GPU: some always err, some once in 30,000 tiles."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from gpucheck.cli.screen import screen_gpus
from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Record
from gpucheck.records.run_folder import read_run
from gpucheck.tools.screen.datapaths import DATAPATHS
from gpucheck.tools.screen.planted_multiprocessors import problems
from tests.gpu.conftest import NEEDS_GPU

pytestmark = NEEDS_GPU

SECONDS = 6.0
CHANCES = (1.0, 0.3, 1e-2, 1e-3, 1e-4, 3e-5)
DEVIATIONS = 5.0  # of a binomial distribution: as far as no rate lies by luck


@pytest.mark.parametrize("seed", [1, 2])
def test_each_datapath_has_its_faulty_multiprocessor_named_with_its_rate(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = [path.name for path in DATAPATHS]
    rates = chance.sample(CHANCES * 3, len(names))
    planted = [
        {"rank": 0, "sm": chance.randrange(64), "path": name, "bits": 1 << chance.randrange(12), "chance": rate}
        for name, rate in zip(names, rates, strict=True)
    ]
    screen_gpus(tmp_path, "cuda", 1, seed, SECONDS, ["gpucheck", "screen"], plants=planted)
    run = read_run(tmp_path)
    findings = conclude(run).findings
    records = {str(run.plan.steps[step].case["datapath"]): record for (step, _), record in run.records.items()}
    exact = {path.name for path in DATAPATHS if path.exact}
    for plant in planted:
        record = records[str(plant["path"])]
        wrong = [each for each in problems(plant, record, findings) if plant["path"] in exact or "bits []" not in each]
        assert not wrong, (plant, wrong)
        assert abs(off(record, float(plant["chance"]))) < DEVIATIONS, plant


def off(record: Record, chance: float) -> float:
    """How many deviations the wrong digests lie from those that a chance for each tile makes."""
    assert record.screened is not None
    (wrong,) = record.screened.wrong
    share = 1 - (1 - chance) ** record.screened.tiles_a_digest
    return (wrong.wrong - share * wrong.digests) / max(1.0, math.sqrt(wrong.digests * share * (1 - share)))
