"""What a stand-alone script asks of the files that are copied beside it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from gpucheck.tools.replay import bundle
from gpucheck.triton_hooks import interpreter

TEXT = (Path(bundle.__file__).parent / "script_template.py").read_text(encoding="utf-8")


def test_the_copied_interpreter_has_what_a_script_asks_of_it() -> None:
    asked = {
        part.attr
        for part in ast.walk(ast.parse(TEXT))
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "repairs"
    }
    assert {"install", "repair_library"} <= asked and not [name for name in asked if not hasattr(interpreter, name)]
    assert set(re.findall(rf"{bundle.REPAIRS}[\w.]*", TEXT)) == {bundle.REPAIRS}, (
        "modules in it have names of their own"
    )


def test_what_is_copied_beside_a_script_is_there() -> None:
    package = Path(bundle.__file__).parents[2]
    assert Path(interpreter.__file__).parent == package / "triton_hooks" / "interpreter"
    kernels = package.joinpath(*bundle.OWN_KERNELS.strip(".").split(".")[1:])
    assert (kernels / "flash_attention_kernel.py").is_file() and kernels == package / "checks" / "kernels"


def test_the_copied_memory_imports_nothing_of_gpucheck_and_has_what_a_script_asks_of_it() -> None:
    package = Path(bundle.__file__).parents[2]
    sources = {name: (package / path).read_text(encoding="utf-8") for name, path in bundle.GUARDS.items()}
    for source in sources.values():
        assert not re.findall(r"^from gpucheck\.(?!verify\.views)", source, re.MULTILINE)
    for module, names in {"guards": "guarded_memory", "views": "tensor_views"}.items():
        for attribute in set(re.findall(rf"\b{module}\.(\w+)", TEXT)):
            assert re.search(rf"^(class|def) {attribute}\b", sources[names], re.MULTILINE), attribute
