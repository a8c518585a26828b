"""Prints what NVML tells of this machine's GPUs, one JSON line a word, until its standard input is closed.

It is a process of its own, so that a driver that does not answer holds up nothing else. It needs the module pynvml,
which the package nvidia-ml-py installs. Whatever a driver or a GPU does not offer is left out.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from gpucheck.host.xid import Xid

LOOK = 500  # ms between two looks at the clocks; a look does not wait for the end of it where an error comes
MOST_XIDS = 50  # of a GPU that are told
LINKS = 18  # NVLinks that a GPU can have, NVML_NVLINK_MAX_LINKS
LINK_ERRORS = ("replays", "recoveries", "CRC errors", "CRC errors")
"""nvmlNvLinkErrorCounter_t in its order, from 0: the last two are of headers and of data. The fifth counts what error
correction mended, a few each second on every healthy link, and is left out."""
MANY_CRC_ERRORS = 100.0  # a second on one link, from which on they matter: below, resending mends them (NVIDIA's DCGM)
SLOWED_BY = {
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""Bits of nvmlClocksEventReasons; a limit of power, which large kernels reach as a rule, is none of them."""
BY_SOFTWARE = ("sw_thermal_slowdown",)  # the driver lowers clocks a little ahead of a limit


@dataclass(frozen=True)
class State:
    """What a GPU has counted so far; what it does not count is None or left out."""

    uncorrected: int | None = None  # memory errors since the driver was loaded
    corrected: int | None = None
    remapped: int | None = None  # rows
    pending: bool = False  # rows to be remapped at the next reset
    failed: bool = False  # a row could not be remapped
    links: Mapping[tuple[int, str], int] = field(default_factory=dict)  # (link, kind) -> errors
    at: float = 0.0  # s, when it was read


def words(before: State, after: State) -> list[tuple[str, str]]:
    """What came to be known between two states, each with its kind."""
    said = []
    for kind, old, new in (
        ("uncorrected", before.uncorrected, after.uncorrected),
        ("corrected", before.corrected, after.corrected),
    ):
        if old is not None and new is not None and new > old:
            said.append((kind, new_memory_errors(kind, new - old, new)))
    if before.remapped is not None and after.remapped is not None and after.remapped > before.remapped:
        said.append(("remapped", f"{after.remapped - before.remapped} memory rows remapped, {after.remapped} in all"))
    for kind, was, now, text in (
        ("remap pending", before.pending, after.pending, "memory rows wait to be remapped at the next reset"),
        ("remap failed", before.failed, after.failed, "a memory row could not be remapped"),
    ):
        if now:
            said.append((kind, text + (", since before the run" if was else "")))
    return said + _link_words(before, after)


def _link_words(before: State, after: State) -> list[tuple[str, str]]:
    """A line for what all links of a GPU had to repeat, and one for errors that come too often, though mended."""
    new = {key: count - before.links[key] for key, count in after.links.items() if key in before.links}
    seconds, said = max(after.at - before.at, 1.0), []
    serious = {key: count for key, count in new.items() if key[1] in ("recoveries", "replays") and count > 0}
    if serious:
        counts = Counter[str]()
        for (_, name), count in serious.items():
            counts[name] += count
        words = " and ".join(f"{count} new {name}" for name, count in sorted(counts.items()))
        said.append(("nvlink", f"NVLink: {words} on {_links(link for link, _ in serious)}"))
    rates = {link: count / seconds for (link, name), count in new.items() if name == "CRC errors"}
    many = {link: rate for link, rate in rates.items() if rate >= MANY_CRC_ERRORS}
    if many:
        words = f"up to {max(many.values()):.0f} CRC errors a second, mended by resending, on {_links(many)}"
        said.append(("nvlink corrected", f"NVLink: {words}"))
    return said


def _links(numbers: Iterable[int]) -> str:
    shown = sorted(set(numbers))
    return f"link{'s' * (len(shown) > 1)} {', '.join(map(str, shown))}"


def new_memory_errors(kind: str, new: int, all_of_them: int) -> str:
    """Memory errors that came meanwhile, in words; ``kind`` is corrected or uncorrected."""
    return f"{new} new {kind} memory errors (ECC), {all_of_them} since its reset"


class Listener:
    """Listens to all GPUs from its making on."""

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml, self._lock = nvml, threading.Lock()
        self._handles = [
            self._ask("nvmlDeviceGetHandleByIndex", n) for n in range(self._ask("nvmlDeviceGetCount") or 0)
        ]
        self._handles = [handle for handle in self._handles if handle is not None]
        self._events = self._ask("nvmlEventSetCreate")
        for handle in self._handles:
            self._ask("nvmlDeviceRegisterEvents", handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        self._before = [self._state(handle) for handle in self._handles]
        self._slowed = [Counter[str]() for _ in self._handles]
        self._looks = 0
        self._xids = Counter[str]()

    def listing(self) -> list[list[str]]:
        """Number, UUID and PCI address of each GPU, as nvidia-smi gives them."""
        asked = ("nvmlDeviceGetIndex", "nvmlDeviceGetUUID")
        answers = [[self._ask(function, handle) for function in asked] for handle in self._handles]
        return [
            [str(index), uuid.decode() if isinstance(uuid, bytes) else str(uuid), self._bus(handle)]
            for (index, uuid), handle in zip(answers, self._handles, strict=True)
        ]

    def listen(self) -> None:
        """Says each Xid as it comes and looks at the clocks, for as long as this process lives."""
        pause = threading.Event()
        while True:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, LOOK)
            except Exception as error:
                if type(error).__name__ != "NVMLError_Timeout":  # a GPU that is lost answers at once, again and again
                    pause.wait(LOOK / 1000)
            else:
                self._xid(event)
                continue
            with self._lock:
                self._look()

    def finish(self) -> None:
        """Says what has been counted since the beginning."""
        with self._lock:
            self._look()
            for handle, before, slowed in zip(self._handles, self._before, self._slowed, strict=True):
                for kind, text in words(before, self._state(handle)):
                    self._say(handle, kind, text)
                for reason, looks in sorted(slowed.items()):
                    kind = "slowed by software" if reason in BY_SOFTWARE else "slowed"
                    self._say(handle, kind, f"slowed itself down by {reason} in {looks} of {self._looks} looks")

    def _xid(self, event: Any) -> None:
        number = int(event.eventData)
        with self._lock:
            xid = Xid(number, self._bus(event.device), "")
            self._xids[xid.bus] += 1
            if self._xids[xid.bus] <= MOST_XIDS:
                text = f"Xid (PCI:{xid.bus}): {number}, told by NVML ({xid.means})"
                self._say(event.device, xid.kind, text, number=number)

    def _look(self) -> None:
        """Notes why clocks are lowered at this moment."""
        self._looks += 1
        for handle, slowed in zip(self._handles, self._slowed, strict=True):
            reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
            if reasons is None:  # bindings and drivers before 535
                reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
            slowed.update(name for bit, name in SLOWED_BY.items() if bit & (reasons or 0))

    def _state(self, handle: Any) -> State:
        rows = self._ask("nvmlDeviceGetRemappedRows", handle)
        links = Counter[tuple[int, str]]()
        for link in range(LINKS):
            for number, name in enumerate(LINK_ERRORS) if self._ask("nvmlDeviceGetNvLinkState", handle, link) else ():
                count = self._ask("nvmlDeviceGetNvLinkErrorCounter", handle, link, number)
                links[(link, name)] += count if isinstance(count, int) else 0
        return State(
            uncorrected=self._ask("nvmlDeviceGetTotalEccErrors", handle, 1, 0),
            corrected=self._ask("nvmlDeviceGetTotalEccErrors", handle, 0, 0),
            remapped=rows[0] + rows[1] if rows else None,
            pending=bool(rows and rows[2]),
            failed=bool(rows and rows[3]),
            links=links,
            at=time.monotonic(),
        )

    def _bus(self, handle: Any) -> str:
        info = self._ask("nvmlDeviceGetPciInfo", handle)
        bus = getattr(info, "busId", "unknown")
        return bus.decode() if isinstance(bus, bytes) else str(bus)

    def _say(self, handle: Any, kind: str, text: str, **more: Any) -> None:
        print(json.dumps({"bus": self._bus(handle), "kind": kind, "text": text, **more}), flush=True)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The answer of an NVML function; None where the binding, the driver or the GPU has none."""
        with suppress(Exception):
            return getattr(self._nvml, function)(*arguments)
        return None


def main() -> None:
    """Listens until standard input ends, which it does with the process that holds its other end."""
    nvml = import_module("pynvml")
    nvml.nvmlInit()
    listener = Listener(nvml)
    print(json.dumps({"kind": "listening", "gpus": listener.listing()}), flush=True)
    threading.Thread(target=listener.listen, daemon=True).start()
    sys.stdin.buffer.read()
    listener.finish()
    sys.stdout.flush()
    os._exit(0)  # the thread may be waiting inside the driver


if __name__ == "__main__":
    main()
