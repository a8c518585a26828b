"""A toy placement, condition, experiment and cause that were added, and whether everything that asks one answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpucheck
from gpucheck.cli.listing import list_
from gpucheck.diagnose import causes, strategy
from gpucheck.diagnose.answers import answers
from gpucheck.diagnose.causes.race import unasked
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.experiment_list import EXPERIMENTS, Experiment, applicable
from gpucheck.diagnose.finding_cases import run_command
from gpucheck.diagnose.page import Cause
from gpucheck.model.conditions import Conditions, of_case, of_process, stated
from gpucheck.model.errors import UsageError
from gpucheck.model.placement_table import PLACEMENTS, Placement
from gpucheck.model.plan import Step
from gpucheck.model.record import Outcome, Record, Violation
from gpucheck.model.vocabulary import ExperimentName, ViolationKind
from gpucheck.plan import scenario
from gpucheck.plan.bind import bound_steps
from gpucheck.plan.scenario_conditions import conflict, needs_gpus
from gpucheck.plan.select import select
from gpucheck.records.run_folder import read_run
from gpucheck.report import blocks
from gpucheck.tools.replay.bundle import not_repeated
from gpucheck.tools.replay.replay_plan import repeated
from tests.conftest import Synthetic

SOURCES = Path(gpucheck.__file__).parent
TOY = Conditions("toy")
SCENARIO = """
title = "a toy"
[[cases]]
check = "softmax"
placement = ["pinned", "toy"]
data = "exact"
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a placement to the table."""

    def add(**properties: Any) -> None:
        monkeypatch.setitem(PLACEMENTS, "toy", Placement("toy", "as no server does it", **properties))

    return add


def read(tmp_path: Path) -> scenario.Scenario:
    path = tmp_path / "toy.toml"
    path.write_text(SCENARIO)
    return scenario.load(path)


def experiments(synthetic: Synthetic, outcome: Outcome = Outcome.MISMATCH) -> dict[str, Conditions]:
    plan = synthetic.plan(cases=1)
    return dict(applicable(synthetic.record(plan, 0, 1, outcome), TOY, "cuda", 2))


def test_a_scenario_an_option_and_a_plan_take_a_new_placement(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="placement is 'toy', expected one of pinned"):
        read(tmp_path)
    toy(without_gpus="threads")
    parsed = read(tmp_path)
    assert [step.conditions.placement for step in parsed.steps] == ["pinned", "toy"]
    (moved,) = select(parsed, placement="toy").steps
    assert moved.conditions == TOY and Step.from_json(moved.to_json()) == moved
    assert [step.conditions.placement for step in bound_steps(parsed, "cpu")] == ["cpu", "threads"]
    toy()
    _, none = bound_steps(parsed, "cpu")
    assert none.conditions == TOY and none.inapplicable == needs_gpus(TOY) == "placement toy needs GPUs"
    toy(in_scenarios=False)
    with pytest.raises(UsageError, match="--placement is 'toy', expected one of pinned"):
        select(parsed, placement="toy")


def test_what_goes_with_a_new_placement_follows_from_its_properties(toy: Any) -> None:
    side, several, warm = (
        Conditions("toy", stream="side"),
        Conditions("toy", concurrency=2),
        Conditions("toy", warm_up=True),
    )
    toy()
    assert (
        "a side stream" in conflict(side) and not conflict(several) and "goes with placement pinned" in conflict(warm)
    )
    assert not TOY.timed and not TOY.whole_node and TOY.words == "toy"
    toy(device_current=True)
    assert not conflict(side) and not conflict(warm) and TOY.timed
    toy(device_current=True, one_visible=True)
    assert conflict(warm) and TOY.timed
    toy(device_current=True, whole_node=True, usual=True)
    assert "takes concurrency 1" in conflict(several) and not TOY.timed and TOY.words == ""


def test_experiments_change_what_a_new_placement_is(toy: Any, synthetic: Synthetic) -> None:
    toy()
    made = experiments(synthetic)
    assert made["guarded"] == Conditions("toy", guarded=True) and made["visible"] == Conditions("visible")
    assert {"other rank", "alone"} <= {*made} and not {"other device", "one thread"} & {*made}
    toy(device_current=True)
    assert "other device" in experiments(synthetic) and "guarded" not in experiments(synthetic)
    toy(whole_node=True, threads=True)
    assert experiments(synthetic)["one thread"] == Conditions() and "other rank" not in experiments(synthetic)
    toy(one_visible=True)
    assert "visible" not in experiments(synthetic)


def test_a_report_names_a_new_placement_in_its_row_and_in_the_command_that_repeats(
    toy: Any, synthetic: Synthetic
) -> None:
    toy(context_on_0=True)
    plan = synthetic.plan(cases=1, ranks=2)
    plan = synthetic.plan(cases=1, ranks=2, steps=(Step(plan.steps[0].case, TOY),))
    message = "ValueError: Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)"
    record = synthetic.record(plan, 0, 1, Outcome.ERROR, message=message, placement="toy", launches=[])
    run = synthetic.run(plan, {(0, 1): record})
    report = blocks.build(run, conclude(run))
    assert [finding.cause for finding in report.findings] == ["wrong device context"]
    assert "--placement toy" in run_command(run, 0) and "(toy)" in plan.steps[0].row
    toy()
    assert [finding.cause for finding in conclude(run).findings] != ["wrong device context"]


def test_a_reproduction_says_that_it_does_not_hold_the_gpu_so(toy: Any) -> None:
    toy()
    assert not_repeated(TOY) == "placement toy"
    toy(scripted=True)
    assert not_repeated(TOY) == ""


def test_a_case_under_a_new_placement_is_replayed_and_the_placement_is_listed(
    toy: Any, synthetic: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    toy()
    plan = synthetic.plan(cases=1)
    plan = synthetic.plan(cases=1, steps=(Step(plan.steps[0].case, TOY),))
    copy: Any = SimpleNamespace(root="/", package="/")
    (step,) = repeated(plan, 0, 0, copy, save=False, timeout=None).steps
    assert (step.case.id, step.conditions) == (plan.steps[0].case.id, TOY)
    list_()
    assert "toy                 as no server does it" in capsys.readouterr().out


def test_a_placement_of_another_version_is_read_and_shown_but_not_run(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1)
    plan = synthetic.plan(cases=1, steps=(Step(plan.steps[0].case, TOY),))
    assert plan.steps[0].label == "matmul/0/exact (toy)" and not_repeated(TOY) == "placement toy"
    assert Record.from_json(synthetic.record(plan, 0, 0, placement="toy").to_json()).placement == "toy"
    with pytest.raises(UsageError, match="placement toy, which this gpucheck lacks"):
        repeated(plan, 0, 0, SimpleNamespace(root="/", package="/"), save=False, timeout=None)  # type: ignore[arg-type]


def test_a_process_takes_the_form_of_a_new_placement(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from gpucheck.worker.device import child, gpu_process, placements
    from gpucheck.worker.protocol import Setup

    class Cpu(placements.Cpu):
        """Stands in for a GPU."""

    monkeypatch.setitem(placements.BINDINGS, "toy", Cpu)
    monkeypatch.setattr("gpucheck.worker.device.launch_observer.Observer.install_compiled", lambda self: None)
    monkeypatch.setattr("gpucheck.triton_hooks.resource_limits.install", lambda: None)
    monkeypatch.setenv(child.DEVICE, "")  # which a child sets for itself, and tests after this one would inherit
    setup = Setup(TOY, "cuda", 0, 2, 0, 2, str(tmp_path), "v3.5", "", str(tmp_path / "journal"))
    forms = {
        gpu_process.OneDevice: {},
        gpu_process.ThreadPerDevice: {"whole_node": True, "threads": True},
        gpu_process.DeviceByDevice: {"whole_node": True},
    }
    for form, properties in forms.items():
        toy(**properties)
        process = child.start(setup)
        assert type(process) is form


def test_nothing_knows_a_placement_by_its_name_but_its_row_and_what_places() -> None:
    hidden = re.compile(r"""(?<!for )placement(\.startswith|\.endswith| (==|!=|in|not in) [("'])""")
    found = [str(path) for path in SOURCES.rglob("*.py") if hidden.search(path.read_text(encoding="utf-8"))]
    assert not found, "a property of a placement belongs into its row in the table of placements"
    assert hidden.search('placement.startswith("threads")') and hidden.search('x.placement in ("a", "b")')


@stated
@dataclass(frozen=True)
class OfProcess(Conditions):
    toy: str = of_process("", "toy {}")


@stated
@dataclass(frozen=True)
class OfCase(Conditions):
    toy: str = of_case("", "toy {}")


def test_a_condition_that_does_not_say_whether_it_is_of_the_process_is_an_error_at_import() -> None:
    @dataclass(frozen=True)
    class Silent(Conditions):
        toy: str = ""

    with pytest.raises(TypeError, match="Silent: toy must be made by of_process"):
        stated(Silent)
    assert stated(Conditions) is Conditions


@pytest.mark.parametrize(("kind", "children"), [(OfProcess, 3), (OfCase, 1)])
def test_a_child_is_reused_under_a_new_condition_only_where_each_case_has_it_anew(
    synthetic: Synthetic, tmp_path: Path, kind: Any, children: int
) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from tests.worker.supervisor.test_child_runner import Children, make

    plan = synthetic.plan(cases=1, ranks=2)
    started = Children()
    runner = make(plan, tmp_path / "s", started)
    for toy in ("", "a", "a", "b"):
        assert runner.run(0, replace(plan.steps[0], conditions=kind(toy=toy))).reply
    assert [request.conditions.toy for request in started.requests] == ["", "a", "a", "b"]  # type: ignore[attr-defined]
    assert len(started.setups) == children


@pytest.mark.parametrize("kind", [OfProcess, OfCase])
def test_a_new_condition_is_written_told_and_never_timed(synthetic: Synthetic, kind: Any) -> None:
    toy = kind(toy="a", repeat=3)
    assert kind.from_json(json.loads(json.dumps(toy.to_json()))) == toy and kind.from_json({}) == kind()
    assert toy.words == "toy a, x3" and kind().words == "" and not toy.timed
    assert not_repeated(toy) == "toy a"
    plan = synthetic.plan(cases=1)
    assert Step(plan.steps[0].case, toy).row.endswith("(toy a)") and Step(plan.steps[0].case, toy).label.endswith("x3)")
    assert toy.lifelong == (kind(toy="a") if kind is OfProcess else kind())


NEW = ExperimentName("with a toy")
PROCESSES = 8  # of an experiment: what all of them show is no luck


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds an experiment to the table."""

    def add(**properties: Any) -> None:
        change = properties.pop("change", lambda conditions: replace(conditions, late=True))
        monkeypatch.setitem(EXPERIMENTS, NEW, Experiment(NEW, "while a toy is there", change, **properties))

    return add


def offered(synthetic: Synthetic, outcome: Outcome, device: str = "cuda", ranks: int = 2, **changes: Any) -> bool:
    plan = synthetic.plan(cases=1)
    return NEW in dict(applicable(synthetic.record(plan, 0, 0, outcome, **changes), Conditions(), device, ranks))


def test_what_an_experiment_settles_is_asked_by_the_rule_of_a_cause() -> None:
    """Else a case that it makes right stays undetermined."""
    rules = "".join(path.read_text() for path in (SOURCES / "diagnose" / "causes").glob("*.py"))
    settling = [experiment.name for experiment in EXPERIMENTS.values() if experiment.settles]
    assert settling and not [name for name in settling if f"separates(ExperimentName.{name.name})" not in rules]


def test_a_new_experiment_is_offered_where_its_row_says(added: Any, synthetic: Synthetic) -> None:
    differ = {"violations": [Violation(ViolationKind.REPEATS_DIFFER, "x")]}
    added()
    assert offered(synthetic, Outcome.MISMATCH) and not offered(synthetic, Outcome.HANG)
    assert offered(synthetic, Outcome.VIOLATION, **differ) and not offered(synthetic, Outcome.VIOLATION)
    added(outcomes=(Outcome.HANG,), violations=(), needs_gpu=True)
    assert offered(synthetic, Outcome.HANG) and not offered(synthetic, Outcome.HANG, "cpu")
    assert not offered(synthetic, Outcome.MISMATCH) and not offered(synthetic, Outcome.VIOLATION, **differ)
    for apart in ("lends", "alone"):
        added(**{apart: True})
        assert offered(synthetic, Outcome.MISMATCH) and not offered(synthetic, Outcome.MISMATCH, ranks=1)
    added(change=lambda conditions: None)
    assert not offered(synthetic, Outcome.MISMATCH)


def tried(synthetic: Synthetic, outcome: Outcome, name: ExperimentName = NEW) -> Any:
    """A run whose case failed every time, and once ended so in a new experiment."""
    plan = synthetic.plan(cases=1)
    wrong = synthetic.record(plan, 0, 0, Outcome.MISMATCH, asked=8)
    run = synthetic.run(plan, {(0, 0): wrong})
    again = [replace(wrong, experiment=ExperimentName.REPEAT)] * PROCESSES
    made = [replace(synthetic.record(plan, 0, 0, outcome, asked=8), experiment=name)] * PROCESSES
    run.experiments[0, 0] = {ExperimentName.REPEAT: again, name: made}
    return run


def test_a_new_experiment_is_told_in_a_report_whatever_it_answered(added: Any, synthetic: Synthetic) -> None:
    added()
    for outcome, word in ((Outcome.PASS, "right"), (Outcome.MISMATCH, "wrong")):
        (finding,) = conclude(tried(synthetic, outcome)).findings
        assert f"{word} while a toy is there ({PROCESSES} processes)" in "; ".join(finding.evidence), finding.evidence


def test_what_a_new_experiment_means_for_a_cause_follows_from_its_row(added: Any, synthetic: Synthetic) -> None:
    right = tried(synthetic, Outcome.PASS)
    possible = frozenset({ExperimentName.REPEAT, NEW})

    def seen() -> Any:
        return answers(right, right.records[0, 0])

    added()
    assert not strategy.settled(seen(), possible) and NEW not in unasked(right, seen())
    added(settles=True, before_race=True)
    assert strategy.settled(seen(), possible) and NEW in unasked(right, seen())


def test_an_experiment_of_another_version_is_read_and_told_of_by_nobody(synthetic: Synthetic, tmp_path: Path) -> None:
    run = read_run(synthetic.write(tmp_path / "run", tried(synthetic, Outcome.PASS)))
    assert [*run.experiments[0, 0]] == [ExperimentName.REPEAT, NEW] and not NEW.known
    (finding,) = conclude(run).findings
    assert not [line for line in finding.evidence if "toy" in line] and blocks.build(run, conclude(run))


@pytest.mark.parametrize("alone", [False, True])
def test_a_rank_makes_a_new_experiment_in_processes_of_its_own(
    added: Any, synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from gpucheck.worker.supervisor import judging
    from tests.worker.supervisor.test_experiments import FakeRank, work

    monkeypatch.setattr(judging, "finished", lambda store, attempt: attempt)
    added(alone=alone)
    fake, plan = FakeRank(), synthetic.plan(cases=1, ranks=2, device="cpu", experiments=30.0)
    names = work(fake, plan, [synthetic.record(plan, 0, 1, Outcome.MISMATCH)])
    first, step = names.index(NEW), next(words for _, name, words in fake.ran if name == NEW)
    assert step.startswith("late") and "repeat" in names[:first]
    begin = fake.events.index(f"begin 0 {NEW}")
    assert fake.events[begin - 1] == "retire" and ("alone" in fake.events[:begin]) == alone


CAUSE = '''"""Calls that a toy disturbs."""

from gpucheck.diagnose.causes.common import Evidence
from gpucheck.diagnose.page import Cause

TOY = Cause("a toy", means="It is there.", shows="Rarely.", confirm="Look under the bed.", fix="Put it away.")
CAUSES = (TOY,)


def recognise(run, record):
    """Says so itself."""
    return Evidence(TOY, "under the bed") if "toy" in record.message else None
'''


def printed(folder: Path, *arguments: str) -> str:
    """What the gpucheck of a folder prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "gpucheck", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_a_new_cause_is_one_file_and_one_line_and_everything_that_speaks_of_causes_knows_it(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    shutil.copytree(SOURCES, tmp_path / "gpucheck", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "gpucheck" / "diagnose" / "causes"
    registry = (folder / "__init__.py").read_text()
    assert registry.count("ASKED = (\n") == 1
    (folder / "toy.py").write_text(CAUSE)
    (folder / "__init__.py").write_text(registry.replace("ASKED = (\n", 'ASKED = (\n    "toy",\n'))
    plan = synthetic.plan(cases=1)
    error = synthetic.record(plan, 0, 0, Outcome.ERROR, message="RuntimeError: a toy lay there")
    run = synthetic.write(tmp_path / "run", synthetic.run(plan, {(0, 0): error}))
    (tmp_path / "toy.toml").write_text(
        SCENARIO.replace('"pinned", "toy"', '"pinned"') + 'expect = "fail"\ncause = "a toy"\n'
    )

    said = partial(printed, tmp_path)
    assert said("explain").splitlines()[:2] == ["a toy", "  It is there."]
    assert "Look under the bed." in said("explain", "A toy: under the bed")
    text = said("report", str(run), "--json", "report.json", "--write", "report.html", "--write", "report.md")
    assert "a toy: under the bed" in text and "Put it away." in text and "gpucheck explain 'a toy'" in text
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert (finding["cause"], finding["title"]) == ("a toy", "a toy: under the bed")
    page = (tmp_path / "report.html").read_text()
    assert "a toy: under the bed" in page and "Look under the bed." in page
    assert "a toy: under the bed" in (tmp_path / "report.md").read_text()
    assert "softmax" in said("list", "--cases", "--scenario", "toy.toml")


def test_each_file_of_causes_is_asked() -> None:
    files = {path.stem for path in (SOURCES / "diagnose" / "causes").glob("*.py")} - {"__init__", "common"}
    assert files == {*causes.ASKED, *causes.WARNING} and len(causes.CAUSES) >= len(files) - 1
    for file in (*causes.RULES, *causes.WARNINGS):
        assert file.CAUSES and all(causes.CAUSES[cause.title] is cause for cause in file.CAUSES)
        stated = [value for value in vars(file).values() if isinstance(value, Cause)]
        assert not [cause.title for cause in stated if cause.title not in causes.CAUSES], "explain has no page on it"


KNOWN = """
[[fault]]
id = "toy-under-the-bed"
title = "a toy rolls under the bed"
means = "It is round."
shows = "It is gone."
workaround = "a box"
upstream = ["toys/ball#7"]
good = ["ball 2.0"]
[[fault.fits]]
message = "a toy lay"
[[fault.proof]]
shows = "right alone"
run = ["--nproc", "1"]
"""


def test_a_new_known_fault_is_one_entry_and_every_report_tells_it(synthetic: Synthetic, tmp_path: Path) -> None:
    shutil.copytree(SOURCES, tmp_path / "gpucheck", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "gpucheck" / "diagnose" / "known_faults.toml", "a", encoding="utf-8") as table:
        table.write(KNOWN)
    plan = synthetic.plan(cases=2, ranks=2)
    records = {
        (0, 1): synthetic.record(plan, 0, 1, Outcome.ERROR, message="RuntimeError: a toy lay there"),
        (1, 1): synthetic.record(plan, 1, 1, Outcome.ERROR, message="RuntimeError: a toy stood there"),
    }
    synthetic.write(tmp_path / "run", synthetic.run(plan, records))

    said = partial(printed, tmp_path)
    assert "\n  toy-under-the-bed  a toy rolls under the bed\n" in said("explain")
    assert "It is round." in said("explain", "toy-under-the-bed")
    files = [tmp_path / f"report.{suffix}" for suffix in ("json", "md", "html", "xml")]
    text = said("report", "run", *(part for file in files for part in ("--write", str(file))))
    assert (
        "known   toy-under-the-bed: a toy rolls under the bed (toys/ball#7)" in text and "fixed   in ball 2.0" in text
    )
    proof = "gpucheck run smoke --seed 0 --nproc 1 --case matmul/0/exact"
    assert f"prove   right alone: {proof}" in text
    findings = json.loads(files[0].read_text())["findings"]
    assert [[known["id"] for known in finding["known"]] for finding in findings] == [["toy-under-the-bed"], []]
    for file in files[1:]:
        shown = file.read_text()
        assert shown.count("toys/ball") == 1 and proof in shown.replace("\\", ""), file
