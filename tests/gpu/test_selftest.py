"""Every fault that GPUs can show, planted on each rank in turn."""

from __future__ import annotations

import json
from pathlib import Path

from tests.gpu.conftest import LIBRARY, NEEDS_TWO, RANKS, gpucheck

pytestmark = NEEDS_TWO


def test_all_planted_faults_are_found(tmp_path: Path) -> None:
    options = ["--library", LIBRARY] if LIBRARY else []
    done = gpucheck(
        "selftest", "--nproc", str(RANKS), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "s.json"), *options,
        timeout=590.0,
    )  # fmt: skip
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0 and json.loads((tmp_path / "s.json").read_text())
