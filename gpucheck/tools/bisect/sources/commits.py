"""Commits of a git checkout. Nothing of the checkout is touched: not its files, index, branches, config or worktrees.

The commits are those of the first-parent history: each is a state that the main line really was in, while the commits
of a branch merged there may never have been built. The library's folder is written from the object store with an index
of our own, which needs no entry in the repository, runs no hook and leaves nothing behind when it is killed.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gpucheck.library.copies import GENUINE_FILES, PACKAGE, PLACES
from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable, cached_folder, stretches

MISSING = "missing"  # key of commits without the library


@dataclass(frozen=True)
class Commits:
    """The first-parent history between two commits."""

    unit: ClassVar[str] = "commit"

    repo: str  # folder
    path: str  # of the library, relative to the root of the repository; "" for the root itself
    old: str  # revision, as given
    new: str

    def candidates(self) -> list[Candidate]:
        """The contents of the library along the history, each under the commit that made it.

        Raises:
            UsageError: no repository, no such commits, not one after the other, no library, or no change between them.
            InfrastructureError: there is no git.
        """
        old, new = self._commit(self.old), self._commit(self.new)
        if self._git("merge-base", "--is-ancestor", old, new, check=False).returncode:
            raise UsageError(
                f"{self.old} is no ancestor of {self.new} in {self.repo}.\n"
                "  expected  the older end first in the history of the newer one" + self._nearest(old, new)
            )
        commits = [old, *self._lines("rev-list", "--first-parent", "--reverse", f"{old}..{new}")]
        trees = self._trees(commits)
        if set(trees) == {MISSING}:
            raise UsageError(
                f"no commit from {self.old} to {self.new} holds a genuine {PACKAGE}.\n"
                f"  looked in  {', '.join(self._places())}\n"
                f"  try        --path with its folder, from the root of {self.repo}"
            )
        alike = stretches(trees)
        subjects = self._subjects([commits[places[0]] for places in alike])
        found = []
        for places in alike:
            name, subject = subjects[commits[places[0]]]
            more = len(places) - 1
            title = subject + (f" (+{more} that leave the library as it is)" if more else "")
            tree = trees[places[0]]
            found.append(Candidate(name, tree, title, f"no genuine {PACKAGE} there" if tree == MISSING else ""))
        return found

    @contextmanager
    def prepared(self, candidate: Candidate, work: Path) -> Iterator[Prepared]:
        """See :class:`gpucheck.tools.bisect.sources.base.Source`."""
        if candidate.lacks:
            raise Unbuildable(candidate.lacks)
        yield Prepared(cached_folder(work, candidate.key, lambda folder: self._export(candidate.key, folder / PACKAGE)))

    def details(self, candidate: Candidate) -> list[str]:
        """Full hash, author, date, and how to look inside a merge."""
        shown = self._lines("show", "--no-patch", "--format=%H%n%an, %aI%n%P", candidate.name)
        lines, parents = [f"commit {shown[0]}", shown[1]], (shown + [""])[2].split()
        if len(parents) > 1:
            base = self._lines("merge-base", *parents[:2])[:1]
            if base:
                lines.append(f"a merge; its branch runs from {base[0][:12]} to {parents[1][:12]}: search there next")
        return lines

    def _commit(self, revision: str) -> str:
        answer = self._git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", check=False)
        if answer.returncode or revision.startswith("-"):
            self._git("rev-parse", "--git-dir")
            raise UsageError(f"{revision!r} names no commit in {self.repo}")
        return answer.stdout.strip()

    def _nearest(self, old: str, new: str) -> str:
        base = self._git("merge-base", old, new, check=False).stdout.strip()
        return f"\n  try       {base[:12]}, where the two part" if base else ""

    def _places(self) -> list[str]:
        """Where the package folder may be, relative to the root of the repository."""
        prefix = f"{self.path}/" if self.path else ""
        return [*([self.path] if self.path else []), *(prefix + place for place in PLACES)]

    def _trees(self, commits: Sequence[str]) -> list[str]:
        """The tree object of the library at each commit, or :data:`MISSING`; one git process for all."""
        names = ["", *(f"/{name}" for name in GENUINE_FILES)]
        places = self._places()
        asked = [f"{commit}:{place}{name}" for commit in commits for place in places for name in names]
        answers = self._git("cat-file", "--batch-check=%(objecttype) %(objectname)", text="\n".join(asked) + "\n")
        kinds = iter(answers.stdout.splitlines())
        found = []
        for _ in commits:
            tree = MISSING
            for _ in places:
                folder, *files = [next(kinds) for _ in names]
                if tree == MISSING and folder.startswith("tree ") and all(kind.startswith("blob ") for kind in files):
                    tree = folder.partition(" ")[2]
            found.append(tree)
        return found

    def _subjects(self, commits: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Commit -> (abbreviated hash, subject line)."""
        shown = self._git("log", "--no-walk", "--stdin", "--format=%H%x00%h%x00%s", text="\n".join(commits) + "\n")
        rows = (line.split("\0", 2) for line in shown.stdout.splitlines())
        return {commit: (name, subject) for commit, name, subject in rows}

    def _export(self, tree: str, package: Path) -> None:
        """Writes the files of a tree object into a folder that is made."""
        package.mkdir()
        git_dir = self._lines("rev-parse", "--absolute-git-dir")[0]
        with tempfile.TemporaryDirectory(prefix="gpucheck-index-") as temporary:
            index = Path(temporary, "index")
            self._git("read-tree", tree, index=index)
            self._git(f"--git-dir={git_dir}", f"--work-tree={package}", "checkout-index", "--all", index=index)

    def _lines(self, *arguments: str) -> list[str]:
        return self._git(*arguments).stdout.splitlines()

    def _git(
        self, *arguments: str, check: bool = True, text: str | None = None, index: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"} | ({"GIT_INDEX_FILE": str(index)} if index else {})
        try:
            answer = subprocess.run(
                ["git", "-C", self.repo, "-c", "log.showSignature=false", *arguments],
                input=text,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
            )
        except FileNotFoundError:
            raise InfrastructureError("git is not installed, and --repo needs it") from None
        if check and answer.returncode:
            said = answer.stderr.strip() or f"exit code {answer.returncode}"
            raise UsageError(f"git {arguments[0]} in {self.repo} failed: {said.removeprefix('fatal: ')}")
        return answer
