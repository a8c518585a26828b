from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

LAUNCHES = """\
import torch
import triton

def sms():
    return torch.cuda.get_device_properties(0).multi_processor_count

def f(x, kernel):
    kernel[(sms(),)](x)
"""


@pytest.fixture
def hazardous(library: str) -> str:
    """``--library`` of a stand-in copy with hazards on known lines, which breaks when it is imported."""
    Path(library.removeprefix("path:"), "triton_kernels", "testing.py").write_text(LAUNCHES)
    return library


def test_hazards_are_grouped_by_kind_with_cause_and_fix(gpucheck: Command, hazardous: str) -> None:
    answer = gpucheck("audit", "--library", hazardous, "--no-probe")
    assert answer.code == 0 and answer.err == ""
    lines = answer.out.splitlines()
    assert "3 hazards: 3 source" in lines
    assert "fixed-device (1): properties of a fixed device" in lines
    assert any(line.split()[:2] == ["source", "testing.py:5"] for line in lines)
    assert any(line.split()[:2] == ["source", "testing.py:8"] for line in lines)
    assert sum(line.startswith("  causes  ") for line in lines) == 3
    assert sum(line.startswith("  fix     ") for line in lines) == 3
    assert lines.count("  probe   not probed: --no-probe was given") == 3


def test_json_is_a_list_with_everything_of_each_hazard(gpucheck: Command, hazardous: str) -> None:
    answer = gpucheck("audit", "--library", hazardous, "--no-probe", "--json")
    hazards = json.loads(answer.out)
    assert answer.code == 0
    assert [(h["kind"], h["file"], h["line"]) for h in hazards] == [
        ("fixed-device", "testing.py", 5),
        ("fixed-device-user", "testing.py", 8),
        ("no-device-guard", "testing.py", 8),
    ]
    for hazard in hazards:
        assert hazard["confirmed"] is None and hazard["evidence"].startswith("not probed")
        assert hazard["causes"] and hazard["fix"] and hazard["code"]
    assert hazards[0]["function"] == "sms"


def test_a_clean_library_has_none(gpucheck: Command, library: str) -> None:
    answer = gpucheck("audit", "--library", library, "--no-probe")
    assert answer.code == 0 and answer.out.splitlines()[1:] == ["0 hazards"]
    assert json.loads(gpucheck("audit", "--library", library, "--no-probe", "--json").out) == []


def test_the_library_is_not_imported_by_the_command(gpucheck: Command, hazardous: str) -> None:
    """Every other module of the stand-in raises when it is imported; with a probe that is a reason, not an error."""
    pytest.importorskip("torch")
    answer = gpucheck("audit", "--library", hazardous, "--json")
    assert answer.code == 0
    assert all(hazard["confirmed"] is None for hazard in json.loads(answer.out))


def test_errors_end_as_elsewhere(gpucheck: Command, hazardous: str) -> None:
    answer = gpucheck("audit", "--library", "path:/no/such/folder")
    assert answer.code == 2 and "there is no such folder" in answer.message
    assert gpucheck("audit", "--library", "what").code == 2
    Path(hazardous.removeprefix("path:"), "triton_kernels", "tensor.py").write_text("def (")
    answer = gpucheck("audit", "--library", hazardous)
    assert answer.code == 3 and "cannot parse" in answer.message
