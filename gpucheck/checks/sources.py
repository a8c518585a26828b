"""Checks that are not gpucheck's own: found while planning, made from the same bytes wherever they run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module, metadata
from inspect import isabstract
from pathlib import Path
from types import ModuleType

from gpucheck.checks.base import Check
from gpucheck.checks.problem import Problem, stated_precision
from gpucheck.checks.source_files import module_of, read_as_planned, top_level
from gpucheck.model.case import CheckSpec
from gpucheck.model.check_source import CheckSource, PairOptions, SourceKind, source_of
from gpucheck.model.errors import UsageError, error_line

GROUP = "gpucheck.checks"
"""Entry points of packages that offer checks."""

PROBLEM_NAMES = ("Model", "get_inputs", "get_init_inputs")
MODULES = ("nn.Module", "torch.nn.Module", "Module")  # bases that have no forward of their own


def find(
    files: Sequence[str],
    problems: Sequence[str],
    candidates: Sequence[str],
    taken: Sequence[str],
    pair: PairOptions | None = None,
) -> tuple[list[CheckSource], list[CheckSource]]:
    """The sources that were asked for, and those that packages offer.

    Args:
        files: Python files with checks.
        problems: files with ``Model``, each for the candidate at the same place.
        candidates: files with ``ModelNew``.
        taken: names of gpucheck's own checks; a package's check of a name that is in use stays unknown.
        pair: what is asked of candidates beside their files.

    Raises:
        UsageError: a file that is none, or does not hold what it should, or a name that is used twice.
    """
    if len(problems) != len(candidates):
        raise UsageError(
            f"--problem is given {len(problems)} time(s) and --candidate {len(candidates)}: expected one candidate for "
            "each problem, in the same order"
        )
    found = [_file(Path(name)) for name in files]
    pairs = zip(problems, candidates, strict=True)
    found += [_pair(Path(problem), Path(candidate), pair or PairOptions()) for problem, candidate in pairs]
    seen = dict.fromkeys(taken, "gpucheck itself")
    for source in found:
        for name in source.checks:
            if name in seen:
                raise UsageError(f"{source.files[-1]} has a check named {name!r}, and so has {seen[name]}: rename one")
            seen[name] = source.files[-1]
    return found, [source for source in _offered() if source.checks[0] not in seen]


def make(source: CheckSource, name: str) -> Check:
    """The check ``name`` of a source.

    Raises:
        UsageError: a file is not what it was when the run was planned, or cannot be loaded.
    """
    if source.kind is SourceKind.PROBLEM:
        return Problem(name, source)
    if source.kind is SourceKind.ENTRY_POINT:
        read_as_planned(source, 0)
        return _made(_offered_class(source.target, name), source.files[0])
    return _made(_classes(module_of(source, 0))[name], source.files[0])


def _made(kind: type[Check], path: str) -> Check:
    try:
        return kind()
    except Exception as error:
        raise UsageError(f"{path}: {kind.__name__} cannot be made without arguments: {error_line(error)}") from error


def _file(path: Path) -> CheckSource:
    """A file with checks; running it tells their names."""
    source = source_of(SourceKind.FILE, (), (_python_file(path, "--check-file"),))
    names = tuple(_classes(module_of(source, 0)))
    if not names:
        raise UsageError(
            f"--check-file {path} holds no check: expected a class derived from gpucheck.checks.base.Check"
        )
    return replace(source, checks=names)


def _classes(module: ModuleType) -> dict[str, type[Check]]:
    """The checks that a module defines itself, by name."""
    found: dict[str, type[Check]] = {}
    for value in vars(module).values():
        if not isinstance(value, type) or not issubclass(value, Check) or value.__module__ != module.__name__:
            continue
        _require_whole(value, str(module.__file__))
        if value.spec.name in found:
            raise UsageError(f"{module.__file__} has two checks named {value.spec.name!r}: rename one")
        found[value.spec.name] = value
    return found


def _require_whole(kind: type[Check], where: str) -> None:
    """Raises UsageError where a class does not say all that a check must."""
    missing = sorted(kind.__abstractmethods__) if isabstract(kind) else []
    missing += [name for name in ("spec", "late_inputs") if not hasattr(kind, name)]
    if missing:
        raise UsageError(f"{where}: {kind.__name__} is not a complete check: it lacks {', '.join(missing)}")
    if not isinstance(kind.spec, CheckSpec):
        raise UsageError(f"{where}: {kind.__name__}.spec is a {type(kind.spec).__name__}, expected a CheckSpec")


def _pair(problem: Path, candidate: Path, options: PairOptions) -> CheckSource:
    """A problem and its candidate, after whose file the check is called; both are read, none is run."""
    for path, option, names in ((problem, "--problem", PROBLEM_NAMES), (candidate, "--candidate", ("ModelNew",))):
        bound = top_level(_python_file(path, option))
        missing = [name for name in names if name not in bound]
        if missing:
            raise UsageError(f"{option} {path} does not define {' and '.join(missing)}")
        _require_forward(bound[names[0]], f"{option} {path}")
    asked = replace(options, precision=options.precision or stated_precision(problem))
    return replace(source_of(SourceKind.PROBLEM, (candidate.stem,), (problem, candidate)), pair=asked)


def _python_file(path: Path, option: str) -> Path:
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file")
    return path


def _require_forward(model: ast.AST | None, where: str) -> None:
    """Raises UsageError where a class derived from torch's Module alone has no ``forward``."""
    if not isinstance(model, ast.ClassDef) or not {ast.unparse(base) for base in model.bases} <= {*MODULES}:
        return  # it may come from elsewhere
    names = {getattr(node, "name", "") for node in model.body}
    names |= {target.id for node in model.body for target in getattr(node, "targets", []) if hasattr(target, "id")}
    if "forward" not in names:
        raise UsageError(f"{where}: {model.name} has no forward")


def _offered() -> list[CheckSource]:
    """The checks of installed packages, none of which is imported."""
    sources = []
    for entry in metadata.entry_points(group=GROUP):
        path = _module_file(entry.value.partition(":")[0])
        if path is not None:
            sources.append(source_of(SourceKind.ENTRY_POINT, (entry.name,), (path,), entry.value))
    return sources


def _module_file(name: str) -> Path | None:
    """The file of a module, found without importing the packages it is in; None where there is none."""
    top, *inner = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin)
    if not inner:
        return base
    base = base.parent.joinpath(*inner)
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _offered_class(target: str, name: str) -> type[Check]:
    """The class that an entry point names.

    Raises:
        UsageError: it cannot be imported, is no check, or calls itself otherwise.
    """
    module, _, attribute = target.partition(":")
    where = f"the entry point {name} = {target} of {GROUP}"
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise UsageError(f"{where} cannot be loaded: {error_line(error)}") from error
    if not isinstance(found, type) or not issubclass(found, Check):
        raise UsageError(f"{where} is no class derived from gpucheck.checks.base.Check")
    if found.spec.name != name:
        raise UsageError(f"{where} is a check that calls itself {found.spec.name!r}: both names must be the same")
    return found
