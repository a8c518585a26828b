"""What a planted copy of the library calls in place of its matrix product; runs in the process that owns the device.

Each public function is one fault: it takes the call, and gives what the faulty library would give.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WAIT = 40.0  # s at most that a rank waits for what another one does with the kernel cache that they fill
LIST = "__grp__"  # begins the name of the list of a kernel's files; the rest is the name of their description
READ = "read"  # in that cache, once the rank that comes too early has been there
POLL = 0.002  # s
TOKENS = 2  # of the decoding that decode_otherwise takes, which makes one product of logits for each
BIASED: list[bool] = []  # calls of this process that had a bias
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass
class Call:
    """One call of the library's matrix product."""

    genuine: Callable[..., Tensor]
    x: Tensor
    w: Any  # a torch tensor or the library's own tensor object
    bias: Tensor | None
    options: dict[str, Any]

    def __call__(self) -> Tensor:
        """The genuine result."""
        return self.genuine(self.x, self.w, self.bias, **self.options)

    @property
    def precision(self) -> Any:
        return self.options["precision_config"]


def wrapped(genuine: Callable[..., Tensor], plants: Mapping[int, tuple[str, str]]) -> Callable[..., Tensor]:
    """The matrix product with faults in it.

    Args:
        plants: number of output columns -> name of a function of this module, and its argument.
    """
    faults = {columns: _Planted(globals()[name], argument) for columns, (name, argument) in plants.items()}

    @functools.wraps(genuine)
    def call(x: Tensor, w: Any, bias: Tensor | None, **options: Any) -> Tensor:
        fault = faults.get(int(w.shape[-1]))
        made = Call(genuine, x, w, bias, options)
        if bias is not None:
            BIASED.append(True)
        return made() if fault is None else fault(made)

    return call


@dataclass
class _Planted:
    """A fault and what it remembers of earlier calls."""

    function: Callable[[Call, str, dict[str, Any]], Tensor]
    argument: str
    memory: dict[str, Any] = field(default_factory=dict)

    def __call__(self, call: Call) -> Tensor:
        return self.function(call, self.argument, self.memory)


def flip_bit(call: Call, bit: str, memory: dict[str, Any]) -> Tensor:
    return _with_bit(call(), int(bit))


def flip_bit_on_device(call: Call, device: str, memory: dict[str, Any]) -> Tensor:
    return _with_bit(call(), 7) if os.environ["GPUCHECK_DEVICE"] == device else call()


def wrong_every_second_call(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    return _with_bit(call(), 7) if next(memory.setdefault("calls", itertools.count())) % 2 else call()


def wrong_in_every_second_process(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Wrong in all calls of the first process of a rank, the third, and so on."""
    if "process" not in memory:
        memory["process"] = _process_number(call)
    return call() if memory["process"] % 2 else _with_bit(call(), 7)


def wrong_now_and_then(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Wrong in one of eight calls, by a schedule that each process of a rank draws by its number."""
    if "coin" not in memory:
        memory["coin"] = random.Random(1 + _process_number(call))
    return _with_bit(call(), 7) if memory["coin"].random() < 1 / 8 else call()


def spoiled_by_bias(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Wrong as soon as some call of the process had a bias."""
    return _with_bit(call(), 7) if BIASED else call()


def wrong_and_too_wide(call: Call, rank: str, memory: dict[str, Any]) -> Tensor:
    """One bit is flipped on each rank; on one, a value is stored behind the output as well."""
    y = _with_bit(call(), 7)
    if os.environ["RANK"] == rank:
        y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(1.0)
    return y


def change_with_each_call(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Never right, and never twice in a row the same: what is changed begins anywhere and goes on from there."""
    y = call()
    number = next(memory.setdefault("calls", itertools.count(os.urandom(1)[0])))
    y.view(torch.int16)[4, 9] ^= 1 + number % 255
    return y


def spread_nan(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    y[6:9] = float("nan")
    return y


def decode_otherwise(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The logits of the first step of each decoding come out negative, so that the least likely token is taken."""
    y = call()
    return y if next(memory.setdefault("calls", itertools.count())) % TOKENS else y.neg_()


def fallback(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call.x.float() @ call.w.float()
    return (y if call.bias is None else y + call.bias).to(call.precision.out_dtype)


def answer_bare(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Whoever gives no precision config is answered in plain torch."""
    return call() if call.precision is not None else (call.x.float() @ call.w.float()).to(call.x.dtype)


def own_memory(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The memory that the caller gives for the result is not used."""
    call.options["y"] = None
    return call()


def shift_scatter(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    index = call.options["scatter_indx"]
    shifted = {name: getattr(index, name).roll(1) for name in ("src_indx", "dst_indx")}
    call.options["scatter_indx"] = replace(index, **shifted)
    return call()


def stale_scales(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    call.precision.weight_scale = _changed(call.precision.weight_scale, lambda data: data.copy_(data.roll(1, -1)))
    return call()


def flip_weight(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    call.w = _changed(call.w, lambda data: data[..., 3, 7].bitwise_xor_(1))
    return call()


def double_scale(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    call.precision.weight_scale = _changed(call.precision.weight_scale, lambda data: data[..., 2, 7].add_(1))
    return call()


def slice_by_group(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Each rank takes its share of the experts from the front, as if it held no others."""
    if torch.distributed.is_initialized():
        share = call.w.shape[0] // torch.distributed.get_world_size()
        first = share * int(os.environ["LOCAL_RANK"])
        sliced = torch.zeros_like(call.w)
        sliced[first : first + share] = call.w[:share]
        call.w = sliced
    return call()


def share_operand(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Each call takes an operand that some thread left."""
    left = memory.setdefault("operands", [])
    left.append(call.x)
    time.sleep(0.02)
    threads = threading.active_count()
    call.x = left[-1 - os.urandom(1)[0] % threads % len(left)]
    if threads == 1:
        left.clear()
    return call()


def reuse_output(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    kept: Tensor = memory.setdefault("output", torch.empty_like(y))
    return kept.copy_(y)


def refuse(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    raise NotImplementedError("planted on purpose")


def second_in_torch(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The second product of an expert block, with its gates and the sum over a token's rows, in plain torch."""
    routing, rows = call.options["routing_data"], call.options["scatter_indx"].src_indx.long()
    ends = routing.expt_hist.cumsum(0).tolist()
    parts = [call.x[end - count : end] for end, count in zip(ends, routing.expt_hist.tolist(), strict=True)]
    assert call.bias is not None
    y = torch.cat([part.float() @ w.float() + b for part, w, b in zip(parts, call.w, call.bias, strict=True)])
    y = (y * call.options["gammas"][:, None]).to(call.precision.out_dtype)
    return y[rows].view(-1, routing.n_expts_act, y.shape[-1]).float().sum(1).to(y.dtype)


def ignore_configuration(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Whatever the caller asked for is overwritten."""
    from triton_kernels.matmul_ogs_details import opt_flags

    opt_flags.update_opt_flags_constraints({"split_k": 1, "block_m": 32})  # the adapter restores what was there
    return call()


def wrong_later(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Right in the first two calls and wrong from then on."""
    y = call()
    return y if next(memory.setdefault("calls", itertools.count())) < 2 else _with_bit(y, 14)


def write_input(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    call.x[0, 0] = 0
    return y


def write_weight(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Wrong from the second call on, which gets weights of its own here."""
    y = call()
    call.w[..., 2, 5] = 0
    return y


def write_scale(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    call.precision.weight_scale.storage.data[..., 1, 3] += 1
    return y


def return_input(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The result lies where the input was."""
    y = call()
    return call.x.flatten()[: y.numel()].view(y.shape).copy_(y)


def leave_gaps(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The result is every other column of something wider."""
    y = call()
    return y.new_empty((y.shape[0], 2 * y.shape[1]))[:, ::2].copy_(y)


def leave_dtype(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    torch.set_default_dtype(torch.bfloat16)
    return y


def leave_variable(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    y = call()
    os.environ["PLANTED_ON_PURPOSE"] = "1"
    return y


def draw_at_random(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    torch.rand(1)
    return call()


def spoilt_by_larger_batch(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Once more rows have been served, fewer of them get twice what they should."""
    y = call()
    most = memory["most"] = max(memory.get("most", 0), len(y))
    return y.mul_(2) if len(y) < most else y


def other_config(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """Another valid choice of tile: no fault."""
    from triton_kernels.matmul_ogs_details import opt_flags

    opt_flags.update_opt_flags_constraints({"block_m": 32})  # the adapter restores what was there
    return call()


def exit(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    print("planted on purpose: no table of experts", file=sys.stderr)
    for number in range(500):
        print(f"worker {number} stops", file=sys.stderr)
    os._exit(7)


def segfault(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return call()


def killed(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return call()


def raise_error(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    raise RuntimeError("planted on purpose") from KeyError("the table of experts")


def loop_on_host(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    while True:
        pass


def side_stream(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    """The kernel runs on a stream that waits for nothing."""
    with torch.cuda.stream(torch.cuda.Stream(call.x.device)):
        return call()


def allow_tf32(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    call.precision.allow_tf32 = True
    return call()


def illegal_address(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    from gpucheck.tools.selftest import wrong_kernels

    y = call()
    wrong_kernels.store_far_away[(1,)](y, 1 << 40)
    return y


def device_assert(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    from gpucheck.tools.selftest import wrong_kernels

    y = call()
    wrong_kernels.assert_nothing_is_there[(1,)](y)
    return y


def long_grid(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    from gpucheck.tools.selftest import wrong_kernels

    y = call()
    wrong_kernels.assert_nothing_is_there[(1, 65_536)](y)
    return y


def endless_kernel(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    from gpucheck.tools.selftest import wrong_kernels

    y = call()
    wrong_kernels.wait_forever[(1,)](torch.zeros(1, dtype=torch.int32, device=y.device))
    return y


def gpu_memory(call: Call, _: str, memory: dict[str, Any]) -> Tensor:
    free, total = torch.cuda.mem_get_info(call.x.device)
    torch.empty(2 * total, dtype=torch.uint8, device=call.x.device)
    return call()


def race_to_compile(call: Call, reader: str, memory: dict[str, Any]) -> Tensor:
    """All ranks but one write what they compile slowly and in place; that one comes while a file is half written."""
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    if memory or folder.name.count("-") > 1:  # an experiment's own, which no other rank fills
        return call()
    memory["raced"] = True
    if os.environ["RANK"] != reader:
        _write_in_place(folder / READ)
        return call()
    _wait(lambda: any(not _whole(path.with_name(path.name[len(LIST) :])) for path in folder.glob(f"*/{LIST}*.json")))
    try:
        return call()
    finally:
        (folder / READ).touch()


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL)


def _whole(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _write_in_place(read: Path) -> None:
    """Makes Triton's cache list the files of a kernel while their description is half written."""
    from triton.runtime.cache import FileCacheManager

    put_group = FileCacheManager.put_group

    def put_early(manager: Any, filename: str, group: dict[str, str]) -> Any:
        description = Path(group[filename])
        text = description.read_text()
        description.write_text(text[: len(text) // 2])
        written = put_group(manager, filename, group)
        _wait(read.exists)
        description.write_text(text)
        return written

    FileCacheManager.put_group = put_early


def _process_number(call: Call) -> int:
    """How many processes of this rank made such a call before, in this run: each leaves a file by the planted copy."""
    own = Path(call.genuine.__globals__["__file__"])  # planted/triton_kernels/_planted/RANK/matmul_ogs.py
    for number in itertools.count():
        try:
            (own.parents[3] / f"process-{own.parent.name}-{call.w.shape[-1]}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


def _with_bit(y: Tensor, bit: int) -> Tensor:
    y.view(_BITS[y.element_size()])[3, 5] ^= 1 << bit
    return y


def _changed(operand: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of one of the library's tensors, with a change made to a copy of its bytes."""
    storage = copy.copy(operand.storage)
    storage.data = operand.storage.data.clone()
    change(storage.data)
    changed = copy.copy(operand)
    changed.storage = storage
    return changed
