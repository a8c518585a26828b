"""Bytecode that is kept where Python keeps none; the right source decides, and nothing else."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gpucheck.host import bytecode
from gpucheck.host.bytecode import Bytecode

NAME = "planted_for_bytecode"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in a folder of the import path, where Python writes no bytecode."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    hooks = list(sys.path_hooks)
    yield folder / f"{NAME}.py"
    sys.modules.pop(NAME, None)
    assert sys.path_hooks == hooks


@pytest.fixture
def load(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ModuleType, bool]]:
    """Imports the module as a fresh process would, and says whether it was compiled."""

    def load(*packages: str) -> tuple[ModuleType, bool]:
        compiled: list[str] = []

        def compiles(self: object, data: bytes, path: str) -> object:
            compiled.append(path)
            return compile(data, path, "exec", dont_inherit=True)

        def cache() -> Path:
            if os.environ.get("HOME") == "none":
                raise RuntimeError("Could not determine home directory.")
            return tmp_path

        with monkeypatch.context() as patch:
            patch.setattr(bytecode._Loader, "source_to_code", compiles)
            patch.delitem(sys.modules, NAME, raising=False)
            with Bytecode("test", cache, packages):
                module = importlib.import_module(NAME)
        return module, compiled == [str(source)]

    return load


def test_a_module_is_compiled_once(load: Callable[..., tuple[ModuleType, bool]], source: Path, tmp_path: Path) -> None:
    assert load()[1]
    module, compiled = load()
    assert not compiled and module.VALUE == 1 and module.__file__ == str(source)
    assert not (source.parent / "__pycache__").exists(), "Python was asked to write none"
    (file,) = (tmp_path / "bytecode").iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_other_source_of_the_same_size_and_time_is_compiled(
    load: Callable[..., tuple[ModuleType, bool]], source: Path
) -> None:
    load()
    facts = source.stat()
    source.write_text("VALUE = 2\n")
    os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    module, compiled = load()
    assert compiled and module.VALUE == 2
    assert load() != (module, True) and load()[0].VALUE == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"VALUE", b"OTHER")),
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o666),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "changed", "empty", "open to others", "a folder"],
)
def test_what_cannot_be_trusted_is_as_if_it_were_not_there(
    load: Callable[..., tuple[ModuleType, bool]], tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    load()
    (file,) = (tmp_path / "bytecode").iterdir()
    damage(file)
    module, compiled = load()
    assert compiled and module.VALUE == 1


def test_where_nothing_can_be_kept_modules_are_compiled(
    load: Callable[..., tuple[ModuleType, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "none")
    assert load()[1] and load()[1]
    monkeypatch.delenv("HOME")
    (tmp_path / "bytecode").write_text("no folder")
    assert load()[1] and load()[1]


def test_where_python_has_bytecode_or_writes_it_that_is_used(
    load: Callable[..., tuple[ModuleType, bool]], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert load()[1] and Path(importlib.util.cache_from_source(str(source))).exists()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(bytecode, "_read", lambda path: pytest.fail("megabytes are read for nothing"))
    assert not load()[1]
    assert not (tmp_path / "bytecode").exists()


def test_only_packages_that_are_named_are_kept(load: Callable[..., tuple[ModuleType, bool]], tmp_path: Path) -> None:
    assert load("gpucheck")[1] and not (tmp_path / "bytecode").exists()
    assert load(NAME)[1] and not load(NAME)[1]


def test_a_module_outlives_what_it_was_loaded_with(load: Callable[..., tuple[ModuleType, bool]], source: Path) -> None:
    load()
    module, _ = load()
    sys.modules[NAME] = module
    loader = module.__loader__
    assert isinstance(loader, bytecode._Loader) and not loader._kept._known, "the memory is free again"
    assert loader.get_code(NAME) is not None and loader.get_source(NAME) == "VALUE = 1\n"
    source.write_text("VALUE = 3  # longer\n")
    assert importlib.reload(module).VALUE == 3


def test_files_that_were_not_used_for_long_make_room(
    load: Callable[..., tuple[ModuleType, bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytecode, "_MOST_FILES", 3)
    (tmp_path / "bytecode").mkdir()
    for age in range(5):
        (tmp_path / "bytecode" / f"old{age}").touch()
        os.utime(tmp_path / "bytecode" / f"old{age}", (100 - age, 100 - age))
    load()
    left = sorted(path.name.partition("-")[0] for path in (tmp_path / "bytecode").iterdir())
    assert left == ["old0", "old1", "test"]
