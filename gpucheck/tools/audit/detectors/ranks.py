"""The global rank as the number of a GPU: right on the first node only, where it is the local one as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import assigned, expand, hazard, line_list, local_values, walk_all
from gpucheck.tools.audit.detectors.launches import SETTERS
from gpucheck.tools.audit.detectors.process_state import reads_or_sets
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Function, Module, Package

RANKS = frozenset({"torch.distributed.get_rank", "torch.distributed.distributed_c10d.get_rank"})
PLACES = SETTERS | {"torch.device", "torch.cuda.device", "torch.cuda.get_device_properties"}


def global_rank(package: Package) -> Iterator[Hazard]:
    """Reads of the global rank from which a device is made, in the same function or by way of a name or a helper."""
    helpers = {
        f"{module.name}.{name}"
        for module in package
        for name, function in module.top.items()
        if isinstance(function, Function) and _returns_rank(package, module, function)
    }
    for module in package:
        constants = _constants(module)
        users: dict[ast.expr, list[ast.expr]] = {}
        for device in _devices(package, module):
            function = module.function_of(device)
            values = {**constants, **(local_values(function) if function else {})}
            parts = list(walk_all(expand(device, values)))
            if any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) and _counts(part) for part in parts):
                continue  # the rank within a node is made of it
            for part in parts:
                if _is_rank(package, module, part, helpers):
                    assert isinstance(part, ast.expr)
                    users.setdefault(part, []).append(device)
        for source, devices in users.items():
            detail = "the global rank becomes the number of a GPU"
            yield hazard(module, source, Kind.GLOBAL_RANK, detail, also=line_list(devices))


def _constants(module: Module) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for statement in module.tree.body:
        for target, value in assigned(statement):
            if isinstance(target, ast.Name) and value is not None:
                found.setdefault(target.id, []).append(value)
    return found


def _devices(package: Package, module: Module) -> Iterator[ast.expr]:
    """Expressions that name a GPU: arguments of what takes one, and text that begins with "cuda:"."""
    for call in module.nodes(ast.Call):
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        if package.resolve(module, call.func) in PLACES or method in ("cuda", "to"):
            yield from call.args
        yield from (keyword.value for keyword in call.keywords if keyword.arg in ("device", "index", "device_id"))
    for text in module.nodes(ast.JoinedStr):
        first = text.values[0] if text.values else None
        if isinstance(first, ast.Constant) and str(first.value).startswith("cuda:"):
            yield text
    for formula in module.nodes(ast.BinOp):  # "cuda:" + str(rank), "cuda:%d" % rank
        if isinstance(formula.left, ast.Constant) and str(formula.left.value).startswith("cuda:"):
            yield formula.right


def _is_rank(package: Package, module: Module, node: ast.AST, helpers: set[str] | frozenset[str]) -> bool:
    if isinstance(node, ast.Call):
        name = package.resolve(module, node.func)
        of_world = name in RANKS and not node.args and not node.keywords
        return of_world or name in helpers or _reads(package, module, node, node.args[:1])
    return isinstance(node, ast.Subscript) and _reads(package, module, node, [node.slice])


def _reads(package: Package, module: Module, use: ast.AST, named: list[ast.expr]) -> bool:
    variable = named[0] if named else None
    return isinstance(variable, ast.Constant) and variable.value == "RANK" and reads_or_sets(package, module, use)


def _returns_rank(package: Package, module: Module, function: ast.AST) -> bool:
    values = local_values(function)
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    parts = [part for value in returned for part in walk_all(expand(value, values))]
    reduced = any(isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) for part in parts)
    return not reduced and any(_is_rank(package, module, part, frozenset()) for part in parts)


def _counts(formula: ast.BinOp) -> bool:
    """Whether a remainder is one of numbers and not a text that is filled in."""
    return not (isinstance(formula.left, ast.Constant) and isinstance(formula.left.value, str))
