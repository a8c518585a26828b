"""Options and objects that all devices of a process share."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.caches import cache_kind
from gpucheck.tools.audit.detectors.common import hazard, line_list
from gpucheck.tools.audit.detectors.metadata import metadata_functions
from gpucheck.tools.audit.detectors.queries import find_helpers
from gpucheck.tools.audit.detectors.variables import Variable, instances, variables
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Function, Package


def options(package: Package) -> Iterator[Hazard]:
    """Module variables that functions set, and context variables."""
    helpers = find_helpers(package)
    in_metadata = {
        package.resolve(module, node.func)
        for module, function in metadata_functions(package)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
    }
    for variable in variables(package):
        if variable.owner:
            continue
        is_context = isinstance(variable.value, ast.Call) and (
            package.resolve(variable.module, variable.value.func) == "contextvars.ContextVar"
        )
        also = line_list([*variable.changes, *(node for _, node, _, _ in variable.writes)])
        if is_context:
            detail = f"{variable.name} is a context variable: one value for all devices, none in other threads"
            yield _option(variable, Kind.PROCESS_OPTION, detail, also)
        elif _is_option(variable) and not cache_kind(package, variable, helpers):
            readers = {f"{variable.module.name}.{name}" for name in _functions_that_read(variable)}
            kind = Kind.METADATA_SWITCH if readers & in_metadata else Kind.PROCESS_OPTION
            yield _option(variable, kind, f"{variable.name} is set by functions for the whole process", also)


def singletons(package: Package) -> Iterator[Hazard]:
    """Module-level objects of classes that hold distributed state."""
    for module, statement, name, owner in instances(package):
        definition = package.definition(owner)
        assert definition is not None
        home, body = definition
        if any(
            isinstance(node, (ast.Name, ast.Attribute)) and package.resolve(home, node).startswith("torch.distributed.")
            for part in getattr(body, "body", [])
            for node in ast.walk(part)
        ):
            detail = f"{name} is made once, on import"
            yield hazard(module, statement, Kind.DISTRIBUTED_SINGLETON, detail, expression=name)


def _option(variable: Variable, kind: Kind, detail: str, also: tuple[int, ...]) -> Hazard:
    return hazard(variable.module, variable.definition, kind, detail, also=also, expression=variable.name)


def _is_option(variable: Variable) -> bool:
    """Whether functions set it; a pure memo, looked up and then filled, is none."""
    if variable.changes or any(key is None for _, _, key, _ in variable.writes):
        return True
    return any(isinstance(key, ast.Constant) and isinstance(key.value, str) for _, _, key, _ in variable.writes)


def _functions_that_read(variable: Variable) -> set[str]:
    module = variable.module
    return {
        name
        for name, function in module.top.items()
        if isinstance(function, Function)
        and any(
            isinstance(node, ast.Name) and node.id == variable.name and isinstance(node.ctx, ast.Load)
            for node in ast.walk(function)
        )
    }
