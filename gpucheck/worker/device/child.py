"""The child: a process that owns the device, runs kernels and judges nothing."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.host import containment
from gpucheck.host.bytecode import Bytecode
from gpucheck.library.cache_folder import cache_root
from gpucheck.model.vocabulary import Wall
from gpucheck.worker import hang_stacks
from gpucheck.worker.protocol import BUILD, REFERENCE, TEMPORARY, Ahead

if TYPE_CHECKING:
    from gpucheck.model.plan import PlannedEngine
    from gpucheck.worker.device.build_process import BuildProcess
    from gpucheck.worker.device.gpu_process import Process
    from gpucheck.worker.device.reference_process import ReferenceProcess
    from gpucheck.worker.protocol import Setup

DEVICE = "GPUCHECK_DEVICE"
"""Environment variable that tells code in a child which GPU of the node it was given, or stands for on the CPU."""


HOPPER: dict[str, Any] = {"capability": (9, 0), "sms": 132, "shared_memory": 232_448}
"""The device that Triton's interpreter stands for in an engine's process: below it, engines take other kernels."""


def serve(connection: Connection) -> None:
    """Receives a Setup and answers "" or what went wrong; then serves requests until the connection closes.

    A process that is to run a candidate is shut in first, and answers with the walls that stand. The answer to a
    request is a list of replies, one for each device of the process. A process that receives an Ahead instead of a
    Setup compiles these cases and ends.
    """
    faulthandler.enable(sys.stderr)
    try:
        setup: Setup | Ahead = connection.recv()
        if isinstance(setup, Ahead):
            from gpucheck.worker.device import precompile

            precompile.work(setup)
            return
        if setup.own_folder:
            containment.close_files([connection.fileno()])
        hang_stacks.register(Path(setup.stacks))
        try:
            walls = _shut_in(setup) if setup.own_folder else ""
            process = start(setup)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise
        connection.send(walls)
        while True:
            request: Any = connection.recv()  # a Request; a Question where references are made
            if setup.own_folder:
                containment.show_memory()  # nothing else of the candidate is there any more
            connection.send(process.run(request))
    except (EOFError, ConnectionResetError):
        return


OWN_CACHES = ("TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH", "TILELANG_CACHE_DIR")
"""Environment variables of compilers' caches: what one candidate leaves in one must not reach another."""


def _shut_in(setup: Setup) -> tuple[str, ...]:
    """Builds walls around a process that will run a candidate, not loaded yet; returns those that stand."""
    temporary = Path(setup.own_folder, TEMPORARY)
    temporary.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    for variable in OWN_CACHES:
        os.environ[variable] = str(Path(setup.own_folder, variable.lower()))
    if setup.extensions:
        os.environ["TORCH_EXTENSIONS_DIR"] = setup.extensions  # which belong to this content alone
    Path(setup.journal).touch()
    standing = containment.contain(_writable(setup), files=setup.files_walled)
    if containment.FILES not in standing:  # else the walls of others keep them from it
        containment.hide_memory()  # others of the candidate may be at work until this one is asked
    return tuple(Wall[name].value for name in standing)


def _writable(setup: Setup) -> Iterator[Path]:
    """What a process that runs a candidate may write."""
    if setup.meeting:
        Path(setup.meeting).touch()
    given = (setup.own_folder, setup.stacks, setup.journal, setup.meeting, setup.extensions, setup.cache)
    yield from (Path(each) for each in given if each)


OF_ALL = (
    *("gpucheck.worker.device.gpu_process", "gpucheck.worker.device.executor", "gpucheck.worker.device.placements"),
    *("gpucheck.checks.on_use", "numpy.random", "torch.utils._device", "torch.utils.serialization.config"),
    *("triton.experimental.gluon", "triton.runtime.interpreter"),  # a first launch takes the one, watching it the other
)
"""What each process needs, of which a failed case and a candidate have many: loaded once, it is there in all."""
OF_CANDIDATES = (
    *("gpucheck.worker.device.single_calls", "gpucheck.checks.candidate", "gpucheck.checks.problem"),
    *("gpucheck.checks.torch_model", "gpucheck.checks.sources"),
)
"""What each process of a candidate needs too."""
OF_COMPILED = ("torch._dynamo",)
"""What torch loads for a pair that has it compile: eight hundred modules."""
OF_EXTENSIONS = ("torch.utils.cpp_extension",)
"""What a candidate loads whose extensions are built."""


def import_ahead(
    engine: PlannedEngine | None,
    device: str,
    *,
    candidates: bool = False,
    extensions: bool = False,
    compiled: bool = False,
    launches: bool = True,
    library: Path | None = None,
) -> None:
    """What a forkserver does that children of an engine are forked from; all others without one.

    Args:
        extensions: a candidate has some.
        compiled: a pair has torch compile.
        launches: Triton will launch kernels.
        library: folder with the library that most children will import; None: they import none.
    """
    with Bytecode(engine["name"] if engine else "child", cache_root), _triton_hashed(device, wanted=launches):
        if engine:
            from gpucheck.library import engines

            _stand_in(device, engine)
            engines.import_ahead(engine, device)
            return
        with suppress(Exception):  # each process meets that too
            _stand_in(device, None)
        for name in (*OF_ALL, *(OF_CANDIDATES if candidates else ())):
            with suppress(Exception):  # its process meets that too, if it needs it
                import_module(name)
        for name in (*(OF_COMPILED if compiled else ()), *(OF_EXTENSIONS if extensions else ())):
            with suppress(Exception), _nobody_asks_for_gpus() if device == "cuda" else nullcontext():
                import_module(name)
        if library:
            from gpucheck.library import source_import

            source_import.compile_ahead(library)


@contextmanager
def _triton_hashed(device: str, *, wanted: bool) -> Iterator[None]:
    """Afterwards Triton has hashed itself for its cache, which a process meanwhile has a second processor for."""
    if device != "cuda" or not wanted:
        yield
        return
    from gpucheck.triton_hooks.compiled_kernel import hash_triton

    thread = threading.Thread(target=hash_triton)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def _nobody_asks_for_gpus() -> Iterator[None]:
    """Inside, torch says unasked that there are GPUs, and who asks for more gets an error.

    A process that was told of GPUs by CUDA forks none that can use one.
    """
    import torch

    is_available, torch.cuda.is_available = torch.cuda.is_available, lambda: True
    functions = {name: getattr(torch._C, name, None) for name in ("_cuda_getDeviceCount", "_cuda_init")}

    def refused(*_: object) -> None:
        raise RuntimeError("GPUs are asked for in a process that others are forked from")

    for name in functions:
        setattr(torch._C, name, refused)
    try:
        yield
    finally:
        torch.cuda.is_available = is_available
        for name, function in functions.items():
            setattr(torch._C, name, function) if function else delattr(torch._C, name)


def _stand_in(device: str, engine: PlannedEngine | None) -> None:
    """Without GPUs: puts Triton's interpreter in their place."""
    if device == "cpu":
        from gpucheck.triton_hooks import interpreter

        interpreter.install()
        if engine:
            interpreter.stand_for(**HOPPER)


def start(setup: Setup) -> Process | ReferenceProcess | BuildProcess:
    """Makes this fresh process what the setup asks for."""
    from gpucheck.worker.device import gpu_process

    _environment(setup)
    if "numpy.random" in sys.modules:
        sys.modules["numpy"].random.seed()  # as in a process that imports it: no two draw alike
    _stand_in(setup.device, setup.engine)
    if setup.conditions.process_group == "initialised":
        _join_group(setup)
    if setup.engine:
        from gpucheck.library import engines

        engines.settle(setup.engine, setup.device, str(Path(setup.journal).parent))
    if setup.calls == BUILD:
        from gpucheck.worker.device.build_process import BuildProcess

        return BuildProcess()
    if setup.calls == REFERENCE:
        containment.hide_memory()  # which holds what is right
        with Bytecode("reference", cache_root):
            import_module("gpucheck.checks.torch_reference")
            from gpucheck.worker.device.reference_process import ReferenceProcess

        return ReferenceProcess(setup)
    if setup.precision:
        _allow(setup.precision)
    maker = gpu_process.Maker(setup)
    if setup.calls:
        from gpucheck.worker.device.single_calls import SingleCalls

        return SingleCalls(setup, maker)
    placed = setup.conditions.placed
    if not placed.whole_node:
        return gpu_process.OneDevice(setup, maker)
    return (gpu_process.ThreadPerDevice if placed.threads else gpu_process.DeviceByDevice)(setup, maker)


def _allow(precision: str) -> None:
    """Has torch compute its products as they are asked for: by itself it takes TF32 for convolutions."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _environment(setup: Setup) -> None:
    """Sets what CUDA, Triton and host code read from the environment; nothing has read it yet."""
    from gpucheck.worker.device.gpu_process import other_local_rank, own_device

    os.environ[DEVICE] = "" if setup.conditions.whole_node else str(own_device(setup))
    if setup.conditions.synchronised:
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    if setup.cache:
        os.environ["TRITON_CACHE_DIR"] = setup.cache
    if setup.conditions.swap == "rank":
        other = other_local_rank(setup)
        os.environ["LOCAL_RANK"] = str(other)
        os.environ["RANK"] = str(setup.rank - setup.local_rank + other)


def _join_group(setup: Setup) -> None:
    """Initialises ``torch.distributed`` without waiting for the other ranks: connections are made when first used."""
    from torch import distributed

    os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
    store = distributed.FileStore(setup.meeting, setup.world_size)  # type: ignore[attr-defined]
    backend = "gloo" if setup.device == "cpu" else "nccl"
    distributed.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=setup.world_size)
