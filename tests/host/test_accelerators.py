"""Signs of an accelerator, on stand-in machines: each is told, and a machine without any has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.host.accelerators import TorchBuild, hardware_signs, software_signs, torch_build


def signs(folder: Path) -> list[str]:
    return hardware_signs({"PATH": str(folder / "bin")}, folder / "dev", folder / "sys")


def pci(folder: Path, kind: str, vendor: str, address: str = "0000:3b:00.0") -> None:
    device = folder / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{kind}\n")
    (device / "vendor").write_text(f"{vendor}\n")


def test_a_machine_without_an_accelerator_shows_no_sign(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").touch()
    pci(tmp_path, "0x030000", "0x1a03")  # a server's own VGA chip
    pci(tmp_path, "0x068000", "0x10de", "0000:05:00.0")  # an NVSwitch
    pci(tmp_path, "0x060000", "0x1022", "0000:00:00.0")
    (tmp_path / "sys/bus/pci/devices/0000:09:00.0").mkdir()
    assert signs(tmp_path) == []


@pytest.mark.parametrize("tool", ["nvidia-smi", "rocm-smi", "amd-smi"])
def test_a_drivers_tool_is_a_sign_whatever_it_says(tmp_path: Path, tool: str) -> None:
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / tool
    path.write_text("#!/bin/sh\nexit 18\n")
    path.chmod(0o755)
    assert signs(tmp_path) == [f"{tool} is on PATH ({path})"]


@pytest.mark.parametrize("node", ["nvidia0", "nvidiactl", "nvidia-uvm", "kfd"])
def test_device_nodes_are_signs(tmp_path: Path, node: str) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / node).touch()
    assert signs(tmp_path) == [f"device nodes: {tmp_path / 'dev' / node}"]


@pytest.mark.parametrize(
    ("kind", "vendor", "words"),
    [
        ("0x030000", "0x10de", "VGA controller of NVIDIA"),
        ("0x030200", "0x10de", "3D controller of NVIDIA"),
        ("0x038000", "0x1002", "display controller of AMD"),
        ("0x120000", "0x1002", "accelerator of AMD"),
    ],
)
def test_controllers_on_the_pci_bus_are_signs(tmp_path: Path, kind: str, vendor: str, words: str) -> None:
    pci(tmp_path, kind, vendor)
    assert signs(tmp_path) == [f"PCI: 0000:3b:00.0 is a {words}"]


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_a_variable_that_names_gpus_is_a_sign(name: str) -> None:
    assert software_signs({name: "0"}, None) == [f"{name}='0' names GPUs"]
    assert software_signs({name: ""}, None) == software_signs({name: "-1"}, None) == []


def test_the_words_of_the_container_runtime_for_no_gpu_are_no_sign() -> None:
    for value in ("", "void", "none"):
        assert software_signs({"NVIDIA_VISIBLE_DEVICES": value}, None) == []
    for value in ("all", "0,1", "GPU-1234"):
        assert software_signs({"NVIDIA_VISIBLE_DEVICES": value}, None) != []


@pytest.mark.parametrize(
    ("source", "build", "words"),
    [
        (
            "__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\nhip = None\n",
            TorchBuild("2.11.0", "13.0"),
            "CUDA 13.0",
        ),
        ("__version__ = '2.11.0'\ncuda = None\nhip: str = '7.1'\n", TorchBuild("2.11.0", hip="7.1"), "ROCm 7.1"),
        ("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n", TorchBuild("2.13.0+cpu"), ""),
    ],
)
def test_what_torch_is_built_for_is_read_and_is_a_sign(
    tmp_path: Path, source: str, build: TorchBuild, words: str
) -> None:
    (tmp_path / "version.py").write_text(source)
    assert torch_build(tmp_path) == build
    found = software_signs({}, build)
    assert len(found) == bool(words) and words in "".join(found)


def test_a_torch_that_does_not_say_is_no_sign(tmp_path: Path) -> None:
    assert torch_build(tmp_path) is None
    (tmp_path / "version.py").write_text("__version__ = '1'\n")
    assert torch_build(tmp_path) is None and software_signs({}, None) == []
