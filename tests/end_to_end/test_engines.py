"""Serving engines by their own loading and forward: releases that are right and wrong, told by real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpucheck.checks.stored_state import AS_GIVEN
from gpucheck.library.engines.engine_fetch import fetch_engine
from gpucheck.library.engines.engine_option import served_with
from gpucheck.library.library_option import parse_source, resolve
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.compile import tritons

if TYPE_CHECKING:
    from gpucheck.library.engines.engine_copy import EngineCopy
    from tests.end_to_end.conftest import Finished, Lab

EVERY = bool(os.environ.get("GPUCHECK_TEST_ENGINES"))
FURTHER = pytest.mark.skipif(not EVERY, reason="make engines runs every release and plants every fault")
SCENARIO = Path(__file__).parents[1] / "data" / "engines.toml"
CASE = "vllm_moe/m16-h320-i320-e8-top4/normal"
SGLANG = "sglang_moe/m4-h320-i128-e4-top2/normal"

PARTS = {  # cases that two ranks share, by engine; the last one loads another checkpoint before
    "vllm": ("vllm_moe/m4-h256-i224-e4-top2-tp2/normal", "vllm_moe/m4-h256-i128-e4-top2-ep2-reload/normal"),
    "sglang": ("sglang_moe/m4-h256-i224-e4-top2-tp2-reload/normal",),
}

INSTALLED = "installed"
RELEASES = [  # the Triton that its library needs, and whether scales that end within what a kernel reads do no harm
    ("vllm", "0.12.0", INSTALLED, False),
    ("vllm", "0.16.0", INSTALLED, False),
    ("vllm", "0.20.0", INSTALLED, False),
    ("vllm", "0.25.1", INSTALLED, False),
    ("vllm", "0.26.0", INSTALLED, True),
    ("vllm", "0.30.0", INSTALLED, True),
    ("vllm", "0.33.0", INSTALLED, True),
    ("sglang", "0.5.5", "3.4.0", True),  # it has the scales in the library's usual layout, which no kernel reads past
    ("sglang", "0.5.12", INSTALLED, False),
    ("sglang", "0.5.18", INSTALLED, False),
    ("sglang", "0.5.19", INSTALLED, True),
    ("sglang", "0.5.23", "3.8.0", True),
]
OTHER_EXPERTS = ("0.12.0", "0.16.0")
"""Releases of vLLM that are wrong where ranks share the experts: they look up all experts' numbers in the weights of
this rank's."""


def fetched(name: str, version: str) -> EngineCopy:
    """A released engine with the library that it is served with; skips where one is neither cached nor to be had."""
    pytest.importorskip("remotezip")
    try:
        copy = fetch_engine(name, version)
        resolve(served_with(parse_source(None), [copy])[0])
    except InfrastructureError as error:
        pytest.skip(f"{name} {version} cannot be fetched: {str(error).splitlines()[0]}")
    return copy


def served(lab: Lab, name: str, version: str, *options: str, triton: str = INSTALLED) -> Finished:
    """A run with a released engine; skips where the Triton that it takes is not to be had for this Python."""
    copy = fetched(name, version)
    try:
        path = tritons.resolve(triton).folder
    except (InfrastructureError, UsageError) as error:
        pytest.skip(f"Triton {triton} cannot be fetched: {str(error).splitlines()[0]}")
    engine = f"{copy.name}=={copy.version}"
    run = {"scenario": SCENARIO, "nproc": 1, "library": None, "path": path}
    begin = lab.finish if path else lab.forked  # another Triton takes a Python of its own
    finished: Finished = begin("--engine", engine, *options, **run)
    return finished


def check_model(finished: Finished, *attention: str) -> None:
    """The whole model of an engine is right in a run, by these kernels of its own Triton attention among others."""
    (record,) = [record for case, record in finished.results(0).items() if "_model/" in case]
    assert record["outcome"] == "pass" and not record["violations"] and record["engine"]["depth"] == "model"
    assert set(attention) <= {launch["kernel"] for launch in record["launches"]}


def assert_parts_are_right(finished: Finished, engine: str, reload: str) -> None:
    """The engine cut the checkpoint for each rank, and each rank's output and their sum are right; so is a second load.

    Args:
        reload: what the second checkpoint was loaded into.
    """
    results = finished.results(0)
    for case in PARTS[engine]:
        record = results[case]
        assert record["outcome"] == "pass" and not record["violations"], record
        assert len(record["digests"]) == 4, "of the router, of each rank and of their sum"
        assert sum(launch["count"] for launch in record["launches"] if "matmul" in launch["kernel"]) >= 4
        assert "told that it has 2" in record["engine"]["group"]
    assert results[PARTS[engine][-1]]["engine"]["reload"].startswith(reload)


def test_a_release_whose_loader_pads_the_scales_is_right(lab: Lab) -> None:
    finished = served(lab, "vllm", "0.33.0")
    assert finished.code == 0, finished.text
    assert "vllm 0.33.0" in finished.report["headline"], "what was tested is said"
    record = finished.results(0)[CASE]
    assert record["outcome"] == "pass" and not record["violations"]
    part = record["engine"]
    assert (part["name"], part["version"], part["depth"]) == ("vllm", "0.33.0", "module")
    assert any("(8, 384, 24)" in layout for layout in part["layouts"]), "12 groups of scales, of which 10 are real"
    assert "split_k pinned to 1" in part["left_behind"] and part["stand_ins"]
    assert record["twins"] == ["mxfp4 default k320-n640-e8", "mxfp4 default k320-n320-e8"]
    check_model(finished, "kernel_unified_attention", "reduce_segments")
    launched = {launch["kernel"]: launch["count"] for launch in record["launches"]}
    assert launched["_matmul_ogs"] >= 2 and "_combined_routing_compute_pow2" in launched, "vLLM's own kernel too"
    assert_parts_are_right(finished, "vllm", "the same module")


def test_a_release_that_reads_past_its_scales_is_wrong_in_exactly_the_last_expert(lab: Lab) -> None:
    finished = served(lab, "vllm", "0.25.1", "--checks", "vllm_moe")
    assert finished.code == 1, finished.text
    lines = finished.lines(CASE)
    assert "exactly expert 7" in lines and "passes differ" in lines, lines
    assert "loader: scales of the first product are 10 groups, a product reads 12, and nothing pads them" in lines
    assert finished.finding(CASE)["cause"] == "access outside of tensors"
    assert_parts_are_right(finished, "vllm", "a new module: to update these weights raises KeyError")


def test_sglang_with_padded_scales_is_right_and_says_what_stands_in_for_its_compiled_parts(lab: Lab) -> None:
    finished = served(lab, "sglang", "0.5.19")
    assert finished.code == 0, finished.text
    record = finished.results(0)[SGLANG]
    assert record["outcome"] == "pass" and not record["violations"]
    part = record["engine"]
    assert (part["name"], part["version"], part["depth"]) == ("sglang", "0.5.19", "module")
    assert "TRITON_KERNELS" in part["backend"] and "split_k pinned to 1" in part["left_behind"]
    assert any("up_scale" in layout and "(4, 384, 8)" in layout for layout in part["layouts"]), part["layouts"]
    stand_ins = part["stand_ins"]
    assert len(stand_ins) == len(set(stand_ins)), "each is said once, though every pass loads a block anew"
    assert any("sgl_kernel" in words for words in stand_ins) and any("capability 9.0" in words for words in stand_ins)
    check_model(finished, "_fwd_kernel", "_fwd_grouped_kernel_stage1")
    launched = {launch["kernel"]: launch["count"] for launch in record["launches"]}
    assert launched["_matmul"] >= 2 and launched["_topk_forward"], launched
    assert_parts_are_right(finished, "sglang", "a new module: the first load removes")


def test_sglang_that_reads_past_its_scales_is_wrong_in_exactly_the_last_expert(lab: Lab) -> None:
    finished = served(lab, "sglang", "0.5.18", "--checks", "sglang_moe")
    assert finished.code == 1, finished.text
    lines = finished.lines(SGLANG)
    assert "exactly expert 3" in lines and "passes differ" in lines, lines
    assert finished.finding(SGLANG)["cause"] == "access outside of tensors"
    assert_parts_are_right(finished, "sglang", "a new module: the first load removes")


@FURTHER
@pytest.mark.parametrize(("name", "version", "triton", "right"), RELEASES)
def test_the_expert_block_of_every_known_release_is_right_or_wrong_in_exactly_the_last_expert(
    lab: Lab, name: str, version: str, triton: str, right: bool
) -> None:
    asked = ("--checks", "vllm_moe") if name == "vllm" else ("--case", SGLANG)
    finished = served(lab, name, version, *asked, triton=triton)
    assert finished.code == (0 if right else 1), finished.text
    case, last = (CASE, 7) if name == "vllm" else (SGLANG, 3)
    assert finished.results(0)[case]["outcome"] == ("pass" if right else "mismatch"), finished.text
    stored = {record["engine"]["stored"] for record in finished.results(0).values()}
    assert stored == {AS_GIVEN}, "what is not padded is stored as it is"
    assert right or f"exactly expert {last}" in finished.lines(case)
    if name == "vllm":
        by_width, by_experts = (finished.outcomes(case) for case in PARTS[name])
        assert by_width == ["pass"]
        assert by_experts == (["mismatch"] if version in OTHER_EXPERTS else ["pass"])


@FURTHER
@pytest.mark.parametrize(
    ("case", "old", "new", "first"), [(CASE, "0.25.1", "0.33.0", "0.26.0"), (SGLANG, "0.5.18", "0.5.19", "0.5.19")]
)
def test_a_search_over_releases_names_the_first_one_that_pads_the_scales(
    lab: Lab, case: str, old: str, new: str, first: str
) -> None:
    name = case.partition("_")[0]
    for version in (old, new):
        fetched(name, version)
    folder = lab.new_folder() / "search"
    ends = ["--wheel", name, "--from", old, "--to", new, "--find", "fix", "--repeat", "1"]
    given = ["--scenario", str(SCENARIO), "--case", case, "--device", "cpu", "--nproc", "1"]
    command = [sys.executable, "-m", "gpucheck", "bisect", *ends, *given, "--out", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert f"\nfirst fixed release: {first}\n" in done.stdout and f"--engine {name}=={first}" in done.stdout
    state = json.loads((folder / "state.json").read_text())
    assert [candidate["name"] for candidate in state["result"]["answer"]] == [first]
    assert "access outside of tensors" in state["result"]["searched_for"]
