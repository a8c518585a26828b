"""The walls of the house, guarded by reading every import; a message says what the wall is for."""

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
HEAVY = ("torch", "triton", "triton_kernels", "numpy")
AUDIT_PROBES = ("gpucheck.tools.audit.probe_process", "gpucheck.tools.audit.probes")
COMPILING = tuple(f"gpucheck.tools.compile.{name}" for name in ("compile_process", "capture", "problems"))
PLANTED_CODE = (
    "gpucheck.tools.selftest.matmul_faults",
    "gpucheck.tools.selftest.wrong_kernels",
    "gpucheck.tools.selftest.planted_candidates",
)
QUICK = ("cli", "plan", "launch", "records", "diagnose", "report", "bisect", "model", "doctor", "host")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """Names that a module imports; with ``lazy`` also inside functions, never under TYPE_CHECKING."""

    def visit(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from visit(node.orelse)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: imports are absolute"
                yield str(node.module)
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif lazy or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for field in ("body", "orelse", "finalbody"):
                    yield from visit(getattr(node, field, []))
                for handler in getattr(node, "handlers", []):
                    yield from visit(handler.body)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")).body)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def part(module: str) -> str:
    """The folder of gpucheck that a module is in."""
    names = module.split(".")[1:]
    return next((name for name in names if name != "tools"), "")


def members(*parts: str) -> list[str]:
    return [module for module in MODULES if part(module) in parts]


def test_the_reader_of_imports_reads_them(tmp_path: Path) -> None:
    source = (
        "import a\nfrom b.c import d\nif TYPE_CHECKING:\n    import hidden\nelse:\n    import e\n"
        "try:\n    import f\nexcept ImportError:\n    import g\nclass C:\n    import h\n"
        "def function():\n    import late\n    if x:\n        import later\n"
    )
    (tmp_path / "x.py").write_text(source)
    assert set(imports(tmp_path / "x.py", lazy=False)) == {"a", "b.c", "b.c.d", "e", "f", "g", "h"}
    assert {"late", "later"} <= set(imports(tmp_path / "x.py", lazy=True))


@pytest.mark.parametrize("module", members("host"))
def test_what_the_machine_says_is_read_with_the_standard_library_alone(module: str) -> None:
    outside = {name.split(".")[0] for name in imports(MODULES[module], lazy=True)} - set(sys.stdlib_module_names)
    assert outside <= {"gpucheck"}, f"{module} imports {outside}"
    ours = [name for name in imports(MODULES[module], lazy=True) if within(name, ("gpucheck",))]
    assert all(within(name, ("gpucheck.host",)) for name in ours), f"{module} imports {ours}: host stands on nothing"


@pytest.mark.parametrize("module", members("model"))
def test_model_imports_the_standard_library_only(module: str) -> None:
    for name in imports(MODULES[module], lazy=True):
        assert name.split(".")[0] in sys.stdlib_module_names or within(name, ("gpucheck.model",)), (
            f"{module} imports {name}: model is what everyone shares, so it depends on nobody"
        )


@pytest.mark.parametrize("module", ["gpucheck", *members(*QUICK)])
def test_what_users_type_imports_nothing_heavy_when_it_loads(module: str) -> None:
    for name in imports(MODULES[module], lazy=False):
        assert not within(
            name, (*HEAVY, "gpucheck.worker", "gpucheck.verify.bounds", "gpucheck.triton_hooks.interpreter")
        ), (
            f"{module} imports {name} when it is loaded: `gpucheck --help` and `gpucheck report` must start in a blink "
            "and work without torch; import it inside the function that needs it"
        )


@pytest.mark.parametrize("module", [m for m in members("selftest") if not within(m, PLANTED_CODE)])
def test_planting_a_fault_imports_nothing_that_it_breaks(module: str) -> None:
    for name in imports(MODULES[module], lazy=False):
        assert not within(name, (*HEAVY, *PLANTED_CODE)), (
            f"{module} imports {name} when it is loaded: what runs in the processes of a rank is imported there only"
        )


def test_startup_code_of_every_process_imports_the_standard_library_only() -> None:
    for name in imports(MODULES["gpucheck.tools.selftest.startup"], lazy=True):
        assert name.split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("module", [m for m in members("library") if "adapters" not in m])
def test_finding_a_library_imports_nothing_heavy(module: str) -> None:
    for name in imports(MODULES[module], lazy=False):
        assert not within(name, HEAVY), f"{module} imports {name} when it is loaded: finding a copy never runs it"


@pytest.mark.parametrize("module", [m for m in members("audit") if not within(m, AUDIT_PROBES)])
def test_audit_reads_source_and_runs_nothing_in_this_process(module: str) -> None:
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, (*HEAVY, *AUDIT_PROBES)), (
            f"{module} imports {name}: the library under audit runs in a probing process only"
        )


@pytest.mark.parametrize("module", [m for m in members("compile") if not within(m, COMPILING)])
def test_compiling_happens_in_processes_of_its_own(module: str) -> None:
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, (*HEAVY, *COMPILING)), (
            f"{module} imports {name}: each combination has a Triton of its own, which only its own process may import"
        )


@pytest.mark.parametrize("module", [m for m in members("compile") if m != "gpucheck.tools.compile.compile_text"])
def test_compiling_knows_nothing_of_runs(module: str) -> None:
    runs = tuple(f"gpucheck.{name}" for name in ("worker", "plan", "records", "diagnose", "report", "cli"))
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, runs), f"{module} imports {name}: no kernel runs, so there are no ranks and no records"


@pytest.mark.parametrize("module", members("doctor"))
def test_doctor_looks_and_runs_nothing_of_a_run(module: str) -> None:
    running = tuple(
        f"gpucheck.{name}" for name in ("worker", "checks", "verify", "triton_hooks.interpreter", "records", "cli")
    )
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, running), f"{module} imports {name}: doctor looks at what a run would use"
        trying = module in ("gpucheck.tools.doctor.operations", "gpucheck.tools.doctor.device_process")
        assert trying or not within(name, HEAVY), f"{module} imports {name}: a wedged GPU must not hang doctor itself"


@pytest.mark.parametrize("module", members("records", "diagnose", "report"))
def test_reading_a_run_never_needs_what_made_it(module: str) -> None:
    making = tuple(
        f"gpucheck.{name}" for name in ("worker", "checks", "verify", "launch", "cli", "triton_hooks.interpreter")
    )
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, (*HEAVY, *making)), f"{module} imports {name}: stored runs are read on any laptop"


@pytest.mark.parametrize("module", members("launch"))
def test_launch_knows_the_worker_by_its_name_only(module: str) -> None:
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, ("gpucheck.worker", "gpucheck.checks", *HEAVY)), f"{module} imports {name}"


@pytest.mark.parametrize("module", members("bisect"))
def test_bisect_makes_its_runs_in_processes_of_their_own(module: str) -> None:
    running = tuple(
        f"gpucheck.{name}" for name in ("worker", "checks", "verify", "triton_hooks.interpreter", "cli", "report")
    )
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, (*HEAVY, *running)), f"{module} imports {name}: a fault must not reach the search"


@pytest.mark.parametrize("module", members("checks"))
def test_checks_know_nothing_of_ranks(module: str) -> None:
    ranks = tuple(f"gpucheck.{name}" for name in ("worker", "launch", "records", "diagnose", "report", "cli", "plan"))
    for name in imports(MODULES[module], lazy=True):
        assert not within(name, ranks), f"{module} imports {name}: a check describes one kernel, on one device"


@pytest.mark.parametrize("module", members("diagnose"))
def test_diagnose_never_prints(module: str) -> None:
    assert not [n for n in imports(MODULES[module], lazy=True) if within(n, ("rich", "typer", "gpucheck.report"))]
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert "print" not in calls


@pytest.mark.parametrize("module", members("report"))
def test_report_never_decides(module: str) -> None:
    deciding = ("gpucheck.diagnose.conclude",)
    assert not [name for name in imports(MODULES[module], lazy=True) if within(name, deciding)]


@pytest.mark.parametrize("module", members("checks"))
def test_only_bounds_hold_tolerances(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    words = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not words & {"rtol", "atol"} and not called & {"allclose", "isclose", "assert_close"}, (
        f"{module}: every tolerance lives in gpucheck.verify.bounds, where it is derived"
    )


def loaded_by(*modules: str) -> list[str]:
    """Heavy modules in a fresh Python after importing these."""
    code = f"import sys, json, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    found: list[str] = json.loads(result.stdout)
    return found


def test_every_check_is_described_without_torch() -> None:
    assert loaded_by("gpucheck.checks", *(entry.partition(":")[0] for entry in CHECKS.values())) == []


def test_every_quick_module_loads_without_torch() -> None:
    """The proof by running; catches what a module reaches through others."""
    assert loaded_by("gpucheck", *members(*QUICK), *(m for m in members("library") if "adapters" not in m)) == []


def test_the_contracts_for_import_linter_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(PACKAGE.parent)
    if not Path("pyproject.toml").is_file():
        pytest.skip("runs from a checkout only")
    assert cli.lint_imports(cache_dir=None) == 0
