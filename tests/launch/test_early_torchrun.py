"""A torchrun that loads torch before it is known what to run, with a stand-in for torch that tells what it finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucheck.host.processes import children_of, start
from gpucheck.launch import early_torchrun
from gpucheck.launch.early_torchrun import AGENT, EarlyTorchrun, begin, likely_ranks, loading_environment
from tests.processes import alive, wait_until

REPOSITORY = Path(__file__).parents[2]
TORCH = """
import json, os, sys
print("torch says something", file=sys.stderr)
with open(os.environ["GO"]) as go:
    exec(go.read())
LOADED_WITH = dict(os.environ)
"""
RUN = """
import json, os, sys, threading
from torch import LOADED_WITH
config_from_args = None
def main(words):
    told = {"words": words, "argv": sys.argv[1:], "loaded with": LOADED_WITH, "environment": dict(os.environ)}
    told["threads"] = threading.active_count()
    told["files"] = sorted(os.listdir("/proc/self/fd"))
    print(json.dumps(told))
    sys.exit(7)
"""
ARGUMENTS = ["--nproc-per-node", "2", "-m", "gpucheck.worker", "/run"]
LATE = {"GPUCHECK_SCRATCH": "/scratch", "GPUCHECK_LAUNCHER": "1"}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which ``torch`` is a stand-in; what the file GO holds is done while it is loaded."""
    package = tmp_path / "stand-in" / "torch"
    (package / "distributed").mkdir(parents=True)
    for name, text in (("__init__", TORCH), ("cuda", "is_available = None"), ("distributed/run", RUN)):
        (package / f"{name}.py").write_text(text)
    (tmp_path / "go").write_text("")
    paths = os.pathsep.join([str(package.parent), str(REPOSITORY)])
    own = {"GO": str(tmp_path / "go"), "OMP_NUM_THREADS": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "GPUCHECK_CACHE_DIR": str(tmp_path / "cache"), **own}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "torchrun.log"


def told(log: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return answer


def test_it_is_what_a_torchrun_started_with_all_of_that_is(environment: dict[str, str], log: Path) -> None:
    anew = start([sys.executable, "-m", AGENT, *ARGUMENTS], {**environment, **LATE}, log)
    assert anew.wait() == 7
    expected, text = told(log), log.read_text()
    with EarlyTorchrun(environment, log.parent) as early:
        loading = early._process
        process = early.hand_over(ARGUMENTS, {**environment, **LATE}, log)
        assert process is loading and process is not None and process.wait() == 7
    found = told(log)
    for name in LATE:
        assert expected["loaded with"].pop(name) and found["environment"][name] == LATE[name]
    for told_by in expected, found:
        assert float(told_by["environment"].pop("GPUCHECK_IMPORTED")) >= 0
    assert found == expected
    assert found["argv"] == found["words"] == ARGUMENTS and found["threads"] == 1
    assert log.read_text().splitlines()[0] == text.splitlines()[0] == "torch says something"
    (kept,) = (log.parent / "cache" / "bytecode").glob("torch-*")
    assert b"torch says something" in kept.read_bytes(), "the next torchrun need not compile torch"


def test_what_was_loaded_before_the_run_began_is_not_time_of_the_run(
    environment: dict[str, str], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = []
    for run_began in (0.0, 1e9):
        monkeypatch.setattr(early_torchrun, "time", SimpleNamespace(monotonic=lambda began=run_began: began))
        with EarlyTorchrun(environment, log.parent) as early:
            process = early.hand_over(ARGUMENTS, {**environment, **LATE}, log)
            assert process and process.wait() == 7
        seconds.append(float(told(log)["environment"]["GPUCHECK_IMPORTED"]))
    assert seconds[0] > 0 and seconds[1] == 0


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("does", "code", "words"),
    [
        ("raise ImportError('libcudart.so: cannot open')", 1, "ImportError: libcudart.so: cannot open"),
        ("os.write(2, b'terminate called'); os.kill(os.getpid(), 6)", -6, "terminate called"),
    ],
)
def test_a_torch_that_cannot_be_loaded_is_told_of_in_the_log(
    environment: dict[str, str], log: Path, when: str, does: str, code: int, words: str
) -> None:
    go = log.with_name("go")
    go.unlink()
    os.mkfifo(go)
    with EarlyTorchrun(environment, log.parent) as early:
        loading = early._process
        assert loading
        if when == "before":
            go.write_text(does)
            if code < 0:
                loading.wait()
        process = early.hand_over(ARGUMENTS, {**environment, **LATE}, log)
        if when == "before" and code < 0:
            assert process is None, "launch starts another, which dies with a log"
            return
        assert process
        if when == "after":
            wait_until(lambda: "torch says something" in log.read_text())
            go.write_text(does)
        assert process.wait() == code
    assert words in log.read_text()


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "1"}, {"CUDA_LAUNCH_BLOCKING": "1"}, {"GO": None}])
def test_one_that_loads_torch_in_another_environment_is_not_taken(
    environment: dict[str, str], log: Path, change: dict[str, str | None]
) -> None:
    with EarlyTorchrun(environment, log.parent) as early:
        process = early._process
        changed = {name: value for name, value in {**environment, **LATE, **change}.items() if value is not None}
        assert early.hand_over(ARGUMENTS, changed, log) is None
        assert process and process.returncode == -9 and not log.exists()


def test_none_outlives_its_context_whatever_ends_that(environment: dict[str, str], tmp_path: Path) -> None:
    before = children_of(os.getpid())
    (tmp_path / "go").write_text("import time\nwhile True: time.sleep(1)")
    for error in (KeyboardInterrupt, ZeroDivisionError, SystemExit):
        with pytest.raises(error), EarlyTorchrun(environment, tmp_path):
            assert len(children_of(os.getpid()) - before) == 1
            raise error
        assert children_of(os.getpid()) == before


KILLED = """
import os, sys
from pathlib import Path
from gpucheck.launch.early_torchrun import EarlyTorchrun
early = EarlyTorchrun(dict(os.environ), Path("/run"))
print(early._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_ends_with_a_killed_command(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "go").write_text("import time\nwhile True: time.sleep(1)")
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9 and done.stderr == ""
    wait_until(lambda: not alive(int(done.stdout)))


def test_what_users_set_is_kept_and_the_rest_is_the_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(early_torchrun, "usable_processors", lambda: 16)
    found = loading_environment(4, debug=False)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("4", "passive")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    found = loading_environment(4, debug=False)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("5", "active")


def test_ranks_are_counted_at_a_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert likely_ranks("auto", None, tmp_path) == 3 and likely_ranks("auto", 2, tmp_path) == 2
    assert likely_ranks("cpu", None, tmp_path) == 1 and likely_ranks("auto", None, tmp_path / "none") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-1f")
    assert likely_ranks("auto", None, tmp_path) == 2 and likely_ranks("cpu", 3, tmp_path) == 3


def test_where_no_process_is_to_be_had_the_command_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(early_torchrun, "start_into", none)
    with begin(1, tmp_path, debug=False) as early:
        assert early is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_torchrun_is_loaded_it_is_forked_and_none_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unexpected: Callable[..., Any] = lambda *_: pytest.fail("a process was started")  # noqa: E731
    monkeypatch.setitem(sys.modules, early_torchrun.LOADED, sys)
    monkeypatch.setattr(early_torchrun, "EarlyTorchrun", unexpected)
    assert isinstance(begin(1, tmp_path, debug=False), nullcontext)
