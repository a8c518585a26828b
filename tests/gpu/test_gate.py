"""Runs on machines with NVIDIA GPUs; elsewhere the skip says so."""

from __future__ import annotations

from collections.abc import Callable

from gpucheck.checks import CHECKS, NEEDS, load
from tests.gpu.conftest import NEEDS_GPU, RANKS, Done

pytestmark = NEEDS_GPU

ALONE = [name for name in CHECKS if name not in NEEDS and not load(name).together]
OWN = ",".join(name for name in ALONE if not load(name).needs_library)
SOUND = f"{OWN},topk,swiglu,mxfp"  # no known library fault touches these


def test_gate_passes_on_every_gpu(run: Callable[..., Done]) -> None:
    done = run("gate", "--checks", SOUND)
    assert done.code == 0
    assert {result["rank"] for result in done.report["results"]} == set(range(RANKS))
    launched = [launch for record in done.records for launch in record["launches"]]
    assert launched and all(launch["argument_devices"] == [f"cuda:{launch['device']}"] for launch in launched)


def test_clean_runs_have_no_finding(run: Callable[..., Done]) -> None:
    """At least 500 runs of a case, one visible GPU and several, under several seeds."""
    cases = 0
    for seed in range(3):
        for placement in ("pinned", "visible"):
            done = run("gate", "--checks", SOUND, "--placement", placement, "--seed", str(seed), "--no-canary")
            assert done.code == 0 and not done.report["findings"], done.text
            cases += sum(result["outcome"] == "pass" for result in done.report["results"])
    print(f"{cases} case-runs without a finding")
    assert cases >= 500
