"""What a process does with its GPUs, on the CPU: its environment, its process group, its threads and turns."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from gpucheck.library import source_import
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UnusableGpu
from gpucheck.worker.device import case_pass, child, gpu_process
from gpucheck.worker.device.placements import BINDINGS
from gpucheck.worker.protocol import Request, Setup

NAMES = ("GPUCHECK_DEVICE", "CUDA_LAUNCH_BLOCKING", "TRITON_CACHE_DIR", "RANK", "LOCAL_RANK", "TORCH_GLOO_LAZY_INIT")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts back what a process sets for itself."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")


def setup(tmp_path: Path, **conditions: Any) -> Setup:
    made = Conditions(**{"placement": "cpu", **conditions})
    stacks, journal = str(tmp_path / "stacks"), str(tmp_path / "journal")
    return Setup(made, "cpu", 1, 4, 5, 8, "/lib", "v3.5", stacks, journal, meeting=str(tmp_path / "group"))


def test_the_environment_of_a_usual_process(tmp_path: Path) -> None:
    child._environment(setup(tmp_path))
    assert [os.environ.get(name) for name in NAMES] == ["1", None, None, "5", "1", None]


@pytest.mark.parametrize(
    ("conditions", "changes"),
    [
        ({"synchronised": True}, {"CUDA_LAUNCH_BLOCKING": "1"}),
        ({"swap": "rank"}, {"RANK": "6", "LOCAL_RANK": "2"}),
        ({"swap": "device"}, {"GPUCHECK_DEVICE": "2"}),
        ({"placement": "threads"}, {"GPUCHECK_DEVICE": ""}),
    ],
)
def test_conditions_change_the_environment(tmp_path: Path, conditions: dict[str, Any], changes: dict[str, str]) -> None:
    child._environment(setup(tmp_path, **conditions))
    usual = dict(zip(NAMES, ["1", None, None, "5", "1", None], strict=True))
    assert {name: os.environ.get(name) for name in NAMES} == {**usual, **changes}


def test_the_last_rank_swaps_with_the_first(tmp_path: Path) -> None:
    last = replace(setup(tmp_path, swap="rank"), local_rank=3, rank=7)
    child._environment(last)
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("4", "0")


def test_a_cache_of_its_own(tmp_path: Path) -> None:
    child._environment(replace(setup(tmp_path), cache="/c"))
    assert os.environ["TRITON_CACHE_DIR"] == "/c"


def test_a_process_group_exists_without_the_other_ranks(tmp_path: Path) -> None:
    from torch import distributed

    child._join_group(setup(tmp_path))
    try:
        assert distributed.is_initialized()
        assert (distributed.get_rank(), distributed.get_world_size()) == (5, 8)
    finally:
        distributed.destroy_process_group()


class Recorded:
    """An executor that says where and in which order it ran."""

    def __init__(self, index: int, seen: list[Any]) -> None:
        self.index, self.seen = index, seen
        seen.append(("made", index, threading.current_thread().name.partition("_")[0]))

    def run(self, request: Any) -> Any:
        self.seen.append(("ran", request.outputs, threading.current_thread().name.partition("_")[0]))
        return self.index


def maker(seen: list[Any]) -> Any:
    binding = SimpleNamespace(enter=lambda index: seen.append(("turn", index)))
    return SimpleNamespace(executor=lambda index: Recorded(index, seen), binding=binding)


REQUEST = Request(Case("matmul", {}, "exact", "c", "r", 0), Conditions(), "in", ("a", "b", "c", "d"))


def test_each_device_has_a_thread_for_life(tmp_path: Path) -> None:
    seen: list[Any] = []
    process = gpu_process.ThreadPerDevice(setup(tmp_path), maker(seen))
    assert process.run(REQUEST) == process.run(REQUEST) == [0, 1, 2, 3]
    for index, output in enumerate("abcd"):
        thread = f"cuda:{index}"
        assert [entry for entry in seen if entry[2] == thread] == [
            ("made", index, thread),
            ("ran", (output,), thread),
            ("ran", (output,), thread),
        ]


def test_devices_run_at_the_same_time(tmp_path: Path) -> None:
    gate = threading.Barrier(4, timeout=120)  # breaks unless all four are in here together
    made = SimpleNamespace(executor=lambda index: SimpleNamespace(run=lambda request: gate.wait() >= 0))
    assert gpu_process.ThreadPerDevice(setup(tmp_path), made).run(REQUEST) == [True] * 4  # type: ignore[arg-type]


def test_devices_take_turns_in_the_main_thread(tmp_path: Path) -> None:
    seen: list[Any] = []
    process = gpu_process.DeviceByDevice(setup(tmp_path), maker(seen))
    process.run(REQUEST)
    made = [entry for entry in seen if entry[0] == "made"]
    assert [index for _, index, _ in made] == [0, 1, 2, 3] and {thread for *_, thread in made} == {"MainThread"}
    seen.clear()
    process.run(REQUEST)
    assert seen[:4] == [("turn", 0), ("ran", ("a",), "MainThread"), ("turn", 1), ("ran", ("b",), "MainThread")]


@pytest.mark.parametrize("name", sorted(BINDINGS))
def test_each_placement_has_its_form_of_process(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_process, "Maker", lambda setup: maker([]))
    monkeypatch.setattr("gpucheck.triton_hooks.interpreter.install", lambda: None)
    process = child.start(setup(tmp_path, placement=name))
    forms = {"threads": gpu_process.ThreadPerDevice, "sequential": gpu_process.DeviceByDevice}
    assert type(process) is forms.get(name.removesuffix("-unpinned"), gpu_process.OneDevice)


def test_numbers_that_numpy_draws_differ_in_processes_of_one_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the state that the import of numpy.random drew, until they start."""
    monkeypatch.setattr(gpu_process, "Maker", lambda setup: maker([]))
    state = numpy.random.get_state()
    child.start(setup(tmp_path))
    first = numpy.random.random(4)
    numpy.random.set_state(state)
    assert (numpy.random.random(4) != first).all()


def test_executors_of_a_process_share_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []

    def load(root: Path, generation: str) -> object:
        loads.append((root, generation))
        return object()

    monkeypatch.setattr("gpucheck.library.adapters.load", load)
    library = case_pass.Library(Path("/lib"), "v3.5")
    threads = [threading.Thread(target=library) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [(Path("/lib"), "v3.5")] and library() is library()


def test_a_gpu_that_torch_cannot_use_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoDevice(BINDINGS["cpu"]):  # type: ignore[misc]
        def enter(self, index: int) -> Any:
            raise RuntimeError("invalid device ordinal\nmore advice")

    monkeypatch.setitem(BINDINGS, "cpu", NoDevice)
    with pytest.raises(UnusableGpu, match="torch cannot use GPU 1 of the visible ones: RuntimeError: invalid device"):
        gpu_process.Maker(setup(tmp_path)).executor(1)


def test_what_a_process_has_for_life() -> None:
    case = Conditions("peer", "initialised", late=True, consumer="prompt", repeat=3, guarded=True, alone=True)
    assert case.lifelong == Conditions("peer", "initialised")
    own = Conditions(cache="fresh", synchronised=True, swap="rank")
    assert own.lifelong == own


def test_what_processes_are_forked_with_is_there_to_be_loaded() -> None:
    """A name that is left behind when a module moves would be passed over, and each process would load it by itself."""
    named = (*child.OF_ALL, *child.OF_CANDIDATES)
    own = [name for name in named if name.startswith("gpucheck.")]
    of_triton = [name for name in named if name.startswith("triton.")]
    assert len(own) >= 5 and len(of_triton) == 2 and all(find_spec(name) for name in (*own, *of_triton))


def test_what_is_loaded_ahead_of_launches_asks_for_no_gpu() -> None:
    """Triton's driver is made when something asks for it, and a process that has it forks none that can use a GPU."""
    code = (
        "import sys; from gpucheck.worker.device import child; from triton.runtime import driver\n"
        "child.import_ahead(None, 'cuda'); made = vars(driver).get('_active') or vars(driver).get('_default')\n"
        "print(made, *(name in sys.modules for name in child.OF_ALL if name.startswith('triton.')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["None", "True", "True"], done.stderr


def test_processes_are_forked_with_the_library_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled: list[Path] = []
    monkeypatch.setattr(source_import, "compile_ahead", compiled.append)
    child.import_ahead(None, "cuda", library=tmp_path)
    child.import_ahead(None, "cuda")
    assert compiled == [tmp_path]


@pytest.mark.parametrize("asks", [True, False])
def test_what_is_loaded_ahead_for_candidates_asks_for_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """A process that was told of GPUs forks none that can use one."""
    count: list[str] = []
    (tmp_path / "asks_for_gpus.py").write_text("import torch\ntorch._C._cuda_getDeviceCount()" if asks else "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: count.append("asked"), raising=False)
    for name in ("OF_ALL", "OF_CANDIDATES"):
        monkeypatch.setattr(child, name, ())
    monkeypatch.setattr(child, "OF_COMPILED", ("asks_for_gpus",))
    monkeypatch.setattr(child, "OF_EXTENSIONS", ("asks_whether",))
    (tmp_path / "asks_whether.py").write_text("import torch\nANSWER = torch.cuda.is_available()")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count.append("asked"))
    monkeypatch.setattr(child, "_stand_in", lambda *_: None)
    before = hasattr(torch._C, "_cuda_init")
    child.import_ahead(None, "cuda", candidates=True, compiled=True)
    assert ("asks_for_gpus" in sys.modules) is not asks and not count
    assert hasattr(torch._C, "_cuda_init") is before
    torch._C._cuda_getDeviceCount()
    assert count == ["asked"], "whoever is forked can ask"
    sys.modules.pop("asks_for_gpus", None)
    child.import_ahead(None, "cuda", candidates=True)
    assert "asks_for_gpus" not in sys.modules, "only what torch compiles needs it"
    assert "asks_whether" not in sys.modules, "only candidates with extensions need it"
    child.import_ahead(None, "cuda", candidates=True, extensions=True)
    assert sys.modules.pop("asks_whether").ANSWER is True and count == ["asked"], "CUDA need not be asked"
    child.import_ahead(None, "cpu", candidates=True, extensions=True)
    assert sys.modules.pop("asks_whether").ANSWER is None and count == ["asked"] * 2


def test_triton_hashes_itself_once_and_while_modules_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before, and not in each process: a third of a second of a quick run."""
    begun, hashed = threading.Event(), []

    def hash_triton() -> None:
        begun.set()
        hashed.append(threading.current_thread() is not threading.main_thread())

    monkeypatch.setattr("gpucheck.triton_hooks.compiled_kernel.hash_triton", hash_triton)
    monkeypatch.setattr(child, "_stand_in", lambda *_: None)
    monkeypatch.setattr(child, "import_module", lambda name: begun.wait())
    child.import_ahead(None, "cuda")
    assert hashed == [True], "by a thread, which a process must not have that forks others"
    child.import_ahead(None, "cuda", launches=False)
    assert hashed == [True], "none will be launched"
    assert not any(thread.is_alive() for thread in threading.enumerate() if "hash_triton" in thread.name)
    child.import_ahead(None, "cpu")
    assert hashed == [True]
