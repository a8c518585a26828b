"""Kernel launches whose current device nobody has set to that of the tensors."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import hazard
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Module, Package

GUARDS = frozenset(
    {
        "torch.cuda.device",
        "torch.cuda.device_of",
        "torch.cuda._DeviceGuard",
        "torch.accelerator.device_index",
        "torch.xpu.device",
    }
)
SETTERS = frozenset({"torch.cuda.set_device", "torch.accelerator.set_device_index"})


def without_guard(package: Package) -> Iterator[Hazard]:
    """Host launches ``kernel[grid](...)`` that no device guard encloses, here or at every call of the function."""
    calls = callers_of(package)
    for module in package:
        for call in module.nodes(ast.Call):
            if not is_launch(package, module, call) or not package.runs_on_host(module, call):
                continue
            if not guarded(package, module, call, calls):
                kernel = _kernel_of(call)
                name = ast.unparse(kernel)
                yield hazard(module, call, Kind.NO_DEVICE_GUARD, f"launches {name} on whatever device is current")


def is_launch(package: Package, module: Module, call: ast.Call) -> bool:
    """Whether a call is ``kernel[grid](...)`` or ``kernel.run(..., grid=...)``."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "run":
        return any(keyword.arg == "grid" for keyword in call.keywords)
    if not isinstance(call.func, ast.Subscript):
        return False
    definition = package.definition(package.resolve(module, call.func.value))
    if definition:
        return package.is_kernel(*definition)
    grid = call.func.slice
    return isinstance(grid, (ast.Tuple, ast.Lambda)) or (isinstance(grid, ast.Name) and "grid" in grid.id.lower())


def _kernel_of(call: ast.Call) -> ast.expr:
    func = call.func
    assert isinstance(func, (ast.Subscript, ast.Attribute))
    return func.value


Calls = dict[str, list[tuple[Module, ast.Call]]]


def callers_of(package: Package) -> Calls:
    """The calls of each function of the package, by its full name."""
    calls: Calls = defaultdict(list)
    for module in package:
        for call in module.nodes(ast.Call):
            name = package.resolve(module, call.func)
            if name.startswith(f"{package.name}."):
                calls[name].append((module, call))
    return calls


def guarded(package: Package, module: Module, node: ast.AST, calls: Calls, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a guard encloses a node, there or at every call of the private function that holds it.

    Args:
        calls: of :func:`callers_of`.
        seen: functions whose calls are being looked at.
    """
    if _guarded_here(package, module, node):
        return True
    function = module.function_of(node)
    if function is None:
        return False
    name = f"{module.name}.{module.qualified(function)}"
    callers = calls.get(name, [])
    if not callers or name in seen or not function.name.startswith("_"):
        return False  # a public function is also called from outside
    return all(guarded(package, caller, call, calls, seen | {name}) for caller, call in callers)


def _guarded_here(package: Package, module: Module, node: ast.AST) -> bool:
    """Inside a ``with`` guard, a decorated guard, or after a call that sets the device in an enclosing block."""
    inner = node
    for outer in module.around(node):
        if isinstance(outer, (ast.With, ast.AsyncWith)) and any(
            package.resolve(module, item.context_expr) in GUARDS for item in outer.items
        ):
            return True
        if any(package.resolve(module, entry) in GUARDS for entry in getattr(outer, "decorator_list", [])):
            return True
        body = getattr(outer, "body", None)
        if isinstance(body, list) and inner in body:
            before = body[: body.index(inner)]
            if any(_sets_device(package, module, statement) for statement in before):
                return True
        inner = outer
    return False


def _sets_device(package: Package, module: Module, statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and package.resolve(module, statement.value.func) in SETTERS
    )
