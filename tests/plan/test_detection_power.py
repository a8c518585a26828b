"""What a scenario can see: calls counted as a rank makes them, and errors found as the judge finds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gpucheck.cli.app import app
from gpucheck.host import software
from gpucheck.library.engines import engine_copy
from gpucheck.plan import detection_power
from gpucheck.plan.scenario import Scenario, find, load

Make = Callable[[str], Scenario]


@pytest.fixture
def scenario(tmp_path: Path) -> Make:
    def made(text: str) -> Scenario:
        (tmp_path / "some.toml").write_text(text)
        return load(tmp_path / "some.toml")

    return made


def test_calls_are_counted_as_a_rank_makes_them(scenario: Make) -> None:
    usual = 'title = "t"\n[[cases]]\ncheck = "matmul"\nm = 8\nn = 8\nk = 8\ndata = "exact"\n'
    assert detection_power.calls(scenario(usual), "cpu").rows == {"matmul dense bf16": 2}, (
        "memory filled with FF, then with 00"
    )
    assert detection_power.calls(scenario(usual), "cuda").rows == {"matmul dense bf16": 4}, "and two of them timed"
    assert detection_power.calls(scenario(usual + "repeat = 8\n"), "cuda").all == 10
    assert detection_power.calls(scenario(usual + 'concurrency = 4\nplacement = "pinned"\n'), "cuda").all == 8, (
        "not timed"
    )
    both = scenario(usual + 'placement = ["pinned", "visible"]\n')
    assert (detection_power.calls(both, "cuda").all, detection_power.calls(both, "cpu").all) == (8, 2), (
        "one and the same on the CPU"
    )
    assert detection_power.calls(scenario(usual + 'expect = "fail"\n'), "cuda").all == 0
    quick = load(find("quick"))
    assert detection_power.calls(quick, "cpu").all < detection_power.calls(quick, "cuda").all == 4 * len(quick.steps), (
        "without the canary"
    )


def test_the_chance_is_that_of_at_least_one_wrong_call() -> None:
    assert detection_power.chance(0.01, 1) == pytest.approx(0.01)
    assert detection_power.chance(0.01, 3) == pytest.approx(1 - 0.99**3)
    assert detection_power.chance(0.5, 2) == pytest.approx(0.75)
    assert detection_power.chance(0.001, 0) == 0


@pytest.mark.parametrize("data", ["exact", "normal"])
@pytest.mark.parametrize("params", [{}, {"out": "fp32"}, {"weight": "fp8_e4m3"}, {"weight": "mxfp4"}])
def test_an_error_as_large_is_seen_and_a_smaller_one_is_not(params: dict[str, Any], data: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    from gpucheck import checks
    from gpucheck.verify import bounds
    from gpucheck.verify.judge import judge
    from gpucheck.verify.smallest_error import LEAST, least_uniform_error

    check = checks.load("matmul")
    case = check.spec.case({"m": 40, "n": 48, "k": 64, **params}, data, seed=1)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    with bounds.computed_by(bounds.ARITHMETIC["interpreter"]):
        expected = check.reference(case, inputs)
    least = least_uniform_error(expected)
    value, dtype = expected["y"].estimate.value, expected["y"].dtype

    def found(error: float) -> bool:
        output = bounds.round_to(dtype, value * (1 + error)).to(dtype)
        return bool(judge({"y": output}, expected, {}).mismatches)

    assert found(1.01 * least)
    assert least == pytest.approx(LEAST, rel=0.01) or not found(0.99 * least)


def test_each_format_is_told_with_the_case_that_shows_the_error(scenario: Make) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from gpucheck.verify.bounds import ARITHMETIC

    some = scenario(
        'title = "t"\n[[cases]]\ncheck = "matmul"\nweight = ["bf16", "fp8_e4m3"]\nm = 16\nn = 32\nk = 64\n'
        'data = ["exact", "normal", "wide"]\n[[cases]]\ncheck = "topk"\ndtype = "fp32"\nm = 4\nexperts = 8\ntop_k = 2\n'
        '[[cases]]\ncheck = "matmul"\nweight = "fp16"\nm = 4096\nn = 4096\nk = 4096\n'
    )
    by_device = {
        name: {(each.format, each.data): each for each in detection_power.sensitivities(some, "cuda", ARITHMETIC[name])}
        for name in ("sm_90", "sm_100")
    }
    for found in by_device.values():
        assert {*found} == {(kind, data) for kind in ("bf16", "fp8_e4m3") for data in ("exact", "normal")}
        assert all(each.case.startswith("matmul/dense/") and each.cases == 1 for each in found.values())
    hopper, blackwell = (found["fp8_e4m3", "normal"].error for found in by_device.values())
    assert 1e-3 < hopper < 2e-2 and blackwell < 1e-4
    assert by_device["sm_90"]["bf16", "normal"].error < 1e-4


def test_the_command_prints_the_figures_and_writes_them(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    path = tmp_path / "power.json"
    done = CliRunner().invoke(app, ["list", "--scenario", "quick", "--power", "--json", str(path)])
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text())
    calls = content["calls"]["rank"]
    assert sum(content["calls"]["rows"].values()) == calls == detection_power.calls(load(find("quick")), "cuda").all
    (percent, per_mille) = content["chances"]
    assert percent["rank"] == pytest.approx(1 - 0.99**calls) and per_mille["rank"] == pytest.approx(1 - 0.999**calls)
    (line,) = (line.split() for line in done.output.splitlines() if "whole scenario" in line)
    assert line[2:] == [str(calls), f"{percent['rank']:.2%}", f"{per_mille['rank']:.2%}"]
    assert {(each["format"], each["data"]) for each in content["errors"]} >= {("bf16", "exact"), ("mxfp4", "exact")}
    for each in content["errors"]:
        assert f"{each['error']:.1e}  {each['case']}" in done.output


def test_without_torch_the_chances_are_told_and_why_no_errors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "missing_packages", lambda: ["torch", "triton"])
    done = CliRunner().invoke(app, ["list", "--scenario", "smoke", "--power"])
    assert (
        done.exit_code == 0 and "this Python has no torch" in done.output and "with the bounds of interp" in done.output
    )
    content = json.loads(CliRunner().invoke(app, ["list", "--scenario", "smoke", "--power", "--json", "-"]).stdout)
    assert content["errors"] is None and content["chances"][0]["rank"] > 0.9


def test_cases_of_engines_count_where_one_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "missing_packages", lambda: ["torch", "triton"])  # chances need none
    rows = []
    for here in ([], [SimpleNamespace(name="vllm")]):
        monkeypatch.setattr(engine_copy, "installed_engines", lambda here=here: here)
        done = CliRunner().invoke(app, ["list", "--scenario", "gate", "--power"])
        rows.append([engine for engine in ("vllm_moe", "sglang_moe") if engine in done.output])
    assert rows == [[], ["vllm_moe"]]


JOINT = """title = "t"
[[cases]]
check = "collectives"
operation = ["all_reduce", "barrier"]
dtype = "int32"
n = 1
repeat = 3
[[cases]]
check = "softmax"
"""


def test_cases_that_ranks_run_together_count_for_two_ranks_or_more(tmp_path: Path, scenario: Make) -> None:
    scenario(JOINT)
    told = {}
    command = ["list", "--scenario", str(tmp_path / "some.toml"), "--power"]
    for ranks in ("1", "2", "8", ""):
        options = ["--nproc", ranks] if ranks else []
        path = tmp_path / f"{ranks}.json"
        done = CliRunner().invoke(app, [*command, *options, "--json", str(path)])
        assert done.exit_code == 0, done.output
        told[ranks] = done.output, json.loads(path.read_text())
    rows = {"collectives all_reduce": 3, "collectives barrier": 3}
    for ranks in ("2", "8", ""):
        text, content = told[ranks]
        assert rows.items() <= content["calls"]["rows"].items() and content["calls"]["together"] == 6
        assert f"6 of these calls are of cases that all ranks run together, counted for\n  {ranks or 2} ranks" in text
    text, content = told["1"]
    assert not rows.keys() & content["calls"]["rows"].keys() and content["calls"]["rank"] > 0
    assert (
        content["left_out"] == 2 and "for one rank: cases that two ranks or more run together are left out (2)" in text
    )


def test_the_scenario_of_ranks_together_has_power_and_tells_for_how_many_ranks() -> None:
    together = load(find("together"))
    assert detection_power.calls(together, "cpu").all > 2 * len(together.steps)
    assert detection_power.calls(together, "cpu", ranks=1).all == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--power"], "--power goes with --scenario"),
        (["--power", "--cases", "--scenario", "quick"], "without --cases"),
        (["--scenario", "quick", "--json", "-"], "--json goes with --power"),
        (["--scenario", "quick", "--cases", "--nproc", "2"], "--nproc goes with --power"),
        (["--power", "--scenario", "nowhere"], "unknown scenario"),
    ],
)
def test_wrong_options_are_told(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["list", *words])
    assert done.exit_code != 0 and told in (done.output + str(done.exception))
