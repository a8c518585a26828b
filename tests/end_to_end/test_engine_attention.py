"""Attention of serving engines: released ones are right, each planted fault is caught and its layer told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.library.engines.engine_option import served_with
from gpucheck.library.library_option import parse_source, resolve
from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end.test_engine_faults import BARE, LIMITS, plant, planted_engine
from tests.end_to_end.test_engines import FURTHER, fetched
from tests.module_files import load_module

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

PLANTS = Path(__file__).parents[1] / "data" / "planted_attention.py"
COMPILE = Path(__file__).parents[1] / "library" / "engines" / "compiled_attention.py"
BACKENDS = {
    "vllm": "vllm/v1/attention/backends/triton_attn.py",
    "sglang": "sglang/srt/layers/attention/triton_backend.py",
}
TOLD = {  # by fault; what the report says where the wrong outputs are exactly those of one fault
    "sink left out": "the sinks are left out",
    "window one key wider": "",
    "window one key narrower": "the window is one key too narrow",
    "pages of another sequence": "",
    "stale page": "",
    "last key left out": "",
    "scores not scaled": "scores are not scaled",
    "heads by remainder": "query head h attends to head h % kv_heads",
    "last token not written": "the write of new keys and new values into the cache",
}
WINDOWS = ("window one key wider", "window one key narrower")


def group(engine: str, data: str, **params: object) -> dict[str, object]:
    return {"check": f"{engine}_attention", "data": data, **params}


def run(lab: Lab, folder: Path, engine: str, groups: list[dict[str, object]], *options: str) -> Finished:
    path = folder / "scenario.toml"
    write_scenario(path, groups, **LIMITS)
    finished: Finished = lab.forked("--engine", engine, *options, scenario=path, nproc=1, library=None)
    return finished


def faulty(name: str) -> list[dict[str, object]]:
    """Groups of cases: one without a fault, and one for each fault that is planted into an engine's attention."""
    module = load_module(PLANTS)
    assert list(module.PLANTED) == list(TOLD)
    groups = [group(name, "exact", queries="mixed", batch=module.FIRST - 1, window=20)]
    for number, fault in enumerate(TOLD, module.FIRST):
        data = "normal" if fault == "scores not scaled" else "exact"
        if name == "vllm" or fault in WINDOWS:
            groups.append(group(name, data, queries="mixed", batch=number, window=20))
        elif fault != "last token not written":  # its write is not planted
            groups.append(group(name, data, queries="decode", batch=number))
    return groups


def check_faults(name: str, results: dict[str, Any]) -> None:
    """Each fault of an engine's attention is caught with its layer, and the case without one is right."""
    first = load_module(PLANTS).FIRST
    own = {case: record for case, record in results.items() if case.startswith(f"{name}_attention/")}
    assert [case for case, record in own.items() if record["outcome"] == "pass"] == [next(iter(own))]
    assert f"/b{first - 1}-" in next(iter(own))
    for number, (fault, words) in enumerate(TOLD.items(), first):
        found = [record for case, record in own.items() if f"/b{number}-" in case]
        assert len(found) == (0 if name == "sglang" and fault == "last token not written" else 1), fault
        for record in found:
            assert record["outcome"] == "mismatch", (fault, record["outcome"], record["message"])
            assert record["message"].startswith("attention: ") and words in record["message"], (
                fault,
                record["message"],
            )


@FURTHER
def test_each_fault_of_sglangs_attention_is_caught_with_its_layer_and_the_bare_library_stays_right(
    lab: Lab, tmp_path: Path
) -> None:
    """Those of vLLM's are planted beside the faults of its other kernels."""
    engine = planted_engine(fetched("sglang", "0.5.19").root, tmp_path / "engine")
    plant(tmp_path / "engine", PLANTS, {BACKENDS["sglang"]: "sglang"})
    finished = run(lab, tmp_path, engine, [BARE, *faulty("sglang")])
    assert finished.code == 1, finished.text
    assert finished.outcomes("moe/") == ["pass"]
    check_faults("sglang", finished.results(0))


def released(lab: Lab, folder: Path, name: str, version: str, *options: str) -> dict[str, Any]:
    """The records of a release, by case."""
    fetched(name, version)
    shapes = [{"queries": queries, "window": window} for queries in ("mixed", "decode") for window in (0, 20)]
    groups = [group(name, data, **shape) for data in ("exact", "normal") for shape in shapes]
    finished = run(lab, folder, f"{name}=={version}", groups, *options)
    results = finished.results(0)
    assert len(results) == len(groups), finished.text
    return results


@FURTHER
@pytest.mark.parametrize("version", ["0.12.0", "0.16.0", "0.20.0", "0.25.1", "0.26.0", "0.30.0", "0.33.0"])
def test_attention_of_every_known_vllm_is_right_but_for_divided_decode_with_a_window_in_0_12(
    lab: Lab, tmp_path: Path, version: str
) -> None:
    for case, record in released(lab, tmp_path, "vllm", version).items():
        lost = version == "0.12.0" and "/decode/" in case and "-w20/exact" in case
        assert record["outcome"] == ("mismatch" if lost else "pass"), (case, record["message"])


@FURTHER
@pytest.mark.parametrize("version", ["0.5.12", "0.5.18", "0.5.19", "0.5.23"])
def test_attention_of_every_known_sglang_is_right_but_for_one_key_of_a_decode_steps_window(
    lab: Lab, tmp_path: Path, version: str
) -> None:
    other = ("--library", "wheel:sglang-kernel==0.4.8") if version == "0.5.23" else ()  # its own needs a newer Triton
    for case, record in released(lab, tmp_path, "sglang", version, *other).items():
        narrow = "/decode/" in case and "-w20/" in case
        assert record["outcome"] == ("mismatch" if narrow else "pass"), (case, record["message"])
        assert not narrow or "the window is one key too narrow" in record["message"]


@FURTHER
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("name", "version", "kernels"),
    [
        ("vllm", "0.33.0", {"reshape_and_cache_kernel_flash", "kernel_unified_attention", "reduce_segments"}),
        ("sglang", "0.5.19", {"_fwd_kernel", "_fwd_grouped_kernel_stage1", "_fwd_kernel_stage2"}),
    ],
)
def test_the_kernels_of_an_engines_attention_compile_for_gpus_that_are_not_here(
    name: str, version: str, kernels: set[str], target: str, tmp_path: Path
) -> None:
    copy = fetched(name, version)
    library = resolve(served_with(parse_source(None), [copy])[0])
    command = [sys.executable, str(COMPILE), json.dumps(copy.planned()), str(library.root), target]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TMPDIR": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == 3
    assert {word for case in told.values() for word in case.values()} == {"compiled"}, told
    assert kernels <= {kernel for case in told.values() for kernel in case}
