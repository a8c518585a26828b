from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gpucheck.launch import scratch as scratch_module
from gpucheck.launch import torchrun
from gpucheck.launch.torchrun import Ending, Rendezvous, command, launch
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.worker.supervisor.gpu_snapshot import free_memory
from tests.conftest import Synthetic
from tests.processes import alive, wait_until

ONE_NODE = Rendezvous()
MEMORY = Path("/dev/shm")


def options(line: list[str]) -> dict[str, str]:
    return {line[i]: line[i + 1] for i in range(len(line) - 1) if line[i].startswith("--")}


def test_the_command_line_of_one_node(synthetic: Synthetic, tmp_path: Path) -> None:
    line = command(synthetic.plan(ranks=3), tmp_path, ONE_NODE)
    assert line[:3] == [sys.executable, "-m", "gpucheck.launch.forking_torchrun"]
    assert line[-3:] == ["-m", "gpucheck.worker", str(tmp_path)]
    found = options(line)
    assert found["--nproc-per-node"] == "3" and found["--max-restarts"] == "0" and "--standalone" in line
    assert found["--log-dir"] == str(tmp_path / "logs") and not [
        o for o in line if o.startswith(("--rdzv", "--nnodes"))
    ]


def test_the_command_line_of_several_nodes(synthetic: Synthetic, tmp_path: Path) -> None:
    line = command(synthetic.plan(ranks=8), tmp_path, Rendezvous(4, 2, "node0:29500", "mine", "etcd"))
    found = options(line)
    assert "--standalone" not in line
    assert {name: found[name] for name in found if name.startswith(("--rdzv", "--no"))} == {
        "--node-rank": "2",
        "--rdzv-backend": "etcd",
        "--rdzv-endpoint": "node0:29500",
        "--rdzv-id": "mine",
    }
    assert found["--nnodes"] == "4" and found["--nproc-per-node"] == "8"


def test_node_0_alone_holds_the_meeting(synthetic: Synthetic, tmp_path: Path) -> None:
    lines = [command(synthetic.plan(), tmp_path, Rendezvous(2, number, "node0:29500")) for number in (0, 1)]
    assert [options(line)["--rdzv-conf"] for line in lines] == ["is_host=1", "is_host=0"]


@pytest.mark.parametrize(
    ("rendezvous", "words"),
    [
        (Rendezvous(1, 1), "--node-rank 1"),
        (Rendezvous(2, -1, "h:1"), "--node-rank -1"),
        (Rendezvous(2, 2, "h:1"), "--node-rank 2"),
        (Rendezvous(0, 0), "--nnodes"),
        (Rendezvous(2, 0), "--rdzv-endpoint HOST:PORT"),
        (Rendezvous(2, 0, "node0"), "--rdzv-endpoint node0 is not HOST:PORT"),
        (Rendezvous(2, 0, "node0:65535"), "a port from 1 to 65534"),
    ],
)
def test_options_that_do_not_fit_together(rendezvous: Rendezvous, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rendezvous.check()
    Rendezvous(2, 1, "h:1").check()
    ONE_NODE.check()


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Path]]]:
    """Scratch folders under a prefix of this test; lists those that are left."""
    prefix = f"gpucheck-test{os.getpid()}-"
    monkeypatch.setattr("gpucheck.launch.scratch.PREFIX", prefix)
    yield lambda: list(MEMORY.glob(prefix + "*"))
    for path in MEMORY.glob(prefix + "*"):
        shutil.rmtree(path)


@pytest.fixture
def run(
    synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scratch: Callable[[], list[Path]]
) -> Callable[..., Ending]:
    """Launches Python code in torchrun's place; leaves nothing behind."""
    monkeypatch.setattr(torchrun, "POLL", 0.01)
    monkeypatch.setattr(torchrun, "GRACE", 0.3)

    def run(
        code: str,
        watch: Callable[[], None] = lambda: None,
        timeout: float = 120.0,
        peer_lost: Callable[[], bool] | None = None,
    ) -> Ending:
        monkeypatch.setattr(torchrun, "command", lambda *_: [sys.executable, "-S", "-c", code])
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            return launch(synthetic.plan(timeout=timeout), tmp_path, ONE_NODE, watch, peer_lost)
        finally:
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
            assert scratch() == [] and list(tmp_path.glob("scratch-*")) == []

    return run


@pytest.mark.parametrize("code", [0, 1, 77])
def test_the_exit_code_is_reported(run: Callable[..., Ending], code: int) -> None:
    ending = run(f"raise SystemExit({code})")
    assert (ending.code, ending.timed_out, ending.signal) == (code, False, 0) and 0 < ending.seconds < 100


def test_what_stands_in_torchruns_place_is_started_as_it_is_where_torchrun_is_loaded(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, torchrun.LOADED, ModuleType(torchrun.LOADED))
    monkeypatch.setattr(torchrun.threading, "active_count", lambda: 1)
    assert run("raise SystemExit(77)").code == 77


def test_a_death_by_signal_is_reported(run: Callable[..., Ending]) -> None:
    assert run("import os; os.kill(os.getpid(), 9)").code == -9


def test_output_goes_to_the_log_and_scratch_to_the_ranks(run: Callable[..., Ending], tmp_path: Path) -> None:
    run("import os, sys; s = os.environ['GPUCHECK_SCRATCH']; print(os.path.isdir(s)); print('oops', file=sys.stderr)")
    text = (tmp_path / "logs" / "torchrun-0.log").read_text()
    assert sorted(text.split()) == ["True", "oops"]


def test_the_ranks_import_this_gpucheck(
    run: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/elsewhere{os.pathsep}")
    run("import os; print(os.environ['PYTHONPATH'])")
    first, second = (tmp_path / "logs" / "torchrun-0.log").read_text().strip().split(os.pathsep)
    assert (Path(first) / "gpucheck" / "worker" / "__main__.py").is_file() and second == "/elsewhere"


def test_what_the_caller_puts_ahead_of_this_gpucheck_stays_there(
    run: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another triton, where gpucheck lies beside the installed one."""
    ours = str(Path(torchrun.__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/ahead", ours, "/behind"]))
    run("import os; print(os.environ['PYTHONPATH'])")
    text = (tmp_path / "logs" / "torchrun-0.log").read_text().strip()
    assert text.split(os.pathsep) == ["/ahead", ours, "/behind"]


def test_watch_is_called_while_the_ranks_run_and_after_their_end(run: Callable[..., Ending], tmp_path: Path) -> None:
    sizes: list[int] = []
    log, enough = tmp_path / "logs" / "torchrun-0.log", tmp_path / "enough"

    def watch() -> None:
        sizes.append(log.stat().st_size)
        if len(sizes) == 4:
            enough.touch()

    run(f"import os, time\nwhile not os.path.exists({str(enough)!r}): time.sleep(0.01)\nprint('x')", watch)
    assert sizes[:4] == [0] * 4 and sizes[-1] > 0


ENDLESS = "import time; time.sleep(600)"  # unless it is ended, the time limit of a test is reached
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize("code", [ENDLESS, STUBBORN])
def test_the_deadline_ends_everything(run: Callable[..., Ending], code: str) -> None:
    ending = run(code, timeout=0.3)
    assert (ending.code, ending.timed_out, ending.signal) == (None, True, 0)


def test_torchrun_that_stays_when_all_ranks_have_ended_is_ended(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "LINGER", 0.2)
    for code, words in ((ENDLESS, "did not end"), (STOPS, "was stopped by a signal")):
        ending = run(code, lambda: True)
        assert (ending.code, ending.timed_out, ending.signal) == (None, False, 0)
        assert ending.stuck == f"every rank had ended, but torchrun {words}"
    monkeypatch.setattr(torchrun, "LINGER", 300.0)
    assert run("import time; time.sleep(0.05)", lambda: True).stuck == ""


def test_torchrun_that_is_stopped_before_it_starts_ranks_is_ended(
    run: Callable[..., Ending], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "STOPPED", 0.2)
    assert run(STOPS).stuck == "torchrun was stopped by a signal before it had started the ranks"
    with_ranks = "import os, subprocess; subprocess.Popen(['sleep', '600']); os.kill(os.getpid(), 19)"
    assert run(with_ranks, timeout=1.0).timed_out, "ranks go on without it"


def test_the_ranks_are_told_of_their_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "architectures", lambda: ["sm_90"])
    monkeypatch.setattr(torchrun, "free_memory", lambda: [7 << 30, 0])
    assert free_memory(tmp_path, 0) == 0, "not yet"
    torchrun._describe_gpus(tmp_path)
    assert [free_memory(tmp_path, rank) for rank in range(3)] == [7 << 30, 0, 0]
    assert (tmp_path / "architectures").read_text() == "sm_90"


def test_debugging_is_in_the_environment_of_the_ranks(synthetic: Synthetic, tmp_path: Path) -> None:
    for debug in (False, True):
        environment = torchrun._environment(synthetic.plan(debug=debug), tmp_path)
        seen = {name: environment.get(name) for name in ("CUDA_LAUNCH_BLOCKING", "TORCH_USE_CUDA_DSA", "TRITON_DEBUG")}
        assert set(seen.values()) == {"1"} if debug else "1" not in seen.values()
    assert environment["GPUCHECK_LAUNCHER"] == str(os.getpid())


STOPS = "import os; os.kill(os.getpid(), 19)"
DAEMON = """
import os, time
here, there = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        print(os.getpid(), flush=True)
        os.write(there, b"x")
        time.sleep(600)
    os._exit(0)
os.read(here, 1)
"""


def test_a_daemon_of_the_ranks_does_not_outlive_them(run: Callable[..., Ending], tmp_path: Path) -> None:
    assert run(DAEMON).code == 0
    assert not alive((tmp_path / "logs" / "torchrun-0.log").read_text().strip())


SAYS = "import os\nopen(os.environ['GPUCHECK_SCRATCH'] + '/first-rank', 'w').write('4')"


@pytest.mark.parametrize(("code", "rank"), [("pass", 0), (SAYS, 4)])
def test_what_the_driver_said_is_kept_with_its_ranks(
    run: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, rank: int
) -> None:
    from gpucheck.host.kernel_log import KernelLog

    heard = [{"local_rank": 0, "text": "NVRM: Xid"}, {"local_rank": None, "text": "other"}]
    heard += [{"local_rank": 7, "text": "of no rank", "number": 79}, {"local_rank": 7, "text": "of no rank"}]
    monkeypatch.setattr(KernelLog, "finish", lambda self: heard)
    run(code)
    told = json.loads((tmp_path / "driver-0.json").read_text())
    failed = {"text": "of no rank", "number": 79, "rank": None}
    assert told == [{"text": "NVRM: Xid", "rank": rank}, {"text": "other", "rank": None}, failed]


def test_the_process_that_listens_to_nvml_outlives_the_ranks_by_its_last_words(
    run: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucheck.host import kernel_log, nvml_words

    stand_in = Path(__file__).parents[1] / "host" / "pynvml_stand_in.py"
    (tmp_path / "pynvml.py").write_text(stand_in.read_text())
    gpu = {"bus": "00000000:3B:00.0", "rows": [[0, 1, 1, 0]] * 2}
    (tmp_path / "says").write_text(json.dumps({"gpus": [gpu]}))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in (("PYTHONPATH", tmp_path), ("NVML_SAYS", tmp_path / "says"), ("PATH", tmp_path)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvml_words, "PATIENCE", 600.0)
    monkeypatch.setattr(kernel_log, "KMSG", tmp_path / "none")
    run("pass")
    text = "memory rows wait to be remapped at the next reset, since before the run"
    told = json.loads((tmp_path / "driver-0.json").read_text())
    assert [item for item in told if "kind" in item] == [
        {"text": text, "kind": "remap pending", "bus": "0:3b:00", "rank": 0}
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_and_is_told(run: Callable[..., Ending], number: signal.Signals) -> None:
    sent: list[int] = []

    def interrupt() -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    ending = run(ENDLESS, interrupt)
    assert (ending.code, ending.timed_out, ending.signal) == (None, False, number)


def test_once_another_node_is_gone_only_the_ranks_here_are_waited_for(
    run: Callable[..., Ending], tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "torchrun-0.log"
    rank = ["sh", "-c", f"sleep 1; echo ended >>{log}"]
    code = f"import subprocess, time; rank = subprocess.Popen({rank}); print('on', flush=True); rank.wait();"
    ending = run(code + "time.sleep(600)", peer_lost=lambda: bool(log.read_text()))
    assert log.read_text() == "on\nended\n"
    assert (ending.code, ending.timed_out, ending.signal) == (None, False, 0)


def test_an_error_while_watching_leaves_no_process(run: Callable[..., Ending], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "torchrun-0.log"

    def fail() -> None:
        if log.read_text().strip():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("import os, time; print(os.getpid(), flush=True); time.sleep(600)", fail)
    assert not Path("/proc", log.read_text().strip()).exists()


def test_torchrun_that_cannot_start(synthetic: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "command", lambda *_: ["/no/such/python"])
    with pytest.raises(InfrastructureError, match="torchrun could not be started: .*No such file"):
        launch(synthetic.plan(), tmp_path, ONE_NODE, lambda: None)


KILLED = """
import os, subprocess, sys
from pathlib import Path
from gpucheck.launch import scratch, torchrun
rank = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
torchrun.command = lambda *_: [sys.executable, "-c", rank]
scratch.PREFIX = sys.argv[2]
log = Path(sys.argv[1], "logs", "torchrun-0.log")
def watch():
    if log.read_text().strip():
        os.kill(os.getpid(), 9)
class Plan:
    nproc, timeout, device, debug, candidates = 1, 600.0, "cpu", False, ()
torchrun.launch(Plan, Path(sys.argv[1]), torchrun.Rendezvous(), watch)
"""


def test_ranks_end_with_a_killed_command(tmp_path: Path, scratch: Callable[[], list[Path]]) -> None:
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), scratch_module.PREFIX]
    assert subprocess.run(arguments, check=False).returncode == -9
    pid = (tmp_path / "logs" / "torchrun-0.log").read_text().strip()
    wait_until(lambda: not alive(pid))
