"""A failure on a GPU comes again from the command that its report prints, and from a script without gpucheck."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gpucheck.library.copies import LibraryCopy
from tests.gpu.conftest import NEEDS_GPU, Done, gpucheck

pytestmark = NEEDS_GPU

SCENARIO = """
[[cases]]
check = "swiglu"
dtype = "bf16"
m = 100
n = 512
"""


def test_it_comes_again_bit_by_bit(run: Callable[..., Done], library: LibraryCopy, tmp_path: Path) -> None:
    package = tmp_path / "library" / "triton_kernels"
    shutil.copytree(library.package, package)
    with (package / "swiglu.py").open("a") as module:
        module.write(
            "\n\n_genuine = swiglu\n\n\ndef swiglu(*args, **kwargs):\n"
            "    y = _genuine(*args, **kwargs)\n    y[3, 5] += 1\n    return y\n"
        )
    (tmp_path / "one.toml").write_text(SCENARIO)
    done = run(str(tmp_path / "one.toml"), "--experiments", "0", library=f"path:{package.parent}")
    assert done.code == 1
    command = shlex.split(done.report["findings"][0]["cases"][0]["replay"])
    again = gpucheck(*command[1:], "--save", str(tmp_path / "saved"))
    print(again.stdout, again.stderr)
    assert again.returncode == 1 and "the bytes of the run" in again.stdout
    script = tmp_path / "saved" / "reproduce.py"
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone = subprocess.run(
        [sys.executable, str(script)], cwd=script.parent, env=known, capture_output=True, text=True, timeout=120
    )
    print(alone.stdout, alone.stderr)
    assert alone.returncode == 1
