from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host import gpu_state
from gpucheck.host.gpu_state import Gpu, Snapshot
from gpucheck.host.nvidia_smi import Answer, Reply
from gpucheck.records.run_folder import read_run
from gpucheck.records.writer import RecordWriter
from gpucheck.worker.supervisor.gpu_snapshot import Adders, Gpus
from tests.conftest import Synthetic

FOUR = tuple(
    Gpu(n, "NVIDIA H200", f"GPU-{n}", "", sm_clock=1000 + n, sm_clock_max=1980, temperature=50 + n) for n in range(4)
)


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """nvidia-smi with four GPUs; counts how often it is asked."""
    asked: list[float] = []

    def snapshot(environ: Any, limit: float) -> Snapshot:
        asked.append(limit)
        return Snapshot(Answer(Reply.ANSWERED), gpus=FOUR)

    monkeypatch.setattr(gpu_state, "snapshot", snapshot)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return asked


def written(synthetic: Synthetic, folder: Path, rank: int, local_rank: int, **plan: Any) -> dict[int, dict[str, Any]]:
    """What a supervisor writes about GPUs, by rank."""
    made = synthetic.plan(**{"ranks": 2, **plan})
    synthetic.write(folder, synthetic.run(made))
    gpus = Gpus(made, rank, local_rank, RecordWriter(folder, rank))
    gpus.close()
    for _ in range(3):
        gpus.start()
    gpus.close()
    return read_run(folder).gpus


def test_the_first_rank_of_a_node_asks_once_for_all_of_them(synthetic: Synthetic, tmp_path: Path, smi: Any) -> None:
    found = written(synthetic, tmp_path / "a", 2, 0, ranks=2, nnodes=2)
    assert {rank: (facts["sm_clock"], facts["temperature"]) for rank, facts in found.items()} == {
        2: (1000, 50),
        3: (1001, 51),
    }
    assert len(smi) == 1 and found[2]["uuid"] == "GPU-0" and found[2]["throttle"] == []
    assert written(synthetic, tmp_path / "b", 3, 1, ranks=2, nnodes=2) == {} and len(smi) == 1


def test_ranks_have_the_gpus_that_are_visible(
    synthetic: Synthetic, tmp_path: Path, smi: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1")
    found = written(synthetic, tmp_path / "a", 0, 0)
    assert {rank: facts["uuid"] for rank, facts in found.items()} == {0: "GPU-3", 1: "GPU-1"}


@pytest.mark.parametrize("plan", [{"device": "cpu"}, {"ranks": 1}])
def test_nobody_is_asked_where_no_rank_can_be_compared(
    synthetic: Synthetic, tmp_path: Path, smi: Any, plan: dict[str, Any]
) -> None:
    assert written(synthetic, tmp_path / "a", 0, 0, **plan) == {} and not smi


def test_a_driver_that_fails_or_is_stuck_changes_nothing(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Snapshot:
        raise OSError("no")

    monkeypatch.setattr(gpu_state, "snapshot", broken)
    assert written(synthetic, tmp_path / "a", 0, 0) == {}
    monkeypatch.setattr(gpu_state, "snapshot", lambda *_: time.sleep(60))
    monkeypatch.setattr("gpucheck.worker.supervisor.gpu_snapshot.LIMIT", -0.9)
    begin = time.monotonic()
    assert written(synthetic, tmp_path / "b", 0, 0) == {} and time.monotonic() - begin < 50


def test_a_line_about_a_gpu_that_is_damaged_is_passed_over(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "a", synthetic.run(synthetic.plan(ranks=2)))
    with open(folder / "records" / "rank-00000.jsonl", "a") as file:
        file.write(json.dumps({"event": "gpu", "rank": "one"}) + "\n" + json.dumps({"event": "gpu"}) + "\n")
    assert read_run(folder).gpus == {}


def test_bounds_are_those_of_the_gpus_that_the_launcher_names(synthetic: Synthetic, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from gpucheck.verify import bounds

    plan = synthetic.plan(device="cuda")
    (tmp_path / "architectures").write_text("sm_100 sm_90")
    found = Adders(plan, tmp_path).arithmetic()
    assert found.name == "sm_100 and sm_90" and found.fp8 == bounds.arithmetic(["sm_90", "sm_100"]).fp8
    assert Adders(synthetic.plan(device="cpu"), tmp_path).arithmetic() == bounds.ARITHMETIC["interpreter"]


def test_bounds_are_the_widest_and_say_so_where_nothing_is_known_of_the_gpus(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs torch")
    from gpucheck.verify import bounds

    plan = synthetic.plan(device="cuda")
    silent = Adders(plan, tmp_path, limit=0.0).arithmetic()
    (tmp_path / "architectures").write_text("")
    for found in (silent, Adders(plan, tmp_path).arithmetic()):
        assert found.fp8 == bounds.ANY_DEVICE.fp8 and "not known, so the widest bound of all known GPUs" in found.name
