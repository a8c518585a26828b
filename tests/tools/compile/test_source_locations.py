from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from gpucheck.tools.compile.source_locations import Place, Sources, of_ptx

MODULE = """\
import triton


@triton.jit
def first(
    ptr,
    BLOCK: tl.constexpr,
):
    offs = tl.arange(0, BLOCK)
    tl.store(ptr + offs, 1.0)


@triton.jit
def second(ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(ptr + offs, 2.0)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "base" / "lib"
    (folder / "details").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "details" / "kernels.py").write_text(MODULE)
    return folder


def test_a_line_of_a_kernel_is_found_by_its_surroundings(package: Path) -> None:
    sources = Sources([package])
    text = "def second(ptr, BLOCK: tl.constexpr):\n    offs = tl.arange(0, BLOCK)\n    tl.store(ptr + offs, 2.0)\n"
    place = sources.of_text(text, 2)  # this line stands in both kernels
    assert place == Place(str(package / "details/kernels.py"), 15)
    assert sources.name(place) == "lib/details/kernels.py:15"
    assert sources.code(place) == "offs = tl.arange(0, BLOCK)"


def test_a_rewritten_header_and_another_indentation_do_not_matter(package: Path) -> None:
    body = "    BLOCK: tl.constexpr = 64\n    offs = tl.arange(0, BLOCK)\n    tl.store(ptr + offs, 1.0)"
    rewritten = textwrap.indent(f"def first(ptr):\n{body}", "  ")
    sources = Sources([package])
    place = sources.of_text(rewritten, 4)
    assert place is not None and place.line == 10
    assert sources.of_text(rewritten, 1) is None and sources.of_text(rewritten, 2) is None
    assert sources.of_function(rewritten) == Place(str(package / "details/kernels.py"), 5)


def test_a_line_that_stands_nowhere_has_no_place(package: Path) -> None:
    sources = Sources([package])
    assert sources.of_text("def f():\n    return 1", 2) is None
    assert sources.of_text("def f():\n\n", 2) is None and sources.of_text("def f():", 9) is None
    assert sources.of_function("def f():\n    return 1") is None


def test_names_start_at_the_top_level_package(package: Path) -> None:
    inner = package / "details"
    (inner / "__init__.py").write_text("")
    assert Sources([inner]).name(Place(str(inner / "kernels.py"), 3)) == "lib/details/kernels.py:3"
    assert Sources([package]).name(Place("/elsewhere/far/away.py", 7)) == "away.py:7"


def test_the_innermost_frame_in_the_sources_counts(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "host.py").write_text("def call(inner):\n    return inner()\n\ndef fail():\n    raise ValueError('x')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    import lib.host as host  # type: ignore[import-not-found]

    sources = Sources([package])
    try:
        host.call(host.fail)
    except ValueError as error:
        at = sources.of_traceback(error.__traceback__)
    assert at is not None and sources.name(at) == "lib/host.py:5"
    stack = host.call(lambda: sources.of_stack(sys._getframe()))
    assert stack is not None and sources.name(stack) == "lib/host.py:2"
    assert sources.of_stack(sys._getframe()) is None and sources.of_traceback(None) is None


PTX = """\
.visible .entry k(
{
	.loc	1 40 0                          // k.py:40:0
	ld.param.b64 	%rd2, [k_param_0];
	.loc	2 43 9                          // other.py:43:9
	bogus.f32 %r2, %r1;
	ret;
}
	.file	1 "/somewhere/k.py"
	.file	2 "/somewhere/other.py"
"""


def test_ptx_names_the_source_of_its_lines() -> None:
    assert of_ptx(PTX, 4) == Place("/somewhere/k.py", 40)
    assert of_ptx(PTX, 6) == Place("/somewhere/other.py", 43)
    assert of_ptx(PTX, 1) is None
    assert of_ptx(PTX.replace(".file", ".fill"), 6) is None
