"""What several detectors share."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Module


def hazard(module: Module, node: Any, kind: Kind, detail: str, **more: Any) -> Hazard:
    """A hazard at a node."""
    function = module.function_of(node)
    return Hazard(
        file=module.file,
        line=node.lineno,
        kind=kind,
        code=module.code(node.lineno),
        function=module.qualified(function) if function else "",
        detail=detail,
        **more,
    )


def assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """(target, value) pairs of a plain, annotated or augmented assignment."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        yield node.target, node.value


@lru_cache(maxsize=4096)  # detectors ask again and again, for each place in a function
def local_values(function: ast.AST) -> dict[str, list[ast.expr]]:
    """What each local name of a function is assigned; shared by all who ask, so nobody may change it."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        for target, value in assigned(node):
            if isinstance(target, ast.Name) and value is not None:
                values.setdefault(target.id, []).append(value)
    return values


def expand(expression: ast.expr, values: dict[str, list[ast.expr]]) -> list[ast.expr]:
    """An expression together with what the local names in it were assigned, repeatedly."""
    found, todo, seen = [expression], [expression], set()
    while todo:
        for node in ast.walk(todo.pop()):
            if isinstance(node, ast.Name) and node.id in values and node.id not in seen:
                seen.add(node.id)
                found += values[node.id]
                todo += values[node.id]
    return found


def walk_all(expressions: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes of several trees."""
    for expression in expressions:
        yield from ast.walk(expression)


def line_list(nodes: Iterable[Any]) -> tuple[int, ...]:
    """The lines of nodes, ascending, each once."""
    return tuple(sorted({node.lineno for node in nodes}))
