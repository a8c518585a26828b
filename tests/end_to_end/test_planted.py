"""Many planted faults in one run, each told by the number of columns of its case: what the report says of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

KERNEL = "matmul_ogs_details/_matmul_ogs.py"
HOST = "matmul_ogs.py"

EDITS = (
    # 41: the store reaches one column too far
    (KERNEL, "    mask_n = offs_y_n < N\n", "    mask_n = offs_y_n < N + (N == 41).to(tl.int32)\n"),
    # 42: rows from 128 on are never stored
    (
        KERNEL,
        "    mask = mask_m[:, None] & mask_n[None, :]\n",
        "    mask = mask_m[:, None] & mask_n[None, :] & ((N != 42) | (pid_m < 8))\n",
    ),
    # 43: partial sums in fp16; 44: the result is cut to bf16
    (
        KERNEL,
        "    out *= gammas[:, None]\n",
        "    out *= gammas[:, None]\n"
        "    if N == 43:\n        out = out.to(tl.float16).to(tl.float32)\n"
        "    if N == 44:\n        out = (out.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)\n",
    ),
    # 45: one value behind the bias is read
    (
        KERNEL,
        "            bias = tl.load(BPtrs, mask=mask_n, other=0)\n",
        "            bias = tl.load(BPtrs, mask=mask_n, other=0)\n"
        "            if N == 45:\n                bias += 0.0 * tl.load(B + N)\n",
    ),
    # 46: rank 1 launches nothing
    (
        HOST,
        "(kernels._p_matmul_ogs if opt_flags.is_persistent else kernels._matmul_ogs)[(grid,)](",
        "(kernels._p_matmul_ogs if opt_flags.is_persistent else kernels._matmul_ogs)"
        '[(0 if N == 46 and os.environ["RANK"] == "1" else grid,)](',
    ),
    (HOST, "import itertools\n", "import itertools\nimport os\n"),
)

WRAPPER = """

_genuine, _calls, _scales = matmul_ogs, itertools.count(), []


def matmul_ogs(x, w, bias, **options):
    import ctypes, signal, sys
    columns, rank = w.shape[-1], os.environ["RANK"]
    precision = options["precision_config"]
    if precision.weight_scale is not None:
        _scales.append(precision.weight_scale)
        precision.weight_scale = _scales[-2:][0]
    if columns == 47:
        return (x.float() @ w.float() + bias).to(precision.out_dtype)
    if columns == 49:
        raise RuntimeError("planted on purpose")
    if columns == 50 and rank == "1":
        os._exit(7)
    if columns == 51 and rank == "0":
        ctypes.string_at(0)
    if columns == 52 and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if columns == 53:
        sys.exit(0)
    if columns == 54 and rank == "1":
        forever()
    y = _genuine(x, w, bias, **options)
    if columns == 48:
        y.view(torch.int16)[4, 9] ^= next(_calls)
    if columns == 55:
        y[6:9] = float("nan")
    return y


def forever():
    while True:
        pass
"""


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    finished: Finished = lab.finish(library=lab.plant(*EDITS, append=(HOST, WRAPPER)))
    assert finished.code == 1, finished.text
    return finished


def violations(run: Finished, case: str) -> dict[str, str]:
    """Kind -> detail of the violations of a case, which all ranks agree on."""
    results = [result for result in run.report["results"] if case in result["case"]]
    assert results[0]["violations"] == results[1]["violations"]
    return {violation["kind"]: violation["detail"] for violation in results[0]["violations"]}


def mismatch(run: Finished, case: str, rank: int = 0) -> dict[str, Any]:
    (result,) = [result for result in run.report["results"] if case in result["case"] and result["rank"] == rank]
    (found,) = result["mismatches"]
    return dict(found)


def test_store_past_the_end_breaks_a_guard(run: Finished) -> None:
    assert run.outcomes("n41") == ["violation", "violation"]
    (kind, detail) = violations(run, "n41").popitem()
    assert (kind, detail) == ("guard", "2 bytes written after the bfloat16 tensor of shape (1, 20, 41), nearest 1 off")
    assert run.finding("n41")["title"] == "access outside of tensors: writes"


def test_tile_never_stored_still_holds_the_poison(run: Finished) -> None:
    assert run.outcomes("n42") == ["mismatch", "mismatch"]
    found = mismatch(run, "n42")
    assert found["region"] == "rows 128-149 of 150, all 42 columns, tile (1, 0) of 2"
    assert found["poison"] == found["wrong"] == 22 * 42
    assert "still hold the poison" in run.lines("n42")


@pytest.mark.parametrize("case", ["n43", "n44"])
def test_lost_precision_is_seen_within_an_ulp(run: Finished, case: str) -> None:
    assert run.outcomes(case) == ["mismatch", "mismatch"]
    found = mismatch(run, case)
    assert found["method"] == "bound"
    assert found["ulps"] <= 1
    assert found["wrong"] < found["total"]


def test_rounding_toward_zero_hits_half_of_the_elements(run: Finished) -> None:
    found = mismatch(run, "n44")
    assert 0.3 < found["wrong"] / found["total"] < 0.7


def test_read_past_the_end_makes_the_passes_differ(run: Finished) -> None:
    assert run.outcomes("n45") == ["mismatch", "mismatch"]
    assert mismatch(run, "n45")["nan"] == 20 * 45
    assert "it is read outside of the" in violations(run, "n45")["passes differ"]


def test_launch_without_effect_on_one_rank(run: Finished) -> None:
    assert run.outcomes("n46") == ["pass", "mismatch"]
    found = mismatch(run, "n46", rank=1)
    assert found["poison"] == found["total"]
    assert run.finding("n46")["ranks"] == [1]


def test_fallback_to_torch_is_seen_though_the_numbers_are_right(run: Finished) -> None:
    assert run.outcomes("n47") == ["violation", "violation"]
    assert "launched: none" in violations(run, "n47")["fallback"]


def test_result_that_differs_between_repeats(run: Finished) -> None:
    assert run.outcomes("n48") == ["violation", "violation"]
    assert set(violations(run, "n48")) == {"repeats differ"}


def test_scales_of_the_previous_call(run: Finished) -> None:
    assert run.outcomes("n40-k128/exact") == ["pass", "pass"]
    assert run.outcomes("n40-k128/normal") == ["mismatch", "mismatch"]
    assert mismatch(run, "n40-k128/normal")["wrong"] > 0.9 * 20 * 40


def test_nan_names_where_it_starts(run: Finished) -> None:
    found = mismatch(run, "n55")
    assert found["region"].startswith("rows 6-8 of 20, all 55 columns")
    assert "165 NaN and 0 Inf from (6, 0)" in run.lines("n55")


def test_exception_of_the_library(run: Finished) -> None:
    assert run.outcomes("n49") == ["error", "error"]
    assert run.finding("n49")["title"] == "the library or kernel raised"
    assert run.lines("n49") == "RuntimeError: planted on purpose"
    assert "in matmul_ogs" in run.results(0)[run.finding("n49")["sighting"]["case"]]["traceback"]


@pytest.mark.parametrize(
    ("case", "rank", "words"),
    [
        ("n50", 1, "ended with exit code 7"),
        ("n51", 0, "was killed by SIGSEGV"),
        ("n52", 1, "was killed by SIGKILL"),
    ],
)
def test_death_of_one_child(run: Finished, case: str, rank: int, words: str) -> None:
    outcomes = ["pass", "pass"]
    outcomes[rank] = "crash"
    assert run.outcomes(case) == outcomes
    finding = run.finding(case)
    assert (finding["title"], finding["ranks"]) == ("crash", [rank])
    assert run.lines(case).splitlines()[0] == f"the process that owns the device {words}"
    assert "outside of any Triton launch; under test: _matmul_ogs" in run.lines(case)


def test_exit_of_the_library_is_a_crash_whatever_its_code(run: Finished) -> None:
    assert run.outcomes("n53") == ["crash", "crash"]
    assert run.lines("n53").startswith("the process that owns the device ended with exit code 0\n")


def test_endless_loop_names_its_place(run: Finished) -> None:
    assert run.outcomes("n54") == ["pass", "hang"]
    finding = run.finding("n54")
    assert (finding["title"], finding["ranks"]) == ("hang", [1])
    assert "no result within 6 s, at matmul_ogs.py:" in run.lines("n54")
    assert "in forever" in run.lines("n54")
    assert "in matmul_ogs" in run.results(1)[finding["sighting"]["case"]]["traceback"]


def test_cases_after_a_crash_run_on(run: Finished) -> None:
    for case in ("n60", "top2-gather/", "scatter-gammas/exact", "attention"):
        assert run.outcomes(case) == ["pass", "pass"]
    assert not any(result["outcome"] in ("lost", "harness") for result in run.report["results"])
    assert all("end" in {line["event"] for line in run.records(rank)} for rank in (0, 1))


def test_a_crash_names_the_command_that_repeats_it(run: Finished) -> None:
    replay = run.finding("n50")["sighting"]["replay"]
    assert replay == f"gpucheck replay {run.folder} matmul/dense/bf16/m20-n50-k96-bias/exact --rank 1"
