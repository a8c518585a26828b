"""Planted kernels compiled for one target, and what is said of each: the line, the words, the hint, the resources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools.compile.conftest import shipped

pytest.importorskip("torch")
pytest.importorskip("triton")


PLANTED = Path(__file__).with_name("planted.py")

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Events:
    """All that a capture told of the planted kernels."""
    folder = tmp_path_factory.mktemp("planted")
    output = folder / "output.txt"
    with open(output, "wb") as printed:
        done = subprocess.run(
            [sys.executable, str(PLANTED), "sm_90", str(output)],
            env=shipped(folder / "cache"),
            stdout=printed,
            stderr=printed,
            timeout=120,
        )
    assert done.returncode == 0, output.read_text()
    found: Events = json.loads(output.with_suffix(".json").read_text())
    return found


def launched(events: Events, name: str) -> dict[str, Any]:
    (entry,) = (event for event in events if event["event"] == "case" and event["name"] == name)
    return entry


def the_kernel(events: Events, name: str) -> dict[str, Any]:
    """The only kernel that a case launched."""
    (kernel,) = launched(events, name)["kernels"]
    return dict(kernel)


def line_of(code: str) -> int:
    """The line of the planted file that holds this text, which no other line does."""
    lines = PLANTED.read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, start=1) if line.strip() == code)
    return number


@pytest.mark.parametrize(
    ("case", "code", "error", "said"),
    [
        ("broadcast", "tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)", "at index 1: 32 and 64", "write x[:, None]"),
        ("nested", "return x + y", "at index 1: 32 and 64", "write x[:, None]"),
        ("rewritten", "tl.store(ptr + offs_L * s + offs_D[None, :], 1.0)", "at index 1: 32 and 64", "x[:, None]"),
        ("missing", "tl.store(ptr + tl.arange(0, L), tl.no_such_function(1.0))", "no_such_function", "of this Triton"),
        ("signature", "tl.store(ptr, tl.max(x, 0, return_indexes=True))", "return_indexes", "signature differs"),
        (
            "assembly",
            'y = tl.inline_asm_elementwise("bogus.f32 $0, $1;", "=r,r", [x], tl.float32, True, 1)',
            "'bogus'",
            "assembly that the target does not know",
        ),
    ],
)
def test_a_kernel_that_does_not_compile_is_named_with_its_line(
    events: Events, case: str, code: str, error: str, said: str
) -> None:
    kernel = the_kernel(events, case)
    problem = kernel["problem"]
    assert (kernel["built"], problem["kind"]) == ("failed", "error")
    assert (problem["place"], problem["code"]) == (f"compile/planted.py:{line_of(code)}", code)
    assert error in problem["error"] and said in problem["hint"]
    assert kernel["shared"] is None


def test_shared_memory_beyond_the_limit_is_named_with_kernel_and_configuration(events: Events) -> None:
    kernel = the_kernel(events, "hungry")
    problem = kernel["problem"]
    assert (kernel["built"], problem["kind"], kernel["shared"]) == ("failed", "resource", 1_049_600)
    assert problem["error"] == "needs 1,049,600 bytes of shared memory, a block may use 232,448 on sm_90"
    line = line_of("def hungry(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, n):")
    assert problem["place"] == f"compile/planted.py:{line}"
    assert (kernel["warps"], kernel["stages"], kernel["config"]) == (16, 4, {"M": 128, "N": 128, "K": 512})
    assert "fewer pipeline stages" in problem["hint"]


def test_too_many_threads_are_a_lack_of_resources(events: Events) -> None:
    problem = the_kernel(events, "warps")["problem"]
    assert problem["kind"] == "resource" and "2,048 threads, a block may use 1,024" in problem["error"]


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("long second axis", "65,536 blocks on axis 1, at most 65,535"),
        ("computed grid", "65,536 blocks on axis 2, at most 65,535"),
        ("wrapped grid", "2,147,483,648 blocks in all, at most 2,147,483,647"),
    ],
)
def test_a_grid_that_no_launch_may_have_is_named_with_the_line_of_the_launch(
    events: Events, case: str, error: str
) -> None:
    sound, launch = launched(events, case)["kernels"]
    problem = launch["problem"]
    assert sound["built"] == "compiled" and (launch["built"], launch["name"]) == ("failed", "sound")
    assert (problem["kind"], problem["error"]) == ("resource", f"{error} on sm_90")
    assert problem["code"].startswith(f'"{case}": lambda: sound[') and "axis 0" in problem["hint"]


def test_the_longest_grids_and_empty_ones_may_be_launched(events: Events) -> None:
    for case in ("full second axis", "empty grid"):
        assert the_kernel(events, case)["built"] == "compiled"


def test_a_grid_that_cannot_be_computed_is_refused(events: Events) -> None:
    problem = launched(events, "no grid")["kernels"][-1]["problem"]
    assert problem["kind"] == "refused" and "'M'" in problem["error"]


def test_the_autotuner_does_not_pass_over_a_grid_that_is_too_large(events: Events) -> None:
    problems = [kernel["problem"] for kernel in launched(events, "tuned grid")["kernels"]]
    errors = {problem["error"] for problem in problems if problem}
    assert errors == {"70,000 blocks on axis 1, at most 65,535 on sm_90"}


@pytest.mark.parametrize(("case", "error"), [("option", "no_such_option"), ("argument", "'ptr'")])
def test_a_launch_that_triton_refuses_is_placed_where_it_is_made(events: Events, case: str, error: str) -> None:
    problem = the_kernel(events, case)["problem"]
    assert problem["kind"] == "refused" and error in problem["error"]
    assert problem["code"].startswith(f'"{case}": lambda: sound[(1,)]')


def test_what_compiles_tells_its_resources(events: Events) -> None:
    kernel = the_kernel(events, "sound")
    assert (kernel["built"], kernel["problem"], kernel["shared"], kernel["warps"]) == ("compiled", None, 0, 4)
    assert kernel["registers"] > 0 and kernel["spilled"] == 0 and kernel["seconds"] > 0
    assert the_kernel(events, "e4m3")["built"] == "compiled"  # sm_90 has the format


def test_equal_launches_are_one_kernel_compiled_once(events: Events) -> None:
    again = launched(events, "sound again")
    assert (again["launches"], again["compiled"]) == (3, 0)
    assert the_kernel(events, "sound again")["key"] == the_kernel(events, "sound")["key"]
    assert the_kernel(events, "broadcast again") == the_kernel(events, "broadcast")


def test_a_configuration_that_the_autotuner_passes_over_does_not_count(events: Events) -> None:
    entry = launched(events, "tuned")
    assert entry["compiled"] == 2
    assert [(kernel["built"], kernel["warps"]) for kernel in entry["kernels"]] == [("compiled", 4)]


def test_each_compilation_is_announced_before_and_after(events: Events) -> None:
    told = [(event["event"], event["key"]) for event in events if event["event"] != "case"]
    assert len(told) % 2 == 0
    for (before, key), (after, same) in zip(told[::2], told[1::2], strict=True):
        assert (before, after) == ("kernel", "built") and key == same
    first = next(event for event in events if event["event"] == "kernel")
    assert first["name"] == "broadcast" and first["place"].startswith("compile/planted.py:")
