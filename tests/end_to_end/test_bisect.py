"""Real searches with real runs of the real library: commits of a small repository, releases of an index, patches."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.copies import PACKAGE
from tests.end_to_end.conftest import PLANTS, Edit, Lab
from tests.library.conftest import Index, index, make_wheel
from tests.tools.bisect.sources.test_packages import wheel

__all__ = ["index", "make_wheel"]  # fixtures

PROBLEMS = Path(__file__).parents[1] / "data" / "problems"
CASE = "matmul/dense/bf16/m20-n60-k96-bias/exact"
GIVEN = ("--scenario", str(PLANTS), "--case", CASE, "--device", "cpu", "--nproc", "1")
KERNEL, HOST = "matmul_ogs_details/_matmul_ogs.py", "matmul_ogs.py"
STORE = "    mask = mask_m[:, None] & mask_n[None, :]\n"
LESS = STORE.replace("mask_n[None, :]", "mask_n[None, :] & (offs_y_n < N - 1)[None, :]")
ADDED = "acc = acc + bias[None, :] * betas[:, None]\n"
TWICE = ADDED.replace("bias[None, :]", "bias[None, :] * 2")
IMPORT = "import itertools\n"
FLAKY = """

_genuine, _seen = topk, __import__("pathlib").Path({counter!r})
_run = len(_seen.read_text()) if _seen.exists() else 0
_seen.write_text("x" * (_run + 1))


def topk(*arguments, **options):
    result = _genuine(*arguments, **options)
    if "0010010010"[_run % 10] == "1":
        result[0][..., -1] += 1
    return result
"""


@dataclass(frozen=True)
class Found:
    """A search that has ended."""

    code: int
    text: str
    state: dict[str, Any]

    @property
    def answer(self) -> list[str]:
        """Subject lines of commits, names of other candidates."""
        return [candidate["title"] or candidate["name"] for candidate in self.state["result"]["answer"]]

    def path(self) -> dict[str, str | None]:
        """Subject line -> what a commit was found to be."""
        titles = {candidate["name"]: candidate["title"].partition(" (+")[0] for candidate in self.state["candidates"]}
        return {titles[name]: answer for name, answer in self.state["result"]["path"]}

    def runs(self, name: str) -> int:
        """How often a candidate was run, by its subject line."""
        (key,) = {candidate["key"] for candidate in self.state["candidates"] if candidate["title"] == name}
        return len(self.state["observations"][key])


Bisect = Callable[..., Found]


@pytest.fixture
def bisect(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Bisect]:
    """Searches in a new folder; runs need no start of their own."""
    from gpucheck.cli.app import main

    def search(name: str, *arguments: str) -> Found:
        folder = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["gpucheck", "bisect", *arguments, "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured, file = capsys.readouterr(), folder / "state.json"
        state = json.loads(file.read_text()) if file.exists() else {}
        return Found(int(ended.value.code or 0), captured.out + captured.err, state)

    monkeypatch.setattr("gpucheck.tools.bisect.run_once._run", lab.warm.run)
    previous = signal.getsignal(signal.SIGTERM)
    yield search
    signal.signal(signal.SIGTERM, previous)


@dataclass(frozen=True)
class History:
    """A checkout whose library is a copy of the real one."""

    folder: Path

    @property
    def package(self) -> Path:
        return self.folder / "python" / PACKAGE / PACKAGE

    @property
    def where(self) -> tuple[str, ...]:
        """The options that name it."""
        return ("--repo", str(self.folder), "--path", f"python/{PACKAGE}")

    def git(self, *arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "someone" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, env={**os.environ, **who}, check=True, capture_output=True, text=True).stdout

    def commit(self, subject: str, name: str = "", old: str = "", new: str = "") -> None:
        """Commits one edit of a file of the library; an empty ``old`` stands for its end."""
        if name:
            path = self.package / name
            path.write_text(edited(path.read_text(), old, new))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)

    def everything(self) -> list[str]:
        """All of the checkout that a search might touch: files, index, branches, worktrees and settings."""
        asked = ("status --porcelain --ignored", "rev-parse HEAD", "for-each-ref", "worktree list", "config --list")
        return [self.git(*command.split()) for command in asked] + sorted(map(str, self.folder.rglob("*")))


def edited(text: str, old: str, new: str) -> str:
    """A text with one place replaced, or with an end."""
    assert not old or text.count(old) == 1, f"{text.count(old)} times: {old}"
    return text.replace(old, new) if old else text + new


@pytest.fixture
def history(lab: Lab, tmp_path: Path) -> History:
    """A repository with the library as it is, in its first commit."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    made = History(tmp_path / "checkout")
    shutil.copytree(lab.library.package, made.package, ignore=shutil.ignore_patterns("__pycache__"))
    made.git("init", "--quiet", "--initial-branch", "main")
    made.commit("base")
    made.git("tag", "base")
    return made


def test_the_first_bad_and_the_first_fixed_commit(history: History, bisect: Bisect, tmp_path: Path) -> None:
    history.commit("words beside the library")
    history.commit("touches the host code", HOST, IMPORT, IMPORT + "# one\n")
    history.commit("breaks the import", HOST, "# one\n", "def broken(:\n")
    history.commit("fixes the import", HOST, "def broken(:\n", "# two\n")
    history.commit("plants the fault", KERNEL, STORE, LESS)
    history.commit("touches another kernel", "swiglu.py", "", "# three\n")
    history.git("tag", "bad")
    history.commit("fixes the fault", KERNEL, LESS, STORE)
    history.commit("touches it again", "swiglu.py", "# three\n", "# four\n")
    (history.package / HOST).write_text("work in progress\n")
    before = history.everything()

    bad = bisect("bad", *history.where, "--good", "base", "--bad", "bad", *GIVEN)
    assert bad.code == 0, bad.text
    assert bad.answer == ["plants the fault"]
    assert bad.path() == {
        "base": "good",
        "touches the host code": None,
        "breaks the import": "skip",
        "fixes the import": "good",
        "plants the fault": "bad",
        "touches another kernel": "bad",
    }
    first = history.git("rev-parse", "--short", "main~3").strip()
    assert f"\nfirst bad commit: {first}  plants the fault\n" in bad.text and "column 59 of 60" in bad.text
    assert "not buildable: the library cannot be imported: SyntaxError" in bad.text

    fixed = bisect(
        "fix", str(tmp_path / "bad" / "runs" / "0001"), *history.where, "--find", "fix", "--bad", "bad", "--repeat", "1"
    )
    assert fixed.code == 0, fixed.text
    assert fixed.answer == ["fixes the fault"]
    assert history.everything() == before


def test_a_fault_that_shows_in_30_percent_of_runs(history: History, bisect: Bisect, tmp_path: Path) -> None:
    history.commit("plants the fault", "topk.py", "", "# one\n" + FLAKY.format(counter=str(tmp_path / "counter")))
    history.commit("touches it again", "topk.py", "# one\n", "# two\n")
    given = ("--scenario", "smoke", "--case", "topk/bf16/m1-e13-top4/exact", *GIVEN[4:])
    found = bisect("search", *history.where, "--good", "base", *given)
    assert found.code == 0, found.text
    assert found.answer == ["plants the fault"]
    rate = found.state["result"]["rate"]
    assert (rate["failed"], rate["runs"]) == (3, 10), "as planted"
    assert found.runs("base") == rate["passes"] > 13
    assert found.runs("plants the fault") == 3, "the first run that shows it settles it"


def test_the_release_that_changed_the_content(
    lab: Lab, bisect: Bisect, index: Index, make_wheel: Callable[..., bytes]
) -> None:
    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8")

    package = lab.library.package
    right = {str(path.relative_to(package)): text(path) for path in package.rglob("*.py")}
    wrong = {**right, KERNEL: edited(right[KERNEL], STORE, LESS)}
    contents = {"1.0": right, "1.1": right, "1.9": right, "1.10": wrong, "1.11": wrong, "2.0": wrong}
    index.offer({f"vllm-{version}-py3-none-any.whl": make_wheel(files=files) for version, files in contents.items()})
    found = bisect("search", "--wheel", "vllm", "--from", "1.0", "--to", "2.0", "--repeat", "1", *GIVEN)
    assert found.code == 0, found.text
    assert [candidate["name"] for candidate in found.state["result"]["answer"]] == ["1.10"]
    assert "1.10 - 2.0 (3 releases)" in found.text and "--library wheel:vllm==1.10" in found.text
    assert len(found.state["observations"]) == 2, "equal contents are run once"


def test_the_version_of_a_package_that_a_candidate_imports(
    lab: Lab, bisect: Bisect, index: Index, tmp_path: Path
) -> None:
    """Versions with equal content are run once, whatever they call themselves."""
    contents = {"1.0": "SCALE = 1.0", "1.1": "SCALE = 1.0", "1.2": "SCALE = 1.5", "1.3": "SCALE = 1.5  # still"}
    wheels = {f"someparts-{version}-py3-none-any.whl": wheel(version, text) for version, text in contents.items()}
    index.offer(wheels, "someparts", hashed=False)
    right = (PROBLEMS / "gelu_right.py").read_text()
    scaled = edited(right, "import triton\n", "import triton\nfrom someparts import SCALE\n")
    (tmp_path / "scaled.py").write_text(edited(scaled, "](x, y,", "](x * SCALE, y,"))
    brought = ("--problem", str(PROBLEMS / "gelu.py"), "--candidate", str(tmp_path / "scaled.py"))
    given = ("--library", f"path:{lab.library.root}", "--case", "scaled/trial1/normal", "--device", "cpu")
    ends = ("--wheel", "someparts", "--from", "1.0", "--to", "1.3")
    found = bisect("search", *ends, *brought, *given, "--nproc", "1", "--repeat", "1")
    assert found.code == 0, found.text
    assert [candidate["name"] for candidate in found.state["result"]["answer"]] == ["1.2"]
    assert "first bad version: 1.2" in found.text and "1.0 - 1.1 (2 releases)" in found.text
    assert len(found.state["observations"]) == 3
    assert found.state["target"]["scenario"] == "", "the usual cases of what was brought along"


def write_series(folder: Path, package: Path, edits: list[Edit]) -> None:
    """A patch for each edit, each made against the library as it is."""
    folder.mkdir()
    for number, (name, old, new) in enumerate(edits, start=1):
        before = (package / name).read_text()
        lines = [text.splitlines(keepends=True) for text in (before, edited(before, old, new))]
        diff = difflib.unified_diff(*lines, f"a/{PACKAGE}/{name}", f"b/{PACKAGE}/{name}")
        (folder / f"000{number}-edit.patch").write_text("".join(diff))


IDLE = [(HOST, IMPORT, IMPORT + "# 1\n"), ("swiglu.py", "", "\n# 2\n"), ("topk.py", "", "\n# 3\n")]
FAULTS = {LESS: STORE, TWICE: ADDED}


@pytest.mark.parametrize(
    ("planted", "matter"),
    [
        pytest.param((LESS,), ["0004-edit.patch"], id="one of six", marks=pytest.mark.torture),
        pytest.param((LESS, TWICE), ["0002-edit.patch", "0005-edit.patch"], id="a pair"),
    ],
)
def test_the_patches_that_matter(
    lab: Lab, bisect: Bisect, tmp_path: Path, planted: tuple[str, ...], matter: list[str]
) -> None:
    """Where two faults are planted, fixing one leaves the case red."""
    library = lab.plant(*[(KERNEL, FAULTS[fault], fault) for fault in planted])
    fixes = [(KERNEL, fault, FAULTS[fault]) for fault in planted]
    edits = [*IDLE, *fixes, ("numerics.py", "", "\n# 5\n"), ("testing.py", "", "\n# 6\n")]
    if len(fixes) == 2:
        edits = [edits[0], fixes[0], edits[1], edits[2], fixes[1], edits[5]]
    write_series(tmp_path / "series", Path(library.removeprefix("path:")), edits)
    given = ("--patches", str(tmp_path / "series"), "--library", library, "--repeat", "1", *GIVEN)
    found = bisect("search", *given)
    assert found.code == 0, found.text
    assert found.answer == matter
    does = "turns the case green" if len(matter) == 1 else "turn the case green, only together"
    assert f"{' and '.join(matter)} {does} ({len(matter)} of 6 patches)" in found.text
