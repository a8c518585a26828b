from __future__ import annotations

from dataclasses import replace

from gpucheck.diagnose.conclude import conclude
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.formats.termination import LIMIT, render
from tests.conftest import Synthetic


def test_the_line_says_what_is_wrong_and_where(busy: Report) -> None:
    assert render(busy) == (
        "FAIL: 7 findings, 3 open questions; first: wrong device context: corrupted on rank 3 (attention decode); "
        "gate · 8 x NVIDIA H200 · torch 2.0 · triton 3.0 · triton_kernels B (path, ffffffff) · seed 0 · 41.7 s\n"
    )


def test_a_pass_has_no_finding(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=2, ranks=2))
    assert render(blocks.build(run, conclude(run))).startswith("PASS: 2 cases on 2 ranks; smoke · 2 x NVIDIA H200 · ")


def test_it_is_one_line_that_kubernetes_keeps_whole(busy: Report, hostile: Report) -> None:
    assert render(hostile).count("\n") == 1
    for character in ("a", "ä", "中"):
        for length in range(LIMIT - 4, LIMIT + 4):
            text = render(replace(busy, headline=[character * length]))
            assert LIMIT - 3 <= len(text.encode()) <= LIMIT and text.endswith(f"{character}\n")
