"""Operations that fail, die, hang or wear out their processes, in real forked processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.doctor import perform as perform_module
from gpucheck.doctor.perform import MOST_PROCESSES, Operation, Task, perform


def well(subject: str) -> dict[str, Any]:
    print("noise on stdout must not become an answer")
    return {"value": f"tried {subject}", "problem": "", "pid": os.getpid()}


def hang(_: str) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    return {}


def crash(_: str) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def leave(_: str) -> dict[str, Any]:
    os._exit(7)


def refuse(_: str) -> dict[str, Any]:
    raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")


def outcomes(
    *tasks: Task, limit: float = 300.0, told: Callable[[int], None] = lambda number: None
) -> dict[tuple[str, str], dict[str, Any]]:
    """The outcome of each operation on each subject.

    Args:
        told: is called after each outcome, with how many there are.
    """
    answers: list[dict[str, Any]] = []

    def take(answer: dict[str, Any]) -> None:
        answers.append(answer)
        told(len(answers))

    perform(tasks, limit, take)
    found = {(answer["subject"], answer["operation"]): answer for answer in answers}
    assert len(found) == len(answers) == sum(len(task.operations) for task in tasks)
    return found


def task(subject: str, *runs: Any) -> Task:
    return Task(subject, [Operation(f"{number} {run.__name__}", run) for number, run in enumerate(runs)])


def test_a_task_runs_in_one_process_that_is_not_this_one() -> None:
    found = outcomes(task("a", well, well), task("b", well))
    first, second, other = found[("a", "0 well")], found[("a", "1 well")], found[("b", "0 well")]
    assert first["value"] == "tried a" and first["outcome"] == "done"
    assert first["pid"] == second["pid"] and len({first["pid"], other["pid"], os.getpid()}) == 3


def test_an_error_is_an_outcome_and_the_process_goes_on() -> None:
    found = outcomes(task("a", well, refuse, well))
    assert found[("a", "1 refuse")]["outcome"] == "raised"
    assert found[("a", "1 refuse")]["message"] == "RuntimeError: CUDA error: out of memory"
    assert found[("a", "2 well")]["pid"] == found[("a", "0 well")]["pid"]


@pytest.mark.parametrize(("run", "message"), [(crash, "was killed by SIGKILL"), (leave, "ended with exit code 7")])
def test_a_death_costs_one_operation(run: Any, message: str) -> None:
    found = outcomes(task("a", well, run, well), task("b", well))
    (died,) = [answer for answer in found.values() if answer["outcome"] == "died"]
    assert died["message"] == message and died["subject"] == "a"
    assert found[("a", "2 well")]["pid"] != found[("a", "0 well")]["pid"]
    assert found[("b", "0 well")]["outcome"] == "done"


def test_a_hang_is_ended_at_its_deadline_and_costs_one_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock moves only while the operation that hangs is the only one that runs."""
    outcome_count, now = 0, 0.0

    def monotonic() -> float:
        nonlocal now
        now += 100.0 * (outcome_count == 3)
        return now

    def told(number: int) -> None:
        nonlocal outcome_count
        outcome_count = number

    monkeypatch.setattr(perform_module, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    found = outcomes(task("a", well, hang, well), task("b", well, well), limit=0.5, told=told)
    assert [answer["outcome"] for (subject, _), answer in sorted(found.items()) if subject == "a"] == [
        "done",
        "hung",
        "done",
    ]
    assert {answer["outcome"] for (subject, _), answer in found.items() if subject == "b"} == {"done"}


def test_after_several_dead_processes_the_rest_is_skipped() -> None:
    found = outcomes(task("a", *[crash] * MOST_PROCESSES, well, well))
    kinds = [answer["outcome"] for _, answer in sorted(found.items())]
    assert kinds == ["died"] * MOST_PROCESSES + ["skipped", "skipped"]


def test_no_process_stays_behind() -> None:
    outcomes(task("a", well, hang), task("b", crash), limit=0.3)
    try:
        while os.waitpid(-1, 0):
            pass  # the one that was killed at its deadline, which perform does not wait for
    except ChildProcessError:
        return


def test_a_long_answer_arrives_whole() -> None:
    found = outcomes(Task("a", [Operation("long", lambda _: {"value": "x" * 300_000, "problem": ""})]))
    assert len(found[("a", "long")]["value"]) == 300_000
