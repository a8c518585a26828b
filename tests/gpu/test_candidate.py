"""Candidates on a GPU: what they may do with streams and graphs, what is caught, and which times are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import NEEDS_GPU

pytestmark = NEEDS_GPU

DATA = Path(__file__).parents[1] / "data"
TIMES = re.compile(r"(\w+): ([\d.]+) ms a call, Model in torch ([\d.]+) ms: ([\d.]+) times as (fast|slow)")
Run = Callable[..., Any]


def judge(run: Run, *names: str) -> Any:
    """One run of several candidates on one rank."""
    pairs = [("--problem", DATA / "problems" / "gelu.py", "--candidate", DATA / "cheats" / f"{n}.py") for n in names]
    return run(*(str(word) for pair in pairs for word in pair), "--experiments", "0", ranks=1)


def violations(done: Any, name: str) -> dict[str, str]:
    found = [item["violations"] for item in done.records if item["case"].startswith(f"{name}/")]
    return {each["kind"]: each["detail"] for item in found for each in item}


def titles(done: Any, name: str) -> set[str]:
    return {
        finding["title"]
        for finding in done.report["findings"]
        for failed_case in finding["cases"]
        if failed_case["case"].startswith(f"{name}/")
    }


def test_honest_candidates_pass_with_their_times_whatever_streams_and_graphs_they_use(run: Run) -> None:
    names = ("honest", "stream_ordered", "graph_replayed")
    done = judge(run, *names)
    assert done.code == 0, done.text
    times = {found[1]: found for found in TIMES.finditer(done.text)}
    assert set(times) == set(names)
    assert all(0 < float(found[2]) < 10 and 0 < float(found[3]) < 10 for found in times.values()), done.text


def test_launches_that_nobody_waits_for_are_a_missing_stream_order_and_have_no_time(run: Run) -> None:
    names = ("stream_unwaited", "stream_half_ordered")
    done = judge(run, *names)
    assert done.code == 1, done.text
    for name in names:
        assert titles(done, name) == {"missing stream order: launches on a stream that nobody waits for"}, done.text
        words = violations(done, name)["order"]
        assert re.search(
            r"gelu_kernel launched on stream \d+, the caller's is \d+, and nobody waits: \d+ of 1000", words
        )
    assert not TIMES.search(done.text)


@pytest.mark.parametrize(
    ("names", "title", "kind"),
    [
        (("by_content", "idle_when_timed", "first_answer"), "answer not from its inputs", "cached"),
        (
            ("patches_judge", "checks_its_kernel", "idle_kernel"),
            "fallback: answer not made by the kernels launched",
            "idle",
        ),
    ],
)
def test_answers_kept_left_out_or_made_by_torch_are_caught_and_have_no_time(
    run: Run, names: tuple[str, ...], title: str, kind: str
) -> None:
    done = judge(run, *names)
    assert done.code == 1, done.text
    for name in names:
        assert titles(done, name) == {title} and kind in violations(done, name), done.text
    assert not TIMES.search(done.text)
