"""What the contracts for import-linter in pyproject.toml cannot say: what loads, and what is no import."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpucheck
from gpucheck.checks import CHECKS

PACKAGE = Path(gpucheck.__file__).parent
HEAVY = ("torch", "triton", "triton_kernels", "numpy", "gpucheck.worker", "gpucheck.verify.bounds")
QUICK = ("cli", "plan", "launch", "records", "diagnose", "report", "model", "host", "library", "templates", "tools")
OWN_PROCESS = ("audit.probe", "compile.compile_process", "compile.capture", "compile.problems", "doctor.device_process")
OWN_PROCESS += ("doctor.operations", "replay.script_template", "selftest.matmul_faults", "selftest.wrong_kernels")
OWN_PROCESS += ("selftest.planted_candidates", "serve.device_proof", "screen.tile_launches", "screen.kernels")
OWN_PROCESS += ("screen.known_tiles", "screen.tally", "selftest.planted_cheats", "selftest.planted_twins")
"""What tools run apart from the command, or load once they judge; so do the adapters of a library."""


def modules(*rooms: str) -> Iterator[str]:
    for room in rooms:
        for path in sorted((PACKAGE / room.replace(".", "/")).rglob("*.py")):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def of_the_command(module: str) -> bool:
    return "library.adapters" not in module and not module.startswith(tuple(f"gpucheck.tools.{n}" for n in OWN_PROCESS))


def source(module: str) -> str:
    path = PACKAGE.parent / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def tree(module: str) -> ast.Module:
    return ast.parse(source(module))


@pytest.mark.parametrize("room", ["model", "host", "tools.selftest.startup"])
def test_what_everyone_stands_on_imports_the_standard_library_alone(room: str) -> None:
    for module in modules(room) if "." not in room else [f"gpucheck.{room}"]:
        for node in ast.walk(tree(module)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                known = name.partition(".")[0] in sys.stdlib_module_names or name.startswith(f"gpucheck.{room}")
                assert known, f"{module} imports {name}"


def test_only_triton_hooks_know_where_triton_keeps_its_launches() -> None:
    inside = ("triton.runtime.jit", "triton.runtime.autotuner", "triton.runtime.interpreter", "triton.compiler")
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "triton_hooks"]
    for module in modules(*rooms):
        for node in ast.walk(tree(module)) if any(name in source(module) for name in inside) else ():
            name = str(node.module) if isinstance(node, ast.ImportFrom) else ""
            assert not name.startswith(inside), f"{module}: ask gpucheck.triton_hooks for what is in {name}"


def test_only_bounds_hold_tolerances() -> None:
    for module in modules("checks"):
        nodes = [*ast.walk(tree(module))]
        words = {node.arg for node in nodes if isinstance(node, ast.keyword)}
        called = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        assert not words & {"rtol", "atol"} and not called & {"allclose", "isclose", "assert_close"}, (
            f"{module}: every tolerance lives in gpucheck.verify.bounds, where it is derived"
        )


def test_the_drawing_of_the_rooms_fits_a_head() -> None:
    """That no arrow runs up, import-linter holds; how many there may be, it cannot say."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("gpucheck", cache_dir=None)
    arrows = {
        (module.split(".")[1], imported.split(".")[1])
        for module in graph.modules - {"gpucheck"}
        for imported in graph.find_modules_directly_imported_by(module) - {"gpucheck"}
    }
    arrows = {(above, below) for above, below in arrows if above != below}
    assert len({room for arrow in arrows for room in arrow} - {"__main__"}) <= 16
    assert 40 < len(arrows) <= 55, "an import between rooms that did not know each other needs a very good reason"


@pytest.mark.parametrize("what", ["the command", "checks as they are listed"])
def test_nothing_heavy_loads_before_it_is_needed(what: str) -> None:
    """`gpucheck --help` and `gpucheck report` start in a blink and work without torch."""
    checks = ["gpucheck.checks", *(entry.partition(":")[0] for entry in CHECKS.values())]
    loaded = [name for name in modules(*QUICK) if of_the_command(name)] if what == "the command" else checks
    code = f"import sys, json, importlib\nfor m in {loaded!r}: importlib.import_module(m)\n"
    code += (
        f"print(json.dumps([n for n in {(*HEAVY, 'gpucheck.worker', 'gpucheck.verify.bounds')!r} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout or "null") == [], done.stderr
