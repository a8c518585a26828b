"""Memory that is asked for on "cuda", or on one fixed GPU, and not where the inputs are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import assigned, hazard, local_values
from gpucheck.tools.audit.detectors.launches import callers_of, guarded
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Module, Package

CURRENT, FIXED = "whatever GPU is current", "one fixed GPU"

DEFAULTS = frozenset({"torch.set_default_device", "torch.set_default_tensor_type"})
NO_MEMORY = ("torch.cuda.", "torch.device", "torch.autocast", "torch.amp.", "torch.accelerator.")
"""Beginnings of the names of what takes a device and allocates nothing there."""


def unqualified(package: Package) -> Iterator[Hazard]:
    """Calls that allocate on the current or on a fixed GPU, outside of a guard for the device of some tensor."""
    callers = callers_of(package)
    for module in package:
        constants = {
            target.id: [value]
            for statement in module.tree.body
            for target, value in assigned(statement)
            if isinstance(target, ast.Name) and value is not None
        }
        for call in module.nodes(ast.Call):
            where = _asks_for(package, module, call, constants)
            if where and package.runs_on_host(module, call) and not guarded(package, module, call, callers):
                yield hazard(module, call, Kind.ALLOCATION, f"allocates on {where}", expression=ast.unparse(call.func))


def _asks_for(package: Package, module: Module, call: ast.Call, constants: dict[str, list[ast.expr]]) -> str:
    """Which GPU a call allocates on without regard for any tensor, in words; "" where it does no such thing."""
    name = package.resolve(module, call.func)
    if name.startswith("torch.cuda.") and name.endswith("Tensor"):
        return CURRENT
    given = _device_of(module, call, name)
    if given is None:
        return ""
    if isinstance(given, ast.Constant) and given.value is None:
        return CURRENT
    function = module.function_of(call)
    return _Names(package, module, {**constants, **(_known(function) if function else {})}).named(given)


def _device_of(module: Module, call: ast.Call, name: str) -> ast.expr | None:
    """The device that a call is told to allocate on; a constant None stands for the current GPU."""
    first = call.args[0] if call.args else None
    named = next((keyword.value for keyword in call.keywords if keyword.arg in ("device", "map_location")), None)
    if name in DEFAULTS:
        return named or first
    if name == "torch.device":  # makes a default of it where a ``with`` enters it
        outer = module.parents.get(call)
        return call if isinstance(outer, ast.withitem) and outer.context_expr is call else None
    if name.startswith(NO_MEMORY):
        return None
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "cuda":
        return named or first or ast.Constant(None)
    return named or (first if method == "to" else None)


def _known(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, list[ast.expr]]:
    """What the names of a function stand for: what they are assigned, and defaults of its arguments."""
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(zip(reversed([entry.arg for entry in plain]), reversed(arguments.defaults), strict=False))
    defaults |= {
        entry.arg: value for entry, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value
    }
    unset: dict[str, list[ast.expr]] = {entry.arg: [] for entry in [*plain, *arguments.kwonlyargs]}
    return {**unset, **{name: [value] for name, value in defaults.items()}, **local_values(function)}


class _Names:
    """Reads which GPU expressions mean, with what the names in them stand for."""

    def __init__(self, package: Package, module: Module, values: dict[str, list[ast.expr]]) -> None:
        self._package, self._module, self._values = package, module, values

    def named(self, device: ast.expr, seen: frozenset[str] = frozenset()) -> str:
        """The GPU that an expression means, in words; "" where it follows some tensor or argument."""
        if isinstance(device, ast.Name):
            held = self._values.get(device.id, []) if device.id not in seen else []
            return self._first(held, seen | {device.id})
        if isinstance(device, ast.IfExp):
            return self._first([device.body, device.orelse], seen)
        if isinstance(device, ast.BoolOp):
            return self._first(device.values, seen)
        if isinstance(device, ast.JoinedStr):
            inner = [part.value for part in device.values if isinstance(part, ast.FormattedValue)]
            return CURRENT if any(self._is_current(value) for value in inner) else ""
        if isinstance(device, ast.Constant):
            return _by_value(device.value)
        if isinstance(device, ast.Call):
            return self._made(device, seen)
        name = self._package.resolve(self._module, device)
        return CURRENT if name.startswith("torch.cuda.") and name.endswith("Tensor") else ""

    def _first(self, values: list[ast.expr], seen: frozenset[str]) -> str:
        return next((words for value in values if (words := self.named(value, seen))), "")

    def _made(self, call: ast.Call, seen: frozenset[str]) -> str:
        if self._is_current(call):
            return CURRENT
        if self._package.resolve(self._module, call.func) != "torch.device":
            return ""
        parts = {keyword.arg: keyword.value for keyword in call.keywords}
        kind, index = [*call.args, None, None][:2]
        kind, index = kind or parts.get("type") or parts.get("device"), index or parts.get("index")
        if index is not None and not (isinstance(index, ast.Constant) and index.value is None):
            return CURRENT if self._is_current(index) else FIXED if isinstance(index, ast.Constant) else ""
        return self.named(kind, seen) if kind is not None else ""

    def _is_current(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and self._package.resolve(self._module, node.func) == (
            "torch.cuda.current_device"
        )


def _by_value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return FIXED
    if not isinstance(value, str):
        return ""
    kind, _, index = value.partition(":")
    if kind in ("cuda", "hip"):
        return FIXED if index else CURRENT
    return CURRENT if value.startswith("torch.cuda.") else ""
