"""Small packages to scan, and the known contents of the library where they lie on this machine."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.library.cache import library_folder, read_cached
from gpucheck.library.content import KNOWN
from gpucheck.library.copies import LibraryCopy
from gpucheck.tools.audit.hazard import Hazard
from gpucheck.tools.audit.scan import scan

RELEASES = {
    "A": ("sgl-kernel", "0.3.18"),
    "B": ("vllm", "0.33.0"),
    "C": ("vllm", "0.21.0"),
    "D": ("sglang-kernel", "0.4.8"),
    "E": ("sglang-kernel", "0.4.10"),
    "F": ("tokenspeed-triton-kernels", "1.0.0.post20260510"),
}

Find = Callable[..., list[Hazard]]


@pytest.fixture
def find(tmp_path: Path) -> Find:
    """Hazards in a package ``lib`` made of module texts: ``find(helpers="...", matmul="...")``."""

    def find_in(**modules: str) -> list[Hazard]:
        for name, text in modules.items():
            path = tmp_path / "lib" / f"{name if name == '__init__' else name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return scan(tmp_path / "lib")

    return find_in


def cached_content(name: str) -> LibraryCopy:
    """A known content from the cache; skips where no release of it was fetched."""
    distribution, version = RELEASES[name]
    copy = read_cached(library_folder(distribution, version))
    if copy is None:
        pytest.skip(f"content {name} is not here; fetch it: gpucheck library fetch {distribution}=={version}")
    assert copy.content == next(entry.content for entry in KNOWN if entry.name == name)
    return copy


@pytest.fixture
def content() -> Callable[[str], LibraryCopy]:
    """The known contents by name."""
    return cached_content
