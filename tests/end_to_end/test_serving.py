"""transformers as it calls the library: right as it is, and by the routing that it once took for any process group."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.checks import installed
from tests.end_to_end.conftest import Finished, Lab
from tests.end_to_end.test_engines import EVERY, FURTHER

SCENARIO = Path(__file__).parents[1] / "data" / "serving.toml"
HOST = "matmul_ogs.py"
SLICED = """

from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP

GptOssMLP._is_hooked = True  # what now marks expert parallelism; earlier any process group did
_histc = torch.histc
torch.histc = lambda x, **options: _histc(x.float(), **options).to(x.dtype)  # the CPU has none for integers
"""
needs_transformers = pytest.mark.skipif(not installed("transformers_moe"), reason="needs transformers with gpt-oss")


@needs_transformers
def test_with_a_process_group_every_rank_is_right(lab: Lab) -> None:
    finished = lab.finish("--process-group", "initialised", scenario=SCENARIO)
    assert finished.code == 0, finished.text
    assert [item["outcome"] for item in finished.report["results"]] == ["pass"] * 2
    assert all("_matmul_ogs" in str(line["launches"]) for line in finished.results(1).values())


@pytest.fixture(scope="module")
def sliced(lab: Lab) -> Finished:
    """With experiments where every engine is tried: each of their processes takes seconds to import transformers."""
    asked = ("--experiments", "2000" if EVERY else "0")
    finished: Finished = lab.finish(*asked, scenario=SCENARIO, library=lab.plant(append=(HOST, SLICED)))
    assert finished.code == 1, finished.text
    return finished


@needs_transformers
def test_experts_sliced_by_rank_are_wrong_with_a_process_group_alone(sliced: Finished) -> None:
    outcomes = {item["conditions"]["process_group"]: item["outcome"] for item in sliced.report["results"]}
    assert outcomes == {"none": "pass", "initialised": "mismatch"}
    first, second = sorted(sliced.findings("(process group)"), key=lambda finding: finding["ranks"])
    assert (first["ranks"], second["ranks"]) == ([0], [1])
    assert "exactly experts 4, 5, 6, 7" in "\n".join(first["failed_case"]["lines"]), "what rank 0 leaves out"


@FURTHER
@needs_transformers
def test_experts_sliced_by_rank_are_the_callers_fault(sliced: Finished) -> None:
    findings = sorted(sliced.findings("(process group)"), key=lambda finding: finding["ranks"])
    assert all(finding["cause"] == "dependence on the process group" for finding in findings)
    assert findings[0]["title"] == "dependence on the process group: wrong expert"
    for finding in findings:
        (known,) = finding["known"]
        assert known["id"] == "experts-sliced-by-local-rank" and "transformers 4.56.0" in known["good"]
        assert "--process-group none" in known["proofs"][0]["command"]


def test_where_transformers_is_missing_nothing_is_proven(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('no transformers here')")
    finished = lab.forked(scenario=SCENARIO, nproc=1, path=tmp_path)
    assert finished.code == 5, finished.text
    assert "needs transformers 5 with its mxfp4 integration of gpt-oss" in finished.text
