"""Single statements that change the state of the whole process or lean on its environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from gpucheck.tools.audit.detectors.common import assigned, hazard
from gpucheck.tools.audit.hazard import Hazard, Kind
from gpucheck.tools.audit.package import Module, Package

SETS_ALLOCATOR = frozenset(
    {
        "triton.set_allocator",
        "triton.runtime.set_allocator",
        "triton.runtime._allocation.set_allocator",
        "torch.cuda.memory.change_current_allocator",
    }
)
RESETS_RNG = frozenset(
    {
        "torch.manual_seed",
        "torch.seed",
        "torch.random.manual_seed",
        "torch.set_rng_state",
        "torch.cuda.manual_seed",
        "torch.cuda.manual_seed_all",
        "torch.cuda.set_rng_state",
        "numpy.random.seed",
        "random.seed",
    }
)
PLACES_A_PROCESS = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "LOCAL_RANK",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
    }
)
"""Variables that say which GPUs a process may use, or which of the processes it is."""


def module_registration(package: Package) -> Iterator[Hazard]:
    """``sys.modules[name] = module`` and calls that do the same."""
    for module in package:
        for node in module.nodes(ast.Assign):
            for target, _ in assigned(node):
                if isinstance(target, ast.Subscript) and package.resolve(module, target.value) == "sys.modules":
                    yield _registration(module, node)
        for call in module.nodes(ast.Call):
            if package.resolve(module, call.func) in ("sys.modules.setdefault", "sys.modules.update"):
                yield _registration(module, call)


def _registration(module: Module, node: ast.AST) -> Hazard:
    return hazard(module, node, Kind.MODULE_REGISTRATION, "a module enters sys.modules at run time")


def allocator(package: Package) -> Iterator[Hazard]:
    """Calls that replace the allocator."""
    for module, call, name in _named_calls(package, SETS_ALLOCATOR):
        yield hazard(module, call, Kind.ALLOCATOR, f"{name} inside a call", expression=ast.unparse(call.func))


def global_rng(package: Package) -> Iterator[Hazard]:
    """Calls that reset a generator of the whole process."""
    for module, call, name in _named_calls(package, RESETS_RNG):
        yield hazard(module, call, Kind.GLOBAL_RNG, name, expression=ast.unparse(call))


def _named_calls(package: Package, names: frozenset[str]) -> Iterator[tuple[Module, ast.Call, str]]:
    for module in package:
        for call in module.nodes(ast.Call):
            name = package.resolve(module, call.func)
            if name in names:
                yield module, call, name


def environment(package: Package) -> Iterator[Hazard]:
    """Statements that read or set a variable which places a process on GPUs; tests for its presence do not count."""
    for module in package:
        for constant in module.nodes(ast.Constant):
            if constant.value not in PLACES_A_PROCESS:
                continue
            use = module.parents[constant]
            if reads_or_sets(package, module, use):
                yield hazard(module, constant, Kind.ENVIRONMENT, f"depends on {constant.value}")


def reads_or_sets(package: Package, module: Module, use: ast.AST) -> bool:
    """Whether a call or subscript gets at an environment variable."""
    if isinstance(use, ast.Call):
        return package.resolve(module, use.func) in (
            "os.getenv",
            "os.putenv",
            "os.environ.get",
            "os.environ.setdefault",
        )
    return isinstance(use, ast.Subscript) and package.resolve(module, use.value) == "os.environ"
