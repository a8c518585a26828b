"""What ranks run on: GPUs that can be used, the CPU where that is said or certain, else an error that tells why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpucheck.host.accelerators import TorchBuild
from gpucheck.host.node_gpus import architectures, free_memory, places
from gpucheck.launch import gpus
from gpucheck.launch.gpus import Choice, Found, choose, find
from gpucheck.model.errors import InfrastructureError, UsageError

CUDA, CPU = TorchBuild("2.11.0", "13.0"), TorchBuild("2.13.0+cpu")
UUIDS = [f"GPU-{number}aaa-0000" for number in range(4)]
INSTANCE = "MIG-5678-0000"


def listing(count: int, *, split: bool = False) -> str:
    instance = f"  MIG 3g.71gb     Device  0: (UUID: {INSTANCE})\n" if split else ""
    return "".join(f"GPU {n}: NVIDIA H200 (UUID: {UUIDS[n]})\n{instance}" for n in range(count))


@dataclass
class Node:
    """A machine that shows what a test puts there."""

    folder: Path
    environ: dict[str, str]

    def nvidia_smi(self, text: str, code: int = 0, table: str | None = None) -> None:
        tool = self.folder / "bin" / "nvidia-smi"
        shown = f"{text!r} if '-L' in sys.argv else {table!r}" if table is not None else repr(text)
        tool.write_text(f"#!{sys.executable} -IS\nimport sys\nprint({shown}, end='')\nsys.exit({code})\n")
        tool.chmod(0o755)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A machine with a torch for CUDA and no GPU; ``choose`` sees it."""
    for name in ("bin", "dev", "sys"):
        (tmp_path / name).mkdir()
    made = Node(tmp_path, {"PATH": str(tmp_path / "bin")})
    look = gpus.find
    monkeypatch.setattr(gpus, "_torch", lambda: CUDA)
    monkeypatch.setattr(gpus, "find", lambda: look(made.environ, tmp_path / "dev", tmp_path / "sys"))
    return made


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[TorchBuild | None], None]:
    return lambda build: monkeypatch.setattr(gpus, "_torch", lambda: build)


def refused(*arguments: object, **options: object) -> str:
    with pytest.raises(InfrastructureError) as error:
        choose(*arguments, **options)  # type: ignore[arg-type]
    return str(error.value)


Torch = Callable[[TorchBuild | None], None]


def test_gpus_that_can_be_used_are_used(node: Node) -> None:
    node.nvidia_smi(listing(2))
    assert gpus.find().gpus == ("NVIDIA H200",) * 2
    assert choose("auto", None) == choose("cuda", 2) == Choice("cuda", 2)
    assert choose("auto", 1, expected=2) == Choice("cuda", 1)


def test_a_machine_that_speaks_of_no_gpu_runs_on_the_cpu_and_says_why(node: Node, torch: Torch) -> None:
    torch(CPU)
    assert gpus.find() == Found()
    assert choose("auto", 2) == Choice("cpu", 2, "no GPU is visible and nothing here speaks of one")
    torch(None)
    assert choose("auto", None).device == "cpu"
    assert "--device cuda: no GPU" in refused("cuda", None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("Unable to determine the device handle for GPU0000:4E:00.0: GPU is lost.\n", 15, "exit code 15: Unable"),
        (
            "Failed to initialize NVML: Driver/library version mismatch\n",
            18,
            "nvidia-smi ended with exit code 18: Failed",
        ),
        ("No devices were found\n", 6, "exit code 6: No devices were found"),
        ("", 9, "exit code 9: it said nothing"),
        ("", 0, "nvidia-smi lists no GPU: it said nothing"),
        ("\x00\x01 not a list\n", 0, "nvidia-smi lists no GPU: \x00\x01 not a list"),
        ("No devices were found\n", 0, "nvidia-smi lists no GPU: No devices were found"),
        (
            listing(2) + "Unable to determine the device handle for GPU 0000:4E:00.0: Unknown Error\n",
            0,
            "lists 2 GPU(s)",
        ),
        (listing(2) + "GPU 2: [Unknown Error] (UUID: GPU-2)\n", 0, "GPU 2: [Unknown Error]"),
    ],
)
def test_a_drivers_tool_in_trouble_is_no_machine_without_gpus(
    node: Node, torch: Torch, device: str, text: str, code: int, words: str
) -> None:
    torch(CPU)
    node.nvidia_smi(text, code)
    message = refused(device, None)
    assert words in message and "nothing was checked" in message and "--device cpu" in message
    assert str(node.folder / "bin" / "nvidia-smi") in message or "leaves GPU 0, GPU 1" in message
    assert choose("cpu", None).device == "cpu"


def test_a_tool_that_never_answers_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.nvidia_smi("")
    monkeypatch.setattr("gpucheck.host.node_gpus.ask", lambda *_: gpus.Answer(gpus.Reply.SILENT))
    assert "nvidia-smi did not answer" in refused("auto", None)
    monkeypatch.setattr("gpucheck.host.node_gpus.ask", lambda *_: gpus.Answer(gpus.Reply.REFUSED, "", -11))
    assert "nvidia-smi was killed by SIGSEGV: it said nothing" in refused("auto", None)


def test_each_sign_alone_keeps_a_run_from_the_cpu(node: Node, torch: Torch) -> None:
    torch(CPU)
    (node.folder / "dev/nvidia0").touch()
    assert "device nodes" in refused("auto", None) and "there is no nvidia-smi" in refused("auto", None)
    (node.folder / "dev/nvidia0").unlink()
    node.environ["NVIDIA_VISIBLE_DEVICES"] = "all"
    assert "NVIDIA_VISIBLE_DEVICES='all'" in refused("auto", None)
    node.environ["NVIDIA_VISIBLE_DEVICES"] = "void"
    assert choose("auto", None).device == "cpu"
    (node.folder / "dev/kfd").touch()
    assert "gpucheck runs kernels on GPUs of NVIDIA" in refused("auto", None)


def test_a_torch_for_gpus_without_one_must_be_told_to_use_the_cpu(node: Node) -> None:
    message = refused("auto", None)
    assert "torch 2.11.0 is built for CUDA 13.0" in message and "make run ARGS='--device cpu'" in message


def test_a_torch_that_cannot_use_the_gpus_that_are_there_is_told(node: Node, torch: Torch) -> None:
    node.nvidia_smi(listing(4))
    for build in (CPU, TorchBuild("2.11.0", hip="7.1")):
        torch(build)
        message = refused("auto", None)
        assert f"{build.words} and cannot use the GPU(s) here" in message and "GPU 0, GPU 1, GPU 2, GPU 3" in message


@pytest.mark.parametrize("value", ["7", "GPU-9999", "0,7", "0,0", "MIG-9999", "NoDevFiles"])
def test_a_value_that_names_no_gpu_here_is_refused_by_name(node: Node, value: str) -> None:
    node.nvidia_smi(listing(2))
    node.environ["CUDA_VISIBLE_DEVICES"] = value
    for device in ("auto", "cuda"):
        message = refused(device, None)
        assert f"CUDA_VISIBLE_DEVICES={value!r}: entry {value.rpartition(',')[2]!r}" in message
        assert UUIDS[1] in message or "once" in message or "Slurm" in message


def test_hiding_every_gpu_is_fair_on_the_cpu_and_no_gate(node: Node) -> None:
    node.nvidia_smi(listing(2))
    node.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert choose("auto", None) == Choice("cpu", 1, "CUDA_VISIBLE_DEVICES hides every GPU")
    assert "--device cuda: CUDA_VISIBLE_DEVICES hides every GPU" in refused("cuda", None)
    assert "scenario gate is made for GPUs: CUDA_VISIBLE_DEVICES hides" in refused("auto", None, made_for_gpus="gate")
    assert "--expect-gpus 2, 0 can be used" in refused("auto", None, expected=2)


def test_a_mig_instance_is_one_rank(node: Node) -> None:
    node.nvidia_smi(listing(1, split=True))
    for value in (None, INSTANCE, "0"):
        node.environ |= {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
        assert gpus.find().gpus == ("NVIDIA H200 MIG 3g.71gb",) and choose("cuda", None) == Choice("cuda", 1)
    assert "--nproc 2 asks for more" in refused("auto", 2)


def test_a_scenario_made_for_gpus_runs_on_the_cpu_only_when_told(node: Node, torch: Torch) -> None:
    torch(CPU)
    assert "scenario quick is made for GPUs: no GPU is visible" in refused("auto", 2, made_for_gpus="quick")
    assert choose("cpu", 2, made_for_gpus="quick") == Choice("cpu", 2, "--device cpu")


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_fewer_and_more_gpus_than_expected_are_told_with_both_numbers(node: Node, expected: int) -> None:
    node.nvidia_smi(listing(2))
    message = refused("auto", None, expected=expected)
    assert f"--expect-gpus {expected}, 2 can be used" in message and "nvidia-smi leaves GPU 0, GPU 1" in message
    assert choose("auto", None, expected=2).nproc == 2


def test_expected_gpus_that_are_not_there_are_told_with_both_numbers(node: Node, torch: Torch) -> None:
    torch(CPU)
    assert "--expect-gpus 8, 0 can be used" in refused("auto", None, expected=8)
    assert "--expect-gpus 1: --device cpu uses 0 GPUs" in refused("cpu", None, expected=1)
    assert choose("auto", None, expected=0).device == choose("cpu", None, expected=0).device == "cpu"
    node.nvidia_smi("Failed\n", 18)
    assert "--expect-gpus 8, 0 can be used: nvidia-smi ended with exit code 18" in refused("auto", None, expected=8)


def test_a_driver_that_answers_with_a_table_alone_is_understood(node: Node) -> None:
    node.nvidia_smi("usage\n", table=f"0, {UUIDS[0]}, NVIDIA H200, a name\ngarbage\n")
    assert gpus.find().gpus == ("NVIDIA H200, a name",)


def test_the_gpus_of_the_ranks_among_others_rows(node: Node) -> None:
    rows = [("0", UUIDS[0]), ("1", UUIDS[1])]
    assert places(rows, {}) == [0, 1] and places(rows, {"CUDA_VISIBLE_DEVICES": f"{UUIDS[1]},0"}) == [1, 0]
    node.nvidia_smi(listing(2).replace("GPU 1", f"  MIG 1g.18gb Device 0: (UUID: {INSTANCE})\nGPU 1"))
    assert places(rows[::-1], {**node.environ, "CUDA_VISIBLE_DEVICES": INSTANCE}) == [1]


def test_this_machine_is_looked_at_without_importing_torch() -> None:
    import subprocess

    code = "import sys\nfrom gpucheck.launch.gpus import find\nfind()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(find(), Found)


def table(*capabilities: str) -> str:
    return "".join(f"{n}, {UUIDS[n]}, {capability}\n" for n, capability in enumerate(capabilities))


@pytest.mark.parametrize(
    ("text", "code", "shown", "expected"),
    [
        (table("9.0", "9.0"), 0, None, ["sm_90"]),
        (table("8.9", "10.0", "12.0"), 0, None, ["sm_100", "sm_120", "sm_89"]),
        (table("8.9", "10.0", "12.0"), 0, "1", ["sm_100"]),
        (table("8.9", "[N/A]"), 0, None, []),
        ('Field "compute_cap" is not a valid field to query.\n', 2, None, []),
        ("", 0, None, []),
    ],
)
def test_the_architectures_are_those_of_the_gpus_that_are_used(
    node: Node, text: str, code: int, shown: str | None, expected: list[str]
) -> None:
    node.nvidia_smi(listing(3), code, text)
    environ = {**node.environ, **({"CUDA_VISIBLE_DEVICES": shown} if shown else {})}
    assert architectures(environ) == expected


@pytest.mark.parametrize(
    ("memory", "shown", "expected"),
    [
        (["139800 MiB, Disabled, Default", "80000 MiB, [N/A], Default"], None, [139800 << 20, 80000 << 20]),
        (["139800 MiB, Disabled, Default", "80000 MiB, [N/A], Default"], "1", [80000 << 20]),
        (["139800 MiB, Enabled, Default", "[N/A], [N/A], Default"], None, [0, 0]),  # of instances, or of the host
        (["139800 MiB, Disabled, Exclusive_Process"], None, [0]),
        ([], None, []),
    ],
)
def test_the_free_memory_is_that_of_gpus_that_are_used_and_take_several_processes(
    node: Node, memory: list[str], shown: str | None, expected: list[int]
) -> None:
    node.nvidia_smi(listing(2), 0, "".join(f"{n}, {UUIDS[n]}, {words}\n" for n, words in enumerate(memory)))
    environ = {**node.environ, **({"CUDA_VISIBLE_DEVICES": shown} if shown else {})}
    assert free_memory(environ) == expected


def test_more_ranks_on_the_cpu_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "available_memory", lambda: 3 * gpus.OF_A_RANK)
    assert choose("cpu", 3).nproc == 3
    with pytest.raises(UsageError, match=r"--nproc 4 .* 0\.8 GiB are free.* use --nproc 3 or fewer"):
        choose("cpu", 4)
    monkeypatch.setattr(gpus, "available_memory", lambda: None)
    assert choose("cpu", 4000).nproc == 4000
