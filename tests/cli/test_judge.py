"""``--judge``: what a run is judged by, from the option to the report in every format and the exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import jsonschema
import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.library.engines.engine_copy import EngineCopy
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import Plan, PlannedEngine, Step
from gpucheck.model.record import EnginePart, Outcome, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import read_run
from gpucheck.report import blocks
from gpucheck.report.formats import termination
from gpucheck.report.formats.json_schema import report_schema

if TYPE_CHECKING:
    from tests.cli.conftest import Answer, Command, FakeRanks
    from tests.conftest import Synthetic

SCENARIO = '[[cases]]\ncheck = "topk"\n'
WITH_ENGINE = SCENARIO + '[[cases]]\ncheck = "vllm_moe"\noptional = true\n'
TWINS = ["mxfp4 default k2880-n5760-e32"]
FACTS = (
    "the library reads outside of its tensors; vllm 0.33.0 computes mxfp4 default k2880-n5760 right on ranks 0, 1, "
    "held as up_scale: HOPPER_SCALE (32, 5760, 92): this pod serves right numbers"
)
VLLM = PlannedEngine(name="vllm", version="0.33.0", root="", packages="", origin="installed", installed=True)


# --- planning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(gpucheck: Command, ranks: FakeRanks, here: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a scenario on stand-in ranks, with an engine installed."""
    installed = [EngineCopy("vllm", "0.33.0", here, "installed", installed=True)]
    monkeypatch.setattr("gpucheck.library.engines.engine_option.installed_engines", lambda: installed)
    (here / "library.toml").write_text(SCENARIO)
    (here / "engine.toml").write_text(WITH_ENGINE)
    return lambda scenario, *options: gpucheck("run", scenario, "--library", library, "-q", *options)


@pytest.mark.parametrize(
    ("scenario", "options", "judge", "repeated"),
    [
        ("library.toml", [], "library", False),
        ("engine.toml", [], "engine", True),
        ("engine.toml", ["--engine", "none"], "library", False),
        ("engine.toml", ["--judge", "both"], "both", True),
        ("engine.toml", ["--judge", "library"], "library", True),
        ("library.toml", ["--judge", "engine"], "engine", True),
    ],
)
def test_by_default_it_is_the_engine_where_one_is_tested(
    run: Command, gpucheck: Command, ranks: FakeRanks, scenario: str, options: list[str], judge: str, repeated: bool
) -> None:
    assert run(scenario, *options).code == 0
    (plan,) = ranks.plans
    assert plan.judge == judge and Plan.from_json(json.loads(json.dumps(plan.to_json()))).judge == judge
    given = [plan.command[place + 1] for place, word in enumerate(plan.command) if word == "--judge"]
    assert given == [judge] * repeated
    assert gpucheck(*plan.command[1:], "-q", "--case", plan.steps[0].case.id).code == 0
    assert ranks.plans[1].judge == judge, "one case alone is judged as it was"


def test_anything_else_is_refused(run: Command, ranks: FakeRanks) -> None:
    answer = run("engine.toml", "--judge", "pod")
    assert answer.code == 2 and answer.message == "--judge is 'pod', expected one of library, engine, both"
    assert not ranks.plans


def test_plans_of_older_versions_are_judged_by_both(synthetic: Synthetic) -> None:
    item = synthetic.plan().to_json()
    del item["judge"]
    assert Plan.from_json(item).judge == "both"


# --- the report ------------------------------------------------------------------------------------------------------


def stored(synthetic: Synthetic, name: str, engine: Outcome = Outcome.PASS, judge: str = "engine") -> str:
    """A run of two ranks whose library reads outside and whose engine ends so; names its folder."""
    cases = [Case(check, {"m": 16}, "normal", f"{check}/m16/normal", check, 0) for check in ("matmul", "vllm_moe")]
    steps = (Step(cases[0]), Step(cases[1], Conditions(engine="vllm")))
    plan = synthetic.plan(ranks=2, steps=steps, engines=(VLLM,), judge=judge, created=1.0)
    reads: dict[str, Any] = {"outcome": Outcome.MISMATCH, "mismatches": [synthetic.mismatch()], "by_fill": True}
    reads |= {"violations": [Violation(ViolationKind.PASSES_DIFFER, "it is read outside")], "wrong": 1, "twins": TWINS}
    part = EnginePart("vllm", "0.33.0", "module", layouts=["up_scale: HOPPER_SCALE (32, 5760, 92)"])
    wrong = {"mismatches": [synthetic.mismatch()]} if engine is Outcome.MISMATCH else {}
    ends = {(0, rank): reads for rank in (0, 1)}
    ends |= {(1, rank): {"outcome": engine, "twins": TWINS, "engine": part, **wrong} for rank in (0, 1)}
    return str(synthetic.write(Path(name), synthetic.run(plan, ends)))


@pytest.fixture
def answer(gpucheck: Command, here: Path, synthetic: Synthetic) -> Answer:
    """The report of a healthy pod whose library alone is faulty."""
    names = ["r.json", "r.xml", "r.md", "r.prom", "r.html"]
    return gpucheck("report", stored(synthetic, "run"), *(part for name in names for part in ("--write", name)))


def test_a_healthy_pod_passes_with_a_warning(answer: Answer) -> None:
    first, *_ = answer.out.splitlines()
    assert answer.code == 0 and first == "PASS  2 cases on 2 ranks, 1 warning"
    assert re.search(r"vllm 0.33.0 · judged as vllm 0.33.0 serves it · seed 0", answer.out)
    assert "1  warning: access outside of tensors" in answer.out and f"   {FACTS}\n" in answer.out
    assert re.search(r"matmul +1 +xw xw\n", answer.out) and "xw failed, and only warns" in answer.out


def test_json(answer: Answer, here: Path) -> None:
    report = json.loads((here / "r.json").read_text())
    jsonschema.validate(report, report_schema())
    (finding,) = report["findings"]
    assert finding["judged"] == FACTS and finding["warns"] and not finding["fails"] and finding["accepted"] is None
    assert report["plan"]["judge"] == "engine" and report["verdict"] == "PASS"
    assert "judged as vllm 0.33.0 serves it" in report["headline"]
    assert [item["warned"] for item in report["results"]] == [True, True, False, False]
    assert report["rows"][0]["ranks"] == [{"failed and only warns": 1}] * 2


def test_other_formats(answer: Answer, here: Path) -> None:
    root = ElementTree.parse(here / "r.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("0", "0")
    assert [skip.get("message") for skip in root.iter("skipped")] == [FACTS, FACTS]
    assert FACTS[1:].replace("_", "\\_") in (here / "r.md").read_text() or FACTS[1:] in (here / "r.md").read_text()
    assert FACTS in (here / "r.html").read_text()
    assert 'gpucheck_warnings{scenario="smoke"} 1\n' in (here / "r.prom").read_text()
    assert 'outcome="failed and only warns"} 1\n' in (here / "r.prom").read_text()
    run = read_run(Path("run"))
    assert FACTS in termination.render(blocks.build(run, conclude(run)))


@pytest.mark.parametrize(
    ("engine", "judge", "code", "first"),
    [
        (Outcome.MISMATCH, "engine", 1, "FAIL  2 findings"),
        (Outcome.PASS, "both", 1, "FAIL  1 finding"),
        (Outcome.PASS, "library", 1, "FAIL  1 finding"),
        (Outcome.CRASH, "engine", 1, "FAIL  2 findings"),
    ],
)
def test_what_decides_fails(
    gpucheck: Command, here: Path, synthetic: Synthetic, engine: Outcome, judge: str, code: int, first: str
) -> None:
    answer = gpucheck("report", stored(synthetic, "run", engine, judge))
    assert (answer.code, answer.out.splitlines()[0]) == (code, first) and "xw" not in answer.out


def test_a_difference_of_two_runs_tells_what_only_warns(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    """What is served is the same; that the library is wrong is told."""
    answer = gpucheck("diff", stored(synthetic, "one", judge="both"), stored(synthetic, "two"))
    assert "PASS" in answer.out and "reads outside of its tensors; vllm 0.33.0 computes" in answer.out, answer.out


def test_a_search_goes_by_what_happened(here: Path, synthetic: Synthetic) -> None:
    from gpucheck.tools.bisect.observation import State, observe

    assert observe(Path(stored(synthetic, "run"))).state is State.FAILED
