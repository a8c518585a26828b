"""The server's side of a process that carries out evaluations on one device."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

from gpucheck.host.isolated import python_path, receive, send
from gpucheck.host.visible_gpus import VARIABLE
from gpucheck.tools.serve.service_options import Limits

MODULE = "gpucheck.tools.serve.evaluator_process"
PROOF = "gpucheck.tools.serve.device_proof"
PROOF_SECONDS = 120.0
PRINTED = "command.log"
KEPT = ("PATH", "LANG", "TZ", "CC", "CXX", "CPATH", "LIBRARY_PATH", "VIRTUAL_ENV", "CUDAHOSTCXX")
KEPT_WITH = ("LC_", "LD_", "CUDA_", "NVIDIA_", "TORCH_", "TRITON_", "PYTHON", "OMP_", "MKL_")
"""What an evaluation sees of this process's environment; all else, secrets say, is not told."""
OWN_FOLDERS = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
}
"""Variables that lead to folders, and what these are called in the folder of the evaluation."""


starting = threading.Lock()
"""Held while a process of this server comes into being, which must not be taken for one whose parent was killed."""


@dataclass(frozen=True)
class Ended:
    """How a process of the evaluator ended."""

    code: int | None = None  # exit code, negative for a signal; None: it was killed for one of the next, or is lost
    exceeded: Mapping[str, str] = field(default_factory=dict)  # limit and detail
    stopped: str = ""  # why the server wanted it to end
    stuck: tuple[int, ...] = ()  # processes that SIGKILL does not end
    seconds: float = 0.0
    host_memory: int = 0  # bytes, at most at one time, as the next
    device_memory: int = 0
    processes: int = 0
    died: bool = False  # the process that watched it was killed


class Evaluator:
    """One such process, started when it is first needed; at most one thread asks it at a time."""

    def __init__(self, uuid: str, state: Path, log: Path, threads: int, held: int) -> None:
        """Starts nothing yet.

        Args:
            uuid: of the device; "" for the CPU.
            state: folder of the service, which evaluations cannot read.
            log: file that the process itself prints to.
            threads: of torch on the CPU, which it takes note of when it is loaded.
            held: a locked file that it holds too, so that the lock ends with the last of these processes.
        """
        self._threads, self._held = threads, held
        self.uuid, self._state, self._log = uuid, state, log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()  # of what is sent
        self._stops: dict[str, str] = {}  # name -> why what runs under it, or is about to, is to end
        self.confined = True  # evaluations are walled in where the kernel offers that
        self._proved = False  # the device was proved once

    @property
    def pid(self) -> int | None:
        """Its process."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process where there is none."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        with open(self._log, "ab") as log, theirs, starting:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                env={**self._visible(), "PYTHONPATH": _path()},
                start_new_session=True,
                pass_fds=(self._held,),
            )
        self._connection = Connection(ours.detach())
        receive(self._connection)

    def carry_out(
        self, name: str, command: Sequence[str], folder: Path, limits: Limits, module: str = "gpucheck"
    ) -> Ended:
        """Runs a command of a module in a fresh process and waits for its end.

        Args:
            name: what :meth:`stop` calls it.
            folder: its scratch folder, which exists.
        """
        environment = {variable: str(folder / inner) for variable, inner in OWN_FOLDERS.items()}
        for path in environment.values():
            Path(path).mkdir(exist_ok=True)
        asked = {
            "name": name,
            "module": module,
            "command": list(command),
            "folder": str(folder),
            "environment": environment,
            "limits": asdict(limits),
            "uuid": self.uuid,
            "hidden": str(self._state) if self.confined else "",
        }
        try:
            self.start()
            assert self._connection is not None
            with self._lock:
                send(self._connection, asked)
                if name in self._stops:
                    send(self._connection, {"stop": self._stops[name], "name": name})
            answer = receive(self._connection)
        except (EOFError, OSError, ValueError):
            self.close()
            return Ended(died=True, stopped=self._stops.pop(name, ""))
        stopped = self._stops.pop(name, "")
        return Ended(
            **{**answer, "exceeded": answer["exceeded"] or {}, "stuck": tuple(answer["stuck"]), "stopped": stopped}
        )

    def prove(self, folder: Path) -> str:
        """What is wrong with the device; "" where an exact product on it, in a fresh process, is right.

        The first proof is tried without walls too: a driver may need what they keep from it, which is told then.
        """
        problem = self._prove(folder)
        if problem and self.confined and not self._proved:
            self.confined = False
            self.confined = bool(self._prove(folder))
            problem = problem if self.confined else ""
        self._proved = self._proved or not problem
        return problem

    def _prove(self, folder: Path) -> str:
        folder.mkdir(mode=0o700)
        try:
            ended = self.carry_out("proof", [self.uuid or "cpu"], folder, Limits(seconds=PROOF_SECONDS), PROOF)
            said = last_line(folder / PRINTED)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if ended.code == 0 and not ended.stuck:
            return ""
        if ended.stuck:
            return f"processes {', '.join(map(str, ended.stuck))} on it do not end"
        return ended.exceeded.get("detail", "") or said or f"the proof ended with code {ended.code}"

    def stop(self, name: str, why: str) -> None:
        """Ends what runs under a name, or is about to; nothing else."""
        self._stops[name] = why
        with self._lock, suppress(OSError):
            if self._connection is not None:
                send(self._connection, {"stop": why, "name": name})

    def close(self) -> None:
        """Ends the process and all that runs in it, by closing the connection; one that does not end then is killed."""
        connection, self._connection = self._connection, None
        process, self._process = self._process, None
        if connection is not None:
            connection.close()
        if process is not None:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _visible(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_WITH)}
        usual = {"OMP_NUM_THREADS": str(self._threads), "OMP_WAIT_POLICY": "passive"}
        return {**usual, **kept, VARIABLE: self.uuid, **({} if self.uuid else {"TRITON_INTERPRET": "1"})}


def _path() -> str:
    """PYTHONPATH of a process that runs the whole command, whose packages may lie apart from all others."""
    command = find_spec("typer")
    own = [] if command is None or command.origin is None else [str(Path(command.origin).parents[1])]
    return os.pathsep.join(dict.fromkeys([*python_path().split(os.pathsep), *own]))


def last_line(log: Path) -> str:
    """The last line that is not blank; "" without one."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
