"""One changed line in a copy of the library: the report names check, ranks and region."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

KERNEL = "matmul_ogs_details/_matmul_ogs.py"
HOST = "matmul_ogs.py"

PLANTS = Path(__file__).parents[1] / "data" / "plants.toml"
SCATTER = "matmul/routed/fp16/m24-n40-k96-e6-top2-scatter-gammas/exact"


def assert_found(run: Finished, case: str, row: str, ranks: list[int]) -> str:
    """Checks that the run fails with one finding of the case on these ranks; gives its lines and the region's."""
    assert run.code == 1, run.text
    assert run.report["verdict"] == "FAIL"
    assert run.outcomes("attention") == ["pass", "pass"], "a case that has no part in the fault fails"
    finding = run.finding(case)
    assert finding["fails"]
    assert finding["ranks"] == ranks
    assert finding["rows"] == [row]
    words = "ranks 0, 1" if len(ranks) > 1 else f"rank {ranks[0]}"
    assert f"{finding['title']}   {words}   {row} (" in run.text
    lines: str = run.lines(case)
    for line in lines.splitlines():
        assert line in run.text, "the text report leaves out what the JSON says"
    return lines


def test_dropped_tail_of_the_sum(lab: Lab) -> None:
    old = "for k in range(K, BLOCK_K * pid_k, -(BLOCK_K * SPLIT_K)):"
    library = lab.plant((KERNEL, old, old.replace("BLOCK_K * pid_k,", "BLOCK_K * pid_k + BLOCK_K - 1,")))
    run = lab.finish(library=library, cases=("m20-n41-", "attention"))
    lines = assert_found(run, "m20-n41-", "matmul dense bf16", [0, 1])
    assert "all 20 rows, all 41 columns" in lines


def test_two_experts_swapped(lab: Lab) -> None:
    old = "    W += expt_id * stride_w_e\n"
    swapped = "tl.where(expt_id == 1, 4, tl.where(expt_id == 4, 1, expt_id))"
    library = lab.plant((KERNEL, old, old.replace("expt_id", swapped)))
    run = lab.finish(library=library, cases=("top2-gather", "attention"))
    lines = assert_found(run, "top2-gather", "matmul routed fp16", [0, 1])
    assert "exactly experts 1, 4" in lines


@pytest.mark.parametrize(
    ("wrong", "region"),
    [
        ("", "all 20 rows, all 40 columns"),
        (
            " * ((offs_n_scale[:, None] == 7) & (offs_k_scale[None, :] == 2)).to(tl.uint8)",
            "all 20 rows, column 7 of 40",
        ),
    ],
    ids=["every", "single"],
)
def test_scale_off_by_one(lab: Lab, wrong: str, region: str) -> None:
    old = "            else:\n                w_scales = tl.load(WMxScalePtrs, mask=mask_k_scale[None, :])\n"
    increment = f" + tl.full([1], 1, tl.uint8){wrong}\n"
    library = lab.plant((KERNEL, old, old.rstrip("\n") + increment))
    run = lab.finish(library=library, cases=("m20-n40-k128/exact", "attention"))
    lines = assert_found(run, "m20-n40-k128/exact", "matmul dense mxfp4", [0, 1])
    assert region in lines


def test_flipped_bit_on_one_rank(lab: Lab) -> None:
    flip = 'out_final.view(torch.int16).view(-1)[3 * 41 + 5] ^= int(__import__("os").environ["RANK"])'
    library = lab.plant((HOST, "    return out_final\n", f"    {flip}\n    return out_final\n"))
    run = lab.finish(library=library, cases=("m20-n41-", "attention"))
    lines = assert_found(run, "m20-n41-", "matmul dense bf16", [1])
    assert "y: row 3 of 20, column 5 of 41" in lines
    assert "1 of 820 elements wrong" in lines
    assert "each differs in one bit: 0" in lines
    assert run.outcomes("m20-n41-") == ["pass", "mismatch"]


def test_one_gate_off_by_a_256th(lab: Lab) -> None:
    old = "gammas = tl.load(Gammas + start_m + offs_m, mask=mask_m, other=0.0)"
    library = lab.plant((KERNEL, old, old + " * tl.where(start_m + offs_m == 11, 1 + 2.0**-8, 1.0)"))
    run = lab.finish(library=library, cases=("scatter-gammas/exact", "attention"))
    lines = assert_found(run, SCATTER, "matmul routed fp16", [0, 1])
    assert f"token {token_of(row=11)} of 24," in lines


def token_of(row: int) -> int:
    """The token whose result the expert-sorted ``row`` goes to."""
    from gpucheck.plan.scenario import load
    from gpucheck.worker import store

    case = next(step.case for step in load(PLANTS).steps if step.case.id == SCATTER)
    inputs = store._make_inputs(case)
    return int(inputs["to_flat"][row]) // int(case["top_k"])
