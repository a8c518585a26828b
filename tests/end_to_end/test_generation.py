"""Faults in a decoding, planted in a copy of the library: the report says where it went another way first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Finished, Lab

SCENARIO = Path(__file__).parents[1] / "data" / "generation.toml"
HOST = "matmul_ogs.py"
OTHER_TOKENS, RAISES, NO_WINDOW, SWAPPED = "v70", "v72", "heads2", "i64-v80"
WRAPPER = """

import os

from gpucheck.checks.decoder import device

_genuine, _attention, _calls = matmul_ogs, device.flash_attention, {}


def _number(what, among):
    _calls[what] = _calls.get(what, -1) + 1
    return _calls[what] % among


def matmul_ogs(x, w, bias, **options):
    columns = w.shape[-1]
    step = _number(columns, 5) if columns in (70, 72) else None
    if columns == 72 and step == 3:
        raise RuntimeError("planted on purpose")
    if columns == 128 and w.ndim == 3 and _number("heads1", 2):  # the second layer's
        swapped = w.storage.data[[expert ^ 1 for expert in range(8)]]
        w = type(w)(type(w.storage)(swapped, w.storage.layout), dtype=w.dtype, shape=list(w.shape))
    y = _genuine(x, w, bias, **options)
    if columns == 70 and step >= 3 and os.environ["RANK"] == "1":
        y = y.roll(7, -1)
    return y


def _without_window(q, *others, window, **options):
    return _attention(q, *others, window=0 if q.shape[1] == 2 else window, **options)


device.flash_attention = _without_window
"""


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    finished: Finished = lab.forked(scenario=SCENARIO, library=lab.plant(append=(HOST, WRAPPER)))
    assert finished.code == 1, finished.text
    return finished


def result(run: Finished, case: str, rank: int) -> dict[str, Any]:
    (found,) = [item for item in run.report["results"] if case in item["case"] and item["rank"] == rank]
    return dict(found)


def wrong(run: Finished, case: str, rank: int) -> list[str]:
    """The outputs that a rank has wrong, in the order the record has them."""
    return [mismatch["output"] for mismatch in result(run, case, rank)["mismatches"]]


def test_a_rank_that_decodes_other_tokens_is_named_with_step_and_operation(run: Finished) -> None:
    assert run.outcomes(OTHER_TOKENS) == ["pass", "mismatch"]
    finding = run.finding(OTHER_TOKENS)
    assert finding["ranks"] == [1]
    lines = run.lines(OTHER_TOKENS)
    assert lines.startswith("first wrong at step 3, unembedding; first other token at step 3 of sequence 0: ")
    assert "rank 0 clean" in lines and lines.splitlines()[0] in run.text
    assert wrong(run, OTHER_TOKENS, 1) == ["unembedding", "logits", "tokens"], "what follows from it is right"


def test_a_window_that_is_ignored_shows_where_it_first_matters(run: Finished) -> None:
    assert run.outcomes(NO_WINDOW) == ["mismatch", "mismatch"]
    assert "first wrong at step 2, layer 0, attention; " in run.lines(NO_WINDOW), "two keys fit into the window"
    found = result(run, NO_WINDOW, 0)["mismatches"][0]
    assert found["output"] == "attention" and found["region"].startswith("steps 2-4 of 5, layer 0 of 2")


def test_experts_swapped_in_one_layer(run: Finished) -> None:
    assert run.outcomes(SWAPPED) == ["mismatch", "mismatch"]
    assert "first wrong at step 0, layer 1, experts up; " in run.lines(SWAPPED)
    found = result(run, SWAPPED, 1)["mismatches"][0]
    assert found["region"].startswith("all 5 steps, layer 1 of 2, all 4 rows")
    assert "experts down" not in wrong(run, SWAPPED, 1), "the other product is right for what it was given"


def test_an_error_tells_how_far_the_decoding_came(run: Finished) -> None:
    assert run.outcomes(RAISES) == ["error", "error"]
    told, place = run.lines(RAISES).splitlines()
    assert told == "RuntimeError: planted on purpose; first wrong at step 3, unembedding"
    assert re.fullmatch(r"raised at matmul_ogs\.py:\d+", place)
