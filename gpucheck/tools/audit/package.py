"""The source of a package, parsed, with its names resolved over module borders. Nothing is imported."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from gpucheck.model.errors import InfrastructureError

Function = (ast.FunctionDef, ast.AsyncFunctionDef)
Node = TypeVar("Node", bound=ast.AST)

KERNEL_DECORATORS = frozenset({"triton.jit", "triton.runtime.jit.jit", "triton.experimental.gluon.jit"})


class Module:
    """One parsed file: its nodes by type, their parents, and what its names stand for."""

    def __init__(self, name: str, file: str, text: str, *, is_package: bool) -> None:
        self.name = name  # dotted
        self.file = file  # relative to the package, POSIX
        self.lines = text.splitlines()
        self.tree = ast.parse(text, file)
        self.is_package = is_package
        self.parents: dict[ast.AST, ast.AST] = {}
        self._nodes: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        for node in ast.walk(self.tree):
            self._nodes[type(node)].append(node)
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
        self.names = dict(self._imports())
        self.top: dict[str, ast.stmt] = {  # functions and classes of the module's own level
            node.name: node for node in self.tree.body if isinstance(node, (*Function, ast.ClassDef))
        }

    def nodes(self, kind: type[Node]) -> list[Node]:
        """All nodes of exactly this type."""
        return self._nodes.get(kind, [])  # type: ignore[return-value]

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions, also nested ones and methods."""
        yield from self.nodes(ast.FunctionDef)
        yield from self.nodes(ast.AsyncFunctionDef)

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes that enclose ``node``, innermost first."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def function_of(self, node: ast.AST) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """The innermost function whose body holds ``node``; its decorators and defaults belong to the outside."""
        inner = node
        for outer in self.around(node):
            if isinstance(outer, Function) and inner in outer.body:
                return outer
            inner = outer
        return None

    def qualified(self, node: ast.AST) -> str:
        """Dotted name, within the module, of the function or class around (or at) ``node``."""
        scopes = [node, *self.around(node)]
        return ".".join(scope.name for scope in reversed(scopes) if isinstance(scope, (*Function, ast.ClassDef)))

    def code(self, line: int) -> str:
        """The text of a line."""
        return self.lines[line - 1].strip()

    def _imports(self) -> Iterator[tuple[str, str]]:
        for node in self.nodes(ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        for source in self.nodes(ast.ImportFrom):
            base = self._absolute(source)
            for alias in source.names:
                yield alias.asname or alias.name, f"{base}.{alias.name}"

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, node.module] if node.module else parts)


class Package:
    """All modules of a package folder."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            module = _parse(folder, path)
            self.modules[module.name] = module

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules.values())

    def resolve(self, module: Module, node: ast.AST) -> str:
        """Full dotted name of what a name or attribute chain means, imports followed; "" for other expressions.

        A call inside the chain is passed through: ``f().x`` is ``f.x``.
        """
        chain: list[str] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                chain.append(node.attr)
                node = node.value
            elif isinstance(node, ast.Call):
                node = node.func
            else:
                return ""
        first = module.names.get(node.id) or (f"{module.name}.{node.id}" if node.id in module.top else node.id)
        return self.canonical(".".join([first, *reversed(chain)]))

    def canonical(self, dotted: str) -> str:
        """Follows names that a module of the package has only imported."""
        for _ in range(8):
            owner, rest = self._split(dotted)
            if owner is None or not rest or rest[0] not in owner.names or rest[0] in owner.top:
                return dotted
            target = ".".join([owner.names[rest[0]], *rest[1:]])
            if target == dotted:
                return dotted
            dotted = target
        return dotted

    def definition(self, dotted: str) -> tuple[Module, ast.stmt] | None:
        """The function or class of the package that a full name means."""
        owner, rest = self._split(dotted)
        if owner is None or len(rest) != 1 or rest[0] not in owner.top:
            return None
        return owner, owner.top[rest[0]]

    def is_kernel(self, module: Module, function: ast.AST) -> bool:
        """Whether a function is compiled by Triton."""
        return any(name in KERNEL_DECORATORS for name in self._decorators(module, function))

    def runs_on_host(self, module: Module, node: ast.AST) -> bool:
        """False inside kernels and functions that Triton evaluates while it compiles."""
        for outer in (node, *module.around(node)):
            for name in self._decorators(module, outer):
                if name in KERNEL_DECORATORS or name.endswith(".constexpr_function"):
                    return False
        return True

    def _decorators(self, module: Module, node: ast.AST) -> list[str]:
        return [self.resolve(module, entry) for entry in getattr(node, "decorator_list", [])]

    def _split(self, dotted: str) -> tuple[Module | None, list[str]]:
        """The longest prefix that is a module of the package, and what follows."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = self.modules.get(".".join(parts[:length]))
            if module:
                return module, parts[length:]
        return None, parts


def _parse(folder: Path, path: Path) -> Module:
    relative = path.relative_to(folder)
    parts = [folder.name, *relative.with_suffix("").parts]
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    try:
        return Module(name, relative.as_posix(), path.read_text(encoding="utf-8"), is_package=is_package)
    except (SyntaxError, ValueError) as error:
        raise InfrastructureError(f"cannot parse {path} of the library: {error}") from error
    except OSError as error:
        raise InfrastructureError(f"cannot read {path} of the library: {error.strerror}") from error
