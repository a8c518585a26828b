"""One run: its process, its deadline, and what is made of what it leaves; the command is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from gpucheck.records.run_folder import write_json
from gpucheck.tools.bisect import run_once
from gpucheck.tools.bisect.observation import Observation, State
from gpucheck.tools.bisect.run_once import Prepared, environment, take
from gpucheck.tools.bisect.target import Target
from tests.conftest import Synthetic
from tests.processes import alive, naming, wait_until

CASE = "topk/bf16/m1-e13-top4/exact"
Run = Callable[..., Observation]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, library: Path, tmp_path: Path) -> Run:
    """Takes a step whose command runs this code instead, with the run folder in ``out``."""

    def run(code: str, library: Path = library) -> Observation:
        program = "import json, os, pathlib, sys, time\nout = pathlib.Path(sys.argv[1])\n" + textwrap.dedent(code)
        monkeypatch.setattr(
            Target, "command", lambda _, root, folder, engine: [sys.executable, "-c", program, str(folder)]
        )
        return take(Target("smoke", (CASE,), "cpu", timeout=1), Prepared(library), tmp_path / "0001")

    return run


def test_the_run_folder_says_what_was_seen(run: Run, synthetic: Synthetic, tmp_path: Path) -> None:
    synthetic.write(tmp_path / "made", synthetic.run(synthetic.plan(), {(0, 0): Outcome.MISMATCH}))
    observation = run("os.rename(out.parent / 'made', out); sys.exit(1)")
    assert (observation.state, observation.words, observation.folder) == (
        State.FAILED,
        "undetermined: wrong output, rank 0",
        "0001",
    )
    assert observation.seconds > 0


def test_each_run_has_a_triton_cache_of_its_own_and_leaves_none(run: Run, tmp_path: Path) -> None:
    """Also where a search that was killed left one."""
    cache = tmp_path / "0001.triton"
    code = "cache = pathlib.Path(os.environ['TRITON_CACHE_DIR']); print(cache, cache.exists()); cache.mkdir()"
    for left in (False, True):
        if left:
            cache.mkdir()
        run(code)
        assert (tmp_path / "0001.log").read_text().split() == [str(cache), "False"] and not cache.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('gpucheck: no GPU is visible', file=sys.stderr); print('the end'); sys.exit(3)", "no GPU is visible"),
        ("print('some last words')", "some last words"),
        ("", "the run left no record and said nothing"),
        ("out.mkdir(); (out / 'plan.json').write_text('{')", "the run left no record and said nothing"),
    ],
)
def test_a_run_that_leaves_nothing_is_no_answer(run: Run, code: str, words: str) -> None:
    observation = run(code)
    assert (observation.state, observation.reason) == (State.BROKEN, words)


def test_the_deadline(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also for one that does not listen."""
    monkeypatch.setattr(run_once, "STARTUP", 0.0)
    monkeypatch.setattr(run_once, "GRACE", 0.3)
    observation = run(
        """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        """
    )
    assert (observation.state, observation.reason) == (State.BROKEN, "the run did not end within 1 s and was killed")
    assert not naming(tmp_path)


def test_a_folder_without_a_usable_library_is_not_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    observation = run("raise AssertionError", tmp_path / "nothing")
    assert observation.state is State.UNBUILDABLE and "no genuine copy of triton_kernels" in observation.reason
    assert observation.folder == "" and not (tmp_path / "0001.log").exists()


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/theirs:{tmp_path}")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/summary")
    variables = environment((Path("/first"),), "/cache")
    folders = variables["PYTHONPATH"].split(os.pathsep)
    assert folders[0] == "/first" and folders[-2:] == ["/theirs", str(tmp_path)] and len(folders) == 4
    assert (Path(folders[1]) / "gpucheck" / "__main__.py").is_file()
    assert variables["TRITON_CACHE_DIR"] == "/cache"
    assert variables["GITHUB_STEP_SUMMARY"] == variables["GPUCHECK_TERMINATION_LOG"] == ""


SEARCH = """
import sys
from pathlib import Path
from gpucheck.tools.bisect.run_once import Prepared, take
from gpucheck.tools.bisect.target import Target
program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
Target.command = lambda *_: [sys.executable, "-c", program]
take(Target("smoke", ("CASE",), "cpu"), Prepared(Path(sys.argv[1])), Path(sys.argv[2]))
""".replace("CASE", CASE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_never_outlives_its_search(library: Path, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "0001.log"
    command = [sys.executable, "-c", SEARCH, str(library), str(tmp_path / "0001")]
    search = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    pid = int(log.read_text())
    search.send_signal(number)
    search.communicate()
    wait_until(lambda: not alive(pid))


def test_a_damaged_run_is_no_answer(run: Run, tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"schema": 1})
    observation = run("out.mkdir(); os.rename(out.parent / 'plan.json', out / 'plan.json')")
    assert observation.state is State.BROKEN and json.loads((tmp_path / "0001" / "plan.json").read_text())
