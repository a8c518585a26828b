"""Runs of the library as it is: green, complete and repeatable."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Finished, Lab

CASES = ("dense/bf16/m33-n40-k96/", "routed/mxfp4/m24-n48-k96-e6-top2-scatter", "topk/fp32/m33")


@pytest.fixture(scope="module")
def smoke(lab: Lab) -> Finished:
    finished: Finished = lab.finish(scenario="smoke")
    return finished


@pytest.fixture(scope="module")
def alone(lab: Lab) -> Finished:
    finished: Finished = lab.forked(scenario="smoke", nproc=1, cases=CASES)
    return finished


def test_smoke_passes_with_every_check_of_a_rank_alone_on_both_ranks(smoke: Finished) -> None:
    from gpucheck.checks import CHECKS, NEEDS, load

    assert smoke.code == 0, smoke.text
    assert smoke.report["verdict"] == "PASS"
    assert smoke.report["findings"] == []
    rows = smoke.report["rows"]
    joint = {name for name in CHECKS if load(name).together}
    assert {row["row"].split()[0] for row in rows} == set(CHECKS) - set(NEEDS) - joint
    for row in rows:
        assert row["ranks"] == [{"pass": row["cases"]}, {"pass": row["cases"]}], row
        assert any(
            line.split()[-2:] == ["ok", "ok"] and line.startswith(row["row"]) for line in smoke.text.splitlines()
        )
    assert smoke.text.splitlines()[-2].startswith("run ")
    assert smoke.text.splitlines()[-1].startswith("no GPU was checked")
    assert "PASS  " in smoke.text


def test_ranks_agree_bit_for_bit(smoke: Finished) -> None:
    first, second = smoke.results(0), smoke.results(1)
    assert first.keys() == second.keys()
    for case, result in first.items():
        assert result["digests"] == second[case]["digests"] != {}
        assert result["inputs"] == second[case]["inputs"] != ""


def test_every_record_holds_launches_of_the_kernel_under_test(smoke: Finished) -> None:
    kernels = {
        "matmul": "_matmul_ogs",
        "moe": "_matmul_ogs",
        "batches": "_matmul_ogs",
        "routing": "_combined_routing_compute",
        "topk": "_topk_forward",
        "swiglu": "_swiglu",
        "mxfp/down": "_downcast_to_mxfp",
        "mxfp/up": "_upcast_from_mxfp",
        "attention": "_flash_attention_forward",
        "generation": "_flash_attention_forward",
        "softmax": "_row_softmax",
        "weighted_matmul": "_weighted_matmul",
        "selection_attention": "_selection_attention_forward",
        "paged_attention": "_paged_attention_decode",
    }
    for rank in (0, 1):
        for case, result in smoke.results(rank).items():
            if re.search(r"/m0\b", case):  # without rows there is nothing to launch
                continue
            (kernel,) = [name for prefix, name in kernels.items() if case.startswith(prefix + "/")]
            launched = {re.sub("^_p_", "_", launch["kernel"]) for launch in result["launches"]}
            assert kernel in launched, case


def test_bounds_have_room(smoke: Finished) -> None:
    tightness = [result["tightness"] for result in smoke.report["results"] if result["case"].endswith("/normal")]
    assert max(tightness) > 0.1, "nothing was judged by a bound"
    assert max(tightness) <= 1


def test_other_number_of_ranks_gives_the_same_bits(smoke: Finished, alone: Finished) -> None:
    assert alone.code == 0, alone.text
    assert len(alone.results(0)) >= 4
    for case, result in alone.results(0).items():
        other = smoke.results(0)[case]
        assert result["inputs"] == other["inputs"]
        assert result["digests"] == other["digests"]


def test_other_seed_gives_other_inputs(lab: Lab, alone: Finished) -> None:
    other = lab.forked("--seed", "1", scenario="smoke", nproc=1, cases=CASES)
    assert other.code == 0, other.text
    assert other.report["plan"]["seed"] == 1
    assert other.results(0).keys() == alone.results(0).keys()
    for case, result in other.results(0).items():
        assert result["inputs"] != alone.results(0)[case]["inputs"]


def test_library_and_software_are_left_as_they_were(lab: Lab, smoke: Finished) -> None:
    from gpucheck.library.content import content_hash

    assert content_hash(lab.library.package) == lab.library.content == smoke.report["plan"]["library"]["content"]


def test_truncated_records_are_lost_not_passed(lab: Lab, alone: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone.folder, folder)
    records = folder / "records" / "rank-00000.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"event":"result"' in line)
    records.write_bytes(b"".join(lines[:last]) + lines[last][:100])
    shown = subprocess.run(
        [sys.executable, "-m", "gpucheck", "report", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 3, shown.stdout + shown.stderr
    case = json.loads(lines[last])["case"]
    assert "INCONCLUSIVE" in shown.stdout
    assert "lost   rank 0 " in shown.stdout
    assert f"case    {case}\n" in shown.stdout
    assert "1 record line(s) could not be read" in shown.stdout
