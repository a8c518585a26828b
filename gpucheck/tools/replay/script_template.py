"""HEAD"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# facts
LIBRARY = ""
ENVIRONMENT: dict[str, str] = {}
DEVICE_NAME = "cpu"
CURRENT = True
CONTEXT_ON_0 = False
PEER_ACCESS = False
PROCESS_GROUP = False
LATE: tuple[str, ...] = ()
GUARDED = False
RUNS = 2
RETURNS = True
# end of facts

os.environ.update(ENVIRONMENT)
if len(sys.argv) > 1:
    LIBRARY = sys.argv[1]
if LIBRARY and not Path(LIBRARY, "triton_kernels").is_dir():
    sys.exit(f"no folder triton_kernels in {LIBRARY}: give the folder that holds the library")
if DEVICE_NAME == "cpu":
    repairs = import_module("triton_repairs")
    repairs.install()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

DEVICE = torch.device(DEVICE_NAME)
GUARD, ALIGNMENT, FILLS, MOST_SHOWN = (4 << 10 if DEVICE.type == "cpu" else 64 << 10), 256, (0xFF, 0x00), 16
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}
INF, MINUS_INF, NAN = 1, 2, 4  # what an element may be beside its right value
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
aten = torch.ops.aten
EMPTY = {aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default}
EMPTY |= {aten.new_empty_strided.default, aten.empty_like.default}
held: list[Tensor] = []  # what makes devices used
watched: list[tuple[Tensor, int, int, int]] = []  # memory, where the tensor starts and ends in it, what surrounds it


def load(name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, with the strides they had."""
    if not (HERE / name).exists():
        return {}
    content = (HERE / name).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    strides = json.loads(header.pop("__metadata__", {}).get("strides", "{}"))
    tensors = {}
    for key, item in header.items():
        begin, end = item["data_offsets"]
        data = bytearray(content[start + begin : start + end])
        dtype = DTYPES[item["dtype"]]
        tensor = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensor = tensor.reshape(item["shape"])
        if key in strides:
            tensor = filled(torch.empty_strided(item["shape"], strides[key], dtype=dtype), tensor)
        tensors[key] = tensor
    return tensors


def once(tensor: Tensor, like: Tensor) -> Tensor:
    """The first place along each axis that has stride 0 in ``like``: torch writes to no view that overlaps itself."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in like.stride())]


def filled(view: Tensor, values: Tensor) -> Tensor:
    """A view with these values in it."""
    if view.numel():
        once(view, view).copy_(once(values, view))
    return view


def guarded_memory(tensor: Tensor, fill: int) -> Tensor:
    """Memory for such a tensor, full of one byte, as is what lies around it."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    spans = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))  # noqa: B905 - Python 3.9
    count = (1 + sum(spans)) * tensor.element_size()
    memory = torch.full((2 * GUARD + count + ALIGNMENT,), fill, dtype=torch.uint8, device=DEVICE)
    first = GUARD + (-(memory.data_ptr() + GUARD) % ALIGNMENT)
    watched.append((memory, first, first + count, fill))
    held = memory[first : first + count].view(tensor.dtype)
    return held.as_strided(tensor.shape, tensor.stride(), held.storage_offset())


class Fresh(TorchDispatchMode):
    """Memory that is asked for while this is active is full of one byte; some of it may have been made before."""

    def __init__(self, fill: int, ready: list[Tensor]) -> None:
        super().__init__()
        self.fill, self.ready = fill, ready
        self.given: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in EMPTY or result.device != DEVICE:
            return result
        alike = [n for n, old in enumerate(self.ready) if (old.shape, old.dtype) == (result.shape, result.dtype)]
        memory = self.ready.pop(alike[0]) if alike else guarded_memory(result, self.fill)
        self.given.append(memory)
        return memory


def made(kind: Any, **fields: Any) -> Any:
    """An object of the library with these attributes."""
    instance = kind.__new__(kind)
    instance.__dict__.update(fields)
    return instance


def call(inputs: dict[str, Tensor], arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What went wrong."""
    # calls
    return {}
    # end of calls


def settle() -> None:
    """Ties this process to its device as the run did, and imports the library."""
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    else:
        if CONTEXT_ON_0:
            held.append(torch.ones(1024, device="cuda:0"))
        if PEER_ACCESS:
            held.append(held[0].to(DEVICE))  # torch lets the two devices access each other
        if CURRENT:
            torch.cuda.set_device(DEVICE)
    if PROCESS_GROUP:
        os.environ["TORCH_GLOO_LAZY_INIT"] = "1"
        torch.distributed.init_process_group(  # waits for nobody
            "gloo" if DEVICE.type == "cpu" else "nccl",
            store=torch.distributed.HashStore(),  # type: ignore[attr-defined]
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
    if LIBRARY:
        sys.path.insert(0, LIBRARY)
        import_module("triton_kernels")
        if DEVICE.type == "cpu":
            repairs.repair_library()


def synchronize() -> None:
    for device in {DEVICE, *(tensor.device for tensor in held)}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def run(inputs: dict[str, Tensor], arguments: dict[str, Tensor], fill: int) -> tuple[dict[str, Tensor], int]:
    """The outputs of one call, on the host, and how many tensors were written around."""
    del watched[:]
    placed = [
        {name: filled(guarded_memory(tensor, fill), tensor) for name, tensor in tensors.items()}
        for tensors in (inputs, arguments)
    ]
    late = [(view, view.clone()) for view in (once(placed[0][name], placed[0][name]) for name in LATE)]
    ready: list[Tensor] = []
    if late:  # nothing may be left to compile or to fill
        with Fresh(fill, []) as rehearsal:
            call(*placed)
        ready = [guarded_memory(tensor, fill) for tensor in rehearsal.given]
        for tensor, _ in late:
            tensor.view(INTEGERS[tensor.element_size()]).fill_(-1)
    synchronize()
    if late:
        with torch.cuda.device(DEVICE):
            torch.cuda._sleep(50_000_000)
        for tensor, real in late:
            tensor.copy_(real)
    with Fresh(fill, ready), torch.cuda.device(DEVICE) if GUARDED else nullcontext():
        outputs = call(*placed)
    synchronize()
    broken = 0
    for memory, first, end, expected in watched:
        around = (memory[first - GUARD : first], memory[end : end + GUARD]) if end else ()
        broken += any(bool((band != expected).any()) for band in around)
    return {name: value.detach().cpu().contiguous() for name, value in outputs.items()}, broken


def judge(got: Tensor, reference: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Right values of an output, which of its elements are wrong, and how badly."""
    value, number = reference[name], got.double()
    also = reference.get(f"{name}.also", torch.zeros(value.shape, dtype=torch.uint8))
    right = number.isnan() & (also & NAN > 0)
    right |= (number == torch.inf) & (also & INF > 0) | (number == -torch.inf) & (also & MINUS_INF > 0)
    if f"{name}.exact" in reference:
        wrong = (number != reference[f"{name}.exact"].double()) & ~right
        ratio = torch.where(wrong, torch.inf, 0.0)
    else:
        right |= number == value
        if f"{name}.furthest" in reference:
            right |= torch.isinf(number) & (number == reference[f"{name}.furthest"])
        share = (number - value).abs() / reference[f"{name}.bound"]
        ratio = torch.where(right, 0.0, share).nan_to_num(nan=torch.inf, posinf=torch.inf)
        wrong = ~(ratio <= 1)
    wrong &= ~reference.get(f"{name}.unknown", torch.zeros(value.shape, dtype=torch.bool))
    order = torch.where(wrong, ratio, -1.0)
    if bool(torch.isinf(order).any()):
        distance = (number - value).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        order = torch.where(torch.isinf(order), distance, -1.0)
    return value, wrong, order


def show(name: str, got: Tensor, reference: dict[str, Tensor]) -> int:
    """Prints the worst elements of an output and returns how many are wrong."""
    names = [key for key in reference if key.partition("/")[0] == name and "." not in key]
    if tuple(got.shape) != tuple(reference[name].shape):
        print(f"{name}: shape {tuple(got.shape)}, expected {tuple(reference[name].shape)}")
        return 1
    value, wrong, order = min((judge(got, reference, key) for key in names), key=lambda judged: int(judged[1].sum()))
    count = int(wrong.sum())
    print(f"{name}: {count} of {wrong.numel()} elements wrong" if count else f"{name}: right")
    places = wrong.flatten().nonzero().flatten()
    places = places[order.flatten()[places].argsort(descending=True, stable=True)]
    size = got.element_size()
    for place in places[:MOST_SHOWN].tolist():
        bits = int(got.flatten()[place].reshape(1).view(INTEGERS[size])) % 2 ** (8 * size)
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), got.shape))
        element = float(got.flatten()[place])
        print(f"  {index}  expected {float(value.flatten()[place]):.9g}  got {element:.9g}  bits 0x{bits:0{2 * size}x}")
    return count


def main() -> int:
    settle()
    inputs, arguments, reference = (load(f"{name}.safetensors") for name in ("inputs", "arguments", "reference"))
    problems: list[str] = []
    seen: dict[tuple[bytes, ...], int] = {}  # outputs -> number of wrong elements
    bad = 0
    for number in range(RUNS):
        outputs, broken = run(inputs, arguments, FILLS[number % 2])
        if not RETURNS:
            print("the calls returned this time: in the run they did not")
            return 0
        key = tuple(bytes(value.reshape(-1).view(torch.uint8).numpy()) for value in outputs.values())
        if key not in seen:
            seen[key] = sum(show(name, value, reference) for name, value in outputs.items() if name in reference)
        bad += seen[key] > 0
        problems += [f"memory around {broken} tensor(s) was written to"] if broken else []
    if len(seen) > 1:
        problems.append(f"{len(seen)} different outputs from equal inputs, in memory full of 0xFF and of 0x00 by turns")
    if bad:
        problems.append(f"{bad} of {RUNS} runs wrong")
    print("\n".join(dict.fromkeys(problems)) or f"right in {RUNS} runs")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
