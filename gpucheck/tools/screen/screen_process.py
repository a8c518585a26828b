"""What the process of one GPU under screen does: compiles, launches until it is told to end, sends all digests.

It judges nothing: the right digests stay with the command, which gets every digest and compares. It keeps the bits of
groups that differ from what it was told, since nobody else can have them.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from gpucheck.host.isolated import receive, send
from gpucheck.tools.screen.datapaths import chosen

if TYPE_CHECKING:
    from gpucheck.host.gpu_users import GpuUsers
    from gpucheck.tools.screen.tile_launches import Device, Launched, Ready

POLL = 0.01  # s between looks for other processes, while the GPU is theirs
MOST_DETAILS = 4  # wrong groups whose bits a launch sends
STAND_IN_CAPABILITY = (9, 0)


def preload() -> None:
    """Loads what every process of a GPU needs, before it is forked."""
    import torch  # noqa: F401


def main(connection: Connection) -> None:
    """Answers the question of :class:`gpucheck.tools.screen.gpu_screen.GpuScreen`."""
    asked = receive(connection)
    if asked["device"] == "cpu":
        from gpucheck.triton_hooks import interpreter

        interpreter.install(STAND_IN_CAPABILITY)
    from gpucheck.tools.screen.tile_launches import Device, Plant

    plants = [Plant(**plant) for plant in asked["plants"]]
    users = gpu_users(asked["uuid"]) if asked["idle"] else None
    device = Device(asked["seed"], plants)
    facts = {"name": device.name, "capability": device.capability, "multiprocessors": device.programs}
    send(connection, {"event": "device", **facts})
    others = None
    if asked["idle"]:
        device.touch()
        others = users and others_on_gpu(*users, os.getpid())
        if others is None:
            send(connection, {"event": "blind"})
            return
    wanted = {path.name: path for path in chosen(device.capability, small=device.interpreted)}
    ready: dict[str, Ready] = {}
    for name in asked["paths"]:
        path = wanted.get(name)
        if path is None:
            send(connection, {"event": "lacking", "path": name})
            continue
        begin = time.monotonic()
        send(connection, {"event": "compiling", "path": name})
        try:
            ready[name] = device.prepare(path, asked["expected"][name])
        except Exception as error:
            if "CUDA error" in str(error):  # no later call survives it: the process ends, and that is the GPU's doing
                raise
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            send(connection, {"event": "failed", "path": name, "message": text, "traceback": traceback.format_exc()})
            continue
        known = ready[name].expected.cpu().tolist()
        message = {"event": "prepared", "path": name, "expected": known, "seconds": time.monotonic() - begin}
        send(connection, message | {"tile_seconds": ready[name].tile_seconds})
    send(connection, {"event": "ready"})
    told = receive(connection)
    if ready:
        Turns(device, ready, connection, others).run(told["seconds"], told["tiles"])
    send(connection, {"event": "done"})


def gpu_users(uuid: str) -> tuple[GpuUsers, set[int]] | None:
    """The processes of a GPU: whom to ask, and who is there before this process is; None where nobody tells."""
    from gpucheck.host.gpu_users import GpuUsers

    with suppress(OSError, AttributeError):
        users = GpuUsers(uuid)
        return users, users.pids()
    return None


def others_on_gpu(users: GpuUsers, before: set[int], own: int) -> Callable[[], bool] | None:
    """Says whether another process is on the GPU now; None where this one is not seen: then others are not either.

    Args:
        before: who was there before this process was.
        own: the id of this process, as it knows it; in a container the GPU may know it by the host's.
    """
    came = users.pids() - before
    mine = {own} if own in came else came
    return (lambda: bool(users.pids() - mine)) if len(mine) == 1 else None


class Turns:
    """Runs datapaths in turn, each as long as the others, and sends what they gave."""

    def __init__(
        self, device: Device, ready: dict[str, Ready], connection: Connection, others: Callable[[], bool] | None = None
    ) -> None:
        self._device, self._ready, self._connection, self._others = device, ready, connection, others
        self._spent = dict.fromkeys(ready, 0.0)
        self._launches = dict.fromkeys(ready, 0)
        self._tiles: dict[str, Counter[int]] = {name: Counter() for name in ready}
        self._waited = 0.0

    def run(self, seconds: float, tiles: int) -> None:
        """Screens.

        Args:
            seconds: after which no launch begins; each datapath runs once all the same.
            tiles: that every multiprocessor is to run of each datapath, if the seconds allow it; 0: all seconds.
        """
        begin = time.monotonic()
        pending: Launched | None = None
        while True:
            late = time.monotonic() - begin - self._waited >= seconds
            name = self._next(tiles, late=late)
            if name is None:
                break
            if self._others is not None:
                if pending is not None:  # no launch waits behind another: the GPU is free within one
                    self._report(pending)
                    pending = None
                self._give_way()
            launched = self._device.launch(self._ready[name])
            self._launches[name] += 1
            if pending is not None:
                self._report(pending)
            pending = launched
        if pending is not None:
            self._report(pending)

    def _next(self, tiles: int, *, late: bool) -> str | None:
        """The datapath that runs next; None where all is done."""
        never = [name for name, launches in self._launches.items() if not launches]
        if never:
            return never[0]
        if late:
            return None
        if not tiles:
            return min(self._spent, key=lambda name: (self._spent[name], self._launches[name]))
        left = {name: self._fewest(name) / tiles for name in self._ready}
        name = min(left, key=lambda each: (left[each], self._launches[each]))
        return name if left[name] < 1 else None

    def _fewest(self, name: str) -> int:
        """Tiles that each multiprocessor ran at least."""
        ran = self._tiles[name]
        return min(ran.values()) if len(ran) == self._device.programs else 0

    def _give_way(self) -> None:
        """Waits while another process is on the GPU."""
        begin = time.monotonic()
        while self._others is not None and self._others():
            time.sleep(POLL)
        if (waited := time.monotonic() - begin) >= POLL:
            self._waited += waited
            send(self._connection, {"event": "waited", "seconds": waited})

    def _report(self, launched: Launched) -> None:
        came, path = self._device.finish(launched), launched.ready.path
        self._spent[path.name] += came["seconds"]
        numbers = came["multiprocessors"].tolist()
        for number in numbers:
            self._tiles[path.name][number] += launched.groups * path.tiles
        details = list(came["details"].items())[:MOST_DETAILS]
        header = {
            "event": "launch",
            "path": path.name,
            "start": launched.start,
            "groups": launched.groups,
            "seconds": came["seconds"],
            "multiprocessors": numbers,
            "details": [[program, group] for program, (group, _) in details],
        }
        send(self._connection, header)
        self._connection.send_bytes(came["digests"].tobytes())
        for _, (_, bits) in details:
            self._connection.send_bytes(bits.tobytes())
