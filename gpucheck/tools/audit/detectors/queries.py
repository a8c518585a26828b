"""Questions about a device that do not name the tensors' device, and the host code that uses their answers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum

from gpucheck.tools.audit.detectors.common import hazard, local_values
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Function, Module, Package

QUERIES = frozenset(
    f"torch.cuda.{name}"
    for name in ("get_device_properties", "get_device_capability", "get_device_name", "mem_get_info")
)
TRITON_QUERY = ".utils.get_device_properties"
TRITON_TARGETS = (".get_current_target", "triton.language.target_info.current_target")
TRITON_HELPERS = "triton.language.target_info."
BACKEND_ONLY = frozenset({"is_cuda", "is_hip", "current_target"})  # the same for every device of a process

HELPER_STATEMENTS = 15  # a longer function does more than answer a question


class Asked(Enum):
    """Whom a question about a device is put to."""

    FIXED = Kind.FIXED_DEVICE
    CURRENT = Kind.CURRENT_DEVICE


def fixed_and_current_device(package: Package) -> Iterator[Hazard]:
    """Questions put to a fixed or the current device, and host calls of helpers that put them."""
    helpers = find_helpers(package)
    for module in package:
        for call in module.nodes(ast.Call):
            if not package.runs_on_host(module, call):
                continue
            asked = asks(package, module, call)
            if asked:
                whom = "one fixed device" if asked is Asked.FIXED else "the current device"
                yield hazard(module, call, asked.value, f"asks {whom}", expression=ast.unparse(call))
                continue
            name = package.resolve(module, call.func)
            if name in helpers and not _in_helper(module, call, helpers):
                kind = Kind.FIXED_DEVICE_USER if helpers[name] is Asked.FIXED else Kind.CURRENT_DEVICE
                short = name.rpartition(".")[2]
                yield hazard(module, call, kind, f"{short}() asks without a device", expression=ast.unparse(call))


def asks(package: Package, module: Module, call: ast.Call) -> Asked | None:
    """Whom a call itself asks; None where it asks for a device the code names, or nothing about a device."""
    name = package.resolve(module, call.func)
    if name.endswith(TRITON_TARGETS):
        return Asked.CURRENT if _reads_arch(module, call) else None
    if name not in QUERIES and not name.endswith(TRITON_QUERY):
        return None
    given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg in ("device", "device_id"))]
    return _named(package, module, given[0]) if given else Asked.CURRENT


def find_helpers(package: Package) -> dict[str, Asked]:
    """Functions that answer a question about a device without an argument that says which, by full name."""
    candidates = [
        (f"{module.name}.{name}", module, function)
        for module in package
        for name, function in module.top.items()
        if isinstance(function, Function) and _is_question(function)
    ]
    helpers = _TritonHelpers()
    changed = True
    while changed:
        changed = False
        for name, module, function in candidates:
            if dict.__contains__(helpers, name):
                continue
            answer = _answer(package, module, function, helpers)
            if answer and _only_compared(package, module, function, helpers):
                helpers[name] = answer
                changed = True
    return helpers


class _TritonHelpers(dict[str, Asked]):
    """Helpers of the package, and Triton's own, which ask its current target."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or _is_triton_helper(str(name))

    def __missing__(self, name: str) -> Asked:
        return Asked.CURRENT


def _is_triton_helper(name: str) -> bool:
    return name.startswith(TRITON_HELPERS) and name[len(TRITON_HELPERS) :] not in BACKEND_ONLY


def _named(package: Package, module: Module, device: ast.expr) -> Asked | None:
    """Whom a device argument means."""
    if isinstance(device, ast.Constant):
        if device.value is None or device.value == "cuda":
            return Asked.CURRENT
        return Asked.FIXED
    if isinstance(device, ast.Call):
        name = package.resolve(module, device.func)
        if name == "torch.cuda.current_device" or name.endswith(".get_current_device"):
            return Asked.CURRENT
        if name == "torch.device" and device.args and all(isinstance(entry, ast.Constant) for entry in device.args):
            return Asked.CURRENT if [entry.value for entry in device.args] == ["cuda"] else Asked.FIXED  # type: ignore[attr-defined]
    return None


def _reads_arch(module: Module, call: ast.Call) -> bool:
    """Whether the architecture of a target is read; its backend is the same for every device."""
    parent = module.parents.get(call)
    if isinstance(parent, ast.Attribute):
        return parent.attr == "arch"
    function = module.function_of(call)
    if function is None:
        return False
    held = {name for name, values in local_values(function).items() if call in values}
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == "arch"
        and isinstance(node.value, ast.Name)
        and node.value.id in held
        for node in ast.walk(function)
    )


def _is_question(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    nodes = list(ast.walk(function))
    returns = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    return returns and sum(isinstance(node, ast.stmt) for node in nodes) <= HELPER_STATEMENTS + 1


def _answer(package: Package, module: Module, function: ast.AST, helpers: dict[str, Asked]) -> Asked | None:
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            asked = asks(package, module, node)
            name = package.resolve(module, node.func)
            if asked or name in helpers:
                return asked or helpers[name]
    return None


def _only_compared(
    package: Package, module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, helpers: dict[str, Asked]
) -> bool:
    """Whether parameters are only what an answer is compared with, as in ``capability >= (major, minor)``."""
    arguments = function.args
    names = {entry.arg for entry in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    for node in ast.walk(function):
        if not (isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load)):
            continue
        inner: ast.AST = node
        outer = module.parents[node]
        while isinstance(outer, (ast.Tuple, ast.List, ast.BinOp)):
            inner, outer = outer, module.parents[outer]
        compared = isinstance(outer, ast.Compare)
        passed = isinstance(outer, ast.Call) and inner in outer.args and package.resolve(module, outer.func) in helpers
        if not compared and not passed:
            return False
    return True


def _in_helper(module: Module, call: ast.Call, helpers: dict[str, Asked]) -> bool:
    function = module.function_of(call)
    return function is not None and f"{module.name}.{module.qualified(function)}" in helpers
