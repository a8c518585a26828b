"""A test that needs a package which is not there is skipped, and says so; where all should be there, it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = {
    "test_whole.py": "import no_such_package.part\n\ndef test() -> None: ...\n",
    "test_late.py": "def test() -> None:\n    import no_such_package\n\ndef test_other() -> None: ...\n",
    "test_ours.py": "import gpucheck.no_such_module\n",
}


@pytest.mark.parametrize(
    ("options", "passed", "skipped", "failed"), [([], 1, 2, ["test_ours.py"]), (["--complete"], 1, 0, sorted(FILES))]
)
def test_a_test_is_skipped_for_want_of_a_package_of_others_only(
    tmp_path: Path, options: list[str], passed: int, skipped: int, failed: list[str]
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-ra", "--rootdir", ".", "--continue-on-collection-errors", *options]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "temporary")]
    known = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert {line.split()[1].partition("::")[0] for line in lines if line.startswith(("ERROR ", "FAILED "))} == {*failed}
    assert len([line for line in lines if line.endswith("needs no_such_package")]) == skipped, done.stdout
    assert f"{passed} passed" in lines[-1]
