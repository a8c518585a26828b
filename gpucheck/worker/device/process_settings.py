"""Settings of a thread and its process that a call must leave as they were: whatever runs next would heed them."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

MOST_WORDS = 60  # characters of a value that is told
TORCHS_OWN = (b"TORCHINDUCTOR_", b"_TORCHINDUCTOR_")
"""Begin the variables that torch sets when it imports its compiler, and when it loads what that made for CPUs."""

FLAGS = (
    ("torch.backends.cuda.matmul.allow_tf32", torch.backends.cuda.matmul, "allow_tf32"),
    ("torch.backends.cuda.matmul.fp32_precision", torch.backends.cuda.matmul, "fp32_precision"),
    (
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
        torch.backends.cuda.matmul,
        "allow_fp16_reduced_precision_reduction",
    ),
    (
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
        torch.backends.cuda.matmul,
        "allow_bf16_reduced_precision_reduction",
    ),
    ("torch.backends.cudnn.allow_tf32", torch.backends.cudnn, "allow_tf32"),
    ("torch.backends.cudnn.benchmark", torch.backends.cudnn, "benchmark"),
    ("torch.backends.cudnn.deterministic", torch.backends.cudnn, "deterministic"),
)


@dataclass(frozen=True)
class Setting:
    """One thing that can be read, compared and put back."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], None]
    of_thread: bool = False  # each thread has its own
    shown: bool = True  # its values say something to a reader


@contextmanager
def restored_settings(device: torch.device, tell: Callable[[str], None], *, shared: bool) -> Iterator[None]:
    """Tells which settings differ after what runs inside, in words, and puts them back: later cases are not to blame.

    Args:
        device: the one under test.
        shared: other threads run meanwhile, so that settings of the whole process say nothing about this one.
    """
    settings = [setting for setting in _settings(device) if setting.of_thread or not shared]
    before = [_read(setting) for setting in settings]
    try:
        yield
    finally:
        for setting, old in zip(settings, before, strict=True):
            new = _read(setting)
            if new != old:
                tell(_change_text(setting, old, new))
                with suppress(Exception):  # the rest of the settings is put back all the same
                    setting.put(old)


def _read(setting: Setting) -> Any:
    try:
        return setting.get()
    except Exception as error:  # torch refuses some flags once others are set
        return type(error).__name__


def _change_text(setting: Setting, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):  # values of environment variables may be secrets
        added, gone = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        other = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
        parts = [(added, "set"), (gone, "removed"), (other, "changed")]
        return "; ".join(
            f"{setting.name} {word}: {', '.join(map(os.fsdecode, names))}" for names, word in parts if names
        )
    if not setting.shown:
        return f"{setting.name} is another one than before the call"
    return f"{setting.name} was {str(old)[:MOST_WORDS]} before the call and is {str(new)[:MOST_WORDS]} after it"


def _settings(device: torch.device) -> Iterator[Setting]:
    yield Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield Setting("default device", torch.get_default_device, _put_default_device, of_thread=True)
    yield Setting("gradient mode", torch.is_grad_enabled, _put_gradient_mode, of_thread=True)
    for kind in sorted({"cpu", device.type}):
        yield Setting(f"autocast of {kind}", *_autocast(kind), of_thread=True)
    yield Setting("deterministic algorithms", _deterministic, _put_deterministic)
    yield Setting("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    for name, owner, attribute in FLAGS:
        yield Setting(name, _getter(owner, attribute), _setter(owner, attribute))
    yield Setting("number of torch's threads", torch.get_num_threads, torch.set_num_threads)
    yield Setting("environment variable", _environment, _put_environment)
    yield Setting("working directory", os.getcwd, os.chdir)
    yield Setting("random state of Python", random.getstate, random.setstate, shown=False)
    yield Setting("random state of torch on the CPU", _cpu_state, _put_cpu_state, shown=False)
    if "numpy" in sys.modules:
        yield Setting("random state of numpy", _numpy_state, _put_numpy_state, shown=False)
    if device.type == "cuda":
        yield Setting("current device", torch.cuda.current_device, torch.cuda.set_device, of_thread=True)
        yield Setting(f"current stream of {device}", *_stream(device), of_thread=True)
        yield Setting(f"random state of {device}", *_gpu_state(device), shown=False)


def _getter(owner: Any, attribute: str) -> Callable[[], Any]:
    return lambda: getattr(owner, attribute, None)


def _setter(owner: Any, attribute: str) -> Callable[[Any], None]:
    return lambda value: setattr(owner, attribute, value)


def _put_default_device(value: torch.device) -> None:
    torch.set_default_device(None if value == torch.device("cpu") else value)


def _put_gradient_mode(value: bool) -> None:
    torch.set_grad_enabled(value)


def _autocast(kind: str) -> tuple[Callable[[], bool], Callable[[bool], None]]:
    return lambda: torch.is_autocast_enabled(kind), lambda value: torch.set_autocast_enabled(kind, value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _put_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _environment() -> dict[bytes, bytes]:
    """The variables undecoded: reading each through ``os.environ`` takes longer than many a call."""
    held = getattr(os.environb, "_data", os.environb)
    return {name: value for name, value in held.items() if not name.startswith(TORCHS_OWN)}


def _put_environment(value: dict[bytes, bytes]) -> None:
    for name in _environment().keys() - value.keys():
        del os.environb[name]
    os.environb.update(value)


def _cpu_state() -> bytes:
    return bytes(torch.get_rng_state().numpy())


def _put_cpu_state(value: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8))


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = sys.modules["numpy"].random.get_state()
    return (name, keys.tobytes(), *rest)


def _put_numpy_state(value: tuple[Any, ...]) -> None:
    numpy = sys.modules["numpy"]
    name, keys, *rest = value
    numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _gpu_state(device: torch.device) -> tuple[Callable[[], bytes], Callable[[bytes], None]]:
    state = torch.cuda.get_rng_state

    def put(value: bytes) -> None:
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(value), dtype=torch.uint8), device)

    return lambda: bytes(state(device).numpy()), put


def _stream(device: torch.device) -> tuple[Callable[[], int], Callable[[int], None]]:
    current = torch.cuda.current_stream  # a call may put something else in its place

    def put(value: int) -> None:
        torch.cuda.set_stream(torch.cuda.ExternalStream(value, device) if value else torch.cuda.default_stream(device))

    return lambda: current(device).cuda_stream, put
