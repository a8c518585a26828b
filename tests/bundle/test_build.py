"""The built file, with a Python that has torch and Triton but nothing of what gpucheck needs besides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gpucheck.plan.scenario import builtin
from gpucheck.templates.presets import presets
from tests.conftest import Synthetic

REPOSITORY = Path(__file__).parents[2]
NO_PACKAGES = 3  # exit code of the build where pip gets nothing
OURS = ("annotated_doc", "certifi", "charset_normalizer", "click", "gpucheck", "markdown_it", "mdurl", "pygments")
OURS += ("remotezip", "requests", "rich", "shellingham", "tomli", "typer", "urllib3", "idna", "__editable__")


def build(target: Path) -> Path:
    done = subprocess.run([sys.executable, REPOSITORY / ".ci/bundle/build.py", target], capture_output=True, text=True)
    if done.returncode == NO_PACKAGES:
        pytest.skip(f"pip cannot get the packages that go in: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (REPOSITORY / ".ci/bundle").is_dir():
        pytest.skip("is built from a checkout only")
    return build(tmp_path_factory.mktemp("dist") / "gpucheck.pyz")


@pytest.fixture(scope="session")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own that sees this one's packages, but none of ours."""
    folder = tmp_path_factory.mktemp("pod")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for place in map(Path, sys.path):
        for entry in place.iterdir() if place.name.endswith("-packages") else ():
            ours = entry.name.lower().startswith(OURS)
            if not ours and entry.suffix != ".pth" and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def start(python: Path, pyz: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    environ["GPUCHECK_CACHE_DIR"] = str(pyz.parent / "cache")
    return subprocess.run([python, pyz, *arguments], env=environ, cwd=cwd, capture_output=True, text=True)


def test_the_pod_has_nothing_of_ours(pod: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('gpucheck', 'typer', 'rich', 'requests') if u.find_spec(n)])"
    done = subprocess.run([pod, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_same_inputs_give_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "again.pyz").read_bytes() == pyz.read_bytes()


def test_what_is_in_it(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as content:
        names = content.namelist()
    licences = [name for name in names if "dist-info" in name and "LICEN" in name.upper()]
    assert "LICENSE" in names and len(licences) >= 8
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "__pycache__" in name]
    for scenario in builtin():
        assert f"app/gpucheck/scenarios/{scenario}.toml" in names
    assert pyz.stat().st_mode & 0o777 == 0o755 and pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_everything_that_needs_no_torch(pyz: Path, pod: Path, synthetic: Synthetic, tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=2, ranks=2)))
    help_ = start(pod, pyz, "--help", cwd=tmp_path)
    assert help_.returncode == 0 and "doctor" in help_.stdout
    listed = start(pod, pyz, "list", cwd=tmp_path)
    assert listed.returncode == 0 and all(name in listed.stdout for name in builtin())
    shown = start(pod, pyz, "report", str(folder), cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout.startswith("PASS")
    printed = start(pod, pyz, "preset", "torchrun", cwd=tmp_path)
    assert printed.stdout == presets()["torchrun"].text
    explained = start(pod, pyz, "explain", "hopper-scales-past-end", cwd=tmp_path)  # its table is no Python file
    assert explained.returncode == 0 and "vllm-project/vllm#47303" in explained.stdout
    assert start(pod, pyz, "report", "nowhere", cwd=tmp_path).returncode == 2


def test_a_real_run(pyz: Path, pod: Path, tmp_path: Path, library: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    options = ["--device", "cpu", "--nproc", "2", "--checks", "swiglu", "--library", library, "--out", "run"]
    done = start(pod, pyz, "run", "smoke", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout and "on 2 ranks" in done.stdout
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    assert plan["environment"]["software"]["executable"] == str(pod)


def test_doctor_tries_the_devices(pyz: Path, pod: Path, tmp_path: Path, library: str) -> None:
    pytest.importorskip("torch")
    done = start(pod, pyz, "doctor", "--json", "--library", library, cwd=tmp_path)
    by_id = {line["id"]: line for line in json.loads(done.stdout)}
    assert by_id["software.python"]["value"].endswith(str(pod)), done.stderr
    assert [line for name, line in by_id.items() if name.endswith(".matmul") and line["status"] == "ok"]


@pytest.fixture(scope="session")
def library() -> str:
    """``--library`` of a real copy."""
    from gpucheck.library.library_option import parse_source, resolve
    from gpucheck.model.errors import InfrastructureError

    try:
        return f"path:{resolve(parse_source('wheel:vllm==0.33.0')).package}"
    except InfrastructureError as error:
        pytest.skip(f"no library to be had: {error}")
