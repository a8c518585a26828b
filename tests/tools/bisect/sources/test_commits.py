"""Commits of small repositories whose library is a stand-in; the checkout is found as it was left."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpucheck.library.copies import PACKAGE
from gpucheck.library.library_option import Source, SourceKind, resolve
from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.sources.base import Unbuildable
from gpucheck.tools.bisect.sources.commits import MISSING, Commits
from tests.library.conftest import library_files, write_files

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

PLACE = f"python/{PACKAGE}"
WHO = {f"GIT_{role}_{what}": "someone" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class Repository:
    """A checkout."""

    folder: Path
    place: str = f"{PLACE}/{PACKAGE}"  # of the package

    def git(self, *arguments: str) -> str:
        environment = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, subject: str, **texts: str) -> str:
        """Commits texts of files of the library; ``readme`` is a file outside of it."""
        for name, text in texts.items():
            path = self.folder / "README.md" if name == "readme" else self.folder / self.place / f"{name}.py"
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", subject)
        return self.git("rev-parse", "HEAD")

    def commits(self, old: str, new: str, path: str = PLACE) -> Commits:
        return Commits(str(self.folder), path, old, new)

    def names(self, old: str, new: str, path: str = PLACE) -> list[str]:
        return [candidate.title for candidate in self.commits(old, new, path).candidates()]


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[..., Repository]:
    def make(place: str = f"{PLACE}/{PACKAGE}") -> Repository:
        repository = Repository(tmp_path / "checkout", place)
        write_files(repository.folder / place, library_files())
        repository.git("init", "--quiet", "--initial-branch", "main")
        repository.commit("base")
        return repository

    return make


@pytest.fixture
def repository(make_repository: Callable[..., Repository]) -> Repository:
    return make_repository()


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder, git's own too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_contents_and_the_commits_that_made_them(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.commit("docs", readme="a")
    second = repository.commit("two", topk="2")
    repository.commit("more docs", readme="b")
    repository.commit("yet more", readme="c")
    third = repository.commit("three", topk="3")
    found = repository.commits(first, "main").candidates()
    assert [candidate.title for candidate in found] == [
        "base (+1 that leave the library as it is)",
        "two (+2 that leave the library as it is)",
        "three",
    ]
    assert [repository.git("rev-parse", candidate.name) for candidate in found] == [first, second, third]
    assert len({candidate.key for candidate in found}) == 3


def test_a_content_that_comes_back_has_the_same_key(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.commit("two", topk="2")
    (repository.folder / repository.place / "topk.py").unlink()
    repository.commit("revert")
    repository.commit("three", topk="3")
    keys = [candidate.key for candidate in repository.commits(first, "HEAD").candidates()]
    assert keys[0] == keys[2] and len(set(keys)) == 3


@pytest.mark.parametrize(
    ("place", "path"),
    [
        (PACKAGE, ""),
        (PACKAGE, PACKAGE),
        (f"{PLACE}/{PACKAGE}", ""),
        (f"{PLACE}/{PACKAGE}", PLACE),
        (f"{PLACE}/{PACKAGE}", f"{PLACE}/{PACKAGE}"),
        ("some/where/kernels", "some/where/kernels"),
        (f"vllm/third_party/{PACKAGE}", ""),
    ],
)
def test_where_the_library_may_lie(
    make_repository: Callable[..., Repository], tmp_path: Path, place: str, path: str
) -> None:
    repository = make_repository(place)
    repository.commit("two", topk="2")
    source = repository.commits("HEAD~1", "HEAD", path)
    old, new = source.candidates()
    with source.prepared(new, tmp_path / "work") as prepared:
        copy = resolve(Source(SourceKind.PATH, path=prepared.library))
        assert copy.package == prepared.library / PACKAGE and copy.generation == "v3.5"
        assert (copy.package / "topk.py").read_text() == "2"
    with source.prepared(old, tmp_path / "work") as prepared:
        assert not (prepared.library / PACKAGE / "topk.py").exists()


def test_the_checkout_is_never_touched(repository: Repository, tmp_path: Path) -> None:
    """Also where it is dirty, on a branch, with things staged, under a hook and with a place of git's in the way."""
    first = repository.git("rev-parse", "HEAD")
    repository.commit("two", topk="2")
    repository.commit("three", topk="3")
    (repository.folder / repository.place / "topk.py").write_text("being edited")
    (repository.folder / "README.md").write_text("staged")
    repository.git("add", "README.md")
    hook = repository.folder / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    before = fingerprint(repository.folder)
    source = repository.commits(first, "main")
    for candidate in source.candidates():
        with source.prepared(candidate, tmp_path / "work"):
            pass
        source.details(candidate)
    assert fingerprint(repository.folder) == before
    assert not (tmp_path / "hooked").exists()
    assert repository.git("worktree", "list").count("\n") == 0


def test_variables_of_git_do_not_mislead(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a hook, or within `git bisect run`."""
    repository.commit("two", topk="2")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    source = Commits(str(repository.folder), PLACE, "HEAD~1", "HEAD")
    assert [candidate.title for candidate in source.candidates()] == ["base", "two"]


def test_a_merge_is_one_step_and_says_where_to_search_next(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("switch", "--quiet", "--create", "side")
    repository.commit("side one", topk="1")
    side = repository.commit("side two", topk="2")
    repository.git("switch", "--quiet", "main")
    repository.commit("main", swiglu="m")
    repository.git("merge", "--quiet", "--no-ff", "--message", "merge side", "side")
    source = repository.commits(first, "HEAD")
    found = source.candidates()
    assert [candidate.title for candidate in found] == ["base", "main", "merge side"]
    details = source.details(found[-1])
    assert details[0] == "commit " + repository.git("rev-parse", "HEAD")
    assert details[2] == f"a merge; its branch runs from {first[:12]} to {side[:12]}: search there next"
    assert len(source.details(found[1])) == 2


def test_commits_without_the_library_are_skipped(repository: Repository, tmp_path: Path) -> None:
    first = repository.git("rev-parse", "HEAD")
    target = repository.folder / repository.place / "target_info.py"
    target.unlink()
    repository.commit("removes a file")
    repository.commit("docs", readme="x")
    repository.commit("brings it back", target_info="again")
    source = repository.commits(first, "HEAD")
    gone = source.candidates()[1]
    assert (gone.key, gone.title) == (MISSING, "removes a file (+1 that leave the library as it is)")
    with pytest.raises(Unbuildable, match="no genuine triton_kernels there"), source.prepared(gone, tmp_path):
        pass


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("gone", "main", PLACE, "'gone' names no commit in"),
        ("--all", "main", PLACE, "'--all' names no commit in"),
        ("main", "main~1", PLACE, "main is no ancestor of main~1"),
        ("main~1", "main", "elsewhere", "holds a genuine triton_kernels.\n  looked in  elsewhere, "),
    ],
)
def test_ends_that_cannot_be_searched(repository: Repository, old: str, new: str, path: str, words: str) -> None:
    repository.commit("two", topk="2")
    with pytest.raises(UsageError) as refused:
        repository.commits(old, new, path).candidates()
    assert words in str(refused.value)


def test_ends_on_two_branches_name_where_they_part(repository: Repository) -> None:
    first = repository.git("rev-parse", "HEAD")
    repository.git("switch", "--quiet", "--create", "side")
    repository.commit("side", topk="1")
    repository.git("switch", "--quiet", "main")
    repository.commit("main", swiglu="m")
    with pytest.raises(UsageError, match=f"try       {first[:12]}, where the two part"):
        repository.commits("side", "main").candidates()


@pytest.mark.parametrize("folder", [".", "gone"])
def test_a_folder_that_is_no_repository(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UsageError, match="failed: (not a git repository|cannot change to)"):
        Commits(str(tmp_path / folder), "", "a", "b").candidates()
