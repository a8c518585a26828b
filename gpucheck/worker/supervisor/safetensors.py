"""Tensors as safetensors files: eight bytes of length, a JSON header, then the bytes of all tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpucheck.verify.digest import raw

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Writes CPU tensors; what the format leaves out, their strides, is added to the metadata.

    Raises:
        ValueError: a dtype that the format does not know.
    """
    strides = {name: list(tensor.stride()) for name, tensor in tensors.items() if not tensor.is_contiguous()}
    header: dict[str, object] = {"__metadata__": {"format": "pt", "strides": json.dumps(strides), **metadata}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in NAMES:
            raise ValueError(f"{name} is {tensor.dtype}, which safetensors does not know")
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(raw(tensor))
