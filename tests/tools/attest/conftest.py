"""Runs to attest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Synthetic

Stored = Callable[..., Path]


@pytest.fixture
def stored(synthetic: Synthetic, tmp_path: Path) -> Stored:
    """A run of three cases on two GPUs."""

    def write(ends: dict[tuple[int, int], Any] | None = None, name: str = "run", **changes: Any) -> Path:
        software = {"driver": "570.1", "python": "3.12.1"}
        software |= {name: {"version": "2.0", "fingerprint": "ab"} for name in ("torch", "triton")}  # type: ignore[misc]
        known = {"created": time.time() - 3600, "environment": {"software": software}, **changes}
        run = synthetic.run(synthetic.plan(cases=3, ranks=2, **known), ends, seconds=60.0)
        run.records = {
            key: replace(record, gpu=f"GPU-{key[1]}", bus=f"0000:{key[1]}B:00.0", repeats=8)
            for key, record in run.records.items()
        }
        return synthetic.write(tmp_path / name, run)

    return write
