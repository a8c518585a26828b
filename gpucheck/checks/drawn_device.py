"""Where the code of a problem makes its tensors: on the device of whoever runs it, whatever device it names itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def redirected(device: str | torch.device) -> Iterator[None]:
    """Inside, what is made without a device, or on a GPU, is made on ``device``: pairs that name a GPU run without."""
    with _Redirected(torch.device(device)):
        yield


class _Redirected(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to(self._device)
        named = kwargs.get("device")
        if _names_gpu(named) or (named is None and func in _makers()):
            kwargs["device"] = self._device
        if func is torch.Tensor.to:
            args = tuple(self._device if _names_gpu(value) else value for value in args)
        return func(*args, **kwargs)


def _names_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


@cache
def _makers() -> frozenset[Any]:
    """The functions of torch that make a tensor and take a device."""
    from torch.utils._device import _device_constructors

    return frozenset(_device_constructors())
