"""The kernels that a candidate's source declares as its own, read and not run.

A candidate may be plain torch code: that is no fallback. One that declares kernels and does not launch them is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpucheck.checks.source_files import tree_of

DEVICE_FUNCTION = re.compile(
    r"__global__\s+(?:__\w+__(?:\s*\([^()]*\))?\s+|static\s+|inline\s+|void\s+)*?void\s+"
    r"(?:__\w+__\s*\([^()]*\)\s*)*([A-Za-z_]\w*)\s*\("
)
"""A kernel in CUDA or HIP source, with its name."""
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
TRITON = ("jit", "autotune", "heuristics")
BUILDERS = ("load_inline", "load", "cpp_extension", "CUDAExtension", "RawKernel", "RawModule", "SourceModule")
OTHER_LANGUAGES = ("tilelang", "cutlass", "cupy", "numba", "pycuda", "cuda", "warp", "hidet", "tvm")
"""Packages whose kernels do not say their names in the source."""
OF_TORCH = re.compile(r"\bat::|cublas|cudnn|cutlass|nvjet|xmma|gemm|cub::|thrust::", re.IGNORECASE)
"""In names of kernels that torch and the libraries below it launch."""
NEIGHBOURS = (".cu", ".cuh", ".cpp", ".cc", ".cxx", ".c", ".h", ".hpp", ".hip")


@dataclass(frozen=True)
class OwnKernels:
    """What a candidate declares."""

    triton: tuple[str, ...] = ()  # names of Triton functions
    device: tuple[str, ...] = ()  # names of kernels in CUDA or HIP source
    other: tuple[str, ...] = ()  # packages that it imports to make kernels
    built: bool = False  # it has a compiler build an extension
    neighbours: tuple[Path, ...] = ()  # source files beside it that it names

    @property
    def triton_alone(self) -> bool:
        """Whether all that it declares is launched by Triton, which is seen without the driver."""
        return bool(self.triton) and not self.device and not self.other

    def ran(self, seen: Sequence[str] | None) -> bool:
        """Whether one of those that do not come of Triton is among the kernels that the driver saw."""
        names = [short_name(name) for name in seen or ()]
        if any(name.endswith(own) or f"{own}_" in name for own in self.device for name in names):
            return True
        return bool(self.other) and any(not OF_TORCH.search(name) for name in seen or ())

    def __bool__(self) -> bool:
        return bool(self.triton or self.device or self.other)


def declared_kernels(path: Path) -> OwnKernels:
    """The kernels that a file declares, in it or in source files beside it that it names.

    Raises:
        UsageError: the file is not Python.
    """
    tree, text = tree_of(path), path.read_text(errors="replace")
    neighbours = tuple(_named_neighbours(path, text))
    modules = [tree, *(tree_of(each) for each in _local_modules(path, tree))]
    device = [
        name
        for source in (text, *(each.read_text(errors="replace") for each in neighbours))
        for name in DEVICE_FUNCTION.findall(COMMENT.sub(" ", source))
    ]
    imported = {name.partition(".")[0] for name in _imported(tree)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return OwnKernels(
        triton=tuple(
            node.name
            for module in modules
            for node in ast.walk(module)
            if isinstance(node, ast.FunctionDef) and _is_triton(node)
        ),
        device=tuple(dict.fromkeys(device)),
        other=tuple(name for name in OTHER_LANGUAGES if name in imported),
        built=bool(names & {*BUILDERS} - {"load"}) or ("load" in names and "torch.utils.cpp_extension" in text),
        neighbours=neighbours,
    )


def short_name(kernel: str) -> str:
    """The name of a kernel without its return type, namespaces, template arguments and parameters."""
    head = re.split(r"[<(]", kernel.replace("(anonymous namespace)::", ""), maxsplit=1)[0]
    return head.split()[-1].rpartition("::")[2] if head.split() else kernel


def _named_neighbours(path: Path, text: str) -> Iterator[Path]:
    for other in sorted(path.parent.iterdir()):
        if other.suffix in NEIGHBOURS and other.is_file() and other.name in text:
            yield other


def _local_modules(path: Path, tree: ast.AST) -> Iterator[Path]:
    """The Python files beside a file that it imports."""
    for name in dict.fromkeys(_imported(tree)):
        other = path.parent / f"{name.partition('.')[0]}.py"
        if other.is_file() and other != path:
            yield other


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _is_triton(node: ast.FunctionDef) -> bool:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""
        if name in TRITON:
            return True
    return False
