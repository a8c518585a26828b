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

guards, views = import_module("guarded_memory"), import_module("tensor_views")
DEVICE = torch.device(DEVICE_NAME)
FILLS, MOST_SHOWN = (0xFF, 0x00), 16
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
held: list[Tensor] = []  # what makes devices used


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
            dense, tensor = tensor, torch.empty_strided(item["shape"], strides[key], dtype=dtype)
            once = views.once(tensor)  # torch writes to no view whose elements share memory
            once.copy_(dense[tuple(slice(0, size) for size in once.shape)])
        tensors[key] = tensor
    return tensors


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


def run(inputs: dict[str, Tensor], arguments: dict[str, Tensor], fill: int) -> tuple[dict[str, Tensor], list[str]]:
    """The outputs of one call, on the host, and what was written around tensors."""
    memory = guards.GuardedMemory(DEVICE)
    memory.reset(fill)
    placed = [{name: memory.place(tensor) for name, tensor in tensors.items()} for tensors in (inputs, arguments)]
    late = [(view, view.clone()) for view in (views.once(placed[0][name]) for name in LATE)]
    if late:  # nothing may be left to compile or to fill
        with guards.WatchedAllocation(memory):
            call(*placed)
        memory.reserve()
        for tensor, _ in late:
            tensor.view(INTEGERS[tensor.element_size()]).fill_(-1)
    synchronize()
    if late:
        with torch.cuda.device(DEVICE):
            torch.cuda._sleep(50_000_000)
        for tensor, real in late:
            tensor.copy_(real)
    with guards.WatchedAllocation(memory), torch.cuda.device(DEVICE) if GUARDED else nullcontext():
        outputs = call(*placed)
    synchronize()
    return {name: value.detach().cpu().contiguous() for name, value in outputs.items()}, memory.broken_guards()


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
        problems += broken
    if len(seen) > 1:
        problems.append(f"{len(seen)} different outputs from equal inputs, in memory full of 0xFF and of 0x00 by turns")
    if bad:
        problems.append(f"{bad} of {RUNS} runs wrong")
    print("\n".join(dict.fromkeys(problems)) or f"right in {RUNS} runs")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
