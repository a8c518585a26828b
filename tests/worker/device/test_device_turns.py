"""Processes on one GPU: many at once, or one by itself; the dead and the hung keep nobody waiting."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gpucheck.worker.device import device_turns
from gpucheck.worker.device.device_turns import DeviceTurns


def test_many_share_the_gpu_and_one_has_it_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (DeviceTurns(str(tmp_path / "turns")) for _ in range(3))
    with first.shared() as one, second.shared() as other:
        assert one and other
        monkeypatch.setattr(device_turns, "LONGEST", 0.0)
        with third.alone() as alone:
            assert not alone, "others are at work"
    with third.alone() as alone, first.shared() as shared, second.alone() as both:
        assert alone and not shared and not both
    with first.shared() as shared:
        assert shared


def test_who_waits_for_an_empty_room_keeps_others_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, processes that work by turns would never leave the GPU to one that measures."""
    inside, waiting, late = (DeviceTurns(str(tmp_path / "turns")) for _ in range(3))
    waits, order = threading.Event(), []
    monkeypatch.setattr(device_turns.time, "sleep", lambda seconds: waits.set())

    def measure() -> None:
        with waiting.alone() as alone:
            order.append(("alone", alone))

    def work() -> None:
        with late.shared() as shared:
            order.append(("shared", shared))

    with inside.shared():
        threads = [threading.Thread(target=measure)]
        threads[0].start()
        assert waits.wait(60)
        waits.clear()
        threads.append(threading.Thread(target=work))
        threads[1].start()
        assert waits.wait(60)
        assert not order
    for thread in threads:
        thread.join()
    assert sorted(order) == [("alone", True), ("shared", True)]


def test_a_process_that_dies_leaves_its_turn(tmp_path: Path) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with DeviceTurns(str(tmp_path / "turns")).alone():
            os.write(write, b"in")
            os._exit(0)
    os.read(read, 2)
    os.waitpid(pid, 0)
    os.close(read), os.close(write)
    with DeviceTurns(str(tmp_path / "turns")).alone() as alone:
        assert alone


def test_a_process_by_itself_waits_for_nobody() -> None:
    turns = DeviceTurns("")
    with turns.alone() as alone, turns.shared() as shared:
        assert alone and shared
