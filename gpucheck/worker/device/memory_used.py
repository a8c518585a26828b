"""How much memory a process held at most."""

from __future__ import annotations

import resource

import torch


def memory_of(whose: str, device: torch.device) -> dict[str, int]:
    """Bytes of this process at most: of the host, and of the GPU as torch's allocator has it."""
    held = {f"{whose}, host": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if device.type == "cuda":
        held[f"{whose}, GPU"] = torch.cuda.max_memory_reserved(device)
    return held
