"""Accepted faults from run to run: what a later report says of each, and how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import jsonschema
import pytest

from gpucheck.diagnose.chance import EVERY_TIME
from gpucheck.model.canary import CHECK
from gpucheck.model.check_source import CheckSource, SourceKind
from gpucheck.model.plan import Plan, Step
from gpucheck.model.record import Mismatch, Outcome, Underway, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.records.run_folder import read_run
from gpucheck.report.formats.json_schema import report_schema

if TYPE_CHECKING:
    from tests.cli.conftest import Answer, Command, FakeRanks
    from tests.conftest import Ends, Synthetic

REASON = "known, fixed in the next image"
UNTIL = "2027-01-31"
FAULTY = "matmul/1/exact"
EXPERT = {"exactly": {"expert": [31]}, "nan": 900, "wrong": 900, "got": None, "ulps": None}
EXPERT |= {"total": 46080, "box": [[12, 15], [2816, 2879]], "region": "exactly expert 31"}


def moment(day: str, time: str = "12:00:00") -> float:
    return datetime.fromisoformat(f"{day}T{time}+00:00").timestamp()


@dataclass
class Runs:
    """Runs of three cases on four ranks that a report is asked of; the second case is wrong on ranks 1 and 2."""

    gpucheck: Command
    synthetic: Synthetic
    plan: Plan
    mismatch: Mapping[str, Any] = field(default_factory=lambda: EXPERT)

    def wrong(self, **changes: Any) -> dict[str, Any]:
        """What differs from a pass in a record of the fault.

        Args:
            changes: of its only mismatch.
        """
        made: Mismatch = self.synthetic.mismatch(**{**self.mismatch, **changes})
        return {"outcome": Outcome.MISMATCH, "mismatches": [made], "digests": {"y": "bad"}, "wrong": 1}

    def usual(self, **changes: Any) -> Ends:
        return {(1, rank): self.wrong(**changes) for rank in (1, 2)}

    def stored(self, name: str, ends: Ends | None = None, tried: Ends | None = None, **plan: Any) -> str:
        """Writes a run of the day after and names its folder.

        Args:
            ends: by default the usual ones.
            tried: changes of repeats, 90 of each.
        """
        given = {"id": name, "created": moment("2026-11-30"), **plan}
        run = self.synthetic.run(replace(self.plan, **given), self.usual() if ends is None else ends)
        for key, changes in (tried or {}).items():
            assert isinstance(changes, Mapping)
            record = self.synthetic.record(run.plan, *key, **{**changes, "experiment": "repeat"})
            run.experiments[key] = {"repeat": [record] * EVERY_TIME}  # type: ignore[dict-item]
        return str(self.synthetic.write(Path(name), run))

    def accept(self, run: str, *options: str, until: str = UNTIL) -> Answer:
        return self.gpucheck("accept", run, *options, "--reason", REASON, "--until", until)

    def accepted(self, run: str, *options: str) -> None:
        answer = self.accept(run, *options)
        assert answer.code == 0, answer.err

    def report(self, run: str, *options: str) -> Answer:
        return self.gpucheck("report", run, "--accept", "accepted.toml", *options)


@pytest.fixture
def runs(gpucheck: Command, here: Path, synthetic: Synthetic) -> Runs:
    """With the fault of ``first`` accepted in ``accepted.toml``."""
    plan = synthetic.plan(cases=3, ranks=4, created=moment("2026-11-29"))
    runs = Runs(gpucheck, synthetic, plan)
    runs.accepted(runs.stored("first"))
    return runs


def test_what_was_accepted_is_told_in_a_line_each(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    first = runs.stored("first", {**runs.usual(), (2, 3): {"outcome": Outcome.CRASH, "message": "SIGSEGV"}})
    answer = runs.accept(first)
    assert answer.code == 0 and answer.out.splitlines() == [
        f"accepted.toml: 2 accepted until {UNTIL}: {REASON}",
        f"  {FAULTY}  ranks 1, 2  undetermined: NaN  y: 900 of 46080 wrong, exactly expert 31",
        "  matmul/2/exact  rank 3  crash: SIGSEGV",
        "from now on: gpucheck run ... --accept accepted.toml",
    ]


def test_a_fault_that_shows_as_it_did_passes(runs: Runs) -> None:
    answer = runs.report(runs.stored("second"))
    first, *_ = answer.out.splitlines()
    assert answer.code == 0 and first == "PASS  3 cases on 4 ranks, 1 accepted finding"
    assert (
        f"1  accepted: undetermined: NaN   ranks 1, 2   matmul row1 (1 case)\n   accepted until {UNTIL}: {REASON}\n"
        in (answer.out)
    )
    assert re.search(r"matmul row1 +1 +ok xa xa ok\n", answer.out) and "xa failed as accepted" in answer.out


def test_without_the_file_it_fails(runs: Runs) -> None:
    answer = runs.gpucheck("report", runs.stored("second"))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n") and "accepted" not in answer.out


def test_the_run_folder_keeps_what_was_accepted(runs: Runs) -> None:
    from gpucheck.plan.accepted_file import read_files

    second = runs.stored("second", accepted=tuple(read_files(["accepted.toml"])))
    Path("accepted.toml").unlink()
    assert read_run(Path(second)).plan.accepted[0].reason == REASON
    answer = runs.gpucheck("report", second)
    assert answer.code == 0 and answer.out.startswith("PASS  3 cases on 4 ranks, 1 accepted finding\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exactly": {"expert": [30]}}, "y was wrong in exactly expert 31"),
        ({"exactly": {"expert": [30, 31]}}, "y was wrong in exactly expert 31"),
        ({"exactly": {}}, "y was wrong in exactly expert 31"),
        ({"box": [[12, 15], [0, 2879]]}, "y was wrong in (12-15, 2816-2879), is in (12-15, 0-2879)"),
        ({"wrong": 1900, "nan": 1900}, "y had 900 of 46080 elements wrong, has 1900"),
        ({"wrong": 400, "nan": 400}, "y had 900 of 46080 elements wrong, has 400"),
        ({"output": "z"}, "wrong were y"),
        ({"nan": 0, "inf": 900}, "it showed as mismatch, NaN"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_fault_elsewhere_or_of_another_look_fails(runs: Runs, changes: dict[str, Any], words: str) -> None:
    answer = runs.report(runs.stored("second", runs.usual(**changes)))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert f"not as accepted until {UNTIL} ({REASON}): {words}" in answer.out


RANDOM = {"method": "bound", "bound": 0.5, "exactly": {}}


@pytest.mark.parametrize(
    ("first", "second", "seed", "code"),
    [
        ({}, {}, 0, 0),
        ({}, {"wrong": 901, "nan": 901}, 0, 1),  # exact data of the same seed: nothing may differ
        ({}, {"box": [[12, 15], [2815, 2879]]}, 0, 1),
        ({}, {"box": [[11, 15], [2816, 2879]]}, 0, 1),
        ({}, {"box": [[3, 9], [2820, 2879]], "wrong": 2700, "nan": 2700}, 7, 0),  # the expert has other, more rows
        ({}, {"box": [[3, 9], [0, 2879]]}, 7, 1),  # but in all columns
        ({}, {"exactly": {"expert": [3]}, "box": [[3, 9], [2816, 2879]]}, 7, 1),
        ({"exactly": {}}, {"exactly": {}, "box": [[11, 15], [2817, 2879]]}, 7, 0),  # a few more rows
        ({"exactly": {}}, {"exactly": {}, "box": [[0, 3], [2816, 2879]]}, 7, 1),  # others
        ({"exactly": {}}, {"exactly": {}, "wrong": 2000, "nan": 2000}, 7, 1),  # more than twice as many elements
        (RANDOM, {**RANDOM, "wrong": 1700, "nan": 1700, "box": [[12, 15], [2800, 2879]]}, 0, 0),
        (RANDOM, {**RANDOM, "wrong": 1900, "nan": 1900}, 0, 1),
        (RANDOM, {**RANDOM, "box": [[12, 15], [2700, 2879]]}, 0, 1),
    ],
)
def test_what_counts_as_the_same_region(
    gpucheck: Command, here: Path, synthetic: Synthetic, first: Any, second: Any, seed: int, code: int
) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    runs.accepted(runs.stored("first", runs.usual(**first)))
    answer = runs.report(runs.stored("second", runs.usual(**second), seed=seed))
    assert answer.code == code and answer.out.startswith(
        "FAIL  1 finding\n" if code else "PASS  3 cases on 4 ranks, 1 acc"
    )


@pytest.mark.parametrize(
    ("ranks", "text", "words"),
    [
        ((1, 2, 3), "FAIL  1 finding, 1 accepted finding\n", "it was accepted on ranks 1, 2 only"),
        ((1,), "FAIL  1 finding\n", "it was accepted on ranks 1, 2 and does not show so on rank 2"),
        ((0, 3), "FAIL  1 finding\n", "it was accepted on ranks 1, 2 only"),
    ],
)
def test_a_fault_on_other_ranks_fails(runs: Runs, ranks: tuple[int, ...], text: str, words: str) -> None:
    answer = runs.report(runs.stored("second", {(1, rank): runs.wrong() for rank in ranks}))
    assert answer.code == 1 and answer.out.startswith(text)
    assert f"not as accepted until {UNTIL} ({REASON}): {words}" in answer.out


def test_a_fault_that_spreads_to_another_case_fails_there(runs: Runs) -> None:
    ends = {**runs.usual(), **{(2, rank): runs.wrong() for rank in (1, 2)}}
    answer = runs.report(runs.stored("second", ends))
    failing, accepted = answer.out.split("\n2  accepted: ")
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding, 1 accepted finding\n")
    assert "matmul/2/exact" in failing and FAULTY not in failing and FAULTY in accepted


def test_another_fault_beside_it_fails(runs: Runs) -> None:
    ends = {**runs.usual(), (0, 0): {"outcome": Outcome.CRASH, "message": "killed by SIGSEGV"}}
    answer = runs.report(runs.stored("second", ends))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding, 1 accepted finding\n")


def test_on_fewer_ranks_it_holds_where_all_of_them_show_it(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    """A file made on 8 GPUs serves pods with 4; one made on 4 does not serve pods with 8."""
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    runs.accepted(runs.stored("first", everywhere(runs)))
    two = {key: end for key, end in everywhere(runs).items() if key[1] < 2}
    assert runs.report(runs.stored("smaller", two, nproc=2)).code == 0
    eight = {(1, rank): runs.wrong() for rank in range(8)}
    assert runs.report(runs.stored("larger", eight, nproc=8)).code == 1


def test_another_library_fails(runs: Runs) -> None:
    library: Any = {**runs.plan.library, "content": "e" * 64}
    answer = runs.report(runs.stored("second", library=library))
    assert answer.code == 1 and answer.out.startswith("FAIL  1 finding\n")
    assert "): the content of triton_kernels was ffffffffffff, is eeeeeeeeeeee" in answer.out


def test_another_file_of_the_check_fails(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    def source(digest: str) -> tuple[CheckSource, ...]:
        files, hashes = ("/model/mine.py", "/candidate/mine.py"), (digest * 64, "c" * 64)
        return (CheckSource(SourceKind.PROBLEM, ("matmul",), files, hashes),)

    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    runs.accepted(runs.stored("first", check_sources=source("a")))
    assert runs.report(runs.stored("same", check_sources=source("a"))).code == 0
    answer = runs.report(runs.stored("other", check_sources=source("b")))
    assert answer.code == 1 and "the content of mine.py was aaaaaaaaaaaa, is bbbbbbbbbbbb" in answer.out


def test_another_version_of_the_engine_fails(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    def with_engine(version: str) -> dict[str, Any]:
        engine = {"name": "vllm", "version": version, "root": "", "packages": "", "origin": "", "installed": True}
        in_it = tuple(replace(step, conditions=replace(step.conditions, engine="vllm")) for step in plan.steps)
        return {"engines": (engine,), "steps": in_it}

    plan = synthetic.plan(cases=3, ranks=4)
    runs = Runs(gpucheck, synthetic, plan)
    runs.accepted(runs.stored("first", **with_engine("0.25.1")))
    assert runs.report(runs.stored("same", **with_engine("0.25.1"))).code == 0
    answer = runs.report(runs.stored("other", **with_engine("0.26.0")))
    assert answer.code == 1 and "the content of vllm was 0.25.1, is 0.26.0" in answer.out


def everywhere(runs: Runs) -> Ends:
    return {(1, rank): runs.wrong() for rank in range(4)}


def test_another_cause_fails(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    runs.accepted(runs.stored("first", everywhere(runs)))
    answer = runs.report(runs.stored("second", everywhere(runs), tried=everywhere(runs)))
    assert answer.code == 1 and "kernel bug: NaN" in answer.out
    assert "): its cause was undetermined" in answer.out


def test_a_kernel_bug_that_is_repeated_too_seldom_is_no_other_cause(
    gpucheck: Command, here: Path, synthetic: Synthetic
) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    ends = everywhere(runs)
    runs.accepted(runs.stored("first", ends, tried=ends))
    answer = runs.report(runs.stored("second", ends))
    assert answer.code == 0 and "accepted: undetermined: NaN" in answer.out
    right = {key: {"outcome": Outcome.PASS} for key in ends}
    answer = runs.report(runs.stored("third", ends, tried=right))
    assert answer.code == 1 and "its cause was kernel bug" in answer.out


@pytest.mark.parametrize(
    ("created", "code"),
    [
        (moment(UNTIL, "23:59:59"), 0),
        (moment("2027-02-01", "00:00:00"), 1),
    ],
)
def test_it_holds_through_the_end_of_its_last_day_in_utc(runs: Runs, created: float, code: int) -> None:
    answer = runs.report(runs.stored("second", created=created))
    assert answer.code == code
    assert ("): that day has passed, this run is of 2027-02-01" in answer.out) is bool(code)


def test_the_day_that_counts_is_that_of_the_run(runs: Runs) -> None:
    """A report of a stored run says the same on any later day: nothing looks at the clock."""
    second = runs.stored("second")
    assert datetime.now(timezone.utc).date().isoformat() >= "2026"
    text = Path("accepted.toml").read_text().replace(f"until = {UNTIL}", "until = 2026-11-30")
    Path("accepted.toml").write_text(text)
    assert runs.report(second).code == 0


def test_one_that_shows_no_longer_is_noted(runs: Runs) -> None:
    answer = runs.report(runs.stored("second", {}))
    assert answer.code == 0 and answer.out.startswith("PASS  3 cases on 4 ranks\n")
    named = f"{FAULTY} (undetermined), ranks 1, 2"
    assert f"note  accepted fault shows no longer: {named}: take it out in accepted.toml\n" in answer.out


def test_faults_of_cases_that_a_run_does_not_have_are_noted(runs: Runs) -> None:
    answer = runs.report(runs.stored("second", {}, steps=runs.plan.steps[:1]))
    assert answer.code == 0
    assert f"note  accepted faults of 1 case(s) that this run does not have: {FAULTY}\n" in answer.out


def test_where_every_case_is_an_accepted_fault_the_run_passes(runs: Runs) -> None:
    ends = {(0, rank): runs.wrong() for rank in (0, 1)}
    only = runs.plan.steps[1:2]
    runs_only = runs.stored("only", ends, steps=only, nproc=2)
    Path("accepted.toml").unlink()
    runs.accepted(runs_only)
    answer = runs.report(runs.stored("second", ends, steps=only, nproc=2))
    assert answer.code == 0 and answer.out.startswith("PASS  1 case on 2 ranks, 1 accepted finding\n")


@pytest.mark.parametrize(
    ("kind", "before", "seed", "code"),
    [
        (ViolationKind.GUARD, "12 bytes written after the y, nearest 0 off", 0, 0),
        (ViolationKind.GUARD, "8 bytes written after the y, nearest 0 off", 0, 1),
        (ViolationKind.GUARD, "8 bytes written after the y, nearest 0 off", 7, 0),
        (ViolationKind.GUARD, "4096 bytes written after the y, nearest 0 off", 7, 1),
        (ViolationKind.GUARD, "12 bytes written before the y, nearest 0 off", 7, 1),
        (ViolationKind.ALIAS, "12 bytes written after the y, nearest 0 off", 7, 1),
    ],
)
def test_violations(
    gpucheck: Command, here: Path, synthetic: Synthetic, kind: ViolationKind, before: str, seed: int, code: int
) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))

    def violated(violation: Violation) -> Ends:
        return {(1, 0): {"outcome": Outcome.VIOLATION, "violations": [violation]}}

    runs.accepted(runs.stored("first", violated(Violation(kind, before))))
    now = Violation(ViolationKind.GUARD, "12 bytes written after the y, nearest 0 off")
    assert runs.report(runs.stored("second", violated(now), seed=seed)).code == code


def test_words_that_an_earlier_version_accepted_hold_as_they_are_said_now(
    gpucheck: Command, here: Path, synthetic: Synthetic
) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    said = (
        "it is read in or outside of, before it was written, the float32 tensor of shape (9,)",
        "it is read within or next to the float32 tensor of shape (9,), before anything was written there",
        "it is read within or next to the float16 tensor of shape (9,), before anything was written there",
    )
    first, second, other = (
        runs.stored(
            f"run{number}", {(1, 1): {**runs.wrong(), "violations": [Violation(ViolationKind.PASSES_DIFFER, words)]}}
        )
        for number, words in enumerate(said)
    )
    runs.accepted(first)
    assert [runs.report(run).code for run in (first, second, other)] == [0, 0, 1]


def test_crashes_and_hangs_and_errors(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    ends: Ends = {
        (0, 0): {"outcome": Outcome.CRASH, "message": "killed by SIGSEGV", "underway": Underway("_topk", "t.py:3", 1)},
        (1, 0): {"outcome": Outcome.HANG, "message": "no result in 61.2 s", "underway": Underway("_topk", "t.py:3", 1)},
        (2, 0): {"outcome": Outcome.ERROR, "message": "KeyError: 0x7f3a", "source": "matmul_ogs.py:12"},
    }
    runs.accepted(runs.stored("first", ends))
    later = {key: dict(end) for key, end in ends.items() if isinstance(end, Mapping)}
    later[(1, 0)]["message"], later[(2, 0)]["message"] = "no result in 60.7 s", "KeyError: 0x7f11"
    answer = runs.report(runs.stored("second", later))
    assert answer.code == 0 and "3 accepted findings" in answer.out.splitlines()[0]
    for key, change in (
        ((0, 0), {"message": "killed by SIGABRT"}),
        ((1, 0), {"underway": Underway("_matmul", "t.py:3", 1)}),
        ((2, 0), {"source": "routing.py:40"}),
    ):
        other = runs.stored(f"other-{key[0]}", {**later, key: {**later[key], **change}})
        answer = runs.report(other)
        assert answer.code == 1 and answer.out.startswith("FAIL  1 finding, 2 accepted findings\n")


def test_a_later_pass_that_fails_otherwise_fails(runs: Runs) -> None:
    """The record of a case is that of its first failure; an accepted one does not hide others after it."""
    second = runs.stored("second", duration=60.0)
    assert runs.report(second).code == 0
    path = Path(second) / "records" / "rank-00001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    failed = next(line for line in lines if line.get("outcome") == "mismatch")
    further = {**failed, "round": 1, "mismatches": [{**failed["mismatches"][0], "exactly": {"expert": [3]}}]}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-1], failed, further, lines[-1]]))
    answer = runs.report(second)
    assert answer.code == 1 and "y was wrong in exactly expert 31" in answer.out


def test_a_search_goes_by_what_happened(runs: Runs) -> None:
    from gpucheck.plan.accepted_file import read_files
    from gpucheck.tools.bisect.observation import State, observe

    second = runs.stored("second", accepted=tuple(read_files(["accepted.toml"])))
    assert observe(Path(second)).state is State.FAILED


class TestEveryFormat:
    @pytest.fixture
    def folder(self, runs: Runs, here: Path) -> Path:
        names = ["r.json", "r.xml", "r.md", "r.prom", "r.html"]
        answer = runs.report(runs.stored("second"), *(part for name in names for part in ("--write", name)))
        assert answer.code == 0
        return here

    def test_json(self, folder: Path) -> None:
        report = json.loads((folder / "r.json").read_text())
        jsonschema.validate(report, report_schema())
        (finding,) = report["findings"]
        assert finding["accepted"] == {"reason": REASON, "until": UNTIL}
        assert report["verdict"] == "PASS" and finding["warns"] and not finding["fails"]
        shown = [(item["case"], item["rank"]) for item in report["results"] if item["accepted"]]
        assert shown == [(FAULTY, 1), (FAULTY, 2)]
        assert report["rows"][1]["ranks"][1] == {"failed as accepted": 1}
        assert report["plan"]["accepted"][0]["case"] == FAULTY

    def test_junit(self, folder: Path) -> None:
        root = ElementTree.parse(folder / "r.xml").getroot()
        assert (root.get("failures"), root.get("errors")) == ("0", "0")
        skipped = [test for test in root.iterfind("*/testcase") if test.find("skipped") is not None]
        assert [test.get("name") for test in skipped] == [f"{FAULTY} [rank {rank}]" for rank in (1, 2)]
        assert skipped[0].find("skipped").get("message") == f"accepted until {UNTIL}: {REASON}"  # type: ignore[union-attr]
        assert "exactly expert 31" in (skipped[0].findtext("system-out") or "")

    def test_markdown(self, folder: Path) -> None:
        text = (folder / "r.md").read_text()
        assert text.startswith("## PASS: 3 cases on 4 ranks, 1 accepted finding\n")
        assert f"\nAccepted until {UNTIL}: {REASON}\n" in text and "<b>accepted: undetermined: NaN</b>" in text

    def test_prometheus(self, folder: Path) -> None:
        lines = (folder / "r.prom").read_text().splitlines()
        (until,) = [line for line in lines if line.startswith("gpucheck_accepted_until_timestamp_seconds{")]
        assert f'reason="{REASON}",until="{UNTIL}"' in until
        assert float(until.split()[-1]) == pytest.approx(moment("2027-02-01", "00:00:00"), abs=1)
        values = {line.split("{")[0]: line.split()[-1] for line in lines if not line.startswith("#")}
        assert (values["gpucheck_accepted_findings"], values["gpucheck_warnings"]) == ("1", "0")
        failing = [line.split()[-1] for line in lines if line.startswith("gpucheck_rank_failing_cases{")]
        assert failing == ["0"] * 4
        assert 'outcome="failed as accepted"} 1' in "\n".join(lines)

    def test_html(self, folder: Path) -> None:
        text = (folder / "r.html").read_text()
        assert f"accepted until {UNTIL}: {REASON}" in text and "1 accepted finding" in text and ">xa<" in text

    def test_termination_log(self, runs: Runs, folder: Path) -> None:
        from gpucheck.diagnose.conclude import conclude
        from gpucheck.plan.accepted_file import read_files
        from gpucheck.report import blocks
        from gpucheck.report.formats import termination

        run = read_run(Path("second"), read_files(["accepted.toml"]))
        assert f"accepted until {UNTIL}: {REASON}; " in termination.render(blocks.build(run, conclude(run)))


@pytest.mark.parametrize(
    ("runs_held", "code", "words"),
    [
        (("right", "accepted"), 0, "newly broken, accepted (1)\n"),
        (("failing", "accepted"), 0, "still broken (1)\n"),
        (("accepted", "accepted"), 0, "still broken (1)\n"),
        (("accepted", "right"), 0, "fixed (1)\n"),
        (("right", "failing"), 1, "newly broken (1)\n"),
    ],
)
def test_diff_tells_accepted_faults(runs: Runs, runs_held: tuple[str, str], code: int, words: str) -> None:
    from gpucheck.plan.accepted_file import read_files

    known = tuple(read_files(["accepted.toml"]))
    runs.stored("right", {}), runs.stored("failing"), runs.stored("accepted", accepted=known)
    answer = runs.gpucheck("diff", *runs_held)
    assert answer.code == code and words in answer.out
    assert ("(accepted until" in answer.out) is ("accepted" in runs_held)


class TestRefused:
    @pytest.mark.parametrize(
        ("ends", "outcome", "words"),
        [
            ({(0, 3): Outcome.LOST}, {}, "it leaves a question open: lost on rank 3; run again"),
            ({(0, 3): Outcome.HARNESS}, {}, "it leaves a question open: gpucheck could not judge on rank 3; run again"),
            ({}, {"signal": 15}, "it leaves a question open: the run did not end well on ranks 0-3; run again"),
            ({}, {"code": 1}, "it leaves a question open: the run did not end well on ranks 0-3; run again"),
            ({}, {"changes": ["torch was 1"]}, "software changed during the run"),
        ],
    )
    def test_an_incomplete_run(self, runs: Runs, ends: Ends, outcome: dict[str, Any], words: str) -> None:
        run = runs.synthetic.run(runs.plan, {**runs.usual(), **ends}, **outcome)
        runs.synthetic.write(Path("open"), run)
        answer = runs.accept("open", "--out", "new.toml")
        assert answer.code == 2 and words in answer.message and not Path("new.toml").exists()

    def test_a_run_that_never_ended(self, runs: Runs) -> None:
        run = runs.synthetic.run(runs.plan, runs.usual())
        runs.synthetic.write(Path("open"), run, outcome=False)
        answer = runs.accept("open", "--out", "new.toml")
        assert answer.code == 2 and "the run did not end well" in answer.message

    def test_a_canary(self, runs: Runs) -> None:
        case = replace(runs.plan.steps[0].case, check=CHECK, id=f"{CHECK}/exact")
        with_canary = replace(runs.plan, steps=(*runs.plan.steps, Step(case)))
        bird = {"outcome": Outcome.MISMATCH}
        run = runs.synthetic.run(with_canary, {**runs.usual(), **{(3, rank): bird for rank in range(4)}})
        runs.synthetic.write(Path("open"), run)
        answer = runs.accept("open", "--case", f"{CHECK}/exact", "--out", "new.toml")
        assert answer.code == 2 and "it is the canary, a case that is wrong on purpose" in answer.message
        answer = runs.accept("open", "--out", "new.toml")
        assert (
            answer.code == 2 and "it leaves a question open: the canary was not caught on ranks 0-3" in answer.message
        )

    @pytest.mark.parametrize("kind", [ViolationKind.FALLBACK, ViolationKind.NO_REFERENCE])
    def test_what_was_never_checked(self, runs: Runs, kind: ViolationKind) -> None:
        ends = {(0, 0): {"outcome": Outcome.VIOLATION, "violations": [Violation(kind, "none launched")]}}
        answer = runs.accept(runs.stored("second", ends), "--out", "new.toml")
        assert answer.code == 2 and "so nothing was checked" in answer.message and not Path("new.toml").exists()

    def test_ranks_that_disagree(self, runs: Runs) -> None:
        answer = runs.accept(runs.stored("second", {(0, 1): {"digests": {"y": "other"}}}), "--out", "new.toml")
        assert answer.code == 2
        assert "ranks disagree on equal inputs and kernels" in answer.message
        assert "it is no failure of matmul/0/exact itself" in answer.message

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--case", "matmul/9/exact"], "has no such case; it has for example matmul/"),
            (["--case", "matmul/0/exact"], "nothing to accept, no such failure of it in first"),
            (["--cause", "race"], "no finding of first has this cause; it has: undetermined, undetermined: NaN"),
            (["--case", FAULTY, "--cause", "crash"], "no finding of first has this cause"),
            (["--out", "accepted.toml"], "--out accepted.toml exists; give a new file"),
            (["--out", "gone/new.toml"], "there is no folder"),
            (["--reason", " "], "expected a line of text"),
            (["--reason", "two\nlines"], "expected a line of text"),
            (["--until", "31.1.2027"], "expected a day such as 2027-01-31"),
            (["--until", "2027-02-30"], "expected a day such as 2027-01-31"),
            (["--until", "20270131"], "expected a day such as 2027-01-31"),
            (["--until", "2026-11-29"], "lies before the run, which is of 2026-11-30; give a later day"),
        ],
    )
    def test_options(self, runs: Runs, options: list[str], words: str) -> None:
        usual = {"--out": "new.toml", "--reason": REASON, "--until": UNTIL}
        given = [part for name, value in usual.items() if name not in options for part in (name, value)]
        answer = runs.gpucheck("accept", "first", *given, *options)
        assert answer.code == 2 and words in answer.message and not Path("new.toml").exists()

    @pytest.mark.parametrize("created", ["soon", 1e30, None])
    def test_a_run_of_no_day(self, runs: Runs, created: object) -> None:
        plan = json.loads(Path("first/plan.json").read_text())
        Path("first/plan.json").write_text(json.dumps({**plan, "created": created}))
        for answer in (runs.accept("first", "--out", "new.toml"), runs.report("first")):
            assert answer.code == 2 and "expected seconds since 1970" in answer.message

    def test_a_run_that_passes(self, runs: Runs) -> None:
        answer = runs.accept(runs.stored("second", {}), "--out", "new.toml")
        assert answer.code == 2 and answer.message == "nothing to accept: nothing fails the run in second"


def test_case_and_cause_choose(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
    ends = {**runs.usual(), (2, 3): {"outcome": Outcome.CRASH, "message": "SIGSEGV"}}
    first = runs.stored("first", ends)
    ways = (["--case", FAULTY], ["--cause", "undetermined"], ["--cause", "undetermined: NaN"])
    for number, options in enumerate(ways):
        name = f"{number}.toml"
        runs.accepted(first, *options, "--out", name)
        answer = gpucheck("report", first, "--accept", name)
        assert answer.code == 1 and answer.out.startswith("FAIL  1 finding, 1 accepted finding\n")
    runs.accepted(first, "--cause", "crash", "--out", "crash.toml")
    answer = gpucheck("report", first, "--accept", "0.toml", "--accept", "crash.toml")
    assert answer.code == 0 and answer.out.startswith("PASS  3 cases on 4 ranks, 2 accepted findings\n")


class TestFile:
    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ("[[accepted]]", "[[accepted]", "not valid TOML"),
            ("[[accepted]]", "[[known]]", "unknown key 'known'"),
            ("reason = ", "why = ", "unknown key 'why'; known: case, ranks, "),
            (f'reason = "{REASON}"\n', "", "reason is missing, expected why the fault is accepted"),
            (f"until = {UNTIL}", 'until = "2027-01-31"', "until is '2027-01-31', expected a day such as 2027-01-31"),
            (f"until = {UNTIL}", f"until = {UNTIL}T10:00:00", "expected a day such as 2027-01-31"),
            (f"until = {UNTIL}", "until = 2027-02-30", "not valid TOML"),
            ("ranks = [1, 2]", "ranks = []", "ranks is [], expected a list of ranks"),
            ("ranks = [1, 2]", 'ranks = "all"', "expected a list of ranks"),
            ("ranks = [1, 2]", "ranks = [true]", "expected a list of ranks"),
            ("wrong = 900", "wrong = -1", "[[accepted.regions]] number 1: wrong is -1"),
            ("spans = [[", "spans = [[0], [", "expected [first, last] for each axis"),
            ('exactly = { "expert" = [31] }', "exactly = 31", "expected groups, such as { expert = [31] }"),
            (f'case = "{FAULTY}"', "case = 5", "case is 5, expected the id of a case"),
        ],
    )
    def test_what_does_not_belong_there_is_refused(self, runs: Runs, old: str, new: str, words: str) -> None:
        path = Path("accepted.toml")
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
        answer = runs.report("first")
        assert answer.code == 2 and answer.message.startswith("--accept accepted.toml: ") and words in answer.message

    @pytest.mark.parametrize("name", ["gone.toml", ".", "binary.toml"])
    def test_what_cannot_be_read_is_refused(self, runs: Runs, name: str) -> None:
        Path("binary.toml").write_bytes(b"\xff\xfe")
        answer = runs.gpucheck("report", "first", "--accept", name)
        assert answer.code == 2 and answer.message.startswith(f"--accept {name} cannot be read")

    def test_an_empty_file_accepts_nothing(self, runs: Runs) -> None:
        Path("accepted.toml").write_text("# none\n")
        assert runs.report("first").code == 1

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (f'case = "{FAULTY}"', f'case = "{CHECK}/exact"', "a canary is wrong on purpose"),
            ('outcome = "mismatch"', 'outcome = "lost"', "lost is no answer of the code under test"),
            ('outcome = "mismatch"', 'outcome = "harness"', "harness is no answer of the code under test"),
            ('shows = ["NaN"]', 'shows = ["fallback: none launched"]', "nothing was checked"),
        ],
    )
    def test_what_cannot_be_accepted_is_ignored_with_a_note(self, runs: Runs, old: str, new: str, words: str) -> None:
        path = Path("accepted.toml")
        path.write_text(path.read_text().replace(old, new))
        answer = runs.report("first")
        assert answer.code == 1 and "accepted fault ignored in accepted.toml: " in answer.out and words in answer.out

    def test_a_rank_that_was_lost_is_not_accepted(self, runs: Runs) -> None:
        answer = runs.report(runs.stored("second", {**runs.usual(), (1, 2): Outcome.LOST}))
        assert answer.code == 3 and answer.out.startswith("INCONCLUSIVE  ")
        assert f"note  accepted fault of {FAULTY}: rank 2 gave no result; that is not accepted\n" in answer.out

    def test_every_text_comes_back(self, gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
        text = 'quote " backslash \\ brace } é 日本 😀 # = [x] '
        runs = Runs(gpucheck, synthetic, synthetic.plan(cases=3, ranks=4))
        first = runs.stored("first", runs.usual(output=text + "\n\x00\x7f\u2028", exactly={text: [1]}))
        answer = runs.gpucheck("accept", first, "--reason", text, "--until", UNTIL)
        assert answer.code == 0, answer.err
        answer = runs.report(first)
        assert answer.code == 0 and text.strip() in answer.out


def test_run_takes_the_files_and_keeps_them(
    gpucheck: Command, here: Path, ranks: FakeRanks, library: str, synthetic: Synthetic
) -> None:
    ranks.outcomes[(0, 0)] = Outcome.CRASH
    usual = ["run", "smoke", "--device", "cpu", "--nproc", "2", "--library", library, "--checks", "topk"]
    assert gpucheck(*usual, "--out", "a").code == 1
    assert gpucheck("accept", "a", "--reason", REASON, "--until", "2999-12-31").code == 0
    answer = gpucheck(*usual, "--out", "b", "--accept", "accepted.toml")
    assert answer.code == 0 and ", 1 accepted finding" in answer.out
    command = ranks.plans[-1].command
    assert command[command.index("--accept") + 1] == str(here / "accepted.toml")
    answer = gpucheck(*usual, "--out", "quiet", "--accept", "accepted.toml", "--quiet")
    assert answer.code == 0 and answer.out.startswith("PASS  ") and "  1 accepted finding  " in answer.out
    ranks.outcomes[(0, 1)] = Outcome.CRASH
    answer = gpucheck(*usual, "--out", "c", "--accept", "accepted.toml")
    assert answer.code == 1 and "\nFAIL  1 finding, 1 accepted finding, no GPU" in answer.out


def test_a_wrong_file_stops_a_run_before_it_begins(gpucheck: Command, here: Path, ranks: FakeRanks) -> None:
    (here / "bad.toml").write_text("[[accept]]\n")
    answer = gpucheck("run", "smoke", "--device", "cpu", "--accept", "bad.toml", "--out", "a")
    assert answer.code == 2 and "unknown key 'accept'" in answer.message
    assert not ranks.plans and not (here / "a").exists()
