"""An illegal address, a failed assertion, too much memory and an endless kernel on one rank, in one run."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.gpu.conftest import NEEDS_TWO

pytestmark = NEEDS_TWO

LIBRARY = os.environ.get("GPUCHECK_TEST_LIBRARY")  # as --library takes it
TITLES = {
    "illegal-address": "crash: illegal memory access in store_far_away",
    "device-assert": "crash: device-side assert in assert_nothing_is_there",
    "gpu-memory": "out of memory: GPU memory",
    "endless-kernel": "hang: in wait_forever",
}


@pytest.fixture
def containment() -> ModuleType:
    """The module beside this one, which also runs by itself."""
    spec = importlib.util.spec_from_file_location("containment", Path(__file__).with_name("containment.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["containment"] = module
    spec.loader.exec_module(module)
    return module


def test_four_faults_cost_four_cases_on_one_rank(containment: ModuleType, tmp_path: Path) -> None:
    run = containment.run(tmp_path, LIBRARY, 2)
    assert run.code == 1, run.text
    outcomes = {(result["case"], result["rank"]): result["outcome"] for result in run.report["results"]}
    planted = set(run.planted.values())
    assert len(planted) == len(TITLES)
    assert all(outcome == "pass" for (case, rank), outcome in outcomes.items() if rank == 0 or case not in planted)
    assert {fault: outcomes[(case, 1)] for fault, case in run.planted.items()} == {
        "illegal-address": "crash",
        "device-assert": "crash",
        "gpu-memory": "error",
        "endless-kernel": "hang",
    }
    titles = {finding["title"]: finding for finding in run.report["findings"]}
    assert sorted(titles) == sorted(TITLES.values()), run.text
    for fault, title in TITLES.items():
        (failed_case,) = titles[title]["cases"]
        assert (titles[title]["ranks"], failed_case["case"]) == ([1], run.planted[fault])
    memory = "\n".join(titles[TITLES["gpu-memory"]]["cases"][0]["lines"])
    assert re.search(r"OutOfMemoryError: .*under test: .*_matmul_ogs", memory, re.DOTALL)
    assert len(run.fresh_seconds(1)) >= 4 and max(run.fresh_seconds(1)[1:]) < 5
