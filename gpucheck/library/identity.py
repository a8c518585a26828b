"""Are we who we think we are? Unrelated packages on PyPI share our import name and the library's.

PyPI's ``gpucheck`` is a pytest plugin that installs over our files without a word; PyPI's ``triton_kernels`` has
nothing to do with the library under test. Both are told by files, never by importing them.
"""

from __future__ import annotations

import os
from pathlib import Path

import gpucheck
from gpucheck.library.installed import find_spec, spec_folders
from gpucheck.model.errors import InfrastructureError

OUR_DISTRIBUTION = "gpucheck-harness"


def check_identity(package: Path | None = None) -> None:
    """Makes sure that no other distribution claims the files of our package.

    Args:
        package: our package folder; where it is imported from by default.

    Raises:
        InfrastructureError: a distribution named ``gpucheck`` owns ``gpucheck/__init__.py`` in the same folder.
    """
    folder = (package or Path(gpucheck.__file__).parent).parent
    owners = [entry for entry in _metadata_folders(folder, "gpucheck") if _owns(entry, "gpucheck/__init__.py")]
    if not owners:
        return
    version = owners[0].name.removesuffix(".dist-info").partition("-")[2]
    raise InfrastructureError(
        f"another distribution, gpucheck {version}, owns the files of our package in {folder}.\n"
        f"  expected  {OUR_DISTRIBUTION} alone: PyPI's gpucheck is an unrelated pytest plugin of the same import name,"
        " and the one installed last has overwritten the other\n"
        f"  do        pip uninstall -y gpucheck {OUR_DISTRIBUTION}, then install {OUR_DISTRIBUTION} again"
    )


def check_installed_library() -> None:
    """Makes sure that an installed top-level ``triton_kernels`` is the genuine library.

    Matters where the library is taken from the installation; a folder without ``__init__.py`` is no installed package.

    Raises:
        InfrastructureError: a package of that name lacks the library's files.
    """
    from gpucheck.library.copies import PACKAGE, is_genuine, missing_files

    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return
    folders = spec_folders(spec)
    if any(is_genuine(folder) for folder in folders):
        return
    lacks = ", ".join(missing_files(folders[0])) if folders else "everything: it is a single file"
    raise InfrastructureError(
        f"the installed {PACKAGE} at {folders[0] if folders else spec.origin} is not OpenAI's library.\n"
        f"  found     a package that lacks {lacks}; PyPI's {PACKAGE} is an unrelated package of that name\n"
        f"  do        pip uninstall -y {PACKAGE}, or name the copy to test: --library wheel:vllm==0.33.0 or"
        " --library path:DIR"
    )


def _metadata_folders(folder: Path, distribution: str) -> list[Path]:
    """The ``.dist-info`` folders of a distribution in ``folder``; one directory listing, no file is opened."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    prefix = f"{distribution}-"
    return [folder / name for name in names if name.endswith(".dist-info") and name.lower().startswith(prefix)]


def _owns(metadata: Path, path: str) -> bool:
    """Whether the RECORD of an installed distribution lists ``path``."""
    try:
        with open(metadata / "RECORD", encoding="utf-8", errors="replace") as record:
            return any(line.startswith(f"{path},") for line in record)
    except OSError:
        return False
