"""What fails a run by what it is judged by: the bare library, an engine's own path, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.judged_path import judged_by
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Conclusion
from gpucheck.model.plan import Plan, PlannedEngine, Step
from gpucheck.model.record import EnginePart, Outcome, Record, Verdict, Violation
from gpucheck.records.run_folder import Run, Tally
from tests.conftest import Ends, Synthetic

PADDED = "mxfp4 default k2880-n5760-e32"
SECOND = "mxfp4 default k2880-n2880-e32"
READS = [Violation("passes differ", "it is read outside")]  # type: ignore[arg-type]
LIBRARY, BLOCK, VLLM, SGLANG = range(4)
"""Steps: a product and a block of the library, then the block by each engine."""
ENGINES = {"vllm": "0.33.0", "sglang": "0.5.19"}
RIGHT = "vllm 0.33.0 computes mxfp4 default k2880-n5760 right on"

Changes = Mapping[str, Any]


def part(name: str, *layouts: str) -> EnginePart:
    return EnginePart(name, ENGINES[name], "module", layouts=[*layouts])


def step(check: str, engine: str = "", data: str = "normal", m: int = 16, **how: Any) -> Step:
    return Step(Case(check, {"m": m}, data, f"{check}/m{m}/{data}", check, 0), Conditions(engine=engine), **how)


@dataclass
class Judging:
    """Runs of a library's cases and of engines' cases; all are right unless something else is said."""

    synthetic: Synthetic
    ranks: int = 2
    judge: str = "engine"
    with_sglang: bool = False
    data: str = "normal"
    m: int = 16

    @property
    def plan(self) -> Plan:
        steps = [step("matmul", data=self.data, m=self.m), step("moe"), step("vllm_moe", "vllm", optional=True)]
        steps += [step("sglang_moe", "sglang", optional=True)] * self.with_sglang
        names = ["vllm", *["sglang"] * self.with_sglang]
        engines = [
            PlannedEngine(name=n, version=ENGINES[n], root="", packages="", origin="", installed=True) for n in names
        ]
        made: Plan = self.synthetic.plan(ranks=self.ranks, steps=tuple(steps), judge=self.judge, engines=tuple(engines))
        return made

    def record(self, number: int, rank: int, **changes: Any) -> Record:
        plan = self.plan
        engine = plan.steps[number].own_engine
        twins = [PADDED] if number == LIBRARY else [PADDED, SECOND]
        known = {"twins": twins, "engine": part(engine) if engine else None, **changes}
        made: Record = self.synthetic.record(plan, number, rank, known.pop("outcome", Outcome.PASS), **known)
        return made

    def run(self, *told: Changes | None, **of: Changes) -> Run:
        """A run whose step of each number, on all ranks, differs so from a pass; ``r1_2``: on rank 1, of step 2."""
        ends: dict[tuple[int, int], Record] = {}
        for number in range(len(self.plan.steps)):
            for rank in range(self.ranks):
                changes = (told[number] if number < len(told) else None) or {}
                ends[(number, rank)] = self.record(number, rank, **{**changes, **of.get(f"r{rank}_{number}", {})})
        made: Run = self.synthetic.run(self.plan, ends)
        return made

    def concluded(self, *told: Changes | None, **of: Changes) -> Conclusion:
        return conclude(self.run(*told, **of))


@pytest.fixture
def judging(synthetic: Synthetic) -> Judging:
    return Judging(synthetic)


def wrong(**changes: Any) -> dict[str, Any]:
    """The same wrong bits in each call."""
    return {"outcome": Outcome.MISMATCH, "digests": {"y": "bad"}, "wrong": 2, **changes}


def reading(**changes: Any) -> dict[str, Any]:
    """Wrong outputs that follow what lies around tensors."""
    return wrong(violations=READS, by_fill=True, distinct=2, **changes)


def verdict_of(conclusion: Conclusion) -> tuple[Verdict, list[str]]:
    return conclusion.verdict, [finding.judged for finding in conclusion.findings]


# --- by the engine's path ------------------------------------------------------------------------------------------


def test_a_read_past_the_end_that_the_engine_pads_away_warns_with_both_facts(judging: Judging) -> None:
    padded = {"engine": part("vllm", "up: HOPPER_VALUE (32, 1440, 5760)", "up_scale: HOPPER_SCALE (32, 5760, 92)")}
    conclusion = judging.concluded(reading(), None, padded)
    (finding,) = conclusion.findings
    assert (
        conclusion.verdict is Verdict.PASS and finding.warns and finding.title.startswith("access outside of tensors")
    )
    assert finding.judged == (
        f"the library reads outside of its tensors; {RIGHT} ranks 0, 1, held as up_scale: HOPPER_SCALE (32, 5760, 92): "
        "this pod serves right numbers"
    )
    assert conclusion.warned == {(LIBRARY, 0), (LIBRARY, 1)} and not conclusion.accepted


def test_a_block_of_the_library_is_covered_by_both_of_its_products(judging: Judging) -> None:
    conclusion = judging.concluded(None, reading())
    assert verdict_of(conclusion)[0] is Verdict.PASS
    assert (
        "mxfp4 default k2880-n2880 and mxfp4 default k2880-n5760 right on ranks 0, 1" in conclusion.findings[0].judged
    )
    one = judging.concluded(None, reading(), {"twins": [PADDED]})
    assert verdict_of(one) == (Verdict.FAIL, [""])
    assert "no engine case of this run computes mxfp4 default k2880-n2880, right on this rank" in (
        one.findings[0].cases[0].lines
    )


def test_the_end_of_the_last_expert_is_the_same_however_many_there_are(judging: Judging) -> None:
    assert judging.concluded(reading(), None, {"twins": ["mxfp4 default k2880-n5760-e8"]}).verdict is Verdict.PASS
    other = judging.concluded(wrong(), None, {"twins": ["mxfp4 default k2880-n5760-e8"]})
    assert other.verdict is Verdict.FAIL, "other wrong numbers can come of the number of experts"
    assert "computes mxfp4 default k2880-n5760-e32 of 16 tokens" in str(other.findings[0].cases[0].lines)


@pytest.mark.parametrize(
    "twins",
    [
        ["mxfp4 default k320-n5760-e32"],
        ["mxfp4 default k2880-n640-e32"],
        ["mxfp4 default batched k2880-n5760-b32"],
        ["mxfp8_e4m3 default k2880-n5760-e32"],
        ["a name of another version"],
        [],
    ],
)
def test_an_engine_case_of_another_product_covers_nothing(judging: Judging, twins: list[str]) -> None:
    conclusion = judging.concluded(reading(), None, {"twins": [*twins, SECOND]})
    assert verdict_of(conclusion) == (Verdict.FAIL, [""]) and not conclusion.warned
    assert "no engine case of this run computes mxfp4 default k2880-n5760, right on this rank" in (
        conclusion.findings[0].cases[0].lines
    )


@pytest.mark.parametrize("fault", [wrong(), reading()], ids=["wrong", "reads"])
def test_wrong_numbers_of_as_many_tokens_warn(judging: Judging, fault: Changes) -> None:
    assert judging.concluded(fault).verdict is Verdict.PASS
    judging.m = 64
    reads = fault.get("by_fill")
    conclusion = judging.concluded(fault)
    assert conclusion.verdict is (Verdict.PASS if reads else Verdict.FAIL), "which tiles run depends on the tokens"


def test_data_over_the_whole_range_is_covered_by_nothing(judging: Judging) -> None:
    judging.data = "wide"
    conclusion = judging.concluded(reading())
    assert conclusion.verdict is Verdict.FAIL
    assert "with data over the whole range" in str(conclusion.findings[0].cases[0].lines)


@pytest.mark.parametrize(
    "engine", [wrong(), reading(), {"outcome": Outcome.CRASH}, {"outcome": Outcome.HANG}, {"outcome": Outcome.ERROR}]
)
def test_a_wrong_engine_path_fails_whatever_the_library_does(judging: Judging, engine: Changes) -> None:
    for library in (None, reading()):
        conclusion = judging.concluded(library, None, engine)
        assert conclusion.verdict is Verdict.FAIL and not conclusion.warned
        assert not any(finding.judged for finding in conclusion.findings)


def test_a_wrong_engine_case_beside_a_right_one_of_the_same_product_covers_nothing(synthetic: Synthetic) -> None:
    judging = Judging(synthetic, with_sglang=True)
    plan = judging.plan
    twice = replace(plan.steps[VLLM], conditions=Conditions(process_group="initialised", engine="vllm"))
    run = judging.run(reading())
    run = replace(run, plan=replace(plan, steps=(*plan.steps[:SGLANG], twice), engines=plan.engines[:1]))
    for rank in run.ranks:
        run.records[(SGLANG, rank)] = replace(run.records[(VLLM, rank)], step=SGLANG)
    assert conclude(run).verdict is Verdict.PASS
    run.records[(SGLANG, 1)] = replace(run.records[(SGLANG, 1)], **wrong(mismatches=[synthetic.mismatch()]))
    conclusion = conclude(run)
    assert conclusion.verdict is Verdict.FAIL and conclusion.warned == {(LIBRARY, 0)}
    (warning,) = [finding for finding in conclusion.findings if finding.warns]
    assert warning.ranks == [0] and "serves right numbers" not in warning.judged


@pytest.mark.parametrize("engine", [{"outcome": Outcome.LOST, "twins": []}, {"outcome": Outcome.HARNESS, "twins": []}])
def test_an_engine_case_without_a_result_covers_nothing(judging: Judging, engine: Changes) -> None:
    conclusion = judging.concluded(reading(), None, engine)
    assert conclusion.verdict is Verdict.FAIL and not conclusion.warned


def test_where_no_engine_case_applies_the_bare_library_decides(judging: Judging) -> None:
    away = {"outcome": Outcome.INAPPLICABLE, "message": "needs vllm", "engine": None}
    assert judging.concluded(None, None, away).verdict is Verdict.PASS
    conclusion = judging.concluded(reading(), None, away)
    assert conclusion.verdict is Verdict.FAIL
    assert "no case of an engine is right on this rank, so the bare library decides" in (
        conclusion.findings[0].cases[0].lines
    )
    assert judged_by(judging.run(None, None, away)) == "judged by the bare library: no case of vllm 0.33.0 could run"


def test_a_rank_without_a_right_engine_case_fails_alone(judging: Judging) -> None:
    judging.ranks = 4
    conclusion = judging.concluded(reading(), r2_2={"outcome": Outcome.INAPPLICABLE, "engine": None, "message": "no"})
    assert conclusion.verdict is Verdict.FAIL
    failing = [finding for finding in conclusion.findings if finding.fails]
    (warning,) = [finding for finding in conclusion.findings if finding.judged]
    assert warning.ranks == [0, 1, 3] and f"{RIGHT} ranks 0, 1, 3" in warning.judged
    assert [2] in [finding.ranks for finding in failing]
    assert conclusion.warned == {(LIBRARY, 0), (LIBRARY, 1), (LIBRARY, 3)}


def test_each_engine_that_works_here_must_be_right(synthetic: Synthetic) -> None:
    judging = Judging(synthetic, with_sglang=True)
    assert judging.concluded(reading()).verdict is Verdict.PASS
    assert "sglang 0.5.19 and vllm 0.33.0 compute" in judging.concluded(reading()).findings[0].judged
    other = judging.concluded(reading(), None, None, {"twins": ["mxfp4 default k320-n640-e8"]})
    assert other.verdict is Verdict.FAIL, "what SGLang makes of this product is not known"
    away = judging.concluded(reading(), None, None, {"outcome": Outcome.INAPPLICABLE, "engine": None, "message": "no"})
    assert away.verdict is Verdict.PASS and f"; {RIGHT}" in away.findings[0].judged


# --- what is never excused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"outcome": Outcome.CRASH},
        {"outcome": Outcome.HANG},
        {"outcome": Outcome.ERROR, "message": "RuntimeError: x"},
        {"outcome": Outcome.VIOLATION, "violations": [Violation("guard", "2 bytes written")]},  # type: ignore[arg-type]
        wrong(violations=[*READS, Violation("guard", "2 bytes written")], by_fill=True),  # type: ignore[arg-type]
        wrong(violations=[Violation("inputs", "x changed")]),  # type: ignore[arg-type]
        wrong(violations=[Violation("repeats differ", "calls 1")], calls=["a", "b"], distinct=2),  # type: ignore[arg-type]
        {"outcome": Outcome.VIOLATION, "violations": [Violation("fallback", "none launched")]},  # type: ignore[arg-type]
    ],
    ids=["crash", "hang", "error", "store", "read and store", "inputs", "intermittent", "fallback"],
)
def test_what_is_no_wrong_number_of_the_code_fails(judging: Judging, fault: Changes) -> None:
    conclusion = judging.concluded(fault)
    assert conclusion.verdict is Verdict.FAIL and not conclusion.warned


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.HARNESS])
def test_what_has_no_result_leaves_the_verdict_open(judging: Judging, outcome: Outcome) -> None:
    assert judging.concluded({"outcome": outcome}).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("fault", [wrong(), reading()], ids=["wrong", "reads"])
def test_a_fault_that_another_rank_has_not_is_none_of_the_code(judging: Judging, fault: Changes) -> None:
    assert judging.concluded(r1_0=fault).verdict is Verdict.FAIL


def test_what_came_right_in_some_pass_or_failed_otherwise_in_a_later_one_fails(judging: Judging) -> None:
    run = judging.run(reading())
    run.tallies = {(LIBRARY, rank): Tally(5, 5) for rank in run.ranks}
    assert conclude(run).verdict is Verdict.PASS
    run.tallies[(LIBRARY, 1)] = Tally(5, 4)
    assert conclude(run).verdict is Verdict.FAIL
    run.tallies[(LIBRARY, 1)] = Tally(5, 5)
    run.further[(LIBRARY, 1)] = [judging.record(LIBRARY, 1, outcome=Outcome.CRASH)]
    assert conclude(run).verdict is Verdict.FAIL


def test_a_check_of_no_product_fails(judging: Judging) -> None:
    conclusion = judging.concluded(wrong(twins=[]))
    assert conclusion.verdict is Verdict.FAIL
    assert "no engine case of this run shows whether a fault of matmul reaches what is served" in (
        conclusion.findings[0].cases[0].lines
    )


# --- what no engine uses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("product", "words"),
    [
        ("mxfp4 strided batched k400-n400-b8", "batched mxfp4 in the strided layout"),
        ("mxfp4 strided dense k400-n400", "dense mxfp4 in the strided layout"),
        ("mxfp4 strided k400-n400-e8", "routed mxfp4 in the strided layout"),
        ("mxfp4 default batched k2880-n5760-b32", "batched mxfp4 in the default layout"),
    ],
)
def test_a_mode_or_layout_that_no_engine_uses_warns(judging: Judging, product: str, words: str) -> None:
    conclusion = judging.concluded(wrong(twins=[product]))
    assert conclusion.verdict is Verdict.PASS
    told = f"no engine case of this run computes {words}: not served by vllm 0.33.0 here"
    assert conclusion.findings[0].judged == f"the library computes wrong numbers; {told}"


@pytest.mark.parametrize(
    "product",
    [
        "mxfp4 default k400-n400-e8",
        "bf16 strided dense k400-n400",
        "bf16 strided k400-n400-e8",
        "mxfp8_e4m3 strided k4-n4-e8",
    ],
)
def test_a_form_that_an_engine_uses_or_a_format_that_none_has_fails(judging: Judging, product: str) -> None:
    assert judging.concluded(wrong(twins=[product])).verdict is Verdict.FAIL


def test_the_strided_layout_is_used_where_an_engine_stores_its_weights_so(judging: Judging) -> None:
    fault = wrong(twins=["mxfp4 strided k400-n400-e8"])
    assert judging.concluded(fault, None, {"engine": part("vllm", "up: StridedLayout (8, 2)")}).verdict is Verdict.FAIL
    assert judging.concluded(fault, None, {"engine": part("vllm", "up: HOPPER_VALUE (8, 2)")}).verdict is Verdict.PASS


def test_what_no_engine_uses_still_fails_where_no_engine_is_right(judging: Judging) -> None:
    conclusion = judging.concluded(wrong(twins=["mxfp4 strided batched k400-n400-b8"]), r1_2=wrong())
    assert conclusion.verdict is Verdict.FAIL and conclusion.warned == {(LIBRARY, 0)}


# --- by the library, by both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [None, reading()], ids=["right", "reads"])
@pytest.mark.parametrize("engine", [None, wrong()], ids=["right", "wrong"])
@pytest.mark.parametrize("judge", ["library", "engine", "both"])
def test_who_decides(synthetic: Synthetic, judge: str, library: Changes | None, engine: Changes | None) -> None:
    judging = Judging(synthetic, judge=judge)
    conclusion = judging.concluded(library, None, engine)
    fails = {"library": library, "engine": engine, "both": library or engine}[judge]
    assert conclusion.verdict is (Verdict.FAIL if fails else Verdict.PASS)
    assert len(conclusion.findings) == bool(library) + bool(engine), "what does not decide is told too"


def test_by_the_library_a_wrong_engine_says_that_it_decides_nothing(synthetic: Synthetic) -> None:
    conclusion = Judging(synthetic, judge="library").concluded(None, None, {"outcome": Outcome.ERROR, "message": "x"})
    assert conclusion.findings[0].judged == (
        "judged by the bare library: what vllm 0.33.0 computes decides nothing here"
    )
    assert conclusion.warned == {(VLLM, 0), (VLLM, 1)}


def test_by_the_library_a_crash_still_fails_and_so_does_a_run_without_a_case_of_it(synthetic: Synthetic) -> None:
    judging = Judging(synthetic, judge="library")
    assert judging.concluded(None, None, {"outcome": Outcome.CRASH}).verdict is Verdict.FAIL
    run = judging.run(None, None, wrong())
    alone = replace(run, plan=replace(run.plan, steps=run.plan.steps[VLLM:]))
    alone.records = {(0, rank): replace(run.records[(VLLM, rank)], step=0) for rank in run.ranks}
    assert conclude(alone).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("library", "judged by the bare library"),
        ("engine", "judged as vllm 0.33.0 serves it"),
        ("both", "judged by the bare library and as vllm 0.33.0 serves it"),
    ],
)
def test_what_the_verdict_is_about_is_said(synthetic: Synthetic, judge: str, words: str) -> None:
    assert judged_by(Judging(synthetic, judge=judge).run()) == words


def test_without_an_engine_nothing_changes(synthetic: Synthetic) -> None:
    ends: Ends = {(0, 0): Outcome.MISMATCH}
    for judge in ("library", "engine", "both"):
        run = synthetic.run(synthetic.plan(judge=judge), ends)
        assert conclude(run).verdict is Verdict.FAIL
        assert judged_by(run) == ("judged by the bare library: no case of an engine" if judge == "engine" else "")
