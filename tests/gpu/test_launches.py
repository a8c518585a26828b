"""What a GPU shows of launches that ask for too much, reach too far or are tuned on the tensors of a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.conftest import NEEDS_GPU, Done

pytestmark = NEEDS_GPU

CHECKS = Path(__file__).parents[1] / "data" / "checks"
Run = Callable[..., "Done"]


def checked(run: Run, name: str) -> dict[str, Any]:
    """The findings about the cases of one file of checks on a single rank, by case."""
    done = run("--check-file", str(CHECKS / f"{name}.py"), "--device", "cuda", library=None, ranks=1)
    assert done.code == 1, done.text
    return {shown["case"]: {**each, **shown} for each in done.report["findings"] for shown in each["cases"]}


def test_a_grid_that_is_too_long_is_a_resource_limit_and_the_next_case_runs(run: Run) -> None:
    found = checked(run, "long_grid")
    assert found.keys() == {"long_grid/axis1-r65536/exact", "long_grid/axis2-r65536/exact"}
    for case, finding in found.items():
        axis = case[len("long_grid/axis")]
        assert finding["title"] == "resource limit" and "axis 0" in finding["fix"]
        lines = "\n".join(finding["lines"])
        assert f"double_rows was launched with 65,536 blocks on axis {axis}, at most 65,535" in lines
        assert "raised at long_grid.py:" in lines


def test_rows_that_offsets_of_32_bits_do_not_reach_are_told(run: Run) -> None:
    (finding,) = checked(run, "far_pages").values()
    assert "suspect GPU" not in finding["title"] and "race" not in finding["title"]
    assert "zero instead of the result" in finding["title"]
    lines = "\n".join(finding["lines"])
    assert "hint: offset arithmetic wraps at 2^31: wrong are entries 3, 4, just those whose numbers times" in lines


def test_what_the_tuner_left_behind_is_no_race(run: Run) -> None:
    found = {case.split("/")[1]: finding["title"] for case, finding in checked(run, "autotuned").items()}
    assert found["in_place"] == "autotuned on live tensors: wrong in the first call alone"
    assert "alike" not in found
    part = found.get("part")  # right where the tuner chose the configuration that writes everything
    assert part in (None, "autotuned on live tensors: output not written")
