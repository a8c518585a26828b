"""The corruption this tool was made for, before and after a device guard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpucheck.library.copies import LibraryCopy
from tests.gpu.conftest import NEEDS_TWO, RANKS, Done
from tests.guard_patch import guard_patch

pytestmark = NEEDS_TWO

OTHERS = list(range(1, RANKS))
CAUSE = "wrong device context"


def test_every_rank_but_the_first_is_named_with_launch_tensors_and_line(run: Callable[..., Done]) -> None:
    done = run("device-context", "--experiments", "0")
    assert done.code == 1
    findings = {finding["title"]: finding for finding in done.report["findings"]}
    states = {title.removeprefix(f"{CAUSE}: ") for title in findings if title.startswith(CAUSE)}
    assert states == {"corrupted", "launch refused", "latent, right by luck"}
    for finding in findings.values():  # a launch on GPU 0 that goes wrong there may take work of rank 0 down with it
        assert set(finding["ranks"]) <= set(OTHERS) or finding["cause"] == "interference between ranks"
    assert findings[f"{CAUSE}: corrupted"]["ranks"] == OTHERS
    lines = "\n".join(line for seen in findings[f"{CAUSE}: corrupted"]["cases"] for line in seen["lines"])
    assert "10 of 10 repeats wrong" in lines and "launched on cuda:0, its tensors on cuda:1" in lines
    assert "matmul_ogs.py:" in lines or "matmul.py:" in lines
    assert done.outcomes(0) <= {"pass", "hang"}
    assert all(done.outcomes(rank, placement) == {"pass"} for rank in OTHERS for placement in ("pinned", "visible"))


def test_a_device_guard_makes_all_of_it_right(run: Callable[..., Done], library: LibraryCopy, tmp_path: Path) -> None:
    patch = tmp_path / "guard.patch"
    patch.write_text(guard_patch(library.package))
    assert run("device-context", "--patch", str(patch)).code == 0
