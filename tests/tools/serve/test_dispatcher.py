"""Which task runs where and when, with evaluators that answer when they are told to."""

from __future__ import annotations

import threading

from gpucheck.tools.serve.device_pool import DeviceState
from gpucheck.tools.serve.evaluator import Ended
from gpucheck.tools.serve.tasks import Evaluation, State
from tests.processes import wait_until
from tests.tools.serve.conftest import Made, Puppets, state, submit


def test_one_evaluation_has_a_device_while_times_are_taken(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b")
    wait_until(lambda: puppets.running == ["a"])
    puppets.end("a")
    wait_until(lambda: puppets.running == ["b"])
    assert state(dispatcher, "a") is State.COMPLETED


def test_several_share_a_device_while_only_correctness_is_asked_and_none_overtakes_one_that_is_timed(
    made: Made, puppets: Puppets
) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b", "c", timed=False)
    submit(dispatcher, "timed")
    submit(dispatcher, "later", timed=False)
    wait_until(lambda: sorted(puppets.running) == ["a", "b"])
    puppets.end("a")
    wait_until(lambda: sorted(puppets.running) == ["b", "c"])
    puppets.end("b")
    puppets.end("c")
    wait_until(lambda: puppets.running == ["timed"])
    puppets.end("timed")
    wait_until(lambda: puppets.running == ["later"])


def test_each_device_gets_work_and_a_preferred_one_is_taken_where_it_is_free(made: Made, puppets: Puppets) -> None:
    dispatcher = made(gpus=2)
    submit(dispatcher, "wants 1", preferred=1)
    wait_until(lambda: puppets.running == ["wants 1"])
    submit(dispatcher, "any")
    wait_until(lambda: sorted(puppets.running) == ["any", "wants 1"])
    assert dict(puppets.began) == {"wants 1": "GPU-1", "any": "GPU-0"}


def test_the_same_content_runs_once_at_a_time(made: Made, puppets: Puppets) -> None:
    dispatcher = made(gpus=2)
    for id in ("first", "second"):
        dispatcher.submit(id, Evaluation("problem", "same"), 1)
    submit(dispatcher, "other")
    wait_until(lambda: sorted(puppets.running) == ["other", "same"])
    puppets.end("same")
    wait_until(lambda: state(dispatcher, "second") is State.COMPLETED)
    assert [candidate for candidate, _ in puppets.began].count("same") == 1


def test_a_running_task_is_cancelled_and_the_next_begins(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "a", "b")
    wait_until(lambda: puppets.running == ["a"])
    told = threading.Event()
    dispatcher.when_ended("a", told.set)
    assert dispatcher.cancel("a") and told.wait()
    wait_until(lambda: puppets.running == ["b"])
    assert state(dispatcher, "a") is State.CANCELLED


def test_a_device_proves_itself_after_a_death_before_it_takes_work_and_leaves_the_pool_where_it_cannot(
    made: Made, puppets: Puppets
) -> None:
    dispatcher = made(gpus=2, share=1)
    submit(dispatcher, "kills", "next", preferred=0)
    wait_until(lambda: dict(puppets.began).get("kills") == "GPU-0")
    puppets.bad.add("GPU-0")
    puppets.end("kills", Ended(code=-9))
    wait_until(lambda: dispatcher.devices[0].state is DeviceState.FAILED)
    assert dispatcher.devices[0].problem == "a product is wrong" and puppets.proofs.count("GPU-0") == 2
    wait_until(lambda: "next" in puppets.running)
    puppets.end("next")
    submit(dispatcher, "third", preferred=0)
    wait_until(lambda: "third" in puppets.running)
    assert dict(puppets.began)["third"] == "GPU-1"


def test_a_reset_ends_what_runs_proves_the_device_and_takes_it_back(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    device = dispatcher.devices[0]
    submit(dispatcher, "hangs", "next")
    wait_until(lambda: puppets.running == ["hangs"])
    assert dispatcher.reset(device) == 1
    assert device.state is DeviceState.READY and device.faults == 0 and puppets.proofs == ["GPU-0", "GPU-0"]
    wait_until(lambda: puppets.running == ["next"])
    assert state(dispatcher, "hangs") is State.FAILED


def test_what_does_not_end_in_time_is_handed_back_when_the_server_stops(made: Made, puppets: Puppets) -> None:
    dispatcher = made()
    submit(dispatcher, "long", "waiting")
    wait_until(lambda: puppets.running == ["long"])
    told = threading.Event()
    dispatcher.when_ended("waiting", told.set)
    dispatcher.stop(0)
    assert told.is_set()
    assert [task.id for task in dispatcher.store.waiting(9)] == ["long", "waiting"]
    assert [task.starts for task in dispatcher.store.waiting(9)] == [0, 0]
