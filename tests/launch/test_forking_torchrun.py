"""torchrun that forks its ranks, with a rank of our own that tells what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.launch import forking_torchrun
from gpucheck.launch.torchrun import AGENT

pytest.importorskip("torch", reason="needs torch")

RANK = """
import json, os, signal, sys
import torch

def start(run):
    print("to stdout", flush=True)
    facts = {
        "rank": os.environ["RANK"], "ranks": os.environ["WORLD_SIZE"], "parent": os.getppid(),
        "imported": float(os.environ.get("GPUCHECK_IMPORTED", "0")),
        "handlers": [signal.getsignal(number) == signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)],
        "asks cuda": torch.cuda.is_available.__module__,
        "arguments": sys.argv[-1] if __name__ == "__main__" else "",
    }
    (run / f"rank{os.environ['RANK']}.json").write_text(json.dumps(facts))

if __name__ == "__main__":
    import pathlib
    start(pathlib.Path(sys.argv[1]))
"""
SITE = """
import multiprocessing.context as context
def refuse(self):
    raise OSError(38, "Function not implemented")
context.BaseContext.Event = refuse
"""


def run(folder: Path, **environment: str) -> list[dict[str, Any]]:
    (folder / "planted").mkdir(exist_ok=True)
    (folder / "planted" / "__init__.py").touch()
    (folder / "planted" / "__main__.py").write_text(RANK)
    options = ["--nproc-per-node", "2", "--max-restarts", "0", "--standalone", "--log-dir", str(folder / "logs")]
    paths = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", AGENT, *options, "--redirects", "3", "-m", "planted", str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in folder.glob("logs/*/attempt_0/*/stdout.log")] == ["to stdout\n"] * 2
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_are_forks_that_find_torch_loaded_and_nobody_has_asked_for_gpus(tmp_path: Path) -> None:
    first, second = run(tmp_path)
    assert (first["rank"], second["rank"], first["ranks"]) == ("0", "1", "2")
    assert first["parent"] == second["parent"] and first["imported"] == second["imported"] > 0.1
    assert first["handlers"] == [True, True]
    assert first["asks cuda"] == "torch.cuda", "the agent's own answer stays with the agent"
    assert first["arguments"] == ""


def test_torchrun_asks_for_gpus_and_torch_hears_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once asked, torch lets no fork of this process use a GPU."""
    from torch import cuda
    from torch.distributed import run as torchrun

    asked: list[str] = []
    made: list[Any] = []

    def config(words: Any) -> Any:
        return SimpleNamespace(gpus=cuda.is_available()), "python", ["-m", "planted", "/run"]

    monkeypatch.setenv(forking_torchrun.IMPORTED, "")
    monkeypatch.setattr(cuda, "is_available", lambda: asked.append("torch"))
    monkeypatch.setattr(torchrun, "config_from_args", config)
    monkeypatch.setattr(torchrun, "main", lambda words: made.append(torchrun.config_from_args(words)))
    forking_torchrun.main(["-m", "gpucheck.worker", "/run"])
    ((seen, rank, words),) = made
    assert not asked and seen.gpus is False and seen.start_method == "fork"
    assert callable(rank) and words == ("planted", "/run")


def test_where_forks_cannot_be_heard_ranks_are_started_as_torchrun_does(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    assert [facts["arguments"] for facts in run(tmp_path)] == [str(tmp_path)] * 2
