"""Problems of KernelBench at their real sizes: their own code is right, one element off by 5% of the largest is wrong.

GPUCHECK_TEST_KERNELBENCH names the folder with ``level1`` to ``level3``. Each test prints how long its run took and the
most memory that a process of it held.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.conftest import NEEDS_GPU

FOLDER = os.environ.get("GPUCHECK_TEST_KERNELBENCH", "")
pytestmark = [*NEEDS_GPU, pytest.mark.skipif(not FOLDER, reason="GPUCHECK_TEST_KERNELBENCH names no folder")]

PROBLEMS = {
    1: (1, 19, 23, 26, 33, 36, 45, 51, 61, 63, 89, 94, 95, 97),
    2: (1, 12, 40, 76),
    3: (1, 3, 19, 28, 35, 43),
}
WRONG = """

class ModelNew(Right):
    def forward(self, *given):
        out = super().forward(*given).clone()
        flat = out.view(-1)
        largest = max(float(flat.max()), -float(flat.min()))
        flat[flat.numel() * 7 // 11] += 0.05 * largest if out.is_floating_point() else max(1, int(0.05 * largest))
        return out
"""


def candidate(problem: str, *, right: bool) -> str:
    """The problem's own code as a candidate, or one that spoils an element of what that gives."""
    name = "ModelNew" if right else "Right"
    text = re.sub(r"\bclass Model\b", f"class {name}", problem)
    return re.sub(r"super\(Model,", f"super({name},", text) + ("" if right else WRONG)


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize(("level", "number"), [(level, number) for level, each in PROBLEMS.items() for number in each])
def test_a_problem_at_its_real_size_has_its_verdict(
    run: Callable[..., Any], tmp_path: Path, level: int, number: int, *, right: bool
) -> None:
    (problem,) = Path(FOLDER, f"level{level}").glob(f"{number}_*.py")
    pair = tmp_path / f"l{level}_{number}.py"
    pair.write_text(candidate(problem.read_text(), right=right))
    done = run("--problem", str(problem), "--candidate", str(pair), ranks=1, library=None)
    held = [(size, name) for record in done.records for name, size in record.get("memory", {}).items()]
    words = ", ".join(f"{size / 2**30:.1f} GiB {name}" for size, name in sorted(held, reverse=True)[:2])
    print(f"KERNELBENCH level {level} problem {number} {'right' if right else 'wrong'}: {done.seconds:.1f} s, {words}")
    assert done.code == (0 if right else 1), done.text
    titles = [finding["title"] for finding in done.report["findings"]]
    assert all("wrong output" in title for title in titles) and bool(titles) is not right, done.text
