"""Takes the text files of an engine out of its public wheel: some 10 MB of several hundred, and nothing compiled."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import sys
import time
import zipfile
from collections.abc import Set
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gpucheck.library import wheel_reader
from gpucheck.library.cache import fresh_folder, locked, writable
from gpucheck.library.cache_folder import cache_root
from gpucheck.library.engines import adapter_class
from gpucheck.library.engines.engine_copy import EngineCopy
from gpucheck.library.engines.engine_packages import packages_for
from gpucheck.library.index import Wheel, find_wheels
from gpucheck.library.pip_settings import read_pip_settings
from gpucheck.model.errors import InfrastructureError, UsageError

TEXT = frozenset(["py", "pyi", "typed", "json", "txt", "toml", "yaml", "yml", "md", "jinja", "jinja2"])
"""Suffixes of the files that are taken; an adapter may name more."""
LIMIT = 2 << 20  # bytes of one file
ORIGIN = "origin.json"


def fetch_engine(name: str, version: str, cache: Path | None = None) -> EngineCopy:
    """The text files of ``name==version`` and the third-party packages that it imports, from the cache or an index.

    Every file is compared with the wheel's RECORD, when it is fetched and whenever it is taken from the cache.

    Args:
        name: an engine of :data:`gpucheck.library.engines.MODULES`.
        version: exact version.
        cache: the cache folder; that of the library by default.

    Raises:
        UsageError: no such release.
        InfrastructureError: no network, a damaged wheel, or an unwritable cache.
    """
    parent = (cache or cache_root()) / "engines"
    folder = parent / f"{name}-{version.lower()}"
    with (
        writable(parent, ", or use --engine path:DIR"),
        locked(parent, f".lock-{folder.name}"),  # runs that ask for one engine at once wait for the first
    ):
        if damage := _damage(folder, name):
            if folder.exists():
                said = f"the cached engine {folder} is damaged ({damage}); fetching it again"
                print(f"gpucheck: {said}", file=sys.stderr)
            try:
                _fetch(name, version, folder)
            except (InfrastructureError, UsageError) as error:  # an index speaks of the library
                raise type(error)(str(error).replace("--library", "--engine")) from error
    origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    return EngineCopy(name, origin["version"], folder, origin["wheel"], packages_for(name, folder, cache))


def cached_versions(name: str) -> set[str]:
    """The releases of an engine that the cache holds, sound or not."""
    found = (cache_root() / "engines").glob(f"{name}-*/{ORIGIN}")
    return {path.parent.name.removeprefix(f"{name}-") for path in found}


def _fetch(name: str, version: str, folder: Path) -> None:
    begin = time.monotonic()
    print(f"gpucheck: fetching the Python files of {name} {version}", file=sys.stderr)
    settings = read_pip_settings()
    with wheel_reader.session() as session:
        wheel = find_wheels(name, version, settings, session)[0]
        files = wheel_reader.read_wheel(wheel, settings, session, partial(_text_files, _suffixes(name)))
    needed = adapter_class(name).needed_file
    if f"{name}/{needed}" not in files:
        raise UsageError(f"{wheel.filename} holds no {name}/{needed}, which gpucheck calls: it is no release for it")
    with fresh_folder(folder) as new:
        for member, data in files.items():
            path = new / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        origin: dict[str, Any] = {"name": name, "version": wheel.version, "wheel": wheel.filename}
        (new / ORIGIN).write_text(json.dumps({**origin, "yanked": wheel.yanked}, indent=2) + "\n", encoding="utf-8")
    size, seconds = sum(map(len, files.values())) / 1e6, time.monotonic() - begin
    print(f"gpucheck: {name} {version}: {len(files)} files, {size:.0f} MB, in {seconds:.0f} s", file=sys.stderr)


def _suffixes(name: str) -> frozenset[str]:
    return TEXT | adapter_class(name).further_text


def _text_files(suffixes: Set[str], archive: zipfile.ZipFile, wheel: Wheel) -> dict[str, bytes]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    chosen = (info for info in infos if _is_wanted(info.filename, info.file_size, suffixes))
    return wheel_reader.read_members(archive, wheel, chosen)


def _is_wanted(name: str, size: int, suffixes: Set[str]) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(".data"):
        return False
    of_wheel = path.parts[0].endswith(".dist-info")  # RECORD is large, and names what is left out
    return of_wheel or (size <= LIMIT and path.suffix.lstrip(".") in suffixes)


def recorded(root: Path, name: str) -> dict[str, str]:
    """Path -> SHA-256 as the RECORD beside a package gives it; empty where there is none."""
    for path in root.glob(f"{name}-*.dist-info/RECORD"):
        rows = csv.reader(path.read_text(encoding="utf-8", errors="replace").splitlines())
        return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) >= 2}
    return {}


def _damage(folder: Path, name: str) -> str:
    """What is wrong with a cached engine, or ""."""
    if not (folder / ORIGIN).is_file():
        return f"no {ORIGIN}"
    hashes, suffixes = recorded(folder, name), _suffixes(name)
    if f"{name}/{adapter_class(name).needed_file}" not in hashes:
        return "its RECORD is missing or cut"
    for path, expected in hashes.items():
        if not expected or not _is_wanted(path, 0, suffixes):
            continue
        try:
            data = (folder / path).read_bytes()
        except FileNotFoundError:
            if path.endswith(".py"):
                return f"{path} is missing"
            continue  # too large to be taken
        if base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() != expected:
            return f"{path} was changed"
    return ""
