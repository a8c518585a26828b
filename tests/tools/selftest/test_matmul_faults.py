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

print(matmul_faults.race_to_compile(call, "1", {}))
"""


def test_a_rank_finds_half_a_kernel_in_the_cache_that_it_shares(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "race.py"
    script.write_text(RACE)
    cache = tmp_path / "cache"
    cache.mkdir()
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TRITON_CACHE_DIR": str(cache)}
    ranks = [
        subprocess.Popen([sys.executable, str(script)], env={**known, "RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    told = [process.communicate()[0].strip() for process in ranks]
    assert told == ["a", "JSONDecodeError"]
