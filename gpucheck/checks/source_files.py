"""The files that checks come from: read, held against their planned hashes, and run as modules once a process."""

from __future__ import annotations

import ast
import importlib.util
import sys
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from gpucheck.model.check_source import CheckSource, content_hash
from gpucheck.model.errors import UsageError, error_line

_lock = threading.RLock()  # two threads of a process may ask for the same module
_modules: dict[tuple[str, str], ModuleType] = {}


def module_of(source: CheckSource, number: int) -> ModuleType:
    """The module of one of a source's files, executed once per process from the bytes that were planned.

    Raises:
        UsageError: the file is not what it was, or raises when it is executed.
    """
    content = read_as_planned(source, number)
    return _module(source.files[number], source.hashes[number], content)


def read_as_planned(source: CheckSource, number: int) -> bytes:
    """The content of one of a source's files.

    Raises:
        UsageError: it is not what it was when the run was planned.
    """
    path = source.files[number]
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}, where a check comes from, cannot be read: {error.strerror}") from None
    if content_hash(content) != source.hashes[number]:
        raise UsageError(
            f"{path} changed since the run was planned: its SHA-256 was {source.hashes[number][:12]}, is "
            f"{content_hash(content)[:12]}; start a new run"
        )
    return content


def _module(path: str, planned: str, content: bytes) -> ModuleType:
    """Runs a file as a module, once; its neighbours can be imported by name."""
    with _lock:
        if (path, planned) not in _modules:
            _modules[path, planned] = _executed(path, f"gpucheck_{Path(path).stem}_{planned[:8]}", content)
        return _modules[path, planned]


def _executed(path: str, name: str, content: bytes) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, path, loader=SourceFileLoader(name, path)
    )  # whatever its suffix
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{path} cannot be loaded: {error_line(error)}") from error
    return module


def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a Python file.

    Raises:
        UsageError: the file is not Python.
    """
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is not Python: {error_line(error)}") from None


def top_level(path: Path) -> dict[str, ast.AST | None]:
    """The names that a Python file binds outside of functions and classes, with the value or class where it shows.

    Raises:
        UsageError: the file is not Python.
    """
    bound: dict[str, ast.AST | None] = {}
    nodes: list[ast.AST] = list(tree_of(path).body)
    for node in nodes:  # grows by what stands in branches
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            bound[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update({alias.asname or alias.name: None for alias in node.names})
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound.update({target.id: node.value for target in targets if isinstance(target, ast.Name)})
        elif isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            nodes += ast.iter_child_nodes(node)
    return bound
