"""Real searches: commits of a small repository, patches, and releases of a public package."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.bisect.sources.versions import between
from gpucheck.library.copies import PACKAGE
from gpucheck.model.errors import GpucheckError
from tests.end_to_end.conftest import PLANTS, environment

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Lab

CASE = "matmul/dense/bf16/m20-n60-k96-bias/exact"
GIVEN = ("--scenario", str(PLANTS), "--case", CASE, "--device", "cpu", "--nproc", "1")
KERNEL, HOST = "matmul_ogs_details/_matmul_ogs.py", "matmul_ogs.py"
STORE = "    mask = mask_m[:, None] & mask_n[None, :]\n"
LESS = STORE.replace("mask_n[None, :]", "mask_n[None, :] & (offs_y_n < N - 1)[None, :]")
IMPORT = "import itertools\n"
FLAKY = """

_genuine, _wrong = matmul_ogs, int.from_bytes(__import__("os").urandom(1), "big") < 77  # 30% of processes


def matmul_ogs(*arguments, **options):
    y = _genuine(*arguments, **options)
    if _wrong:
        y[..., -1] += 1
    return y
"""

SEARCH_LIMIT = 900.0  # s


@dataclass(frozen=True)
class Found:
    """A search that has ended."""

    code: int
    text: str
    state: dict[str, Any]

    @property
    def answer(self) -> list[str]:
        return [candidate["title"] or candidate["name"] for candidate in self.state["result"]["answer"]]

    def path(self) -> dict[str, str | None]:
        """Title -> what a commit was found to be."""
        titles = {candidate["name"]: candidate["title"].partition(" (+")[0] for candidate in self.state["candidates"]}
        return {titles[name]: answer for name, answer in self.state["result"]["path"]}


def bisect(work: Path, *arguments: str) -> Found:
    command = [sys.executable, "-m", "gpucheck", "bisect", *arguments, "--out", str(work)]
    answer = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=SEARCH_LIMIT)
    file = work / "state.json"
    return Found(
        answer.returncode, answer.stdout + answer.stderr, json.loads(file.read_text()) if file.exists() else {}
    )


@dataclass(frozen=True)
class History:
    """A checkout whose library is a copy of the real one."""

    folder: Path

    @property
    def package(self) -> Path:
        return self.folder / "python" / PACKAGE / PACKAGE

    def git(self, *arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "someone" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, env={**os.environ, **who}, check=True, capture_output=True, text=True).stdout

    def commit(self, subject: str, name: str = "", old: str = "", new: str = "") -> None:
        """Commits one edit of a file of the library; an empty ``old`` stands for its end."""
        if name:
            path = self.package / name
            text = path.read_text()
            assert not old or text.count(old) == 1
            path.write_text(text.replace(old, new) if old else text + new)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)


@pytest.fixture(scope="module")
def history(lab: Lab) -> Callable[..., History]:
    """Makes a repository in which a commit plants a fault and a later one mends it."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def make(plant: tuple[str, str, str], mend: tuple[str, str, str]) -> History:
        made = History(lab.new_folder() / "checkout")
        shutil.copytree(lab.library.package, made.package, ignore=shutil.ignore_patterns("__pycache__"))
        made.git("init", "--quiet", "--initial-branch", "main")
        made.commit("base")
        made.git("tag", "base")
        made.commit("words beside the library")
        made.commit("touches the host code", HOST, IMPORT, IMPORT + "# one\n")
        made.commit("breaks the import", HOST, "# one\n", "def broken(:\n")
        made.commit("mends the import", HOST, "def broken(:\n", "# two\n")
        made.commit("plants the fault", *plant)
        made.commit("touches another kernel", "swiglu.py", "", "# three\n")
        made.git("tag", "bad")
        made.commit("mends the fault", *mend)
        made.commit("touches it again", "swiglu.py", "# three\n", "# four\n")
        return made

    return make


def test_the_first_bad_and_the_first_fixed_commit(history: Callable[..., History], tmp_path: Path) -> None:
    made = history((KERNEL, STORE, LESS), (KERNEL, LESS, STORE))
    status, head = made.git("status", "--porcelain"), made.git("rev-parse", "HEAD")
    where = ("--repo", str(made.folder), "--path", f"python/{PACKAGE}", "--repeat", "1")

    bad = bisect(tmp_path / "bad", *where, "--good", "base", "--bad", "bad", *GIVEN)
    assert bad.code == 0, bad.text
    assert bad.answer == ["plants the fault"]
    assert bad.path() == {
        "base": "good",
        "touches the host code": None,
        "breaks the import": "skip",
        "mends the import": "good",
        "plants the fault": "bad",
        "touches another kernel": "bad",
    }
    assert "first bad commit: " in bad.text and "column 59 of 60" in bad.text
    assert "not buildable: the library cannot be imported: SyntaxError" in bad.text

    run = next(iter(sorted((tmp_path / "bad" / "runs").iterdir())))
    fixed = bisect(tmp_path / "fix", str(run), *where, "--find", "fix", "--bad", "bad")
    assert fixed.code == 0, fixed.text
    assert fixed.answer == ["mends the fault"]

    assert (made.git("status", "--porcelain"), made.git("rev-parse", "HEAD")) == (status, head)
    assert len(made.git("worktree", "list").splitlines()) == 1


@pytest.mark.skipif("GPUCHECK_TEST_FLAKY" not in os.environ, reason="some 60 real runs; set GPUCHECK_TEST_FLAKY=1")
def test_a_fault_that_shows_in_30_percent_of_runs(history: Callable[..., History], tmp_path: Path) -> None:
    made = history((HOST, "", FLAKY), (HOST, FLAKY, ""))
    where = ("--repo", str(made.folder), "--good", "base", "--bad", "bad")
    found = bisect(tmp_path / "search", *where, *GIVEN)
    assert found.code == 0, found.text
    assert found.answer == ["plants the fault"]
    assert found.state["result"]["rate"]["runs"] >= 10


@pytest.fixture
def series(lab: Lab, tmp_path: Path) -> tuple[str, Path]:
    """A library with a fault, and six patches of which the fourth mends it."""
    library = lab.plant((KERNEL, STORE, LESS))
    package, folder = Path(library.removeprefix("path:")), tmp_path / "series"
    folder.mkdir()
    edits = [
        (HOST, IMPORT, IMPORT + "# 1\n"),
        ("swiglu.py", "", "# 2\n"),
        ("topk.py", "", "# 3\n"),
        (KERNEL, LESS, STORE),
        ("numerics.py", "", "# 5\n"),
        ("testing.py", "", "# 6\n"),
    ]
    for number, (name, old, new) in enumerate(edits, start=1):
        before = (package / name).read_text()
        before += "" if before.endswith("\n") else "\n"
        (package / name).write_text(before)
        after = before.replace(old, new) if old else before + new
        lines = [text.splitlines(keepends=True) for text in (before, after)]
        diff = difflib.unified_diff(*lines, f"a/{PACKAGE}/{name}", f"b/{PACKAGE}/{name}")
        (folder / f"000{number}-edit.patch").write_text("".join(diff))
    return library, folder


def test_which_of_six_patches_matters(series: tuple[str, Path], tmp_path: Path) -> None:
    library, folder = series
    found = bisect(tmp_path / "search", "--patches", str(folder), "--library", library, "--repeat", "1", *GIVEN)
    assert found.code == 0, found.text
    assert found.answer == ["0004-edit.patch"]
    assert "0004-edit.patch turns the case green (1 of 6 patches)" in found.text


def test_the_release_that_changed_the_bits(lab: Lab, tmp_path: Path) -> None:
    """The codec of vllm 0.17.0 rounds halves to even, the one before away from zero; each is right by its own rule."""
    try:
        versions = between("vllm", "0.16.0", "0.17.1")
    except GpucheckError as error:
        pytest.skip(f"no package index answers: {str(error).splitlines()[0]}")
    assert "0.17.0" in versions
    case = ("--scenario", "smoke", "--case", "mxfp/down/mxfp4/bf16/b2-r64-c34-axis1/exact", "--device", "cpu")
    wheel = ("--wheel", "vllm", "--from", "0.16.0", "--to", "0.17.1", "--bits", "--repeat", "1")
    found = bisect(tmp_path / "search", *wheel, *case, "--nproc", "1")
    assert found.code == 0, found.text
    assert [candidate["name"] for candidate in found.state["result"]["answer"]] == ["0.17.0"]
    assert [name for name, _ in found.state["result"]["path"]] == ["0.16.0", "0.17.0"]
    good, bad = (tmp_path / "search" / "runs" / name for name in ("0002", "0001"))
    diff = [sys.executable, "-m", "gpucheck", "diff", str(good), str(bad)]
    compared = subprocess.run(diff, env=environment(), capture_output=True, text=True, timeout=60)
    assert compared.returncode == 0 and "other bits from equal inputs, right in both (1)" in compared.stdout
