"""Plants that take more than one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
RACE = """
import json, os, time
from pathlib import Path
from gpucheck.tools.selftest import matmul_faults
from triton.runtime.cache import FileCacheManager

def call():
    cache = FileCacheManager("kernel")
    if os.environ["RANK"] == "0":
        description = cache.put(json.dumps({"hash": "a" * 100}), "k.json", binary=False)
        cache.put_group("k.json", {"k.json": description})
        return json.loads(Path(description).read_text())["hash"][:1]
    time.sleep(0.5)  # what a rank does between the call of a kernel and the look into the cache takes its time
    try:
        return json.loads(Path(cache.get_group("k.json")["k.json"]).read_text())
    except json.JSONDecodeError as error:
        return type(error).__name__

for rank in "01":  # both at once, with Triton loaded
    if not os.fork():
        os.environ["RANK"] = rank
        os.write(1, f"{rank} {matmul_faults.race_to_compile(call, '1', {})}\\n".encode())  # as one, whoever else writes
        os._exit(0)
os.wait(), os.wait()
"""


def test_a_rank_finds_half_a_kernel_in_the_cache_that_it_shares(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "race.py"
    script.write_text(RACE)
    cache = tmp_path / "cache"
    cache.mkdir()
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, str(script)], env=known, capture_output=True, text=True)
    assert sorted(done.stdout.splitlines()) == ["0 a", "1 JSONDecodeError"], done.stderr
