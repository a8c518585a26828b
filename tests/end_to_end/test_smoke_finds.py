"""What the shapes in the built-in scenario ``smoke`` are for: faults of the library that no other case of it shows."""

from __future__ import annotations

import re

import pytest

from tests.end_to_end.conftest import Edit, Finished, Lab

PRODUCT = "matmul_ogs_details/_matmul_ogs.py"
SUM = "matmul_ogs_details/_reduce_grouped.py"
ACTIVATE = "    if ACTIVATION_FN is not None:\n        out = ACTIVATION_FN(acc"
SCALE = "        w_scale = load_scale(WScale + expt_id)\n"
EQUAL = """        of = expt_id
        if ExptHist is not None:
            before = tl.maximum(expt_id, 1) - 1
            of = tl.where(tl.load(ExptHist + before) == M, before, expt_id)
        w_scale = load_scale(WScale + of)
"""

FAULTS: dict[str, tuple[Edit, str, str]] = {
    # part of the id of the cases that show it: the fault, the title of its finding and words of its region
    "m3-n520-k32-": (
        (SUM, "        XPtrs += BLOCK_N * stride_xn\n", ""),
        "undetermined: wrong output",
        "y: all 3 tokens, columns 512-519 of 520",
    ),
    "m8-n48-k192-bias-swiglu-split3": (
        (
            SUM,
            "                curr += vals\n",
            "                if (b == 0) or (ACTIVATION_FN is None):\n                    curr += vals\n",
        ),
        "undetermined: w.*",
        "y: all 8 rows, all 24 columns",
    ),
    "gather-gammas-bias-swiglu-split1": (
        (
            PRODUCT,
            ACTIVATE,
            "    if ACTIVATION_FN is not None:\n        acc *= gammas[:, None]\n"
            "        gammas = tl.full([BLOCK_M], 1, dtype=tl.float32)\n        out = ACTIVATION_FN(acc",
        ),
        "undetermined: wrong output",
        "y: all 16 rows, .*, every expert",
    ),
    "else2-gather-scatter": (
        (PRODUCT, "    mask = (src_idx == -1)", "    mask = (src_idx == -2)"),
        "undetermined: output not written",
        "y: 3 of 12 tokens .*, all 48 columns, touching no expert",
    ),
    "load-one-scales-each": (
        (PRODUCT, SCALE, EQUAL),
        "undetermined: wrong scale",
        "y: rows 30-59 of 60, all 48 columns, exactly expert 3",
    ),
    "out-fp16/wide": (
        (
            PRODUCT,
            "    tl.store(YPtrs, out, mask=mask)\n",
            "    if Y.dtype.element_ty == tl.float16:\n"
            "        out = tl.clamp(out.to(tl.float32), -65504.0, 65504.0)\n"
            "    tl.store(YPtrs, out, mask=mask)\n",
        ),
        "undetermined: wrong output",
        "expected -?inf, got -?65504",
    ),
    "n264-alpha0.5-": (
        ("swiglu_details/_swiglu.py", "packed_off_n = pid_n * 2 * BLOCK_N +", "packed_off_n = pid_n * BLOCK_N +"),
        "undetermined: wrong output",
        "y: all 11 rows, columns 128-131 of 132",
    ),
    "mxfp/down/.*c66": (
        (
            "numerics_details/mxfp_details/_downcast_to_mxfp.py",
            "    start_out = outer_block * BLOCK_SIZE_OUT_DIM\n",
            "    start_out = 0 * outer_block\n",
        ),
        "undetermined: output not written",
        "values: batch 1 of 2, .*, columns 62-65 of 66",
    ),
    "routing/bf16/m37-e40-": (
        (
            "topk_details/_topk_forward.py",
            "    y_rem = y_indices % 32\n",
            "    y_rem = tl.where(y_indices == 32, 1, y_indices % 32)\n",
        ),
        "undetermined: [^N].*",
        "histogram: experts 32-33 of 40",
    ),
    "routing/bf16/m1050-": (
        (
            "reduction_details/reduce_bitmatrix.py",
            "    n_rows = shape_bm\n",
            "    n_rows = tl.minimum(shape_bm, 1024)\n",
        ),
        "undetermined: .*",
        "histogram: all 2 experts",
    ),
}


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    library = lab.plant(*(edit for edit, _, _ in FAULTS.values()))
    return lab.forked("--experiments", "0", library=library, scenario="smoke", nproc=1)


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_seen_by_the_cases_that_are_there_for_it(run: Finished, case: str) -> None:
    _, title, words = FAULTS[case]
    found = [
        (each["title"], line)
        for each in run.report["findings"]
        for line in each["cases"]
        if re.search(case, line["case"])
    ]
    assert found, run.text
    assert all(re.fullmatch(title, seen) for seen, _ in found), found
    assert any(re.search(words, line) for _, shown in found for line in shown["lines"]), found


def test_no_other_case_sees_one(run: Finished) -> None:
    wrong = {result["case"] for result in run.report["results"] if result["outcome"] != "pass"}
    assert [case for case in wrong if not any(re.search(part, case) for part in FAULTS)] == []
