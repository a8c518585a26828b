"""A driver in trouble is no machine without a GPU: the command with stand-ins for nvidia-smi, on the CPU's torch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Lab, environment

COMMAND = "import sys; from gpucheck.cli.app import main; sys.argv[0] = 'gpucheck'; main()"
BLIND = f"from gpucheck.launch import gpus; gpus._torch = lambda: None; {COMMAND}"  # does not read what torch is for
LISTING = "GPU 0: NVIDIA H200 (UUID: GPU-0000)\nGPU 1: NVIDIA H200 (UUID: GPU-1111)\n"


@dataclass(frozen=True)
class Node:
    """A machine whose nvidia-smi is in trouble."""

    folder: Path

    def run(self, *arguments: str, code: str = COMMAND, **variables: str) -> tuple[int, str]:
        """Exit code and text of a command."""
        environ = {**environment(), "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}", **variables}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environ, cwd=self.folder, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def nvidia_smi(node: Node, text: str, code: int = 0) -> None:
    tool = node.folder / "nvidia-smi"
    tool.write_text(f"#!{sys.executable} -IS\nprint({text!r}, end='')\nraise SystemExit({code})\n")
    tool.chmod(0o755)


@pytest.mark.parametrize("device", [[], ["--device", "cuda"]])
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("Unable to determine the device handle for GPU0000:4E:00.0: GPU is lost.\n", 15, "exit code 15: Unable"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, "exit code 18: Failed to initialize NVML"),
        ("", 0, "nvidia-smi lists no GPU"),
    ],
)
def test_a_run_on_a_node_in_trouble_starts_nothing(
    node: Node, device: list[str], text: str, code: int, words: str
) -> None:
    nvidia_smi(node, text, code)
    ended, said = node.run("run", "smoke", *device)
    assert ended == 3 and words in said and "--device cpu" in said and "PASS" not in said
    assert not (node.folder / "runs").exists()


def test_gpus_that_turn_out_to_be_of_no_use_to_torch_are_no_pass_and_no_failure_of_the_library(
    node: Node, lab: Lab
) -> None:
    nvidia_smi(node, LISTING)
    options = ["--checks", "swiglu", "--library", f"path:{lab.library.package}", "--expect-gpus", "2"]
    code, said = node.run("run", "smoke", *options, code=BLIND)
    assert code == 3 and "a GPU that torch cannot use   ranks 0, 1" in said and "torch cannot use GPU 1" in said
    assert "INCONCLUSIVE" in said and "on no GPU" in said
