"""Tensors that one process hands to another: in a file, or, where they are large, in memory of the GPU that both have.

Shared memory is made by the process that judges and opened by the one under test, whose end then costs nothing: no
gigabyte is copied to the host, hashed there, or lost with a process that was killed. Both copy what they take out.
Without a GPU it is memory of the host, in a file that both map.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpucheck.host import cuda_driver
from gpucheck.verify.digest import integers
from gpucheck.verify.views import extent
from gpucheck.worker.sealed_inputs import mask_of, seal, sealable, xor

ALIGNMENT = 512  # bytes
Tensors = dict[str, Tensor]


class _Bytes:
    """Memory of a GPU as torch takes it from other software."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3}


@dataclass
class Box:
    """Shared memory of a GPU."""

    path: str  # of the file that says how to open it
    memory: Tensor  # uint8
    address: int

    def free(self) -> None:
        """Gives the memory back; only of a box that was made here."""
        if self.memory.device.type == "cuda":
            _settle(self.memory.device)
            cuda_driver.free(self.address)
        else:
            Path(self.path + MEMORY).unlink(missing_ok=True)


MEMORY = ".memory"
"""Ends the name of the file that is the memory of a box on the host."""


def _settle(device: torch.device) -> None:
    """Waits for what the device has to do; its context is then the one of this thread."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_box(path: str, size: int, device: torch.device) -> Box:
    """A box of so many bytes.

    Raises:
        OSError: there is no such memory.
    """
    if device.type != "cuda":
        with open(path + MEMORY, "wb") as file:
            file.truncate(size)
        Path(path).write_text(json.dumps({"size": size}))
        return open_box(path, device, written=True)
    _settle(device)
    address, handle = cuda_driver.share(size)
    Path(path).write_text(json.dumps({"handle": handle.hex(), "size": size}))
    return Box(path, torch.as_tensor(_Bytes(address, size), device=device), address)


def open_box(path: str, device: torch.device, *, written: bool = False) -> Box:
    """A box that another process made.

    Args:
        written: something is to be put into it.

    Raises:
        OSError: it cannot be opened.
    """
    told = json.loads(Path(path).read_text())
    if device.type != "cuda":
        memory = torch.from_file(path + MEMORY, shared=written, size=told["size"], dtype=torch.uint8)
        return Box(path, memory, 0)
    _settle(device)
    address = cuda_driver.open_shared(bytes.fromhex(told["handle"]))
    return Box(path, torch.as_tensor(_Bytes(address, told["size"]), device=device), address)


def bytes_in_box(tensors: Mapping[str, Tensor]) -> int:
    """How large a box these tensors need."""
    return sum(_room(value) for value in tensors.values()) + ALIGNMENT


def _room(tensor: Tensor) -> int:
    size = extent(tensor.shape, tensor.stride()) * tensor.element_size() if tensor.numel() else 0
    return -(-size // ALIGNMENT) * ALIGNMENT


def save(
    tensors: Mapping[str, Tensor], path: str, box: Box | None = None, *, key: int | None = None, hashed: bool = True
) -> str:
    """Writes tensors into a file; those on the box's device into the box, as far as there is room.

    Args:
        key: seals them on their way, so that what is not sealed never lies where another process may look.
        hashed: for who loads them from a box; :func:`take` asks for no hash.

    Returns:
        The hash of what was written to a box; "" without one.
    """
    boxed: dict[str, Any] = {}
    held: Tensors = {}
    place = 0
    for name, value in tensors.items():
        value, room = value.detach(), _room(value)
        if box is None or value.device != box.memory.device or not room or place + room > len(box.memory):
            sealed = value if key is None else seal({name: value}, key)[name]
            held[name] = sealed.to("cpu").contiguous() if box else sealed
            continue
        count = extent(value.shape, value.stride())
        target = box.memory[place : place + count * value.element_size()].view(value.dtype)
        flat = value.as_strided((count,), (1,))
        if key is not None and sealable(value):
            xor(integers(flat), mask_of(value, key), out=integers(target))
        else:
            target.copy_(flat)
        boxed[name] = [str(value.dtype), list(value.shape), list(value.stride()), place]
        place += room
    if box is None:
        torch.save(held, path)
        return ""
    _settle(box.memory.device)
    told: dict[str, Any] = {BOX: box.path, "held": held, "boxed": boxed, "order": list(tensors), "digest": ""}
    if hashed:
        told["digest"] = digest(tensors if key is None else _views(told, box.memory))
    torch.save(told, path)
    return str(told["digest"])


BOX = "gpucheck box"
"""Key of a file whose tensors lie in a box."""


def load(path: str, boxes: dict[str, Box], device: torch.device, *, mapped: bool = True) -> Tensors:
    """The tensors of a file; those of a box are views of its memory.

    Args:
        boxes: that are open here, by path; others are opened.
        mapped: those of the file itself are views of it, which nobody writes anew.

    Raises:
        OSError: the box cannot be opened, or holds something else.
    """
    told = torch.load(path, mmap=mapped, weights_only=True)
    if BOX not in told:
        return dict(told)
    where = str(told[BOX])
    if where in boxes:
        box = boxes[where]
    else:
        box = open_box(where, device)
        if device.type == "cuda":  # what the host has mapped costs nothing to be mapped anew
            boxes[where] = box
    tensors = _views(told, box.memory)
    if digest(tensors) != told["digest"]:
        raise OSError(f"shared memory does not hold what {path} tells of")
    return tensors


def written(path: str) -> Any:
    """What another process wrote with torch.save, which may have put anything in the place of the file.

    No link is followed, no pipe waited for, and nothing mapped: a mapped file that is cut short ends its reader.

    Raises:
        Exception: there is no plain file, or it holds something else.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no plain file")
        return torch.load(file, weights_only=True)


def take(path: str, boxes: Mapping[str, Box], *, in_place: str = "") -> Tensors:
    """Copies of the tensors of a file that another process wrote, which may hold anything.

    Args:
        boxes: that they may lie in, by path.
        in_place: begins the names of those that are looked at once, where they lie: they are not copied.

    Raises:
        Exception: they do not, or the file holds something else.
    """
    told = written(path)
    if not isinstance(told, dict):
        raise TypeError(f"the file holds a {type(told).__name__}")
    box = boxes.get(str(told.get(BOX)))
    if box is None:
        return {str(name): _tensor(value).to("cpu", copy=True) for name, value in told.items()}
    views = _views(told, box.memory)
    most = len(box.memory) + sum(_tensor(value).untyped_storage().nbytes() for value in told["held"].values())
    if sum(value.nbytes for value in views.values()) > most:
        raise ValueError("its tensors are larger than the memory that they lie in")
    copied = {name: not (in_place and str(name).startswith(in_place)) for name in views}
    return {str(name): value.to(box.memory.device, copy=copied[name]) for name, value in views.items()}


def on_host(path: str) -> Tensors:
    """The tensors of a file that lie in memory of the host."""
    told = torch.load(path, weights_only=True)
    if BOX not in told:
        return dict(told)
    if not Path(told[BOX] + MEMORY).exists():
        return dict(told["held"])
    return _views(told, open_box(told[BOX], torch.device("cpu")).memory)


def _views(told: Mapping[str, Any], memory: Tensor) -> Tensors:
    """The tensors that a file tells of, as views of the box."""
    found = dict(told["held"])
    for name, (dtype, shape, stride, place) in told["boxed"].items():
        kind = getattr(torch, dtype.removeprefix("torch."))
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"{name} is of no dtype: {dtype}")
        count = extent(shape, stride)
        flat = memory[place : place + count * kind.itemsize].view(kind)
        found[name] = flat.as_strided(shape, stride)
    return {name: found[name] for name in told["order"]}


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"it holds a {type(value).__name__}")
    return value


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of dtypes, shapes and bits, computed on the device where the tensors lie."""
    words = []
    for name, value in tensors.items():
        words.append(f"{name}{value.dtype}{tuple(value.shape)}{_sums(value.detach().contiguous())}")
    return torch_hash(" ".join(words))


def torch_hash(text: str) -> str:
    """A short hash of a text."""
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


WIDTH = 1 << 16  # words of 4 bytes in a row, which is taken as one number of 8 bytes in each of two sums
CHUNK = 1 << 25  # words that are hashed at once, which takes as many numbers of 8 bytes, or five times as many if few
MIXES = ((6364136223846793005, 1442695040888963407), (-7046029254386353131, 1))
"""What each of two sums multiplies with and adds."""


def _sums(value: Tensor) -> list[int]:
    """Two sums of all elements' bits, each weighed by where it stands, modulo 2^64.

    A row adds up its words times odd numbers drawn once: two contents are alike in both sums of it once in 2^64.
    """
    flat = integers(value).reshape(-1)
    whole = flat.nbytes // 4 // WIDTH * WIDTH * 4 // flat.element_size()
    if not whole:
        return _mixed(flat)
    if flat.storage_offset() * flat.element_size() % 4:
        flat = flat.clone()
    rows = flat[:whole].view(torch.int32).view(-1, WIDTH)
    weights, step = _weights(flat.device), CHUNK // WIDTH
    each = [(part * weight).sum(1) for weight in weights for part in rows.split(step)]
    return _mixed(torch.cat([*each, flat[whole:].to(torch.int64)]))


@cache
def _weights(device: torch.device) -> Tensor:
    """What words of a row are multiplied with, for each of two sums."""
    drawn = torch.randint(-(1 << 62), 1 << 62, (2, WIDTH), generator=torch.Generator().manual_seed(1))
    return (drawn * 2 + 1).to(device)


def _mixed(flat: Tensor) -> list[int]:
    """Two sums of numbers, each mixed with where it stands."""
    sums = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for begin in range(0, flat.numel(), CHUNK):
        part = flat[begin : begin + CHUNK].to(torch.int64)
        place = torch.arange(begin, begin + len(part), device=part.device)
        odd = place * 2 + 1
        for number, (factor, shift) in enumerate(MIXES):
            mixed = (place * factor).add_(shift).bitwise_xor_(part).mul_(odd)
            mixed.bitwise_xor_(mixed >> 29)
            sums[number] += mixed.mul_(factor).sum()
    return list(sums.tolist())
