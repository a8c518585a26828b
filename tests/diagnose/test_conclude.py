from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpucheck import checks
from gpucheck.cli.app import app
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.finding_cases import replay_command, run_command
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.finding import Finding
from gpucheck.model.plan import Step
from gpucheck.model.record import Launch, Outcome, Verdict, Violation
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.run_folder import Run, Tally, read_run
from tests.conftest import Synthetic

FAIL, OPEN, PASS = Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS


def titles(findings: list[Finding]) -> list[str]:
    return [finding.title for finding in findings]


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_all_passed(synthetic: Synthetic, ranks: int) -> None:
    conclusion = conclude(synthetic.run(synthetic.plan(cases=3, ranks=ranks)))
    assert (conclusion.verdict, conclusion.findings, conclusion.notes) == (PASS, [], [])


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome.MISMATCH, FAIL),
        (Outcome.VIOLATION, FAIL),
        (Outcome.ERROR, FAIL),
        (Outcome.CRASH, FAIL),
        (Outcome.HANG, FAIL),
        (Outcome.LOST, OPEN),
        (Outcome.HARNESS, OPEN),
        (Outcome.INAPPLICABLE, OPEN),
    ],
)
def test_one_cell_decides(synthetic: Synthetic, outcome: Outcome, verdict: Verdict, step: int, rank: int) -> None:
    """One bad cell among twelve good ones, wherever it is."""
    conclusion = conclude(synthetic.run(synthetic.plan(cases=3, ranks=4), {(step, rank): outcome}))
    assert conclusion.verdict is verdict
    (finding,) = conclusion.findings
    assert finding.fails is (verdict is FAIL) and finding.ranks == [rank] and finding.rows == [f"matmul row{step}"]
    (failed_case,) = finding.cases
    assert (failed_case.case, failed_case.ranks) == (f"matmul/{step}/exact", [rank])
    assert failed_case.replay == f"gpucheck replay runs/x matmul/{step}/exact --rank {rank}"


def test_every_outcome_but_pass_keeps_a_run_from_passing(synthetic: Synthetic) -> None:
    """Guards against an outcome that is added to the model and forgotten here."""
    for outcome in Outcome:
        verdict = conclude(synthetic.run(synthetic.plan(), {(1, 0): outcome})).verdict
        assert (verdict is PASS) == (outcome is Outcome.PASS)


@pytest.mark.parametrize("gap", ["rank", "line", "last line torn"])
def test_a_missing_record_is_never_a_pass(synthetic: Synthetic, tmp_path: Path, gap: str) -> None:
    folder = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=3, ranks=2)))
    assert conclude(read_run(folder)).verdict is PASS
    path = folder / "records" / "rank-00001.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    results = [i for i, line in enumerate(lines) if '"result"' in line]
    if gap == "rank":
        path.unlink()
    elif gap == "line":
        path.write_text("".join(lines[: results[1]] + lines[results[1] + 1 :]))
    else:
        path.write_text("".join(lines[: results[2]]) + lines[results[2]][:-30])
    conclusion = conclude(read_run(folder))
    assert conclusion.verdict is OPEN and titles(conclusion.findings) == ["lost"]
    assert conclusion.findings[0].ranks == [1] and "logs/" in conclusion.findings[0].fix


def test_a_failure_weighs_more_than_what_is_lost(synthetic: Synthetic) -> None:
    outcomes = {(0, 0): Outcome.LOST, (1, 1): Outcome.HARNESS, (2, 1): Outcome.MISMATCH}
    conclusion = conclude(synthetic.run(synthetic.plan(cases=3, ranks=2), outcomes))
    assert conclusion.verdict is FAIL
    assert [finding.fails for finding in conclusion.findings] == [True, False, False]  # failures first


def test_nothing_ran(synthetic: Synthetic) -> None:
    for optional in ([], [0, 1]):
        plan = synthetic.plan(cases=2, ranks=2, optional=optional)
        outcomes = {(step, rank): Outcome.INAPPLICABLE for step in range(2) for rank in range(2)}
        assert conclude(synthetic.run(plan, outcomes)).verdict is Verdict.NOTHING_RAN
    assert conclude(synthetic.run(synthetic.plan(cases=0))).verdict is Verdict.NOTHING_RAN
    lost = conclude(synthetic.run(synthetic.plan(cases=2), {(0, 0): Outcome.INAPPLICABLE, (1, 0): Outcome.LOST}))
    assert lost.verdict is OPEN


def test_optional_cases_may_be_inapplicable_and_say_so(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=3, ranks=2, optional=[1, 2])
    reason = "needs Triton 3.7"
    refused = {"outcome": Outcome.INAPPLICABLE, "message": reason}
    conclusion = conclude(synthetic.run(plan, {(1, 0): refused, (1, 1): refused}))
    assert conclusion.verdict is PASS and conclusion.findings == []
    assert conclusion.notes == [f"1 optional case(s) inapplicable: {reason} (matmul/1/exact)"]


def test_optional_excuses_nothing_else(synthetic: Synthetic) -> None:
    for outcome in set(Outcome) - {Outcome.PASS, Outcome.INAPPLICABLE}:
        run = synthetic.run(synthetic.plan(cases=2, optional=[1]), {(1, 0): outcome})
        assert conclude(run).verdict is not PASS


def test_an_inapplicable_case_that_is_not_optional_leaves_the_verdict_open(synthetic: Synthetic) -> None:
    conclusion = conclude(synthetic.run(synthetic.plan(cases=2, optional=[0]), {(1, 0): Outcome.INAPPLICABLE}))
    assert conclusion.verdict is OPEN and "optional" in conclusion.findings[0].fix


def test_a_rank_on_which_nothing_was_judged_proves_nothing(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, ranks=3, optional=[0, 1])
    outcomes = {(step, 2): Outcome.INAPPLICABLE for step in range(2)}
    conclusion = conclude(synthetic.run(plan, outcomes))
    assert conclusion.verdict is OPEN and conclusion.findings[0].ranks == [2]
    outcomes.pop((0, 2))
    assert titles(conclude(synthetic.run(plan, outcomes)).findings) == ["judged on some ranks only"]


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ({"code": 1}, "exit code 1"),
        ({"code": -9}, "exit code -9"),
        ({"code": None, "timed_out": True, "seconds": 600.0}, "stopped after 600 s"),
        ({"code": None, "signal": 2}, "signal 2"),
        ({"code": None, "stuck": "torchrun did not end"}, "torchrun did not end; it was killed"),
    ],
)
def test_a_launcher_that_did_not_end_well_is_no_pass(synthetic: Synthetic, ending: dict[str, Any], words: str) -> None:
    plan = synthetic.plan()
    conclusion = conclude(synthetic.run(plan, **ending))
    assert conclusion.verdict is OPEN and words in conclusion.findings[0].cases[0].lines[0]
    assert conclude(synthetic.run(plan, {(0, 0): Outcome.CRASH}, **ending)).verdict is FAIL


def test_a_run_that_has_not_ended_is_no_pass(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan()), outcome=False)
    conclusion = conclude(read_run(folder))
    assert conclusion.verdict is OPEN and "outcome.json is missing" in conclusion.findings[0].cases[0].lines[0]


def test_changed_software_leaves_the_verdict_open(synthetic: Synthetic) -> None:
    changes = ["torch changed during the run: was a, is b"]
    conclusion = conclude(synthetic.run(synthetic.plan(), changes=changes))
    assert conclusion.verdict is OPEN and conclusion.findings[0].cases[0].lines == changes
    failed = conclude(synthetic.run(synthetic.plan(), {(0, 0): Outcome.MISMATCH}, changes=changes))
    assert failed.verdict is FAIL and len(failed.findings) == 2


def test_ranks_that_fail_alike_are_one_finding(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=3, ranks=8)
    outcomes = {(step, rank): Outcome.MISMATCH for step in (0, 1) for rank in range(1, 8)}
    conclusion = conclude(synthetic.run(plan, outcomes))
    (finding,) = conclusion.findings
    assert (finding.rows, finding.ranks) == (["matmul row0", "matmul row1"], list(range(1, 8)))
    assert [failed_case.case for failed_case in finding.cases] == ["matmul/0/exact", "matmul/1/exact"]
    other = conclude(synthetic.run(plan, {**outcomes, (0, 7): Outcome.CRASH}))
    assert [(f.title, f.rows, f.ranks) for f in other.findings] == [
        ("undetermined: wrong output", ["matmul row0"], list(range(1, 7))),
        ("undetermined: wrong output", ["matmul row1"], list(range(1, 8))),
        ("crash", ["matmul row0"], [7]),
    ]


def test_open_findings_of_several_rows_are_told_once(synthetic: Synthetic) -> None:
    outcomes = {(step, rank): Outcome.LOST for step in range(3) for rank in (0, 1)}
    conclusion = conclude(synthetic.run(synthetic.plan(cases=3, ranks=3), outcomes))
    (finding,) = conclusion.findings
    assert finding.rows == ["matmul row0", "matmul row1", "matmul row2"] and len(finding.cases) == 3


def test_lines_that_only_some_ranks_say_are_led_by_them(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=4)
    one = [Violation("guard", "both")]
    found = {1: one, 2: [*one, Violation("x", "y")], 3: [*one, Violation("x", "y")]}
    ends = {(0, rank): {"outcome": Outcome.VIOLATION, "violations": each} for rank, each in found.items()}
    (finding,) = conclude(synthetic.run(plan, ends)).findings
    assert finding.cases[0].lines == ["guard: both", "ranks 2, 3: x: y", "rank 0 clean"]


def test_placements_show_in_the_case_of_a_finding(synthetic: Synthetic) -> None:
    run = synthetic.run(
        synthetic.plan(cases=1, under=[Conditions(), Conditions("visible")]), {(1, 0): Outcome.MISMATCH}
    )
    assert conclude(run).findings[0].cases[0].case == "matmul/0/exact (visible)"


@pytest.mark.parametrize(
    ("message", "title", "fix"),
    [
        ("UsageError: hard.py changed", "check that cannot be used", "check"),
        ("no device: UnusableGpu: torch cannot use GPU 0: old", "a GPU that torch cannot use", "gpucheck doctor"),
    ],
)
def test_what_hinders_gpucheck_leaves_the_verdict_open_under_a_name_of_its_own(
    synthetic: Synthetic, message: str, title: str, fix: str
) -> None:
    end = {"outcome": Outcome.HARNESS, "message": message}
    conclusion = conclude(synthetic.run(synthetic.plan(cases=1), {(0, 0): end}))
    (finding,) = conclusion.findings
    assert (conclusion.verdict, finding.title) == (OPEN, title)
    assert fix in finding.fix and message in finding.cases[0].lines


def test_a_case_that_passed_on_the_cpu_in_a_run_on_gpus_leaves_the_verdict_open(synthetic: Synthetic) -> None:
    conclusion = conclude(synthetic.run(synthetic.plan(cases=1, ranks=2, device="cuda"), {(0, 1): {"device": "cpu"}}))
    assert conclusion.verdict is OPEN and conclusion.findings[0].ranks == [1]


def test_what_a_process_printed_and_its_log_are_told(synthetic: Synthetic) -> None:
    end = {"outcome": Outcome.CRASH, "message": "ended with exit code 7", "said": ["why"], "log": "logs/0/stderr.log"}
    lines = conclude(synthetic.run(synthetic.plan(cases=1), {(0, 0): end})).findings[0].cases[0].lines
    assert lines[:3] == ["ended with exit code 7", "printed  why", "log      logs/0/stderr.log"]


def test_what_a_launcher_printed_that_failed_is_told(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    run.outcome.update(code=1, said=["RendezvousTimeoutError: node 1 never came"])
    (shown,) = [finding for finding in conclude(run).findings if "did not end well" in finding.title]
    assert "printed  RendezvousTimeoutError: node 1 never came" in shown.cases[0].lines


def test_speed_is_the_median_of_the_ranks_that_measured_it(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=4)
    speeds = [{"candidate": 0.001, "reference": 0.003}, {"candidate": 0.002, "reference": 0.008}]
    speeds += [{"candidate": 0.009, "reference": 0.004}, {}]
    ends = {(0, rank): {"timings": speed} for rank, speed in enumerate(speeds)}
    (note,) = conclude(synthetic.run(plan, ends)).notes
    assert note == "matmul: 2.000 ms a call, Model in torch 4.000 ms: 2.0 times as fast (median of 3)"


def test_replay_names_conditions_where_the_id_alone_would_not_do(synthetic: Synthetic) -> None:
    late = Conditions("peer", late=True)
    run = synthetic.run(synthetic.plan(cases=1, under=[late]))
    assert replay_command(run, 0, 1) == "gpucheck replay runs/x matmul/0/exact --rank 1"
    moved = replace(run, folder=Path("my runs/x"))
    assert replay_command(moved, 0, 3) == "gpucheck replay 'my runs/x' matmul/0/exact --rank 3"
    run = synthetic.run(synthetic.plan(cases=1, under=[Conditions(), late]))
    assert replay_command(run, 1, 1) == "gpucheck replay runs/x 'matmul/0/exact (peer, late)' --rank 1"
    assert replay_command(run, 0, 1) == "gpucheck replay runs/x matmul/0/exact --rank 1"


def test_what_several_nodes_ran_together_is_run_again_by_all_of_them(synthetic: Synthetic) -> None:
    """A replay has the ranks of one node; the command that is named instead is one that gpucheck takes."""
    check = checks.load("collectives")
    case = check.spec.case({"operation": "barrier", "dtype": "int32", "n": 1}, "exact", 0)
    step = Step(case, Conditions(process_group=TOGETHER))
    command = ["gpucheck", "run", "together", "--nproc", "2", "--seed", "0", "--device", "cpu"]
    run = synthetic.run(synthetic.plan(ranks=2, nnodes=2, steps=(step,), command=command))
    words = shlex.split(replay_command(run, 0, 3))
    assert words[-6:] == ["--nnodes", "2", "--node-rank", "NUMBER", "--rdzv-endpoint", "HOST:PORT"]
    given = [{"NUMBER": "1", "HOST:PORT": "node:29500"}.get(word, word) for word in words[1:]]
    done = CliRunner().invoke(app, [*given, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [case.id, "1 cases of together on 4 rank(s), cpu, seed 0"]
    one = synthetic.run(synthetic.plan(ranks=2, steps=(step,)))
    assert replay_command(one, 0, 1).startswith("gpucheck replay ")


def test_a_run_of_a_case_leaves_out_the_candidates_of_other_checks(synthetic: Synthetic) -> None:
    sources = [
        CheckSource(SourceKind.PROBLEM, (name,), ("/p.py", f"/{name}.py"), ("1", "2")) for name in ("matmul", "other")
    ]
    options = [word for source in sources for word in source.options]
    plan = synthetic.plan(check_sources=tuple(sources), command=["gpucheck", "run", *options, "--seed", "0"])
    words = "gpucheck run --problem /p.py --candidate /matmul.py --seed 0 --case matmul/0/exact"
    assert run_command(synthetic.run(plan), 0) == words
    plan = replace(plan, command=["gpucheck", "run", "mine.toml", *options])
    assert "/other.py" in run_command(synthetic.run(plan), 0), "the scenario names its check"


def test_a_run_of_a_case_names_an_unusual_placement_once(synthetic: Synthetic) -> None:
    for asked in ([], ["--placement", "peer"]):
        command = ["gpucheck", "run", "x", *asked]
        run = synthetic.run(synthetic.plan(cases=1, under=[Conditions("peer")], command=command))
        assert run_command(run, 0) == "gpucheck run x --placement peer --case matmul/0/exact"


def test_torn_lines_are_noted(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan())
    run.torn = 2
    assert conclude(run).notes == ["2 record line(s) could not be read or do not belong to this plan"]


def test_victims_are_told_apart_from_the_rank_that_took_them_down(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=3)
    ends = {
        (0, 0): {"outcome": Outcome.LOST, "message": "torchrun ended it", "victim_of": 1},
        (0, 1): Outcome.LOST,
        (0, 2): {"outcome": Outcome.HARNESS, "message": "the first rank has ended", "victim_of": 1},
    }
    conclusion = conclude(synthetic.run(plan, ends, code=1))
    assert conclusion.verdict is OPEN
    assert [(f.title, f.ranks) for f in conclusion.findings[:2]] == [("victim of another rank", [0, 2]), ("lost", [1])]


class TestDriver:
    """Messages of the driver beside what failed."""

    def conclude(self, synthetic: Synthetic, outcomes: Mapping[Any, Any], *driver: dict[str, Any]) -> Any:
        run = synthetic.run(synthetic.plan(cases=1, ranks=2), outcomes)
        run.driver = list(driver)
        return conclude(run)

    def test_of_the_gpu_of_a_failed_rank_are_evidence(self, synthetic: Synthetic) -> None:
        xids = [{"rank": rank, "text": f"NVRM: Xid of {rank}"} for rank in (0, 1)]
        conclusion = self.conclude(synthetic, {(0, 1): Outcome.CRASH}, *xids)
        (finding,) = conclusion.findings
        assert finding.driver == ["NVRM: Xid of 1"]
        assert conclusion.notes == ["GPU of rank 0: NVRM: Xid of 0"]

    @pytest.mark.parametrize(
        ("pids", "beside"),
        [([70, 99], ([0], [])), ([71, 70], ([1], [0])), ([72, 99], ([], [0])), ([98, 99], ([0, 1], [0, 1]))],
        ids=["another program", "each its own", "an experiment", "in a container, which hides them"],
    )
    def test_that_name_a_process_of_the_run_are_about_what_it_ran(
        self, synthetic: Synthetic, pids: list[int], beside: tuple[list[int], list[int]]
    ) -> None:
        plan = synthetic.plan(cases=2, ranks=1)
        crashes = {(step, 0): {"outcome": Outcome.CRASH, "pid": 70 + step} for step in range(2)}
        run = synthetic.run(plan, crashes)
        again = synthetic.record(plan, 1, 0, Outcome.CRASH, pid=72, experiment=ExperimentName.REPEAT)
        run.experiments = {(1, 0): {ExperimentName.REPEAT: [again]}}
        texts = [f"NVRM: Xid 43, pid={pid}, name=python3" for pid in pids]
        run.driver = [{"rank": 0, "text": text} for text in texts]
        conclusion = conclude(run)
        by_case = {finding.cases[0].case: finding.driver for finding in conclusion.findings}
        assert [by_case[step.label] for step in plan.steps] == [[texts[n] for n in each] for each in beside]
        left = [text for n, text in enumerate(texts) if n not in {*beside[0], *beside[1]}]
        assert conclusion.notes == [f"GPU of rank 0: {text}" for text in left]

    def test_alone_are_notes_and_change_no_verdict(self, synthetic: Synthetic) -> None:
        conclusion = self.conclude(synthetic, {}, {"rank": None, "text": "NVRM: Xid"}, {"rank": 1, "text": "ECC"})
        assert conclusion.verdict is PASS
        assert conclusion.notes == ["this machine: NVRM: Xid", "GPU of rank 1: ECC"]

    def test_of_memory_that_ran_out(self, synthetic: Synthetic) -> None:
        killed = {"rank": None, "text": "Out of memory: Killed process 7 (python3)"}
        ended = {"outcome": Outcome.ERROR, "message": "MemoryError: no message"}
        (finding,) = self.conclude(synthetic, {(0, 1): ended}, killed).findings
        assert finding.driver == [killed["text"]]
        assert self.conclude(synthetic, {(0, 1): Outcome.MISMATCH}, killed).findings[0].driver == []


class TestSoak:
    """Runs that go through their plan again and again."""

    def run(self, synthetic: Synthetic, tallies: Mapping[tuple[int, int], Tally], ended: bool = True) -> Run:
        plan = synthetic.plan(cases=2, ranks=2, duration=600.0)
        failed = {key: Outcome.MISMATCH for key, tally in tallies.items() if tally.failed}
        run: Run = synthetic.run(plan, failed)
        run.tallies = {(step, rank): Tally(40) for step in (0, 1) for rank in (0, 1)} | dict(tallies)
        run.ends = {rank: {} for rank in (0, 1) if ended or rank == 0}
        return run

    @pytest.mark.parametrize(
        ("tally", "words"),
        [
            (Tally(400, 3), "failed in 3 of 400 passes; rate 0.75%, 95% interval 0.26% to 2.18%: intermittent"),
            (Tally(40, 40), "failed in 40 of 40 passes"),
        ],
    )
    def test_a_case_that_failed_in_some_pass_is_never_green(
        self, synthetic: Synthetic, tally: Tally, words: str
    ) -> None:
        conclusion = conclude(self.run(synthetic, {(1, 1): tally}))
        (finding,) = conclusion.findings
        assert conclusion.verdict is FAIL and f"rank 1: {words}" in finding.cases[0].lines

    def test_a_rank_that_ended_early_leaves_the_verdict_open(self, synthetic: Synthetic) -> None:
        assert conclude(self.run(synthetic, {})).verdict is PASS
        conclusion = conclude(self.run(synthetic, {}, ended=False))
        assert conclusion.verdict is OPEN and conclusion.findings[0].ranks == [1]
        assert "before the time of --duration was up" in conclusion.findings[0].cases[0].lines[0]


class TestDisagreement:
    """Passing ranks that computed different bits."""

    def run(self, synthetic: Synthetic, changes: Mapping[int, dict[str, Any]], ranks: int) -> list[Finding]:
        ends = {(1, rank): change for rank, change in changes.items()}
        conclusion = conclude(synthetic.run(synthetic.plan(cases=2, ranks=ranks), ends))
        assert (conclusion.verdict is FAIL) == bool(conclusion.findings)
        return conclusion.findings

    @pytest.mark.parametrize(
        ("ranks", "digests", "named", "words"),
        [
            (2, {1: {"y": "e"}}, [0, 1], "rank 0 against rank 1"),
            (8, {0: {"y": "e"}}, [0], "ranks 1-7 against rank 0"),
            (8, {5: {"y": "e"}}, [5], "against rank 5"),
            (8, {7: {"y": "e"}}, [7], "against rank 7"),
            (4, {2: {"y": "e"}, 3: {"y": "e"}}, [0, 1, 2, 3], "ranks 0, 1 against ranks 2, 3"),
            (5, {1: {"y": "a"}, 2: {"y": "b"}}, [1, 2], "ranks 0, 3, 4 against rank 1"),
            (3, {1: {"y": "d", "z": "e"}}, [1], "against rank 1"),  # an output that others do not have
        ],
    )
    def test_those_apart_from_a_majority_are_named_or_all(
        self, synthetic: Synthetic, ranks: int, digests: Mapping[int, Any], named: list[int], words: str
    ) -> None:
        (finding,) = self.run(synthetic, {rank: {"digests": each} for rank, each in digests.items()}, ranks)
        assert finding.fails and finding.ranks == finding.cases[0].ranks == named
        assert words in finding.cases[0].lines[0] and finding.cases[0].case == "matmul/1/exact"

    @pytest.mark.parametrize(
        "changes",
        [
            {"inputs": "other inputs", "host": "another"},
            {"device": "NVIDIA A100"},
            {"launches": [Launch("_matmul_ogs", 1, 1, [], 0, "other hash", "sm_90", 0, 8, [1])]},
            {"outcome": Outcome.INAPPLICABLE, "device": "NVIDIA A100"},
            {"distinct": 2},  # calls of one rank need not agree either
        ],
    )
    def test_ranks_that_did_not_do_the_same_need_not_agree(self, synthetic: Synthetic, changes: dict[str, Any]) -> None:
        plan = synthetic.plan(cases=2, ranks=2, optional=[1])
        assert conclude(synthetic.run(plan, {(1, 1): {"digests": {"y": "other"}, **changes}})).findings == []

    def test_a_failing_rank_is_not_reported_twice(self, synthetic: Synthetic) -> None:
        findings = self.run(synthetic, {1: {"outcome": Outcome.MISMATCH, "digests": {"y": "other"}}}, 2)
        assert titles(findings) == ["undetermined: wrong output"]

    def test_the_differing_tiles_are_listed(self, synthetic: Synthetic) -> None:
        tiles = {0: ["a", "b", "c"], 1: ["a", "b", "x"], 2: ["a", "b", "c"]}
        ends = {(0, rank): {"digests": {"y": each[-1]}, "tiles": {"y": each}} for rank, each in tiles.items()}
        (finding,) = conclude(synthetic.run(synthetic.plan(cases=1, ranks=3), ends)).findings
        assert finding.cases[0].lines[1] == "y: 1 of 3 tiles differ, in row order: 2"


def test_the_conclusion_of_a_stored_run_is_that_of_the_run(synthetic: Synthetic, tmp_path: Path) -> None:
    outcomes = {(0, 1): Outcome.MISMATCH, (1, 0): Outcome.LOST}
    run = synthetic.run(synthetic.plan(cases=2, ranks=2), outcomes)
    stored = read_run(synthetic.write(tmp_path / "run", run))
    assert [f.title for f in conclude(stored).findings] == [f.title for f in conclude(run).findings]
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["schema"] == 1


NODE = {"number": 1, "host": "b", "software": {}, "state": "ended", "code": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state": "gone", "code": None}, "node 1 (b) was lost: its further cases are"),
        ({"state": "gone", "code": None, "host": ""}, "node 1 never came"),
        ({"code": -9}, "torchrun of node 1 (b) ended with exit code -9"),
    ],
)
def test_a_node_that_did_not_end_well_leaves_the_verdict_open(
    synthetic: Synthetic, changes: dict[str, Any], words: str
) -> None:
    run = synthetic.run(synthetic.plan(), nodes=[NODE])
    assert conclude(run).verdict is Verdict.PASS
    run = synthetic.run(synthetic.plan(), nodes=[{**NODE, **changes}], code=None)
    conclusion = conclude(run)
    assert conclusion.verdict is OPEN
    assert conclusion.findings[0].cases[0].lines == [words]


def test_nodes_with_other_software_are_noted(synthetic: Synthetic) -> None:
    software = {"torch": {"version": "2.0"}, "triton": {"version": "3.1"}}
    run = synthetic.run(synthetic.plan(), nodes=[{**NODE, "software": software}])
    assert conclude(run).notes == ["node 1 (b) has triton 3.1, node 0 3.0"]


def test_a_device_of_unknown_sums_is_named(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=2, ranks=3))
    name = "sm_777 (not known, so the widest bound of all known GPUs)"
    for key, record in run.records.items():
        run.records[key] = replace(record, arithmetic=name if key[1] else "sm_90")
    conclusion = conclude(run)
    assert (conclusion.verdict, conclusion.notes) == (PASS, [f"bounds of sums on ranks 1, 2: {name}"])
