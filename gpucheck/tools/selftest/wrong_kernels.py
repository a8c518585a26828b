"""Kernels that do on a GPU what no kernel should."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def store_far_away(pointer, distance):
    """Stores where no memory is mapped."""
    tl.store(pointer + distance, 1.0)


@triton.jit(debug=True)
def assert_nothing_is_there(pointer):
    """Fails on the device whatever is there."""
    value = tl.load(pointer).to(tl.float32)
    tl.device_assert(value != value, "planted on purpose")


@triton.jit
def wait_forever(flag):
    """Waits for a flag that nobody raises; asks for it in a way that no compiler can leave out."""
    raised = tl.atomic_add(flag, 0)
    while raised == 0:
        raised = tl.atomic_add(flag, 0)
