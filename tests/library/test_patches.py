"""Diffs on a private copy of the library: exactly applied, or refused with the place."""

from __future__ import annotations

import ast
import difflib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpucheck.library.copies import LibraryCopy
from gpucheck.library.patches import patched_files, write_patched
from gpucheck.model.errors import UsageError
from tests.guard_patch import guard_patch

NUMBERS = "".join(f"line {n}\n" for n in range(30))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "lib" / "triton_kernels"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text(NUMBERS)
    (folder / "inner" / "b.py").write_text("one\r\ntwo\r\n\x0cthree", newline="")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"")
    return folder


def diff(old: str, new: str, name: str, context: int = 3) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{name}", f"b/{name}", n=context
    )
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def patch(tmp_path: Path, text: str, name: str = "x.patch") -> Path:
    path = tmp_path / name
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "triton_kernels/a.py",
        "python/triton_kernels/triton_kernels/a.py",
        "vllm/third_party/triton_kernels/a.py",
        "a.py",
    ],
)
@pytest.mark.parametrize("context", [0, 1, 3])
def test_hunks_apply_wherever_the_paths_lead_from(package: Path, tmp_path: Path, name: str, context: int) -> None:
    new = NUMBERS.replace("line 4\n", "line 4\nmore\n").replace("line 20\n", "").replace("line 29\n", "last")
    assert patched_files(package, [patch(tmp_path, diff(NUMBERS, new, name, context))]) == {"a.py": new}


def test_lines_that_moved_are_found(package: Path, tmp_path: Path) -> None:
    new = NUMBERS.replace("line 20\n", "other\n")
    (package / "a.py").write_text("added above\n" * 5 + NUMBERS)
    applied = patched_files(package, [patch(tmp_path, diff(NUMBERS, new, "triton_kernels/a.py"))])
    assert applied == {"a.py": "added above\n" * 5 + new}


def test_of_equal_places_the_nearest_is_changed(package: Path, tmp_path: Path) -> None:
    old = "same\n" * 20
    (package / "a.py").write_text(old)
    text = "--- a/triton_kernels/a.py\n+++ b/triton_kernels/a.py\n@@ -12,1 +12,1 @@\n-same\n+changed\n"
    changed = patched_files(package, [patch(tmp_path, text)])["a.py"]
    assert changed is not None and changed.splitlines().index("changed") == 11


def test_one_patch_builds_on_the_other(package: Path, tmp_path: Path) -> None:
    middle, end = NUMBERS.replace("line 4\n", "four\n"), NUMBERS.replace("line 4\n", "FOUR\n")
    first = patch(tmp_path, diff(NUMBERS, middle, "triton_kernels/a.py"), "1.patch")
    second = patch(tmp_path, diff(middle, end, "triton_kernels/a.py"), "2.patch")
    assert patched_files(package, [first, second]) == {"a.py": end}
    with pytest.raises(UsageError, match=r"2.patch does not apply: a.py does not contain the 7 lines from 'line 1'"):
        patched_files(package, [second, first])


def test_files_are_made_and_removed(package: Path, tmp_path: Path) -> None:
    text = "--- /dev/null\n+++ b/triton_kernels/new/c.py\n@@ -0,0 +1,2 @@\n+x\n+y\n"
    text += "diff --git a/triton_kernels/a.py b/triton_kernels/a.py\ndeleted file mode 100644\n"
    text += diff(NUMBERS, "", "triton_kernels/a.py").replace("+++ b/triton_kernels/a.py", "+++ /dev/null")
    assert patched_files(package, [patch(tmp_path, text)]) == {"new/c.py": "x\ny\n", "a.py": None}


def test_ends_of_lines_and_of_files_are_kept(package: Path, tmp_path: Path) -> None:
    text = (
        "--- a/triton_kernels/inner/b.py\n+++ b/triton_kernels/inner/b.py\n@@ -2,2 +2,2 @@\n-two\r\n+2\r\n \x0cthree\n"
    )
    text += "\\ No newline at end of file\n"
    assert patched_files(package, [patch(tmp_path, text)]) == {"inner/b.py": "one\r\n2\r\n\x0cthree"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no change in the unified format"),
        ("--- a/x\n+++ b/x\n", "holds no change"),
        (diff(NUMBERS, "x\n" + NUMBERS, "triton_kernels/gone.py"), "gone.py does not exist in this copy"),
        ("--- /dev/null\n+++ b/triton_kernels/a.py\n@@ -0,0 +1 @@\n+x\n", "a.py exists already in this copy"),
        (diff("strange\n", "x\n", "triton_kernels/a.py"), "does not contain the 1 lines from 'strange' .* near line 1"),
        (
            "--- a/triton_kernels/a.py\n+++ b/triton_kernels/a.py\n@@ -1,3 +1,3 @@\n line 0\n",
            "breaks off within a hunk",
        ),
        ("--- a/triton_kernels/a.py\n+++ b/triton_kernels/a.py\n@@ nonsense @@\n line 0\n", "line 3 is no hunk header"),
        (diff(NUMBERS, "", "triton_kernels/../../a.py"), "names no file of triton_kernels"),
        (diff(NUMBERS, "", "x").replace("a/x", "/etc/passwd").replace("b/x", "/etc/passwd"), "names no file"),
    ],
)
def test_patches_that_do_not_apply(package: Path, tmp_path: Path, text: str, words: str) -> None:
    before = {path: path.read_bytes() for path in package.rglob("*.py")}
    with pytest.raises(UsageError, match=words) as caught:
        patched_files(package, [patch(tmp_path, text)])
    assert str(caught.value).startswith(f"--patch {tmp_path / 'x.patch'}")
    assert {path: path.read_bytes() for path in package.rglob("*.py")} == before


def test_patches_that_cannot_be_read(package: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as text: No such file"):
        patched_files(package, [tmp_path / "gone"])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read as text: .*utf-8"):
        patched_files(package, [tmp_path / "binary"])


def test_the_copy_is_private_and_has_a_content_of_its_own(package: Path, tmp_path: Path) -> None:
    copy = LibraryCopy(package.parent, package, "path", "0" * 64, "B", "v3.5", installed=True)
    made = write_patched(copy, {"a.py": None, "new/c.py": "x\r\n"}, tmp_path / "run" / "library")
    assert (made.root, made.name, made.generation, made.installed) == (tmp_path / "run" / "library", "B", "v3.5", False)
    assert sorted(path.relative_to(made.package).as_posix() for path in made.package.rglob("*.*")) == [
        "inner/b.py",
        "new/c.py",
    ]
    assert (made.package / "new" / "c.py").read_bytes() == b"x\r\n" and made.content not in ("", copy.content)
    assert (package / "a.py").read_text() == NUMBERS and not (package / "new").exists()


HOST = """\
from __future__ import annotations
import triton

@triton.jit
def kernel(x):
    helper[0](x)

class Sort:
    @staticmethod
    def forward(ctx, x):
        (a if x else b)[(1,)](x)

def plain(x):
    return table[x]

def launch(x):
    def grid(meta):
        return (meta["BLOCK"],)
    kernel[grid](x)
"""


def test_the_guard_patch_of_the_tests_guards_every_launch(package: Path, tmp_path: Path) -> None:
    """The patch that later proves a fix: made from any copy, applied here as by other tools."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (package / "host.py").write_text(HOST)
    (package / "a.py").unlink()
    (package / "inner" / "b.py").unlink()
    text = guard_patch(package)
    texts = patched_files(package, [patch(tmp_path, text)])
    assert sorted(texts) == ["device_guard.py", "host.py"]
    guarded = texts["host.py"]
    assert guarded is not None
    names = {
        node.name
        for node in ast.walk(ast.parse(guarded))
        if isinstance(node, ast.FunctionDef) and "on_device" in map(ast.unparse, node.decorator_list)
    }
    assert names == {"forward", "launch"}
    apply = ["git", "apply", "-p1", str(tmp_path / "x.patch")]
    subprocess.run(apply, cwd=package.parent, check=True, env={**os.environ, "GIT_DIR": str(tmp_path / "none")})
    assert {name: (package / name).read_text() for name in texts} == texts
