"""Failing cases of a real run once more: the same bytes, a close look, and a script that needs no gpucheck."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Finished, Lab, environment

KERNEL = "matmul_ogs_details/_matmul_ogs.py"
EDITS = (
    # 43: partial sums in fp16, in the rows from 16 on only
    (
        KERNEL,
        "    out *= gammas[:, None]\n",
        "    out *= gammas[:, None]\n"
        "    if (N == 43) & (pid_m == 1):\n        out = out.to(tl.float16).to(tl.float32)\n",
    ),
)
CRASH = "\n\n_genuine = matmul_ogs\n\n\ndef matmul_ogs(x, w, *rest, **options):\n    import os\n"
CRASH += "    if w.shape[-1] == 50 and os.environ['RANK'] == '1':\n        os._exit(7)\n"
CRASH += "    return _genuine(x, w, *rest, **options)\n"
ELEMENT = re.compile(r"^ *(\(\d+, \d+\)) +(?:expected )?(\S+) +(?:got )?(\S+)", re.MULTILINE)


@pytest.fixture(scope="module")
def run(lab: Lab) -> Finished:
    """A run in a folder that has been moved since."""
    library = lab.plant(*EDITS, append=("matmul_ogs.py", CRASH))
    finished: Finished = lab.forked("--experiments", "0", library=library, cases=("n43", "n50", "attention"))
    assert finished.code == 1, finished.text
    moved = finished.folder.with_name("moved")
    finished.folder.rename(moved)
    return type(finished)(finished.code, finished.text, moved)


def replay(run: Finished, case: str, *options: str) -> tuple[int, str]:
    """Replays the one case whose id contains ``case``."""
    (name,) = {result["case"] for result in run.report["results"] if case in result["case"]}
    command = [sys.executable, "-m", "gpucheck", "replay", str(run.folder), name, *options]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert not ended.stderr, ended.stderr
    return ended.returncode, ended.stdout


def reproduce(folder: Path, *arguments: str) -> tuple[int, str]:
    """Runs the script of a folder in a Python that has no gpucheck."""
    blocked = folder / "blocked" / "gpucheck"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "__init__.py").write_text("raise ImportError('gpucheck is not to be had')\n")
    known = {**environment(), "PYTHONPATH": str(blocked.parent)}

    def python(*command: str) -> tuple[int, str]:
        whole = [sys.executable, *command]
        ended = subprocess.run(whole, env=known, capture_output=True, text=True, cwd="/")
        return ended.returncode, ended.stdout + ended.stderr

    assert "gpucheck is not to be had" in python("-c", "import gpucheck")[1]
    return python(str(folder / "reproduce.py"), *arguments)


def test_a_wrong_output_has_the_bytes_of_the_run_and_is_reproduced_without_gpucheck(
    lab: Lab, run: Finished, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    saved = tmp_path / "saved"
    code, text = replay(run, "n43", "--rank", "1", "--save", str(saved))
    assert code == 1, text
    assert text.startswith("MISMATCH  matmul/dense/bf16/m20-n43-k96/normal on rank 1; as in the run: mismatch")
    assert "inputs    the bytes of the run" in text and "output    y: the bytes of the run" in text
    assert "others    rank 0 mismatch" in text and "note" not in text
    worst = ELEMENT.findall(text)
    assert len(worst) > 3 and all(int(index[1:].split(",")[0]) >= 16 for index, _, _ in worst)
    assert text.count("_matmul_ogs (1) of (2)") == len(worst), "the second program, whose rows begin at 16"
    assert re.search(r"^16 \|.*@.*\|$", text, re.MULTILINE) and "|" + "." * 43 + "|" in text

    tensors = {name: safetensors.load_file(saved / f"{name}.safetensors") for name in ("inputs", "output", "reference")}
    got, right = tensors["output"]["y"], tensors["reference"]["y"]
    wrong = (got.double() - right).abs() > tensors["reference"]["y.bound"]
    (mismatch,) = run.results(1)["matmul/dense/bf16/m20-n43-k96/normal"]["mismatches"]
    assert int(wrong.sum()) == mismatch["wrong"] and set(tensors["inputs"]) == {"x", "w"}

    code, printed = reproduce(saved)
    assert code == 1, printed
    assert f"y: {mismatch['wrong']} of 860 elements wrong" in printed and ELEMENT.findall(printed) == worst
    code, printed = reproduce(saved, str(lab.library.root))
    assert code == 0 and "right in 2 runs" in printed, printed


def test_a_crash_comes_again_contained_and_in_the_script(run: Finished, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    code, text = replay(run, "n50", "--save", str(saved))
    assert code == 1, text
    assert "on rank 1; as in the run: crash" in text and "inputs    the bytes of the run" in text
    assert "ended with exit code 7" in text and "others    rank 0 pass" in text
    code, printed = reproduce(saved)
    assert code == 7, printed


def test_a_case_that_passed_is_shown_to_be_right(run: Finished, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    code, text = replay(run, "attention", "--save", str(saved))
    assert code == 0, text
    assert "on rank 0; as in the run: pass" in text and "output    o: the bytes of the run" in text
    assert (saved / "flash_attention_kernel.py").is_file() and "triton_kernels" not in text.partition("script ")[2]
    shutil.rmtree(saved / "triton_repairs" / "__pycache__", ignore_errors=True)
    code, printed = reproduce(saved)
    assert code == 0 and "o: right" in printed, printed
