from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from gpucheck.compile.outcome import Built, CaseBuilt, Combination, Result
from gpucheck.compile.summary import summarise
from gpucheck.compile.text import Request, lines, to_json, where
from tests.compile.conftest import make_kernel, make_result

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


def report(results: Sequence[Result], *, verbose: bool = False) -> list[str]:
    targets = list(dict.fromkeys(result.combination.target for result in results))
    return list(lines(results, summarise(results), replace(REQUEST, targets=targets), verbose=verbose))


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
    rows = [line.split() for line in report(results)[3:8]]
    assert rows == [
        ["library", "triton", "sm_80", "sm_90"],
        ["B", "3.7.1", "1", "ok", "1", "ok"],
        ["B", "3.6.0", "1", "ok", "1", "XX", "1", "--", "1", "??"],
        ["E", "3.6.0", "--", "--"],
        ["own", "3.6.0", "1", "ok", "1", "ok"],
    ]


def test_a_finding_says_where_what_why_and_how_to_see_it_again() -> None:
    text = "\n".join(report([make_result(kernels=[make_kernel(), BAD])]))
    assert text.startswith("FAIL  1 finding\n")
    assert "1  _kernel does not compile   B with 3.6.0 for sm_90" in text
    assert "at        lib/k.py:7  x + y" in text
    assert "error     ValueError: sizes 32 and 64" in text
    assert "hint      a hint" in text
    assert "launched  lib/host.py:9" in text
    assert "with      BLOCK_M=128, SPLIT_K=4, 4 warps, 3 stages" in text
    again = "gpucheck compile compile --case a/case --target sm_90 --triton 3.6.0 --library 'path:/my lib'"
    assert f"again     {again}" in text
    assert text.endswith("advice  no Triton given compiles everything of B")


def test_the_installed_triton_and_the_default_library_need_no_option() -> None:
    text = "\n".join(report([make_result("E", "3.7.1", kernels=[BAD])]))
    assert "again     gpucheck compile compile --case a/case --target sm_90\n" in text


def test_long_lists_are_cut_unless_asked_for() -> None:
    many = {f"case{n}": CaseBuilt(f"case{n}", Built.NOT_REACHED, "why", "lib/host.py:1") for n in range(9)}
    short, whole = report([make_result(**many)]), report([make_result(**many)], verbose=True)
    assert short[0] == "INCONCLUSIVE  9 cases not reached"
    assert "not reached: why (lib/host.py:1)" in short
    assert "             ... and 6 more; -v shows all" in short
    assert sum(line.startswith("   case") for line in whole) == 9


def test_success_and_nothing_at_all_read_differently() -> None:
    good = report([make_result()])
    assert good[0] == "PASS  every kernel compiles: 1"
    assert good[-1] == "advice  everything compiles with Triton 3.6.0, the newest that does"
    assert report([])[0] == "NOTHING RAN  no kernel was compiled"
    assert report([make_result(kernels=[])])[0] == "NOTHING RAN  no kernel was compiled"


def test_resources_are_set_against_the_limits_of_the_target() -> None:
    kernels = [make_kernel("a", shared=232_448, name="_big"), make_kernel("b", registers=255, spilled=16)]
    text = "\n".join(report([make_result(kernels=kernels)]))
    assert "232,448 of 232,448 bytes of shared memory (100%): _big in B with 3.6.0" in text
    assert "255 registers: _kernel in B with 3.6.0; 16 bytes spilled a thread: _kernel" in text


def test_verbose_lists_every_kernel() -> None:
    kernels = [make_kernel("a"), replace(make_kernel("b"), seconds=None, launched="lib/host.py:4")]
    text = "\n".join(report([make_result(kernels=kernels)], verbose=True))
    facts = "1,000 of 232,448 B shared, 64 registers, 0 B spilled, 4 warps, 3 stages"
    assert f"  ok  _kernel  {facts}, 0.50 s" in text
    assert f"  ok  _kernel  {facts}, from Triton's cache  lib/host.py:4" in text


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
