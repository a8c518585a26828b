"""Memory of the host in place of symmetric memory: the library's own dispatch moves rows between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.library.adapters.base import Adapter

SCENARIO = """title = "dispatch of the library"
case_timeout = 60
[[cases]]
check = "sharded_moe"
parallel = "dispatch"
through = "library"
experts = 8
m = 16
top_k = 2
"""


def test_ranks_move_rows_through_the_dispatch_of_the_library(adapter: Adapter, tmp_path: Path) -> None:
    """Two ranks in Triton's interpreter; where a content has no dispatch, the case says so."""
    (tmp_path / "s.toml").write_text(SCENARIO)
    package = Path(adapter.matmul_module.__file__ or "").parent.parent
    command = [sys.executable, "-m", "gpucheck", "run", str(tmp_path / "s.toml"), "--nproc", "2", "--device", "cpu"]
    command += ["--library", f"path:{package}", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    has = adapter.generation in ("v3.6", "v3.7", "v3.8")
    assert done.returncode == (0 if has else 5), done.stdout + done.stderr
    assert ("1 case on 2 ranks" if has else "has no distributed.py") in done.stdout


def test_each_rank_maps_the_buffers_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank writes into the buffer of another one is there once both have met."""
    pytest.importorskip("torch", reason="needs torch")
    program = (
        "import os, sys, torch, torch.distributed as dist\n"
        "from gpucheck.library.adapters.host_symmetric import HostSymmetricMemory\n"
        "for rank in range(2):\n    if not os.fork():\n        break\n"
        "else:\n    sys.exit(any([os.wait()[1] for _ in range(2)]))\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=rank, world_size=2)\n"
        "memory = HostSymmetricMemory()\n"
        "own = memory.empty((6,), dtype=torch.int32, device=torch.device('cpu'))\n"
        "handle = memory.rendezvous(own, dist.group.WORLD)\n"
        "handle.get_buffer(1 - rank, (6,), torch.int32)[rank] = 7 + rank\n"
        "handle.barrier()\n"
        "assert own.tolist() == [0] * (1 - rank) + [8 - rank] + [0] * (4 + rank), own\n"
        "dist.destroy_process_group()\n"
    )
    monkeypatch.setenv("GPUCHECK_SCRATCH", str(tmp_path))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "meet")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not [*tmp_path.glob("symmetric-*")], "no file is left"
