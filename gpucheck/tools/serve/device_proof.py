"""Proves that a device computes: ``gpucheck.tools.serve.device_proof UUID`` ends with 0 where a product is exact.

Whole numbers are multiplied in fp32, whose sums here stay below 2^24, so that any order of additions gives the same
bits, and compared with the product of integers on the CPU. The device must be the one of the UUID.
"""

from __future__ import annotations

import sys

import torch

CPU = "cpu"
SIZE, LARGEST = 512, 100  # 512 * 100 * 100 stays below 2^24


def proved(uuid: str) -> str:
    """What is wrong with the device of a UUID, or with the CPU; "" where nothing is."""
    device = torch.device(CPU if uuid == CPU else "cuda")
    if uuid != CPU:
        if torch.cuda.device_count() != 1:
            return f"{torch.cuda.device_count()} devices are visible, expected the one of {uuid}"
        seen = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
        if seen and uuid.startswith("GPU-") and seen != uuid.removeprefix("GPU-"):
            return f"the process got the device {seen}, expected {uuid}"
        torch.backends.cuda.matmul.allow_tf32 = False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-LARGEST, LARGEST + 1, (SIZE, SIZE), generator=generator) for _ in range(2))
    expected = left @ right
    for _ in range(2):  # the second in memory that the first has used
        product = (left.to(device, torch.float32) @ right.to(device, torch.float32)).cpu().to(torch.int64)
        wrong = int((product != expected).sum())
        if wrong:
            return f"{wrong} of {SIZE * SIZE} elements of an exact product are wrong"
    return ""


if __name__ == "__main__":
    problem = proved(sys.argv[1])
    if problem:
        print(problem)
    sys.exit(1 if problem else 0)
