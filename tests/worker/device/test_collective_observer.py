"""What the observer writes of collective calls, and that in step each is waited for; two processes over gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
distributed = pytest.importorskip("torch.distributed")

from gpucheck.worker.collective_journal import CollectiveCall, CollectiveJournal, read  # noqa: E402

Work = Callable[[int], None]


def rank_main(rank: int, folder: Path, in_step: bool, work: Work, failed: Any) -> None:
    """A rank: joins a group, then does its work with the observer around torch.distributed."""
    from gpucheck.worker.device.collective_observer import CollectiveObserver

    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    CollectiveObserver(CollectiveJournal(folder / f"calls{rank}"), in_step=in_step).install()
    try:
        work(rank)
    except BaseException:
        failed.set()
        raise


def calls(folder: Path, work: Work, *, in_step: bool = False) -> list[list[CollectiveCall]]:
    """The calls of two ranks that do some work."""
    fork = multiprocessing.get_context("fork")
    failed = fork.Event()
    ranks = [fork.Process(target=rank_main, args=(rank, folder, in_step, work, failed)) for rank in range(2)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert not failed.is_set() and [each.exitcode for each in ranks] == [0, 0]
    return [read(folder / f"calls{rank}") for rank in range(2)]


def everything(rank: int) -> None:
    x = torch.ones(4, dtype=torch.bfloat16)
    distributed.all_reduce(x, distributed.ReduceOp.MAX)
    distributed.broadcast(x, src=1)
    distributed.send(x, 1) if rank == 0 else distributed.recv(x, 0)
    group = distributed.new_group([0, 1])
    distributed.distributed_c10d.barrier(group)
    distributed.all_gather_into_tensor(torch.empty(8, dtype=torch.bfloat16), x)


def test_each_call_is_noted_with_what_must_agree(tmp_path: Path) -> None:
    first, second = calls(tmp_path, everything)
    assert [call.signature for call in first] == [call.signature for call in second]
    assert [call.signature for call in first] == [
        "all_reduce bfloat16 x4 max",
        "broadcast bfloat16 x4 src 1",
        "send bfloat16 x4",
        "new_group of [0, 1]",
        "barrier",
        "all_gather_into_tensor bfloat16 x8 x4",
    ]
    assert [call.operation for call in second][2] == "recv" and first[2].channel == second[2].channel == "all 0>1"
    assert [call.number for call in first] == [1, 2, 1, 3, 1, 4] and not any(call.inside for call in first)


def one_waits(rank: int) -> None:
    x = torch.ones(4)
    work = distributed.all_reduce(x, async_op=True)
    if rank == 0:
        work.wait()
        assert work.is_completed() and x.tolist() == [2.0] * 4
    distributed.barrier()


def test_what_is_asynchronous_is_left_when_it_is_waited_for(tmp_path: Path) -> None:
    waited, _ = calls(tmp_path, one_waits)
    assert [(call.operation, call.inside) for call in waited] == [("all_reduce", False), ("barrier", False)]


def nobody_waits(rank: int) -> None:
    x = torch.ones(4)
    work = distributed.all_reduce(x, async_op=True)
    assert work.is_completed() and x.tolist() == [2.0] * 4, "it has come to its end before anybody waits"


def test_in_step_each_call_is_waited_for(tmp_path: Path) -> None:
    first, second = calls(tmp_path, nobody_waits, in_step=True)
    assert [call.operation for call in first] == [call.operation for call in second] == ["all_reduce"]


def raises(rank: int) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        distributed.all_reduce(torch.ones(4), op="no such thing")


def test_a_call_that_raises_is_not_left(tmp_path: Path) -> None:
    assert [call.inside for call in calls(tmp_path, raises)[0]] == [True]
