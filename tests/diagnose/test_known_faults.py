"""Known faults: what GPUs and the interpreter wrote fits, near misses do not, and no verdict ever changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.checks import load
from gpucheck.diagnose import known_match
from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.known_faults import KnownFault, known_faults, parse
from gpucheck.diagnose.version_range import in_range
from gpucheck.library.engines import MODULES
from gpucheck.library.engines.engine_option import parse_engines
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.finding import Known
from gpucheck.model.plan import Step
from gpucheck.model.record import Launch, Outcome, Record, Violation
from gpucheck.model.vocabulary import ViolationKind
from gpucheck.plan import scenario
from gpucheck.records.run_folder import Run
from gpucheck.report import blocks
from gpucheck.report.formats import junit, markdown
from gpucheck.report.formats.html import render as html
from gpucheck.report.formats.json import render as as_json
from gpucheck.report.formats.text import plain
from tests.conftest import Synthetic

DATA = Path(__file__).parents[1] / "data" / "known_faults"
GATE, INTERPRETED = "gate-h200", ("hopper-interpreter-B", "hopper-interpreter-C", "hopper-interpreter-D")
SCALES, REGISTERS = "hopper-scales-past-end", "fp4-register-order"
MANY = {"experts": 8, "top_k": 4}


def stored(synthetic: Synthetic, name: str, change: Callable[[dict[str, Any]], object] = lambda item: None) -> Run:
    """A run of real records, which ``change`` may make another one of."""
    item = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    change(item)
    where = Conditions(item["records"][0]["placement"])
    cases = [load(step["check"]).spec.case(step["params"], step["data"], 0) for step in item["steps"]]
    plan = synthetic.plan(
        steps=tuple(Step(case, where) for case in cases),
        device=item["device"],
        library={"root": "/lib", "package": "/lib/triton_kernels", **item["library"]},
        environment={"software": item["software"]},
    )
    made = [Record.from_json({**record, "case": plan.steps[record["step"]].case.id}) for record in item["records"]]
    return synthetic.run(plan, {(record.step, 0): record for record in made})


def known(run: Run) -> dict[str, list[str]]:
    """The known faults that the findings of a run are said to be, with their cases."""
    found: dict[str, list[str]] = {}
    for finding in conclude(run).findings:
        for each in finding.known:
            found.setdefault(each.id, []).extend(each.cases)
    return found


# --- what real runs wrote --------------------------------------------------------------------------------------------


def test_both_findings_of_the_gate_on_an_h200_are_known_with_every_case(synthetic: Synthetic) -> None:
    outside, operand = conclude(stored(synthetic, GATE)).findings
    assert (outside.title, operand.title) == ("access outside of tensors: reads", "undetermined: wrong operand")
    for finding, fault in ((outside, SCALES), (operand, REGISTERS)):
        (each,) = finding.known
        assert each.id == fault and each.cases == [case.case for case in finding.cases] and not each.alike
    assert len(outside.cases) == 5 and len(operand.cases) == 2


def test_wrong_registers_are_known_with_the_library_of_sglang_as_well(synthetic: Synthetic) -> None:
    """An H200 gives the same wrong bits with it, by a kernel of another name."""

    def of_sglang(item: dict[str, Any]) -> None:
        with_library("v3.7")(item)
        for launch in (launch for record in item["records"] for launch in record["launches"]):
            launch["kernel"] = launch["kernel"].replace("_matmul_ogs", "_matmul")

    assert len(known(stored(synthetic, GATE, of_sglang))[REGISTERS]) == 2


@pytest.mark.parametrize("name", INTERPRETED)
def test_what_the_interpreter_shows_at_capability_9_is_known_for_each_library(synthetic: Synthetic, name: str) -> None:
    run = stored(synthetic, name)
    wrong = [step.label for number, step in enumerate(run.plan.steps) if run.records[(number, 0)].outcome.failed]
    assert known(run) == {SCALES: wrong} and len(wrong) == 4


def each_record(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], None]:
    def all_of(item: dict[str, Any]) -> None:
        for record in item["records"]:
            change(record)

    return all_of


def each_step(**params: Any) -> Callable[[dict[str, Any]], None]:
    def all_of(item: dict[str, Any]) -> None:
        for step in item["steps"]:
            taken = load(step["check"]).spec.defaults
            step["params"].update({name: value for name, value in params.items() if name in taken})

    return all_of


def on_another_gpu(record: dict[str, Any]) -> None:
    record["arithmetic"] = "sm_100"
    for launch in record["launches"]:
        launch["arch"] = "sm_100"


def elsewhere(record: dict[str, Any]) -> None:
    """Rows of the first expert alone are wrong."""
    for mismatch in record["mismatches"] if "layout-default" in record["case"] else ():
        mismatch["exactly"] = {"expert": [0]}


def of_another_tensor(record: dict[str, Any]) -> None:
    for violation in record["violations"]:
        violation["detail"] = violation["detail"].replace(
            "uint8 tensor of shape (32, ", "bfloat16 tensor of shape (64, "
        )


def of_the_values(record: dict[str, Any]) -> None:
    """The packed values are uint8 too, but their tensor has another extent along K."""
    for violation in record["violations"]:
        violation["detail"] = violation["detail"].replace("(32, 2880, 184)", "(32, 5760, 1440)")


def without_violation(record: dict[str, Any]) -> None:
    record["violations"] = []


def with_one_scale_wrong(record: dict[str, Any]) -> None:
    """Finite, everything off by one factor: an output has nothing to do with the right one no longer."""
    for mismatch in record["mismatches"]:
        mismatch.update(ratio=2.0, correlation=1.0, nan=0, got=3.0, expected=1.5, exactly={})


def with_library(generation: str) -> Callable[[dict[str, Any]], None]:
    return lambda item: item["library"].update(generation=generation, name="E", content="e" * 64)


def with_triton(version: str) -> Callable[[dict[str, Any]], None]:
    return lambda item: item["software"]["triton"].update(version=version)


def with_a_wrong_twin(item: dict[str, Any]) -> None:
    """One stage is wrong too: then pipelining is not what is at fault."""
    wrong = {record["case"]: record for record in item["records"] if record["outcome"] == "mismatch"}
    for record in item["records"]:
        source = wrong.get(record["case"].replace("-stages1", ""))
        if source and record is not source:
            record.update(outcome="mismatch", mismatches=source["mismatches"], launches=source["launches"])


NEAR_MISSES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "K that whole tiles divide": (SCALES, each_step(k=2944, hidden=2944, intermediate=2944)),
    "K mod 128 of 65 to 127": (SCALES, each_step(k=2912, hidden=2912, intermediate=2912)),
    "another layout": (SCALES, each_step(layout="strided")),
    "another format": (SCALES, each_step(weight="bf16", layout="strided")),
    "another GPU": (SCALES, each_record(on_another_gpu)),
    "a library that leaves it out": (SCALES, with_library("v3.8")),
    "another expert": (SCALES, each_record(elsewhere)),
    "another tensor": (SCALES, each_record(of_another_tensor)),
    "the values, not the scales": (SCALES, each_record(of_the_values)),
    "wrong whatever memory holds": (SCALES, each_record(without_violation)),
    "a multiple of 32": (REGISTERS, each_step(k=416)),
    "a multiple of 8": (REGISTERS, each_step(k=408)),
    "swizzled": (REGISTERS, each_step(layout="default")),
    "one stage": (REGISTERS, each_step(stages=1)),
    "a Triton with the fix": (REGISTERS, with_triton("3.8.0")),
    "a Triton before it": (REGISTERS, with_triton("3.5.1")),
    "Blackwell": (REGISTERS, each_record(on_another_gpu)),
    "another library": (REGISTERS, with_library("v3.4")),
    "one factor, not another operand": (REGISTERS, each_record(with_one_scale_wrong)),
    "wrong with one stage as well": (REGISTERS, with_a_wrong_twin),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_of_the_gate_on_an_h200_is_not_known(synthetic: Synthetic, name: str) -> None:
    fault, change = NEAR_MISSES[name]
    other = {SCALES: REGISTERS, REGISTERS: SCALES}[fault]
    found = known(stored(synthetic, GATE, change))
    assert fault not in found, found
    if name in ("a Triton with the fix", "one stage", "wrong with one stage as well", "another expert"):
        assert other in found, "the change touches the other fault not at all"


def lines_of_known(*of: Any) -> list[str]:
    return [words for words, label in blocks.finding_lines(*of) if label == "known"]


def test_a_finding_says_which_of_its_cases_are_the_known_fault(synthetic: Synthetic) -> None:
    def one_other(item: dict[str, Any]) -> None:
        elsewhere(next(record for record in item["records"] if record["case"].endswith("layout-default/exact")))

    (finding, _) = conclude(stored(synthetic, GATE, one_other)).findings
    (each,) = finding.known
    assert len(finding.cases) == 5 and len(each.cases) == 4
    (words,) = lines_of_known(finding)
    assert "(4 of 5 cases, " in words
    other = next(case for case in finding.cases if case.case not in each.cases)
    assert not lines_of_known(finding, other) and lines_of_known(finding, finding.cases[-1])


# --- what is planted: every fault of the table, and what it is not ---------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A failed case, of a finding with this cause."""

    check: str
    cause: str
    params: Mapping[str, Any] = field(default_factory=dict)
    data: str = "normal"
    conditions: Conditions = Conditions()
    outcome: Outcome = Outcome.MISMATCH
    record: Mapping[str, Any] = field(default_factory=dict)
    mismatch: Mapping[str, Any] = field(default_factory=dict)  # what its wrong output looks like
    generation: str = "v3.5"
    content: str = "B"
    versions: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1  # of the run


def is_known(synthetic: Synthetic, planted: Planted) -> list[str]:
    """The known faults that a finding of one case is."""
    spec = load(planted.check if planted.check in names_here() else "transformers_moe").spec
    case = replace(spec.case(planted.params, planted.data, 0), check=planted.check)
    plan = synthetic.plan(steps=(Step(case, planted.conditions),), ranks=planted.ranks)
    known_engines = {name: version for name, version in planted.versions.items() if name in MODULES}
    recorded = {"triton": "3.6.0", **planted.versions}
    software = {name: {"version": version} for name, version in recorded.items() if name not in known_engines}
    plan = replace(
        plan,
        library={**plan.library, "generation": planted.generation, "name": planted.content},  # type: ignore[typeddict-item]
        environment={"software": software},
        engines=tuple({"name": name, "version": version} for name, version in known_engines.items()),  # type: ignore[misc]
    )
    given: dict[str, Any] = {"arithmetic": "sm_90", **planted.record}
    if planted.outcome is Outcome.MISMATCH:
        given["mismatches"] = [synthetic.mismatch(**planted.mismatch)]
    record = synthetic.record(plan, 0, 0, planted.outcome, **given)
    run = synthetic.run(plan, {(0, 0): record})
    seen = conclude(run).findings[0]
    finding = replace(seen, cause=planted.cause, known=[])
    (told,) = known_match.with_known(run, [finding])
    return [each.id for each in told.known]


def names_here() -> tuple[str, ...]:
    from gpucheck.checks import names

    return names()


LAST_EXPERT = {"exactly": {"expert": [7]}}
WIDE_K = {"hidden": 320, "intermediate": 320, **MANY}
OUTSIDE = "access outside of tensors"
VLLM = Planted("vllm_moe", OUTSIDE, WIDE_K, mismatch=LAST_EXPERT, versions={"vllm": "0.25.1"})
SGLANG = Planted("sglang_moe", OUTSIDE, WIDE_K, mismatch=LAST_EXPERT, generation="v3.7", versions={"sglang": "0.5.18"})
ASSERTS = Planted(
    "vllm_moe",
    "undetermined",
    {"hidden": 64, "intermediate": 64, **MANY},
    outcome=Outcome.ERROR,
    record={"message": "CompilationError: static_assert failed"},
    versions={"vllm": "0.33.0"},
)
REFUSED = replace(ASSERTS, params={**MANY}, generation="v3.8", record={"message": "AssertionError: mx_axis=1"})
SLICED = Planted(
    "transformers_moe", "dependence on the process group", MANY, conditions=Conditions(process_group="initialised")
)
WINDOW = Planted(
    "sglang_model",
    "undetermined",
    record={"message": "first wrong at step 6, layer 0, attention; no other token follows"},
    versions={"sglang": "0.5.19"},
)
CUT = Planted("sglang_moe", "undetermined", {**MANY, "hidden": 352}, generation="v3.7", content="D")
UPDATED = Planted(
    "vllm_moe", "undetermined", {**MANY, "intermediate": 288, "reload": True}, versions={"vllm": "0.33.0"}
)
ELSEWHERE = Planted("vllm_moe", OUTSIDE, {**MANY, "ep": 2}, versions={"vllm": "0.16.0"})
BUG = "kernel bug"
LESS = {"correlation": 0.999, "relative": 5e-3, "wrong": 4, "bias": 0.0}
DEVICE = "wrong device context"
SPREAD = Planted("matmul", BUG, {"k": 96}, data="wide", mismatch={"nan": 1})
SHORT = {"wrong": 900, "total": 1000, "correlation": 0.9, "relative": 0.436}
TAIL = Planted("matmul", BUG, {"k": 100}, mismatch=SHORT)
SWAPPED = Planted("moe", BUG, MANY, mismatch={"exactly": {"expert": [2, 5]}, "correlation": 0.0})
LIMIT = Planted(
    "attention",
    "resource limit",
    outcome=Outcome.ERROR,
    record={"message": "ResourceLimit: _k needs 1,049,600 bytes of shared memory, a block may use 232,448"},
)
NARROW = Planted(
    "sglang_attention",
    "undetermined",
    {"queries": "decode", "window": 128},
    versions={"sglang": "0.5.19"},
    record={"message": "attention: the window is one key too narrow (that gives exactly these outputs)"},
)
DIVIDED = Launch("kernel_unified_attention_3d", 2, None, [], None, "", "interpreter", 0, 4, [5, 2, 16])
ZEROS = Planted(
    "vllm_attention",
    "undetermined",
    {"queries": "decode", "window": 20},
    "exact",
    versions={"vllm": "0.12.0"},
    record={"launches": [DIVIDED], "message": "attention: no known fault gives these outputs"},
)
PLANTED: dict[str, tuple[Planted, tuple[Planted, ...]]] = {
    "vllm-unpadded-scales": (
        VLLM,
        (
            replace(VLLM, versions={"vllm": "0.26.0"}),
            replace(VLLM, versions={}),
            replace(VLLM, params={**MANY, "hidden": 256, "intermediate": 256}),
            replace(VLLM, mismatch={"exactly": {"expert": [0]}}),
            replace(VLLM, generation="v3.8"),
            replace(VLLM, record={"arithmetic": "sm_100"}),
            replace(VLLM, check="sglang_moe"),
        ),
    ),
    "sglang-unpadded-scales": (
        SGLANG,
        (
            replace(SGLANG, versions={"sglang": "0.5.19"}),
            replace(SGLANG, versions={"sglang": "0.5.5"}),
            replace(SGLANG, params={**MANY, "hidden": 384, "intermediate": 384}),
            replace(SGLANG, mismatch={"exactly": {"expert": [6, 7]}}),
        ),
    ),
    "sglang-decode-window": (
        NARROW,
        (
            replace(NARROW, params={"queries": "mixed", "window": 128}),
            replace(NARROW, params={"queries": "decode"}),
            replace(NARROW, record={"message": "attention: the window is one key too wide"}),
            replace(NARROW, check="vllm_attention"),
            replace(NARROW, versions={"sglang": "0.6.0"}),
        ),
    ),
    "vllm-divided-decode-zeros": (
        ZEROS,
        (
            replace(ZEROS, versions={"vllm": "0.16.0"}),
            replace(ZEROS, data="normal"),
            replace(ZEROS, params={"queries": "decode"}),
            replace(ZEROS, params={"queries": "mixed", "window": 20}),
            replace(ZEROS, record={"message": ZEROS.record["message"]}),
        ),
    ),
    "hopper-values-k-tail": (
        CUT,
        (
            replace(CUT, content="E", generation="v3.8"),
            replace(CUT, params={**MANY, "hidden": 384}),
            replace(CUT, record={"arithmetic": "sm_100"}),
            replace(CUT, record={"violations": [Violation("guard", "x")]}),  # type: ignore[arg-type]
            replace(CUT, params={**MANY, "intermediate": 256, "tp": 2}),
        ),
    ),
    "vllm-update-leaves-padding": (
        UPDATED,
        (
            replace(UPDATED, params={**MANY, "intermediate": 288}),
            replace(UPDATED, params={**MANY, "intermediate": 256, "reload": True}),
            replace(UPDATED, versions={"vllm": "0.26.0"}),
        ),
    ),
    "vllm-experts-of-other-ranks": (
        ELSEWHERE,
        (
            replace(ELSEWHERE, params=MANY),
            replace(ELSEWHERE, versions={"vllm": "0.25.1"}),
            replace(ELSEWHERE, check="sglang_moe"),
        ),
    ),
    "vllm-refuses-newest-library": (
        REFUSED,
        (
            replace(REFUSED, generation="v3.5"),
            replace(REFUSED, versions={"vllm": "0.30.0"}),
            replace(REFUSED, record={"message": "RuntimeError: no kernel image"}),
        ),
    ),
    "narrow-swizzle-asserts": (
        ASSERTS,
        (
            replace(ASSERTS, params={"hidden": 256, "intermediate": 256, **MANY}),
            replace(ASSERTS, generation="v3.7"),
            replace(ASSERTS, record={"message": "RuntimeError: no kernel image"}),
        ),
    ),
    "experts-sliced-by-local-rank": (
        SLICED,
        (
            replace(SLICED, conditions=Conditions()),
            replace(SLICED, check="moe"),
            replace(SLICED, versions={"transformers": "4.56.0"}),
            replace(SLICED, cause=BUG),
        ),
    ),
    "transformers-falls-back": (
        Planted("transformers_moe", "fallback", MANY, outcome=Outcome.VIOLATION),
        (Planted("moe", "fallback", MANY, outcome=Outcome.VIOLATION), Planted("transformers_moe", BUG, MANY)),
    ),
    "launch-on-current-device": (
        Planted("matmul", DEVICE, conditions=Conditions("peer")),
        (Planted("matmul", "undetermined", conditions=Conditions("peer")), Planted("matmul", DEVICE)),
    ),
    "thread-starts-on-device-0": (
        Planted("matmul", DEVICE, conditions=Conditions("threads-unpinned")),
        (Planted("matmul", DEVICE, conditions=Conditions("threads")),),
    ),
    "cold-cache-race": (
        Planted("matmul", "compile race", conditions=Conditions(cache="cold")),
        (Planted("matmul", "stale or mixed kernel cache", conditions=Conditions(cache="cold")),),
    ),
    "mixed-kernel-cache": (
        Planted("matmul", "stale or mixed kernel cache"),
        (
            Planted(  # an entry that cannot be read is damaged, not mixed up
                "matmul",
                "stale or mixed kernel cache",
                outcome=Outcome.ERROR,
                record={"message": "JSONDecodeError (damaged cache entry: k.json)"},
            ),
        ),
    ),
    "side-stream-without-wait": (
        Planted("matmul", "missing stream order", conditions=Conditions(stream="side")),
        (Planted("matmul", "race or uninitialised read", conditions=Conditions(stream="side")),),
    ),
    "shared-memory-limit": (
        LIMIT,
        (replace(LIMIT, record={"message": "GridLimit: _k was launched with 65,536 blocks on axis 1"}),),
    ),
    "tf32-for-fp32": (
        Planted("matmul", BUG, {"weight": "fp32"}, mismatch=LESS),
        (
            Planted("matmul", BUG, {"weight": "bf16"}, mismatch=LESS),
            Planted("matmul", BUG, {"weight": "fp32"}, mismatch=LESS, record={"arithmetic": "interpreter"}),
            Planted("matmul", BUG, {"weight": "fp32"}, mismatch={"correlation": 0.0, "relative": 1.4, "wrong": 4}),
        ),
    ),
    "nan-row-spreads": (
        SPREAD,
        (
            replace(SPREAD, data="normal"),
            replace(SPREAD, mismatch={"inf": 1}),
            replace(SPREAD, record={"violations": [Violation("passes differ", "x")]}),  # type: ignore[arg-type]
        ),
    ),
    "k-tail-dropped": (
        TAIL,
        (
            replace(TAIL, params={"k": 128}),
            replace(TAIL, mismatch={**SHORT, "relative": 1.0, "correlation": 0.0}),
            replace(TAIL, mismatch={**SHORT, "relative": 0.126, "correlation": 0.998}),  # a slope that is not heeded
        ),
    ),
    "experts-swapped": (
        SWAPPED,
        (
            replace(SWAPPED, check="swiglu", params={}),
            replace(SWAPPED, record={"violations": [Violation("guard", "x")]}),  # type: ignore[arg-type]
            replace(SWAPPED, mismatch={"exactly": {}, "correlation": 0.0}),
        ),
    ),
    "silent-data-corruption": (
        Planted("matmul", "suspect GPU", mismatch={"bits": [3]}),
        (Planted("matmul", "environment of a rank", mismatch={"bits": [3]}),),
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_known_and_its_near_misses_are_not(synthetic: Synthetic, fault: str) -> None:
    planted, near = PLANTED[fault]
    assert is_known(synthetic, planted) == [fault]
    for number, other in enumerate(near):
        assert fault not in is_known(synthetic, other), f"near miss {number}"


def test_a_size_is_that_of_one_rank_where_ranks_share_it(synthetic: Synthetic) -> None:
    shared = replace(CUT, params={**MANY, "intermediate": 2880, "hidden": 2880})
    assert is_known(synthetic, shared) == []
    assert is_known(synthetic, replace(shared, params={**shared.params, "tp": 4})) == ["hopper-values-k-tail"]


@pytest.mark.parametrize(
    ("check", "params", "ranks", "size"),
    [
        ("sharded_generation", {"intermediate": 128, "hidden": 256}, 2, 64),
        ("sharded_generation", {"intermediate": 128, "hidden": 256}, 1, None),
        ("sharded_generation", {"intermediate": 512, "hidden": 256}, 4, None),
        ("sharded_moe", {"parallel": "tensor", "intermediate": 640, "hidden": 128}, 2, 320),
        ("sharded_moe", {"parallel": "dispatch", "intermediate": 640, "hidden": 128}, 2, None),
        ("sharded_moe", {"parallel": "dispatch", "intermediate": 640, "hidden": 64}, 2, 64),
    ],
)
def test_scales_past_their_end_are_known_where_ranks_share_the_block(
    synthetic: Synthetic, check: str, params: dict[str, Any], ranks: int, size: int | None
) -> None:
    detail = f"it is read outside of the uint8 tensor of shape (8, {size or 64}, 4)"
    planted = Planted(
        check,
        OUTSIDE,
        {"layout": "default", **params, **({"weight": "mxfp4"} if check == "sharded_moe" else {})},
        data="exact" if check == "sharded_moe" else "normal",
        conditions=Conditions(process_group=TOGETHER),
        record={
            "violations": [Violation("passes differ", detail)],  # type: ignore[arg-type]
            "launches": [Launch("_matmul_ogs", 1, 0, ["cuda:0"], 0, "", "sm_90", 0, 8, [])],
        },
        ranks=ranks,
    )
    assert is_known(synthetic, planted) == ([] if size is None else ["hopper-scales-past-end"])
    others = {"violations": [Violation("passes differ", detail.replace("uint8", "float32"))]}  # type: ignore[arg-type]
    assert is_known(synthetic, replace(planted, record={**planted.record, **others})) == []


def test_every_fault_of_the_table_has_what_triggers_it_and_what_must_not() -> None:
    tried = {fault for fault, _ in NEAR_MISSES.values()} | {fault for fault, (_, near) in PLANTED.items() if near}
    missing = {fault.id for fault in known_faults()} ^ tried
    assert not missing, "each fault of known_faults.toml needs a case that is it and a near miss in PLANTED"


def test_a_likeness_is_not_told_of_a_case_that_is_a_known_fault(synthetic: Synthetic) -> None:
    exact = replace(VLLM, cause=BUG, mismatch={**LAST_EXPERT, "correlation": 0.0})
    assert is_known(synthetic, exact) == ["vllm-unpadded-scales"]
    assert is_known(synthetic, replace(exact, versions={"vllm": "0.26.0"})) == ["experts-swapped"]


# --- verdicts, formats, proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [GATE, *INTERPRETED])
def test_no_verdict_changes(synthetic: Synthetic, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_table = conclude(stored(synthetic, name))
    monkeypatch.setattr(known_match, "known_faults", lambda: ())
    without = conclude(stored(synthetic, name))
    assert [f.known for f in without.findings] == [[] for _ in without.findings]
    assert any(finding.known for finding in with_table.findings)
    assert without == replace(with_table, findings=[replace(finding, known=[]) for finding in with_table.findings])


def test_every_format_says_what_is_known(synthetic: Synthetic) -> None:
    run = stored(synthetic, GATE)
    report = blocks.build(run, conclude(run))
    for shown in (plain(report), markdown.render(report), html(report), junit.render(report), as_json(report)):
        for fault in (SCALES, REGISTERS):
            assert fault in shown
        assert "vllm-project/vllm#47303" in shown.replace("\\", "") and "Triton 3.8.0" in shown
    text = plain(report)
    assert (
        f"   known   {SCALES}: the matmul kernel reads mxfp4 scales past the end of their tensor (all 5 cases, " in text
    )
    assert f"   about   gpucheck explain {REGISTERS}" in text
    finding = json.loads(as_json(report))["findings"][0]
    assert finding["known"][0]["id"] == SCALES and finding["known"][0]["proofs"][0]["command"].startswith(
        "gpucheck run "
    )


def first_known(run: Run, fault: str) -> Known:
    return next(each for finding in conclude(run).findings for each in finding.known if each.id == fault)


def test_a_proof_is_a_command_for_the_case_with_this_run_s_options(synthetic: Synthetic) -> None:
    run = stored(synthetic, GATE, with_triton("3.8.0"))
    run.plan = replace(run.plan, command=[*run.plan.command, "--library", "path:/mine", "--patch", "/a.patch"])
    library, engine, bisect = first_known(run, SCALES).proofs
    case = conclude(run).findings[0].known[0].cases[0]
    expected = f"gpucheck run smoke --seed 0 --library wheel:sglang-kernel==0.4.10 --case {case}"
    assert (
        library.command == expected and library.shows == "right with a library that leaves out what lies past the end"
    )
    assert engine.command.startswith("gpucheck run serving --engine vllm==0.26.0 --case vllm_moe/")
    assert engine.command.endswith(" --nproc 1")
    assert bisect.command.startswith(f"gpucheck bisect runs/x --case {case} --wheel sglang-kernel ")


def test_a_proof_says_which_software_it_needs_where_this_run_had_another(synthetic: Synthetic) -> None:
    library, *_ = first_known(stored(synthetic, GATE), SCALES).proofs
    assert (
        library.shows == "right with a library that leaves out what lies past the end (in a Python with triton >=3.8)"
    )


def test_a_twin_that_the_run_has_proves_at_once(synthetic: Synthetic) -> None:
    twin, fixed = first_known(stored(synthetic, GATE), REGISTERS).proofs
    assert twin.shows == "right with one pipeline stage, as it is in this run"
    assert twin.command.endswith("--case matmul/batched/mxfp4/m300-n400-k400-b8-stages1/exact")
    assert fixed.command.endswith("--case matmul/batched/mxfp4/m300-n400-k400-b8/exact")

    def without(item: dict[str, Any]) -> None:
        for step in item["steps"]:
            if step["params"].get("stages"):
                step["params"]["stages"] = 2

    (alone,) = first_known(stored(synthetic, GATE, without), REGISTERS).proofs
    assert alone == fixed


def test_the_options_of_every_proof_exist() -> None:
    import typer

    from gpucheck.cli.app import app

    group: Any = typer.main.get_command(app)
    for fault in known_faults():
        for proof in fault.proof:
            for command, options in (("run", proof.run), ("run", proof.whole[1:]), ("bisect", proof.bisect)):
                known_options = {name for each in group.get_command(None, command).params for name in each.opts}
                assert {*options[::2]} <= known_options and len(options) % 2 == 0, (fault.id, options)
                given = dict(zip(options[::2], options[1::2], strict=True))
                assert not parse_engines([given["--engine"]] if "--engine" in given else [])[1:]
                if proof.whole and "--case" in given:
                    cases = {step.case.id for step in scenario.load(scenario.find(proof.whole[0])).steps}
                    assert given["--case"] in cases, (fault.id, "a case that its scenario has not")


# --- the table -------------------------------------------------------------------------------------------------------

SOUND = """
[[fault]]
id = "a-fault"
title = "t"
means = "m"
shows = "s"
workaround = "w"
upstream = ["o/r#1"]
good = []
[[fault.fits]]
causes = ["kernel bug"]
"""
BROKEN = {
    "no TOML": ("[[fault", "is no TOML"),
    "an unknown key": (SOUND + 'kernel = ["k"]', "unknown key 'kernel', expected one of causes, "),
    "a cause that nobody names": (SOUND.replace("kernel bug", "bad luck"), "causes has 'bad luck'"),
    "another type": (SOUND + 'gpus = "sm_90"', "gpus is 'sm_90', expected list"),
    "another item": (SOUND + "gpus = [90]", "gpus is 90, expected str"),
    "no text": (SOUND.replace('means = "m"', ""), "means is missing"),
    "an id twice": (SOUND + SOUND, "id is 'a-fault', expected words joined by - that no other fault has"),
    "an id with spaces": (SOUND.replace("a-fault", "a fault"), "id is 'a fault'"),
    "nothing asked": (SOUND.replace('causes = ["kernel bug"]', 'checks = ["moe"]'), "neither causes nor message"),
    "no fingerprint": (SOUND.partition("[[fault.fits]]")[0] + "fits = []", "fits is empty"),
    "no range": (SOUND + 'versions = { triton = "3.6" }', "'3.6' is no range of versions such as"),
    "no expression": (SOUND + 'message = "("', "'(': missing )"),
    "residues beyond": (SOUND + 'shapes = { any = ["k"], modulo = 32, residues = [1, 32] }', "residues are [1, 32]"),
    "an outcome that is none": (SOUND + 'outcomes = ["pass"]', "outcomes has 'pass', expected one of mismatch"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_table_that_is_wrong_says_where_and_what_was_expected(name: str) -> None:
    text, message = BROKEN[name]
    with pytest.raises(ValueError, match=r"^table\.toml") as raised:
        parse(text, "table.toml")
    assert message in str(raised.value)
    assert [fault.id for fault in parse(SOUND, "table.toml")] == ["a-fault"]


def test_texts_and_references_of_the_table_are_whole() -> None:
    for fault in known_faults():
        for text in (fault.title, fault.means, fault.shows, fault.workaround):
            assert text and text == text.strip() and "  " not in text and "\n" not in text, fault.id
        assert all("#" in reference or reference.startswith("arXiv ") for reference in fault.upstream), fault.id
        assert fault.upstream or not fault.alike, "a likeness names what it is like"


@pytest.mark.parametrize(
    ("version", "text", "inside"),
    [
        ("3.6.0", ">=3.6,<3.8", True),
        ("3.6", ">=3.6.0", True),
        ("3.7.1+git1234", ">=3.6,<3.8", True),
        ("3.8.0", ">=3.6,<3.8", False),
        ("3.8.0rc1", ">=3.8", False),
        ("3.10.0", ">3.9", True),
        ("0.4.2.post1", "<0.4.2.post2", True),
        ("0.4.2.post1", ">0.4.2", True),
        ("0.33.0", "==0.33", True),
        ("0.33.1", "!=0.33.1", False),
        ("main", ">=0", False),
        ("", ">=0", False),
    ],
)
def test_a_version_lies_in_a_range(version: str, text: str, inside: bool) -> None:
    assert in_range(version, text) is inside


def test_a_run_without_findings_does_not_read_the_table() -> None:
    program = (
        "import sys; from tests.conftest import make_plan, make_run; from gpucheck.diagnose.conclude import conclude;"
        "assert not conclude(make_run(make_plan())).findings;"
        "print([name for name in sys.modules if 'known' in name and 'gpucheck' in name])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_fault_of_a_finding_is_explained(synthetic: Synthetic) -> None:
    assert {fault.id for fault in known_faults()} >= {*known(stored(synthetic, GATE))}
    assert all(isinstance(fault, KnownFault) and fault.parts["means"] for fault in known_faults())


def test_a_whole_model_with_unpadded_scales_is_known_by_the_tensor_that_is_read_past(synthetic: Synthetic) -> None:
    detail = "it is read outside of the uint8 tensor of shape (8, 320, 8), scales of the first product"
    record = {"violations": [Violation(ViolationKind.PASSES_DIFFER, detail)]}
    for engine, release, good in (("vllm", "0.25.1", "0.26.0"), ("sglang", "0.5.18", "0.5.19")):
        planted = Planted(f"{engine}_model", OUTSIDE, record=record, versions={engine: release})
        assert is_known(synthetic, planted) == [f"{engine}-unpadded-scales"]
        assert is_known(synthetic, replace(planted, versions={engine: good})) == []
        assert is_known(synthetic, replace(planted, params={"hidden": 256})) == []


def test_a_whole_model_that_decodes_with_a_narrow_window_is_known_by_where_it_went_wrong(synthetic: Synthetic) -> None:
    assert is_known(synthetic, WINDOW) == ["sglang-decode-window"]
    message = str(WINDOW.record["message"])
    for near in (
        replace(WINDOW, check="vllm_model"),
        replace(WINDOW, versions={"sglang": "0.5.5"}),
        replace(WINDOW, record={"message": message.replace("layer 0", "layer 1")}),
        replace(WINDOW, record={"message": message.replace("attention", "attention out")}),
    ):
        assert is_known(synthetic, near) == []
