"""Makes the patch that puts every launch of a copy of the library under a device guard; none of it is stored here."""

from __future__ import annotations

import ast
import difflib
import sys
from pathlib import Path

HELPER = "device_guard.py"
GUARD = """import functools

import torch


def _device(arguments):
    for argument in arguments:
        device = argument if isinstance(argument, torch.device) else getattr(argument, "device", None)
        if isinstance(device, torch.device) and device.type == "cuda":
            return device
    return None


def on_device(function):
    @functools.wraps(function)
    def guarded(*args, **kwargs):
        device = _device((*args, *kwargs.values()))
        if device is None:
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    return guarded
"""


def guard_patch(package: Path) -> str:
    """A unified diff, to be applied with ``-p1`` in the folder that holds the package.

    Every function on the host that launches a kernel (calls a subscript) runs with the device of its first tensor
    current.
    """
    parts = [_diff("", GUARD, HELPER)]
    for path in sorted(package.rglob("*.py")):
        before = path.read_text()
        after = _guarded(before)
        if after != before:
            parts.append(_diff(before, after, path.relative_to(package).as_posix()))
    return "".join(parts)


def _diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        f"a/triton_kernels/{name}" if before else "/dev/null",
        f"b/triton_kernels/{name}",
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def _guarded(text: str) -> str:
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _launches(node)]
    if not functions:
        return text
    for node in sorted(functions, key=lambda node: -node.lineno):
        lines.insert(node.lineno - 1, " " * node.col_offset + "@on_device\n")
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    first = next(node.lineno for node in imports if getattr(node, "module", "") != "__future__")
    lines.insert(first - 1, "from triton_kernels.device_guard import on_device\n")
    return "".join(lines)


def _launches(node: ast.FunctionDef) -> bool:
    if any(
        "jit" in ast.unparse(decorator) or "constexpr" in ast.unparse(decorator) for decorator in node.decorator_list
    ):
        return False
    return any(isinstance(call, ast.Call) and isinstance(call.func, ast.Subscript) for call in ast.walk(node))


if __name__ == "__main__":
    sys.stdout.write(guard_patch(Path(sys.argv[1])))
