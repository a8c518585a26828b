from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch

from gpucheck.worker.supervisor.safetensors import NAMES, save


def test_the_real_package_reads_every_dtype_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in NAMES}
    tensors["empty"] = torch.empty(0, 4)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["odd bytes"] = torch.arange(3, dtype=torch.uint8)
    save(tmp_path / "x", tensors, case="matmul/0/exact")
    read = load_file(tmp_path / "x")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].double(), tensor.double()), name
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata()["case"] == "matmul/0/exact"


def test_values_are_dense_and_strides_are_kept_beside_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensor = torch.arange(12.0).reshape(3, 4).T
    save(tmp_path / "x", {"w": tensor, "x": tensor.contiguous()})
    assert torch.equal(load_file(tmp_path / "x")["w"], tensor)
    with safetensors.safe_open(tmp_path / "x", "pt") as file:
        assert json.loads(file.metadata()["strides"]) == {"w": [1, 4]}


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="z is torch.complex64"):
        save(tmp_path / "x", {"z": torch.zeros(1, dtype=torch.complex64)})
