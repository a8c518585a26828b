from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpucheck.library.cache import (
    Damaged,
    Origin,
    cached_folders,
    library_folder,
    read_cached,
    split_requirement,
    store,
)
from gpucheck.library.cache_folder import cache_root
from gpucheck.model.errors import InfrastructureError

ORIGIN = Origin("vllm", "1.0", "vllm-1.0-py3-none-any.whl")


@pytest.fixture
def files(tmp_path: Path, make_library: Callable[..., Path]) -> dict[str, bytes]:
    package = make_library(tmp_path / "made/triton_kernels")
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.py")}


def leftovers(folder: Path) -> list[str]:
    """Names beside a cached copy, but the lock."""
    return [path.name for path in folder.parent.iterdir() if path != folder and path.name != ".lock"]


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root({}) == Path("/home/me/.cache/gpucheck")
    assert cache_root({"XDG_CACHE_HOME": "/x"}) == Path("/x/gpucheck")
    assert cache_root({"XDG_CACHE_HOME": "not/absolute"}) == Path("/home/me/.cache/gpucheck")
    assert cache_root({"XDG_CACHE_HOME": "/x", "GPUCHECK_CACHE_DIR": str(tmp_path)}) == tmp_path
    assert library_folder("Sgl_Kernel", "0.3.18", tmp_path) == tmp_path / "libraries/sgl-kernel-0.3.18"


def test_requirement() -> None:
    assert split_requirement(" vllm == 0.33.0 ") == ("vllm", "0.33.0")
    assert split_requirement("sgl-kernel==0.3.18.post1+cu.1") == ("sgl-kernel", "0.3.18.post1+cu.1")
    for text in ("vllm", "vllm=1", "==1", "vllm==", "a/b==1", "a==../b", "a==1==2", "a b==1"):
        assert split_requirement(text) is None, text


def test_store_and_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = library_folder("vllm", "1.0", tmp_path)
    assert read_cached(folder) is None
    store(folder, files, ORIGIN)
    copy = read_cached(folder)
    assert copy is not None
    assert (copy.root, copy.origin, copy.generation, copy.installed) == (folder, "vllm 1.0", "v3.5", False)
    assert sorted(path.name for path in folder.iterdir()) == ["origin.json", "triton_kernels"]
    assert json.loads((folder / "origin.json").read_text()) == {
        "name": "vllm",
        "version": "1.0",
        "wheel": "vllm-1.0-py3-none-any.whl",
        "yanked": False,
        "content": copy.content,
    }
    assert cached_folders(tmp_path) == [folder]
    assert leftovers(folder) == []


def test_damage_is_seen_and_mended(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = library_folder("vllm", "1.0", tmp_path)
    store(folder, files, ORIGIN)
    harm = {
        "its files were changed": lambda: (folder / "triton_kernels/routing.py").write_text("# changed"),
        "tensor.py missing": lambda: (folder / "triton_kernels/tensor.py").unlink(),
        "origin.json is missing": lambda: (folder / "origin.json").write_text("{"),
    }
    for reason, act in harm.items():
        act()
        with pytest.raises(Damaged, match=reason):
            read_cached(folder)
        store(folder, files, ORIGIN)
        assert read_cached(folder) is not None
    assert leftovers(folder) == []


def test_processes_that_store_at_once_all_succeed(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = library_folder("vllm", "1.0", tmp_path)
    (folder / "triton_kernels").mkdir(parents=True)  # a damaged copy is in the way
    with ThreadPoolExecutor(8) as pool:
        for outcome in [pool.submit(store, folder, files, ORIGIN) for _ in range(16)]:
            outcome.result()
    assert read_cached(folder) is not None
    assert leftovers(folder) == []


def test_an_unwritable_cache_says_what_to_set(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match="GPUCHECK_CACHE_DIR"):
        store(library_folder("vllm", "1.0", tmp_path / "file"), files, ORIGIN)


def test_a_sound_copy_is_never_replaced(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = library_folder("vllm", "1.0", tmp_path)
    store(folder, files, ORIGIN)
    before = folder.stat().st_ino
    store(folder, files, ORIGIN)
    assert folder.stat().st_ino == before
