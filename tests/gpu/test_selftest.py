"""Every fault that GPUs can show, planted on each rank in turn."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.gpu.conftest import LIBRARY, NEEDS_TWO, RANKS, gpucheck

pytestmark = NEEDS_TWO


def test_all_planted_faults_are_found_within_five_minutes(tmp_path: Path) -> None:
    begin = time.monotonic()
    options = ["--library", LIBRARY] if LIBRARY else []
    done = gpucheck(
        "selftest", "--nproc", str(RANKS), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "s.json"), *options,
        timeout=590.0,
    )  # fmt: skip
    print(done.stdout, done.stderr, f"{time.monotonic() - begin:.0f} s", sep="\n")
    assert done.returncode == 0 and json.loads((tmp_path / "s.json").read_text())
    assert time.monotonic() - begin < 300
