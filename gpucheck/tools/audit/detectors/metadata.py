"""Functions that Triton calls at a launch when a hook is set, and what they wait for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import hazard, local_values
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Function, Module, Package

WAITING_METHODS = frozenset({"item", "tolist", "cpu", "numpy"})
REDUCTIONS = frozenset({"sum", "mean", "max", "min", "any", "all", "prod", "amax", "amin", "count_nonzero"})
CONVERSIONS = frozenset({"int", "float", "bool"})

Place = tuple[Module, "ast.FunctionDef | ast.AsyncFunctionDef"]


def metadata_functions(package: Package) -> list[Place]:
    """Functions given as ``launch_metadata=`` to a kernel, and the package's functions that they call."""
    found: dict[str, Place] = {}
    todo = [
        package.resolve(module, keyword.value)
        for module in package
        for keyword in module.nodes(ast.keyword)
        if keyword.arg == "launch_metadata"
    ]
    while todo:
        name = todo.pop()
        definition = package.definition(name)
        if name in found or definition is None:
            continue
        module, function = definition
        if not isinstance(function, Function) or package.is_kernel(module, function):
            continue
        found[name] = module, function
        todo += [package.resolve(module, node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    return list(found.values())


def synchronising(package: Package) -> Iterator[Hazard]:
    """Values read from the device inside launch metadata."""
    for module, function in metadata_functions(package):
        values = local_values(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _waits(node, values):
                yield hazard(module, node, Kind.METADATA_SYNC, "reads a value of the device on the host")


def _waits(call: ast.Call, values: dict[str, list[ast.expr]]) -> bool:
    if _reads_host_value(call):
        return isinstance(call.func, ast.Attribute) or any(_on_device(entry, values, set()) for entry in call.args)
    return False


def _reads_host_value(node: ast.AST) -> bool:
    """Whether a call gives a value on the host: ``x.item()``, ``int(x)``."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in WAITING_METHODS and not node.args
    return isinstance(node.func, ast.Name) and node.func.id in CONVERSIONS and len(node.args) == 1


def _on_device(node: ast.AST, values: dict[str, list[ast.expr]], seen: set[str]) -> bool:
    """Whether an expression may hold a value that is still on the device: a reduction not yet read."""
    if _reads_host_value(node):
        return False
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REDUCTIONS:
        return True
    if isinstance(node, ast.Name):
        if node.id in seen:
            return False
        return any(_on_device(value, values, seen | {node.id}) for value in values.get(node.id, []))
    return any(_on_device(child, values, seen) for child in ast.iter_child_nodes(node))
