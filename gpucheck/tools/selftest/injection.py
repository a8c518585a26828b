"""Injects faults: makes private copies with faults in them, and the scenario that shows them, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpucheck.library.copies import PACKAGE
from gpucheck.tools.selftest.catalogue.common import HONEST
from gpucheck.tools.selftest.fault import Candidate, Edit, Fault, Hook, Startup

HOOKED = "matmul_ogs.py"  # the module whose function of the same name the hooks go around
CHOOSER = """

import os as _os

if _os.environ.get("RANK") in {ranks}:
    __path__.insert(0, _os.path.join(_os.path.dirname(__file__), "_planted", _os.environ["RANK"]))
"""
WRAPPER = """

from gpucheck.tools.selftest.matmul_faults import wrapped as _wrapped

matmul_ogs = _wrapped(matmul_ogs, {plants})
"""
PROBLEM = "from gpucheck.tools.selftest.planted_candidates import Model, get_init_inputs, get_inputs\n"
CANDIDATE = """import os

import planted_candidates  # a copy beside this file, whose kernels it launches

if os.environ.get("RANK") in {ranks}:
    from gpucheck.tools.selftest.planted_cheats import {kind} as ModelNew
else:
    from gpucheck.tools.selftest.planted_twins import {twin} as ModelNew
"""
SITECUSTOMIZE = """import sys

from gpucheck.tools.selftest.startup import plant

plant({faults}, {modules})
own = sys.modules.pop("sitecustomize")
sys.path.remove({folder})
try:
    import sitecustomize
except ImportError:
    pass
sys.modules["sitecustomize"] = own
"""


@dataclass(frozen=True)
class Planted:
    """A fault on some ranks."""

    fault: Fault
    ranks: tuple[int, ...]

    @property
    def everywhere(self) -> bool:
        """Whether other ranks than those it shows on carry it too."""
        return self.fault.spread


class Injector:
    """What a run with planted faults is started with."""

    def __init__(self, folder: Path, library: Path, ranks: int) -> None:
        """Makes nothing yet.

        Args:
            folder: is made, and holds everything that is planted.
            library: package folder of the library to copy.
            ranks: of the run.
        """
        self.folder, self.library, self.ranks = folder, library, ranks

    def library_with(self, planted: Sequence[Planted]) -> Path:
        """A copy of the library that each rank takes its own faults from; the library itself where there are none."""
        by_rank: dict[int, list[Planted]] = {}
        for item in planted:
            plant = item.fault.plant
            if (isinstance(plant, Edit) and not plant.own) or isinstance(plant, Hook):
                for rank in range(self.ranks) if item.everywhere else item.ranks:
                    by_rank.setdefault(rank, []).append(item)
        if not by_rank:
            return self.library
        package = self.folder / PACKAGE
        _copy(self.library, package)
        for rank, items in by_rank.items():
            own = package / "_planted" / str(rank)
            _copy(self.library, own)
            for item in items:
                if isinstance(item.fault.plant, Edit):
                    edit = _fitting(item.fault.plant, own)
                    _edit(own / edit.file, edit)
            if hooks := _hooks(items):
                _append(own / HOOKED, WRAPPER.format(plants=hooks))
        _append(package / "__init__.py", CHOOSER.format(ranks={str(rank) for rank in by_rank}))
        return package

    def startup_with(self, planted: Sequence[Planted]) -> Path | None:
        """A folder for PYTHONPATH through which the processes of a rank plant what is not in the library, if any."""
        faults = {
            str(rank): item.fault.plant.name
            for item in planted
            if isinstance(item.fault.plant, Startup)
            for rank in item.ranks
        }
        modules = self._own_kernels(planted)
        if not faults and not modules:
            return None
        folder = self.folder / "startup"
        folder.mkdir(parents=True)
        text = SITECUSTOMIZE.format(folder=repr(str(folder)), faults=faults, modules=modules)
        (folder / "sitecustomize.py").write_text(text)
        return folder

    def candidates_with(self, planted: Sequence[Planted]) -> list[str]:
        """The options that name problems and candidates, one for each that is planted, if any, and the honest one."""
        kinds = [(item, item.fault.plant.kind) for item in planted if isinstance(item.fault.plant, Candidate)]
        if not kinds:
            return []
        from gpucheck.tools.selftest.planted_twins import twin_of

        files = {str(item.fault.case["check"]): (kind, item.ranks) for item, kind in kinds}
        folder, options = self.folder / "candidates", list[str]()
        folder.mkdir(parents=True)
        (folder / "problem.py").write_text(PROBLEM)
        kernels = Path(__file__).with_name("planted_candidates.py")
        shutil.copyfile(kernels, folder / kernels.name)
        for stem, (kind, ranks) in {**files, str(HONEST["check"]): ("Honest", ())}.items():
            cheating = {str(rank) for rank in ranks} or "()"
            text = CANDIDATE.format(kind=kind, ranks=cheating, twin=twin_of(kind))
            (folder / f"{stem}.py").write_text(text)
            options += ["--problem", str(folder / "problem.py"), "--candidate", str(folder / f"{stem}.py")]
        return options

    def _own_kernels(self, planted: Sequence[Planted]) -> dict[str, dict[str, str]]:
        """Module -> rank -> its private copy."""
        copies: dict[str, dict[str, str]] = {}
        for item in planted:
            plant = item.fault.plant
            for rank in item.ranks if isinstance(plant, Edit) and plant.own else ():
                assert isinstance(plant, Edit)
                original = _own_module(plant.file)
                copy = self.folder / "own" / str(rank) / original.name
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(original, copy)
                _edit(copy, plant)
                copies.setdefault(plant.file, {})[str(rank)] = str(copy)
        return copies


def reason_against(fault: Fault, library: Path) -> str:
    """Why a fault has no place in a copy of the library, or ""."""
    plant = fault.plant
    if isinstance(plant, Hook) and not (library / HOOKED).is_file():
        return f"this copy of the library has no {HOOKED}"
    if not isinstance(plant, Edit):
        return ""
    plant = _fitting(plant, library)
    path = _own_module(plant.file) if plant.own else library / plant.file
    if not path.is_file():
        return f"this copy of the library has no {plant.file}"
    count = path.read_text(encoding="utf-8").count(plant.anchor)
    return "" if count == 1 else f"{path.name} holds {count} times, not once: {plant.anchor.strip()}"


def write_scenario(path: Path, groups: Iterable[Mapping[str, Any]], **limits: float | str) -> None:
    """Writes a scenario of these ``[[cases]]`` tables."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in limits.items()]
    for group in groups:
        lines += ["", "[[cases]]", *(f"{key} = {json.dumps(value)}" for key, value in group.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _hooks(items: Sequence[Planted]) -> dict[int, tuple[str, str]]:
    return {
        item.fault.columns: (item.fault.plant.name, item.fault.plant.argument.replace("{rank}", str(item.ranks[0])))
        for item in items
        if isinstance(item.fault.plant, Hook)
    }


def _own_module(name: str) -> Path:
    package, _, module = name.rpartition(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)), f"{module}.py")


def _copy(package: Path, to: Path) -> None:
    shutil.copytree(package, to, ignore=shutil.ignore_patterns("__pycache__"))


def _fitting(edit: Edit, library: Path) -> Edit:
    """The edit that is made for this copy of the library."""
    while edit.elsewhere and not (library / edit.file).is_file():
        edit = edit.elsewhere
    return edit


def _edit(path: Path, edit: Edit) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(edit.anchor) == 1, f"{path} holds {text.count(edit.anchor)} times: {edit.anchor}"
    path.write_text(text.replace(edit.anchor, edit.text.replace("{anchor}", edit.anchor)), encoding="utf-8")


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
