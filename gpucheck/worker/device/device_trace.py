"""What ran on the GPU, as its driver saw it (CUPTI, through torch's profiler), whoever launched it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kernels_seen(device: torch.device, names: list[str]) -> Iterator[None]:
    """Adds the names of the kernels that run on the device inside to ``names``, each once, as the compiler wrote them.

    Raises:
        RuntimeError: the driver does not tell, as where another profiler is at work.
    """
    from torch.autograd.profiler import profile  # what torch.profiler is around, which loads torch's compilers

    with profile(use_device="cuda", use_cpu=False, use_kineto=True, acc_events=True) as profiler:
        yield
        torch.cuda.synchronize(device)
    seen = (event.name for event in profiler.function_events or () if event.device_type.name == "CUDA")
    names += dict.fromkeys(name for name in seen if not name.startswith(("Memcpy", "Memset")))
