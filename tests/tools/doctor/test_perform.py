"""Operations that fail, die, hang or wear out their processes, in real forked processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from gpucheck.host.forkserver import Child, Forkserver
from gpucheck.host.processes import children_of, state_of
from gpucheck.tools.doctor import device_process as child
from gpucheck.tools.doctor import perform as performing
from gpucheck.tools.doctor.perform import MOST_PROCESSES, Operation, Task, perform


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


def long(_: str) -> dict[str, Any]:
    return {"value": "x" * 300_000, "problem": ""}


def outcomes(*tasks: Task) -> dict[tuple[str, str], dict[str, Any]]:
    """The outcome of each operation on each subject."""
    with Forkserver(child.main) as server:
        answers = perform(server, tasks, 300.0)
    found = {(answer["subject"], answer["operation"]): answer for answer in answers}
    assert len(found) == len(answers) == sum(len(task.operations) for task in tasks)
    return found


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of this file, of which only the one that hangs meets its deadline, however busy the machine is."""
    for run in (well, hang, crash, leave, refuse, long):
        monkeypatch.setattr(child.operations, run.__name__, run, raising=False)
    outcome_of = performing._outcome

    def outcome(server: Forkserver, child: Child, operation: Operation, limit: float) -> dict[str, Any]:
        return outcome_of(server, child, operation, 0.1 if operation.function == "hang" else limit)

    monkeypatch.setattr(performing, "_outcome", outcome)


def task(subject: str, *runs: Any) -> Task:
    return Task(subject, [Operation(f"{n} {run.__name__}", run.__name__, subject) for n, run in enumerate(runs)])


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


def test_a_hang_is_ended_at_its_deadline_and_costs_one_operation() -> None:
    found = outcomes(task("a", well, hang, well), task("b", well, well))
    kinds = [answer["outcome"] for (subject, _), answer in sorted(found.items()) if subject == "a"]
    assert kinds == ["done", "hung", "done"]
    assert {answer["outcome"] for (subject, _), answer in found.items() if subject == "b"} == {"done"}


def test_after_several_dead_processes_the_rest_is_skipped() -> None:
    found = outcomes(task("a", *[crash] * MOST_PROCESSES, well, well))
    kinds = [answer["outcome"] for _, answer in sorted(found.items())]
    assert kinds == ["died"] * MOST_PROCESSES + ["skipped", "skipped"]


def test_no_process_stays_behind() -> None:
    before = children_of(os.getpid())
    found = outcomes(task("a", well, hang), task("b", crash))
    assert children_of(os.getpid()) == before and state_of(found[("a", "0 well")]["pid"]) == "gone"


def test_a_long_answer_arrives_whole() -> None:
    assert len(outcomes(task("a", long))[("a", "0 long")]["value"]) == 300_000
