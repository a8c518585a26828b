"""Third-party packages that an engine imports and this Python lacks: in a folder of the cache, never installed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gpucheck.library.cache import locked
from gpucheck.library.cache_folder import cache_root
from gpucheck.library.engines import adapter_class
from gpucheck.library.index import normalise
from gpucheck.model.errors import InfrastructureError

KEPT = ("torch", "triton", "numpy")
"""Stay as they are installed, whatever an engine asks for: they are under test, or torch was built for them."""
CARRIED = "packages"
PIP_SECONDS = 1200.0  # of one call of pip
NO_FIT = ("No matching distribution found", "ResolutionImpossible")
"""What pip says where an index answered and no set of packages does."""
RESOLVED = "resolved.json"  # in the folder: what is in it, and for which requirements


class NoPackages(InfrastructureError):
    """No packages on the index fit the engine and what is installed here: another try gives no others."""


def packages_for(name: str, root: Path, cache: Path | None = None) -> Path:
    """The folder with the packages that the engine in ``root`` needs beside those of this Python.

    A folder ``packages`` in ``root`` is taken as it is: so a machine without an index is served. Else pip resolves what
    the adapter of the engine names, by the versions in the engine's METADATA, against what is installed here; what is
    missing or too old or new goes into the folder.

    Raises:
        NoPackages: no packages fit.
        InfrastructureError: pip is missing or failed, or the cache cannot be written.
    """
    if (root / CARRIED).is_dir():
        return root / CARRIED
    wanted = requirements(name, root)
    kept = {package: version for package in KEPT if (version := _version(package))}
    here = {line: _version(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in wanted}
    key = repr((sorted(here.items()), sorted(kept.items()), sys.version_info[:2], platform.machine()))
    parent = (cache or cache_root()) / "engines"
    folder = parent / f"packages-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    parent.mkdir(parents=True, exist_ok=True)
    with locked(parent, f".lock-{folder.name}"):
        if not (folder / RESOLVED).is_file():
            _fill(folder, name, wanted, kept)
    return folder


def requirements(name: str, root: Path) -> list[str]:
    """One line for pip for each package that the engine's adapter names, with the engine's own limits."""
    limits: dict[str, str] = {}
    for path in root.glob(f"{name}-*.dist-info/METADATA"):
        text = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        for line in re.findall(r"^Requires-Dist: *(.+)$", text, re.MULTILINE):
            package = normalise(re.split(r"[^\w.-]", line, maxsplit=1)[0])
            if "extra ==" not in line:
                limits.setdefault(package, re.sub(r"\[[^\]]*\]", "", line).strip())  # their extras are for servers
    engine = adapter_class(name)
    asked = [limits.get(normalise(package), package) for package in engine.packages]
    return [*asked, *(limits[package] for package in engine.packages_of_some if package in limits)]


def _fill(folder: Path, name: str, wanted: Sequence[str], kept: dict[str, str]) -> None:
    begin = time.monotonic()
    print(f"gpucheck: looking for the packages that {name} imports and this Python lacks", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as temporary:
        new, report = Path(temporary, folder.name), Path(temporary, "report.json")
        new.mkdir()
        constraints = Path(temporary, "constraints.txt")
        constraints.write_text("".join(f"{package}=={version}\n" for package, version in kept.items()))
        listed = Path(temporary, "requirements.txt")
        listed.write_text("\n".join(wanted) + "\n")
        options = ["--quiet", "--only-binary", ":all:", "--constraint", str(constraints)]
        _pip(name, "install", "--dry-run", "--report", str(report), *options, "--requirement", str(listed))
        found = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
        pinned = sorted(f"{each['name']}=={each['version']}" for each in found if normalise(each["name"]) not in KEPT)
        if pinned:
            listed.write_text("\n".join(pinned) + "\n")
            target = ["--target", str(new), "--no-deps", "--no-compile"]
            _pip(name, "install", *target, "--quiet", "--only-binary", ":all:", "--requirement", str(listed))
        (new / RESOLVED).write_text(json.dumps({"asked": list(wanted), "installed": pinned}, indent=2) + "\n")
        os.rename(new, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    words = f"{len(pinned)} packages for {name}, {size:.0f} MB, in {time.monotonic() - begin:.0f} s, in {folder}"
    print(f"gpucheck: {words}", file=sys.stderr)


def _pip(name: str, *arguments: str) -> None:
    """Runs pip with its own settings.

    Raises:
        NoPackages: it found none that fit.
        InfrastructureError: it is not there or did not succeed.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, cwd=sys.prefix)
        said = done.stderr.strip().splitlines() if done.returncode else []
        fits = not any(words in done.stderr for words in NO_FIT) or "after connection broken" in done.stderr
        why = "\n".join(f"  pip       {line}" for line in [*said[-4:]] or ["no words"]) if done.returncode else ""
    except (OSError, subprocess.SubprocessError) as error:
        why, fits = f"  pip       {error}", True
    if why:
        raise (InfrastructureError if fits else NoPackages)(
            f"the packages that {name} imports cannot be had.\n{why}\n"
            "  expected  a package index that pip can reach, with wheels for this Python\n"
            "  do        run where pip reaches an index once (the cache keeps them), install the engine, or give\n"
            f"            --engine path:DIR with the packages in DIR/{CARRIED}, as pip install --target makes it"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
