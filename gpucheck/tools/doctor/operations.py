"""What is tried on a device. Every answer is judged on the CPU: a broken GPU cannot acquit itself.

An operation returns ``value``, what was tried in words, and ``problem``, what is wrong or "", and further facts.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64 << 20  # bytes to allocate on a device
COPY = 8 << 20  # bytes to copy between two devices
PATTERNS = (0x00, 0xFF, 0xA5)
ROWS, INNER, COLUMNS = 512, 256, 384  # of the product; whole numbers up to INNER are exact in bf16
SEED = 20_261_119
DTYPES = ("float32", "bfloat16", "float16")


def survey(_: str) -> dict[str, Any]:
    """The devices that CUDA shows: their properties and which may access which one's memory."""
    import torch

    if torch.version.cuda is None:
        return {"value": "torch is built for the CPU alone", "problem": "", "devices": [], "peers": []}
    try:
        count = torch.cuda.device_count()
        if count:
            torch.cuda.init()
    except RuntimeError as error:
        return {"value": "", "problem": str(error).splitlines()[0], "devices": [], "peers": []}
    devices = []
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory": f"{properties.total_memory / 2**30:.0f} GiB",
                "shared memory": getattr(properties, "shared_memory_per_block_optin", None),
            }
        )
    peers = [[a, b] for a in range(count) for b in range(count) if a != b and torch.cuda.can_device_access_peer(a, b)]
    return {"value": f"{count} device(s)", "problem": "", "devices": devices, "peers": peers}


def allocate(device: str) -> dict[str, Any]:
    """Memory keeps what is written to it."""
    import torch

    block = torch.empty(BLOCK, dtype=torch.uint8, device=device)
    for pattern in PATTERNS:
        block.fill_(pattern)
        wrong = int((block.cpu() != pattern).sum())
        if wrong:
            return {"value": "", "problem": f"{wrong} of {BLOCK} bytes lost the pattern 0x{pattern:02X}"}
    return {"value": f"{BLOCK >> 20} MiB keep {len(PATTERNS)} patterns", "problem": ""}


def matmul(device: str) -> dict[str, Any]:
    """Products that are exact in every dtype and in any order of summation.

    The factors are +-1, so a sum of INNER terms and all its parts are whole numbers up to 256; the rows are scaled by
    powers of two.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    left = torch.randint(0, 2, (ROWS, INNER), generator=generator) * 2 - 1
    right = torch.randint(0, 2, (INNER, COLUMNS), generator=generator) * 2 - 1
    left = left * (2 ** (torch.arange(ROWS) % 8))[:, None]
    expected = left @ right
    for name in DTYPES:
        dtype: torch.dtype = getattr(torch, name)
        product = left.to(device, dtype) @ right.to(device, dtype)
        wrong = (product.cpu().to(torch.int64) != expected).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            got = float(product[row, column])
            first = f"first at ({row}, {column}): expected {int(expected[row, column])}, got {got:g}"
            return {"value": "", "problem": f"{name}: {len(wrong)} of {expected.numel()} elements wrong, {first}"}
    return {"value": f"{ROWS}x{INNER}x{COLUMNS} exact in {', '.join(DTYPES)}", "problem": ""}


def seed(device: str) -> dict[str, Any]:
    """A seed gives the same numbers each time; the digest tells whether on other devices too."""
    import torch

    digests = []
    for _ in range(2):
        torch.manual_seed(SEED)
        whole = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8, device=device)
        digests.append(_digest(whole) + _digest(torch.randn(1 << 18, device=device)))
    problem = "" if digests[0] == digests[1] else "the same seed gave other numbers the second time"
    return {"value": "the same numbers each time", "problem": problem, "digest": digests[0]}


def copy(pair: tuple[int, int]) -> dict[str, Any]:
    """What is copied from one GPU to another arrives."""
    import torch

    sent = _random_bytes()
    there = sent.to(f"cuda:{pair[0]}")
    torch.cuda.synchronize(pair[0])
    arrived = there.to(f"cuda:{pair[1]}")
    torch.cuda.synchronize(pair[1])
    if _digest(arrived) == _digest(sent):
        return {"value": f"{COPY >> 20} MiB", "problem": ""}
    wrong = (arrived.cpu() != sent).nonzero()
    return {"value": "", "problem": f"{len(wrong)} of {COPY} bytes differ, the first at {int(wrong[0])}"}


@functools.lru_cache(maxsize=1)
def _random_bytes() -> Tensor:
    """The same for every pair of GPUs that one process tries."""
    import torch

    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randint(0, 256, (COPY,), dtype=torch.uint8, generator=generator)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()[:16]
