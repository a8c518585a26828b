"""A library with faults under an engine that is right: real runs, judged by what is asked for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end.test_engines import FURTHER, fetched

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

PLANT = """

_genuine = matmul_ogs


def matmul_ogs(*args, **options):
    import json, os
    y = _genuine(*args, **options)
    if y.shape[-1] in json.loads(os.environ["PLANTED"]):
        y[..., 8:16] = float("nan")
    return y
"""
"""Spoils products of some widths; an engine's first one has a fused activation, so it is half as wide as a bare one."""
BARE, ENGINE = 640, 320
SIZES = {"check": "matmul", "weight": "mxfp4", "m": 16, "data": "exact"}
CASES = [
    {**SIZES, "mode": "routed", "n": 640, "k": 320, "experts": 8, "top_k": 4, "gather": True, "layout": "default"},
    {**SIZES, "mode": "batched", "n": 40, "k": 64, "batch": 3},
    {**SIZES, "weight": "bf16", "n": 48, "k": 64},
    {"check": "vllm_moe", "hidden": 320, "intermediate": 320, "experts": 8},
]


@pytest.mark.parametrize(
    ("widths", "code"),
    [pytest.param([BARE, 40], 0, id="beside the engine"), pytest.param([ENGINE], 1, id="in the engine", marks=FURTHER)],
)
def test_faults_count_where_they_concern_what_is_judged(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, widths: list[int], code: int
) -> None:
    fetched("vllm", "0.33.0")
    monkeypatch.setenv("PLANTED", json.dumps(widths))
    scenario = lab.new_folder() / "scenario.toml"
    write_scenario(scenario, CASES, experiments=0, timeout=3000, case_timeout=1200)
    library = lab.plant(append=("matmul_ogs.py", PLANT))
    finished: Finished = lab.forked("--engine", "vllm==0.33.0", scenario=scenario, nproc=1, library=library)
    told = [finding["judged"] for finding in finished.report["findings"]]
    assert finished.code == code, finished.text
    assert len(told) == len(widths) and all(told) is (code == 0), told
    if BARE in widths:
        assert "vllm 0.33.0 computes mxfp4 default k320-n640-e8 right on rank 0" in finished.text
        assert "no engine case of this run computes batched mxfp4 in the strided layout" in finished.text
