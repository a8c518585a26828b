"""Caches of capabilities, kernels and buffers."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import assigned, expand, hazard, line_list, local_values, walk_all
from gpucheck.tools.audit.detectors.queries import QUERIES, TRITON_TARGETS, Asked, asks, find_helpers
from gpucheck.tools.audit.detectors.variables import Variable, instances, is_local, variables
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Function, Module, Package

MAKES_KERNELS = ("triton.jit", "triton.compile", "triton.runtime.jit.JITFunction", "types.ModuleType")
MEMO_DECORATORS = frozenset({"functools.lru_cache", "functools.cache"})
ALLOCATIONS = frozenset(
    f"torch.{name}"
    for name in ("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "empty_strided", "tensor", "arange")
)


def caches(package: Package) -> Iterator[Hazard]:
    """Dictionaries and memoised functions that keep capabilities, kernels or buffers."""
    helpers = find_helpers(package)
    kernel_classes: dict[str, str] = {}  # full name of a class -> its method that fills the cache
    for variable in variables(package):
        if not variable.writes or not (variable.is_container or variable.tested):
            continue
        kind = cache_kind(package, variable, helpers)
        if kind is None:
            continue
        if kind is Kind.KERNEL_CACHE and variable.owner:
            kernel_classes[f"{variable.module.name}.{variable.owner.name}"] = variable.writer.rpartition(".")[2]
        also = line_list(node for _, node, _, _ in variable.writes)
        detail = f"{variable.name} is filled without a device in the key"
        if kind is Kind.SCRATCH_CACHE:
            detail = f"{variable.name} keeps buffers" + (", every one that ever grew" if _appends(variable) else "")
        known = {"also": also, "expression": variable.expression, "filled_by": variable.writer}
        yield hazard(variable.module, variable.definition, kind, detail, **known)
    yield from _memoised(package, helpers)
    for module, statement, name, owner in instances(package):
        if owner in kernel_classes:
            detail = f"{name} holds such a cache ({owner.rpartition('.')[2]})"
            method = f"{name}.{kernel_classes[owner]}"
            yield hazard(module, statement, Kind.KERNEL_CACHE, detail, expression=name, filled_by=method)


def cache_kind(package: Package, variable: Variable, helpers: dict[str, Asked]) -> Kind | None:
    """What sort of hazard a variable is as a cache; None where what it keeps belongs to no device."""
    module = variable.module
    for function, _, key, value in variable.writes:
        if value is None or is_local(function, variable):
            continue
        values = local_values(function)
        stored = expand(value, values)
        names_device = key is not None and _names_device(expand(key, values))
        if _allocates(package, module, function, stored):
            return Kind.SCRATCH_CACHE if names_device or key is None else Kind.BUFFER_CACHE
        if names_device:
            continue
        called = [(node, package.resolve(module, node.func)) for node in walk_all(stored) if isinstance(node, ast.Call)]
        if any(
            asks(package, module, node) or name in helpers or name in QUERIES or name.endswith(TRITON_TARGETS)
            for node, name in called
        ):
            return Kind.CAPABILITY_CACHE
        if any(name in MAKES_KERNELS or _makes_kernels(package, name) for _, name in called):
            return Kind.KERNEL_CACHE
    return None


def _allocates(package: Package, module: Module, function: ast.AST, stored: list[ast.expr]) -> bool:
    """Whether what is stored is a buffer, or a function made here that keeps buffers."""
    names = {node.id for node in walk_all(stored) if isinstance(node, ast.Name)}
    inner = [node for node in ast.walk(function) if isinstance(node, Function) and node.name in names]
    for node in walk_all(stored):
        if isinstance(node, ast.Call) and package.resolve(module, node.func) in ALLOCATIONS:
            return True
    for node in walk_all(inner):
        if isinstance(node, ast.Call) and package.resolve(module, node.func) in ALLOCATIONS:
            parent = module.parents[node]
            kept = isinstance(parent, ast.Call) or any(
                isinstance(target, ast.Subscript) for target, _ in assigned(parent)
            )
            if kept:
                return True
    return False


def _names_device(key: list[ast.expr]) -> bool:
    for node in walk_all(key):
        name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None) or ""
        if "device" in name.lower():
            return True
    return False


def _makes_kernels(package: Package, name: str) -> bool:
    definition = package.definition(name)
    if definition is None or not isinstance(definition[1], Function):
        return False
    module, function = definition
    return any(
        isinstance(node, ast.Call) and package.resolve(module, node.func) in MAKES_KERNELS
        for node in ast.walk(function)
    )


def _memoised(package: Package, helpers: dict[str, Asked]) -> Iterator[Hazard]:
    """Functions under ``functools.cache`` whose answer depends on a device that is no argument."""
    for module in package:
        for function in module.functions():
            decorators = [package.resolve(module, entry) for entry in function.decorator_list]
            if not MEMO_DECORATORS.intersection(decorators) or _names_device([*ast.walk(function.args)]):  # type: ignore[list-item]
                continue
            called = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {package.resolve(module, node.func) for node in called}
            detail = f"{function.name} is memoised without a device among its arguments"
            if any(asks(package, module, node) for node in called) or any(name in helpers for name in names):
                yield hazard(module, function, Kind.CAPABILITY_CACHE, detail, expression=function.name)
            elif names.intersection(MAKES_KERNELS):
                yield hazard(module, function, Kind.KERNEL_CACHE, detail, expression=function.name)


def _appends(variable: Variable) -> bool:
    """Whether the functions that fill it add buffers to a list instead of replacing one."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("append", "extend")
        for function, _, _, _ in variable.writes
        for node in ast.walk(function)
    )
