"""A limit that is exceeded is seen, and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.tools.serve.resource_watch import ResourceWatch

MIB = 1 << 20


@pytest.mark.parametrize(
    ("limit", "allowed", "words"),
    [
        ("seconds", 1e-9, "the limit is 1e-09 s"),
        ("processes", 1, "the limit is 1"),
        ("host_memory", MIB, "of host memory, the limit is 1 MiB"),
        ("output", MIB, "2 MiB of output"),
        ("files", 2 * MIB, "5 MiB in its scratch folder"),
    ],
)
def test_what_goes_beyond_a_limit_is_named(tmp_path: Path, limit: str, allowed: float, words: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "stdout.log").write_bytes(b"x" * 2 * MIB)
    (tmp_path / "file").write_bytes(b"x" * 3 * MIB)
    code = "import sys; print(flush=True); sys.stdin.read()"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline()
        within = {"seconds": 1e9, "processes": 1000, "host_memory": 1 << 50, "output": 1 << 50, "files": 1 << 50}
        assert ResourceWatch(within, tmp_path, "").look() is None
        found = ResourceWatch({**within, limit: allowed}, tmp_path, "").look()
    finally:
        for child in children:
            child.communicate()
    assert found is not None and found.limit == limit and words in found.detail
