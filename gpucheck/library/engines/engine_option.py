"""Which engines to test: reads ``--engine`` and finds them without importing one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpucheck.library.engines import MODULES, adapter_class
from gpucheck.library.engines.engine_copy import EngineCopy, engine_in, installed_engines
from gpucheck.library.library_option import Source, SourceKind, parse_source
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.model.plan import PlannedEngine

FORMS = """\
  installed      the engines of this Python, as without the option
  none           no engine
  path:DIR       a folder that holds an engine's package
  NAME==VERSION  the text files of a public wheel, for example vllm==0.33.0"""


@dataclass(frozen=True)
class EngineSource:
    """Where an engine is to be taken from; its text repeats the option."""

    text: str
    path: Path | None = None  # path:DIR
    release: tuple[str, str] | None = None  # NAME==VERSION


def parse_engines(texts: Sequence[str]) -> list[EngineSource]:
    """Reads the values of ``--engine``.

    Raises:
        UsageError: one has none of the forms, or two name the same engine.
    """
    from gpucheck.library.cache import split_requirement

    sources = []
    for text in texts:
        kind, colon, rest = text.strip().partition(":")
        requirement = split_requirement(text.strip())
        if kind in ("installed", "none") and not colon:
            sources.append(EngineSource(kind))
        elif kind == "path" and rest.strip():
            path = Path(os.path.abspath(os.path.expanduser(rest.strip())))
            sources.append(EngineSource(f"path:{path}", path=path))
        elif requirement and requirement[0].lower() in MODULES:
            name, version = requirement[0].lower(), requirement[1]
            sources.append(EngineSource(f"{name}=={version}", release=(name, version)))
        elif requirement:
            raise UsageError(f"--engine {text!r}: no engine is called so; known are {', '.join(MODULES)}")
        else:
            raise UsageError(f"--engine {text!r} is not understood; expected one of\n{FORMS}")
    if len(sources) > 1 and any(source.text == "none" for source in sources):
        raise UsageError("--engine none goes with no other --engine")
    return sources


def resolve_engines(sources: Sequence[EngineSource]) -> list[EngineCopy]:
    """The engines that the sources name; without any, those that are installed.

    Raises:
        UsageError: no such folder or release, or two sources name one engine.
        InfrastructureError: ``installed`` is asked for and none is, or a wheel or its packages cannot be had.
    """
    if not sources:
        return installed_engines()
    found: list[EngineCopy] = []
    for source in sources:
        found += _resolved(source)
    names = [copy.name for copy in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"--engine names {twice} more than once; a run tests one copy of an engine")
    return found


def named_engines(sources: Sequence[EngineSource]) -> set[str]:
    """The names of the engines that the sources give; nothing is fetched.

    Raises:
        UsageError: a path names none.
    """
    if not sources:
        return {copy.name for copy in installed_engines()}
    names = {source.release[0] for source in sources if source.release}
    names |= {_found_in(source.path)[0] for source in sources if source.path}
    if any(source.text == "installed" for source in sources):
        names |= {copy.name for copy in installed_engines()}
    return names


def served_with(source: Source, engines: Sequence[EngineCopy]) -> tuple[Source, str]:
    """The library that an engine is served with, where neither ``--library`` names one nor an engine is installed.

    Returns:
        Where to take the library from, and of which release it then is; "" where ``source`` stays.
    """
    if source.kind is SourceKind.DEFAULT:
        for copy in engines:
            own = "" if copy.installed else adapter_class(copy.name).own_library(copy.root)
            if own:
                return parse_source(own), copy.words if own.startswith("path:") else ""
    return source, ""


def found_again(planned: PlannedEngine) -> PlannedEngine:
    """The engine of a stored run, as it is to be had now.

    Raises:
        InfrastructureError: it is not the one that the run had, or no longer found.
    """
    name, version = planned["name"], planned["version"]
    needed = Path(planned["root"], name, adapter_class(name).needed_file)
    if planned["installed"]:
        here = next((copy for copy in installed_engines() if copy.name == name), None)
        if here and here.version == version:
            return here.planned()
        found = f"{here.words} is installed" if here else "none is installed"
        raise InfrastructureError(f"the run had {name} {version} installed, {found} here; install that one")
    if planned["origin"].endswith(".whl"):
        from gpucheck.library.engines.engine_fetch import fetch_engine

        return fetch_engine(name, version).planned()
    if not needed.is_file():
        raise InfrastructureError(f"the engine of the run is no longer there: no {needed}; put it back, or run anew")
    return planned


def _resolved(source: EngineSource) -> list[EngineCopy]:
    if source.release:
        from gpucheck.library.engines.engine_fetch import fetch_engine

        return [fetch_engine(*source.release)]
    if source.path:
        return [_in_folder(source.path)]
    if source.text == "none":
        return []
    found = installed_engines()
    if not found:
        raise InfrastructureError(
            "no engine is installed in this Python.\n"
            f"  looked for  {', '.join(MODULES)}\n"
            "  try         --engine vllm==0.33.0, or --engine path:DIR"
        )
    return found


def _in_folder(path: Path) -> EngineCopy:
    from gpucheck.library.engines.engine_packages import packages_for

    name, version, folder = _found_in(path)
    return EngineCopy(name, version, folder, "path", packages_for(name, folder))


def _found_in(path: Path) -> tuple[str, str, Path]:
    """Name, version and holding folder of the engine that an option's path names."""
    if not path.is_dir():
        raise UsageError(f"--engine path:{path}: there is no such folder")
    if engine := _engine_at(path):
        return engine
    raise UsageError(
        f"--engine path:{path}: no engine there that gpucheck can call.\n"
        f"  expected  a folder that holds {' or '.join(MODULES)}, or that package itself"
    )


def _engine_at(path: Path) -> tuple[str, str, Path] | None:
    """Name, version and holding folder of the engine meant by a path: that of its package, of a checkout, or above."""
    for folder in (path, path.parent, path / "python"):
        engine = engine_in(folder)
        if engine and (folder != path.parent or path.name == engine[0]):
            return *engine, folder
    return None
