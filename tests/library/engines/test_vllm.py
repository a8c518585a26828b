"""vLLM's expert block through each of its entries, by a released vLLM in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpucheck.checks.stored_state import AS_GIVEN
from gpucheck.library.engines.base import HELD
from gpucheck.library.engines.engine_fetch import fetch_engine
from gpucheck.model.errors import InfrastructureError
from tests.end_to_end.test_engines import FURTHER

pytestmark = FURTHER  # the module is run by each test of an engine; here it is run once more, entry by entry
SCRIPT = Path(__file__).with_name("vllm_depths.py")


FAULTS = {  # the layer that is told, and the first wrong output
    "scales of the second product turned": ("loader: scales of the second product differ in", "y"),
    "gate and up as halves": ("loader: gate and up in turn are taken for halves", "y"),
    "first checkpoint after a second load": ("first wrong: the router; loader: ", "router_logits"),
    "map of experts shifted": ("router: token ", "y_ep0"),
    "not renormalised where ranks share experts": ("router: its weights are a softmax over all experts", "y_ep0"),
    "logits in eight bits": ("router: its weights of token ", "y"),
    "another alpha": ("activation: its alpha is 1.5, expected 1.702", "y"),
    "another clamp": ("activation: its clamp is at 6, expected 7", "y"),
    "weights of the router on the first product": ("first product or activation: ", "y"),
    "scales of another expert": ("loader: up_scale and down_scale are the expert's before", "y"),
    "second bias dropped": ("second product: its bias is left out", "y"),
    "gate and up swapped": ("loader: gate and up are exchanged", "y"),
    "slice by LOCAL_RANK": ("loader: tp rank 0 holds what is rank 1's", "y_tp0"),
    "stale scales after a second load": ("loader: up_scale and down_scale are still those of the checkpoint", "y"),
}
BY_LOADER = ("second bias dropped",)
"""What a loader does to the layer that is told."""
ENTRIES = ("module", "method", "functions")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By entry, and by fault that was planted in the deepest one: what a record says, and what is wrong."""
    for package in ("torch", "triton", "remotezip"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    try:
        copy = fetch_engine("vllm", "0.33.0")
    except InfrastructureError as error:
        pytest.skip(f"vllm 0.33.0 cannot be fetched: {str(error).splitlines()[0]}")
    command = [sys.executable, str(SCRIPT), json.dumps(copy.planned()), str(copy.root / "vllm/third_party")]
    env = {**os.environ, "LOCAL_RANK": "1", "TMPDIR": str(tmp_path_factory.mktemp("vllm"))}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert sorted(found) == sorted((*ENTRIES, *FAULTS))
    return found


def test_every_entry_computes_the_block_and_says_why_it_is_no_deeper(told: dict[str, Any]) -> None:
    entries = [told[name] for name in ENTRIES]
    assert [entry["wrong"] for entry in entries] == [[], [], []]
    assert all(sorted(entry["placed"]) == sorted(HELD.values()) for entry in entries)
    assert {entry["stored"] for entry in entries} == {AS_GIVEN}
    assert [len(entry["lacking"]) for entry in entries] == [0, 1, 2]
    assert all("(4, 384, 24)" in str(entry["layouts"]) for entry in entries), "scales padded from 10 groups to 12"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_loader_that_the_bare_library_does_not_have_is_seen(told: dict[str, Any], fault: str) -> None:
    layer, output = FAULTS[fault]
    wrong = told[fault]["wrong"]
    assert wrong[0].startswith(f"{output}: "), wrong
    said = told[fault]["said"]
    assert said.startswith(layer), said
    as_given = "loader" not in layer and fault not in BY_LOADER
    assert ("not the loader: " in said) is as_given, said
