"""Is state that was made for device 0 handed to device 1, or to another thread?"""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from gpucheck.tools.audit.hazard import Kind
from gpucheck.tools.audit.probes.base import Answer, Probing
from gpucheck.tools.audit.probes.probe_devices import PAIRS, two_devices


def kernel_cache(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Takes a kernel for each device; the same object twice was made for the first."""
    take = _filler(probing, hazard)
    if take is None:
        return None, "not probed: the function that fills it needs arguments"
    with two_devices(PAIRS[0]) as driver:
        first = take()
        driver.current = 1
        second = take()
    if first is second:
        return True, "what was made with cuda:0 current is handed out with cuda:1 current: the same object"
    return False, "each device gets an object of its own"


def module_registration(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Fills the kernel caches and looks for modules that no import has made."""
    for cache in probing.of_kind(Kind.KERNEL_CACHE):
        kernel_cache(probing, cache)
    made = sorted(
        name for name, module in sys.modules.items() if name not in probing.before and _made_at_run_time(module)
    )
    if not made:
        return None, "open: the probe's calls registered no module"
    if any("cuda" in name or "device" in name for name in made):
        return False, f"registers {', '.join(made)}"
    return True, f"{', '.join(made[:3])} in sys.modules serves both devices"


def option(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Sets it with device 0 current and reads it with device 1 current, here and in another thread."""
    module, name = probing.module(hazard), hazard["expression"]
    variable, mark = getattr(module, name), object()
    in_context = isinstance(variable, ContextVar)

    def read() -> Any:
        return variable.get() if in_context else getattr(module, name)

    def write(value: Any) -> Any:
        return variable.set(value) if in_context else setattr(module, name, value)

    with two_devices(PAIRS[0]) as driver:
        token = write(mark)
        try:
            driver.current = 1
            here, there = read() is mark, _in_thread(read) is mark
        finally:
            variable.reset(token) if in_context else write(variable)
    thread = "so does another thread" if there else "another thread does not see it"
    return here or there, f"set with cuda:0 current, read with cuda:1 current; {thread}"


def allocator(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Sets a marker with device 0 current and looks who sees it."""
    from triton.runtime import _allocation as allocation

    def read() -> Any:
        held = allocation._allocator
        return held.get() if isinstance(held, ContextVar) else held

    set_allocator, before, mark = probing.value(hazard), read(), object()
    try:
        with two_devices(PAIRS[0]) as driver:
            set_allocator(mark)
            driver.current = 1
            here, there = read() is mark, _in_thread(read) is mark
    finally:
        set_allocator(before)
    if not here:
        return False, "set with cuda:0 current, not seen with cuda:1 current"
    scope = "the whole process shares it" if there else "this Triton keeps one a context, another thread has none"
    return True, f"what was set with cuda:0 current serves cuda:1; {scope}"


def scratch(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Asks for growing buffers on two streams, lets go of them and counts those that live on."""
    function = getattr(probing.module(hazard), hazard["filled_by"], None)
    if function is None or _required(function) != 1:
        return None, "not probed: the function that fills it is not called with a device alone"
    allocate = function(torch.device("cpu"))
    sizes = ((1 << 10, 0), (1 << 12, 0), (1 << 10, 1))
    kept = [weakref.ref(allocate(size, 128, stream)) for size, stream in sizes]
    gc.collect()
    alive = [size for (size, _), reference in zip(sizes, kept, strict=True) if reference() is not None]
    if not alive:
        return False, "nothing is kept once the caller has let go"
    grown = "also the one outgrown" if kept[0]() is not None else "the outgrown one is let go"
    return True, f"{len(alive)} of {len(sizes)} buffers on two streams live on after use, {grown}"


def singleton(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Looks it up with either device current."""
    with two_devices(PAIRS[0]) as driver:
        first = probing.value(hazard)
        driver.current = 1
        second = probing.value(hazard)
    return first is second, f"one {type(first).__name__} with either device current"


def global_rng(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Runs the statement after some numbers were drawn: do they come again?"""
    with torch.random.fork_rng(devices=[]):
        probing.value(hazard)
        first = torch.rand(4)
        probing.value(hazard)
        second = torch.rand(4)
    same = bool(torch.equal(first, second))
    return same, "every caller's numbers start over" if same else "the numbers go on"


def _filler(probing: Probing, hazard: dict[str, Any]) -> Callable[[], Any] | None:
    """The function that fills a cache, where it can be called without arguments."""
    owner: Any = probing.module(hazard)
    *path, last = hazard["filled_by"].split(".")
    for name in path:
        owner = getattr(owner, name)
    if inspect.isclass(owner):
        instances = [
            value
            for name, module in list(sys.modules.items())
            if name.startswith(f"{probing.package.name}.")
            for value in list(vars(module).values())
            if type(value) is owner
        ]
        if not instances:
            return None
        owner = instances[0]
    function: Callable[[], Any] = getattr(owner, last)
    return None if _required(function) else function


def _required(function: Callable[..., Any]) -> int:
    """How many arguments a function needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return sum(entry.kind in kinds and entry.default is inspect.Parameter.empty for entry in parameters)


def _in_thread(read: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(read())
        except LookupError:  # a context variable without a default
            result.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def _made_at_run_time(module: Any) -> bool:
    """Whether a module was put there by hand: it has neither a spec nor a file."""
    return (
        type(module).__name__ == "module"
        and getattr(module, "__spec__", None) is None
        and getattr(module, "__file__", None) is None
    )
