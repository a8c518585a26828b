from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from gpucheck.report.blocks import Sheet
from gpucheck.report.formats.markdown import render
from gpucheck.report.formats.text import plain
from gpucheck.tools.compile.compile_text import Request, sheet, to_json, where
from gpucheck.tools.compile.compile_verdict import summarise
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Combination, Result
from tests.tools.compile.conftest import PROBLEM, make_kernel, make_result

REQUEST = Request(
    scenario="compile",
    command=["gpucheck", "compile", "compile"],
    cases=3,
    targets=[],
    libraries={"B": "path:/my lib", "E": ""},
    tritons={"3.6.0": "3.6.0", "3.7.1": "installed"},
    seconds=12.3,
)
CONFIG = {"BLOCK_M": 128, "EVEN_K": True, "name": "x", "ONE": 1, "SPLIT_K": 4}
BAD = make_kernel("bad", Built.FAILED, config=CONFIG, launched="lib/host.py:9")


def of(results: Sequence[Result], *, verbose: bool = False) -> Sheet:
    targets = list(dict.fromkeys(result.combination.target for result in results))
    return sheet(results, summarise(results), replace(REQUEST, targets=targets), verbose=verbose)


def test_the_table_has_a_row_for_each_library_and_triton_and_a_column_for_each_target() -> None:
    results = [
        make_result("own", "3.6.0", "sm_80"),
        make_result("own", "3.6.0", "sm_90"),
        make_result("B", "3.6.0", "sm_80", [make_kernel(), BAD], c=CaseBuilt("c", Built.INAPPLICABLE, "no")),
        make_result("B", "3.6.0", "sm_90", [], d=CaseBuilt("d", Built.NOT_REACHED, "why")),
        make_result("B", "3.7.1", "sm_80"),
        make_result("B", "3.7.1", "sm_90"),
        Result(Combination("E", "3.6.0", "sm_80"), inapplicable="needs 3.8"),
        Result(Combination("E", "3.6.0", "sm_90"), inapplicable="needs 3.8"),
    ]
    assert of(results).matrix.rows[1:] == [
        [("B", ""), ("3.7.1", ""), ("1 ok", "green"), ("1 ok", "green")],
        [("B", ""), ("3.6.0", ""), ("1 ok 1 XX 1 --", "bold red"), ("1 ??", "yellow")],
        [("E", ""), ("3.6.0", ""), ("--", "dim"), ("--", "dim")],
        [("own", ""), ("3.6.0", ""), ("1 ok", "green"), ("1 ok", "green")],
    ]


def test_the_installed_triton_and_the_default_library_need_no_option() -> None:
    (finding,) = of([make_result("E", "3.7.1", kernels=[BAD])]).findings
    assert finding.cases[0].replay == "gpucheck compile compile --case a/case --target sm_90"


def test_a_case_that_is_not_reached_leaves_the_verdict_open() -> None:
    shown = of([make_result(d=CaseBuilt("d", Built.NOT_REACHED, "why", "lib/host.py:1"))])
    (finding,) = shown.findings
    assert shown.verdict == "INCONCLUSIVE" and not finding.fails
    assert "why (lib/host.py:1)" in finding.title and [failed_case.case for failed_case in finding.cases] == ["d"]


def test_long_lists_are_cut_unless_asked_for() -> None:
    unfit = {f"case{n}": CaseBuilt(f"case{n}", Built.INAPPLICABLE, "why") for n in range(9)}
    kernels = [make_kernel(f"bad{n}", Built.FAILED, config={"M": n}) for n in range(9)]
    for verbose in (False, True):
        text = plain(of([make_result(kernels=kernels, **unfit)], verbose=verbose), verbose=verbose)
        assert ("case8" in text, "with M=8," in text, "more; -v shows all" in text) == (verbose, verbose, not verbose)


def test_verbose_lists_every_kernel() -> None:
    kernels = [make_kernel("a"), replace(make_kernel("b"), seconds=None, launched="lib/host.py:4")]
    (table,) = of([make_result(kernels=kernels)], verbose=True).tables
    facts = ["B, Triton 3.6.0, sm_90", "ok", "_kernel", "1,000", "64", "0", "4", "3"]
    assert [[text for text, _ in row] for row in table.rows[1:]] == [
        [*facts, "0.50 s", ""],
        [*facts, "cached", "lib/host.py:4"],
    ]


def test_a_whole_report_as_text_and_as_markdown() -> None:
    """Nothing that a compiler printed reaches the terminal."""
    bad = replace(BAD, problem=replace(PROBLEM, error="ValueError: sizes\n\x1b[2J32 and 64"))
    unfit = CaseBuilt("c", Built.INAPPLICABLE, "no such layout here")
    shown = of([make_result(kernels=[make_kernel(), bad], c=unfit), make_result("own", "3.6.0")])
    assert plain(shown).splitlines() == [
        "FAIL  1 finding",
        "compile · 3 cases · sm_90 · 2 kernels, 3 compiled now · 12.3 s",
        "",
        "library  triton           sm_90",
        "B         3.6.0  1 ok 1 XX 1 --",
        "own       3.6.0            1 ok",
        "ok kernels that compile  XX kernels that fail  -- cases that do not apply  ?? cases not reached",
        "",
        "1  _kernel does not compile   B with 3.6.0 for sm_90 (1 case)",
        "   case    a/case",
        "           at lib/k.py:7: x + y",
        "           ValueError: sizes",
        "           \\x1b[2J32 and 64",
        "           launched at lib/host.py:9",
        "           with BLOCK_M=128, SPLIT_K=4, 4 warps, 3 stages",
        "   replay  gpucheck compile compile --case a/case --target sm_90 --triton 3.6.0 --library 'path:/my lib'",
        "   fix     a hint",
        "",
        "note  does not apply: no such layout here; B with 3.6.0 for sm_90: c",
        "",
        "advice newest Triton that compiles everything: none (B: none, own: 3.6.0)",
    ]
    written = render(shown)
    assert "## FAIL: 1 finding\n" in written and r"| B | 3\.6.0 | **1 ok 1 XX 1 --** |" in written
    assert "<b>_kernel does not compile</b> · B with 3.6.0 for sm_90 (1 case)" in written


def test_combinations_are_put_in_few_words() -> None:
    def at(library: str, triton: str, target: str) -> Combination:
        return Combination(library, triton, target)

    every = [at(name, triton, "sm_90") for name in ("own", "B") for triton in ("3.6.0", "3.9.0")]
    assert where([*every, at("B", "3.9.0", "sm_80")]) == (
        "B with 3.6.0 for sm_90; B with 3.9.0 for sm_90, sm_80; own with 3.6.0, 3.9.0 for sm_90"
    )


def test_json_holds_everything() -> None:
    results = [make_result(kernels=[make_kernel(), BAD])]
    content = json.loads(json.dumps(to_json(results, summarise(results), replace(REQUEST, targets=["sm_80"]))))
    assert content["verdict"] == "FAIL" and content["newest"] is None
    assert content["targets"]["sm_80"]["shared_memory"] == 166_912
    (finding,) = content["findings"]
    assert finding["problem"]["kind"] == "error" and finding["where"][0]["target"] == "sm_90"
    (combination,) = content["combinations"]
    assert combination["counts"] == {"compiled": 1, "failed": 1, "inapplicable": 0, "not reached": 0}
    assert combination["kernels"][0]["shared"] == 1000 and combination["cases"][0]["kernels"] == ["k1", "bad"]
