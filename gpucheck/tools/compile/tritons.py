"""Tritons side by side: the installed one, and others in private folders of the cache, never in the environment."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from gpucheck.host.accelerators import assigned
from gpucheck.host.software import installed_version
from gpucheck.host.text_file import text_of
from gpucheck.library.cache import fresh_folder, locked, writable
from gpucheck.library.cache_folder import cache_root
from gpucheck.library.pip_settings import unpack
from gpucheck.model.errors import InfrastructureError, UsageError

INSTALLED = "installed"
FORMS = "installed, a version such as 3.6.0, or path:DIR with a folder that holds the package triton"


@dataclass(frozen=True)
class Triton:
    """One Triton to compile with."""

    version: str
    folder: Path | None  # goes first on PYTHONPATH; None for the one that is installed
    package: Path  # the folder triton itself


def resolve(text: str) -> Triton:
    """The Triton that a value of ``--triton`` names; fetched with pip where it is neither installed nor cached.

    Raises:
        UsageError: no such form, folder or release.
        InfrastructureError: none is installed, or it cannot be fetched.
    """
    if text.startswith("path:"):
        return _in_folder(Path(os.path.abspath(os.path.expanduser(text.removeprefix("path:")))))
    installed = find_installed()
    if text == INSTALLED:
        if installed is None:
            raise InfrastructureError(
                "no Triton is installed in this Python.\n  do  name one to fetch, for example --triton 3.6.0"
            )
        return installed
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?([.+]?\w+)*", text, re.ASCII):
        raise UsageError(f"--triton {text!r} is not understood; expected {FORMS}")
    if installed and installed.version == text:
        return installed
    return _cached(text)


def find_installed() -> Triton | None:
    """The Triton of this Python, without importing it; None where there is none."""
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.origin:
        return None
    package = Path(spec.origin).parent
    version = installed_version("triton") or _version_of(
        package
    )  # a build of another name, or a checkout, says its own
    return Triton(version or "unknown", None, package)


def triton_folder(version: str) -> Path:
    """Where a release lies in the cache: wheels differ between Pythons."""
    return cache_root() / "tritons" / f"{version}-cp{sys.version_info.major}{sys.version_info.minor}"


def _in_folder(folder: Path) -> Triton:
    version = _version_of(folder / "triton")
    if version is None:
        raise UsageError(
            f"--triton path:{folder}: no Triton there.\n"
            f"  expected  {folder / 'triton' / '__init__.py'} with a __version__"
        )
    return Triton(version, folder, folder / "triton")


def _version_of(package: Path) -> str | None:
    """``__version__`` of a package, read from its source."""
    return assigned(text_of(package / "__init__.py"), "__version__")


def _cached(version: str) -> Triton:
    folder = triton_folder(version)
    if not (folder / "triton" / "__init__.py").is_file():
        _fetch(version, folder)
    return Triton(version, folder, folder / "triton")


def _fetch(version: str, destination: Path) -> None:
    """Has pip put a release beside ``destination`` and moves it there in one step."""
    print(f"gpucheck: fetching Triton {version} into {destination}", file=sys.stderr)
    with writable(destination.parent), locked(destination.parent):  # who waited finds what the other one has fetched
        if (destination / "triton" / "__init__.py").is_file():
            return
        with fresh_folder(destination) as folder:
            said = unpack(f"triton=={version}", folder)
            if said or not (folder / "triton" / "__init__.py").is_file():
                raise _failure(version, said)


def _failure(version: str, said: str) -> UsageError | InfrastructureError:
    """What pip's error means."""
    other = "or  --triton path:DIR takes one from a folder, with no network"
    if "No module named pip" in said:
        return InfrastructureError(
            f"Triton {version} is not installed, and this Python has no pip to fetch it with.\n"
            f"  do  {Path(sys.executable).name} -m ensurepip\n  {other}"
        )
    offered = re.search(r"\(from versions: ([^)]*)\)", said)
    if offered and offered[1] != "none":
        return UsageError(
            f"pip's indexes have no wheel of Triton {version} for this Python.\n  they have  {offered[1]}\n  {other}"
        )
    errors = [line.removeprefix("ERROR:").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    first = errors[0] if errors else "it gave no reason"
    return InfrastructureError(
        f"pip cannot fetch Triton {version}: {first}\n  check  the network and pip's index\n  {other}"
    )
