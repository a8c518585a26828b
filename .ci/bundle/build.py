"""Builds ``gpucheck.pyz``: gpucheck, its scenarios and presets and the pure-Python packages it needs, in one file.

``python .ci/bundle/build.py [OUTPUT]``; ``make pyz`` writes dist/gpucheck.pyz. The same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipapp
from email.parser import Parser
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PURE = ["--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none"]
LONG_AGO = 315_532_800  # 1980-01-01, the first time a zip file can hold
NO_PACKAGES = 3  # exit code where pip could not get what goes in


def build(output: Path) -> None:
    """Makes the archive in one step, so that a half-written one is never seen."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pyz-", dir=output.parent) as temporary:
        stage = Path(temporary, "stage")
        _gpucheck(stage / "app" / "gpucheck")
        _packages(stage / "vendor")
        shutil.copy(REPOSITORY / "LICENSE", stage)
        shutil.copy(Path(__file__).with_name("bootstrap.py"), stage / "__main__.py")
        (stage / "DIGEST").write_text(_digest(stage))
        for path in stage.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        archive = Path(temporary, output.name)
        zipapp.create_archive(stage, archive, interpreter="/usr/bin/env python3", compressed=True)
        archive.chmod(0o755)
        os.replace(archive, output)


def requirements() -> list[str]:
    """What pyproject.toml asks for, on any of the Pythons."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [entry.partition(";")[0].strip() for entry in project["dependencies"]]


def _gpucheck(package: Path) -> None:
    """The package as a wheel holds it: with the scenarios inside."""
    shutil.copytree(REPOSITORY / "gpucheck", package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copytree(REPOSITORY / "scenarios", package / "scenarios", ignore=shutil.ignore_patterns("__pycache__"))


def _packages(folder: Path) -> None:
    """The requirements and theirs, in versions that the oldest Python takes, with their licences."""
    options = ["--target", str(folder), "--no-compile", "--quiet", "--python-version", PYTHONS[0], *PURE]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *requirements()]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(NO_PACKAGES)
    shutil.rmtree(folder / "bin", ignore_errors=True)
    compiled = [path.name for path in folder.rglob("*") if path.suffix in (".so", ".pyd", ".pyc")]
    missing = _missing(folder)
    if compiled or missing:
        sys.exit(f"not for every Python: compiled {compiled}, missing {missing}")
    for record in folder.glob("*.dist-info/RECORD"):
        record.unlink()  # lists what was removed, in an order of its own


def _missing(folder: Path) -> list[str]:
    """Requirements of the packages that some Python has and that are not there: pip judges by the Python it runs on."""
    metadata = [Parser().parsestr(path.read_text(encoding="utf-8")) for path in folder.glob("*.dist-info/METADATA")]
    there = {_normal(entry["Name"]) for entry in metadata}
    needed = set()
    for entry in metadata:
        for requirement in map(Requirement, entry.get_all("Requires-Dist", [])):
            for python in PYTHONS:
                where = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
                if requirement.marker is None or requirement.marker.evaluate(where):
                    needed.add(_normal(requirement.name))
    return sorted(needed - there)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _digest(stage: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(stage.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            digest.update(f"{path.relative_to(stage).as_posix()}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / "dist" / "gpucheck.pyz")
    build(target)
    print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")
