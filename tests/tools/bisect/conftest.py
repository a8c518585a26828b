"""A search over versions whose runs are made up: what each version shows is told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gpucheck.library.copies import PACKAGE
from gpucheck.tools.bisect.observation import Failure, Observation
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.run_once import Prepared
from gpucheck.tools.bisect.saved_search import Find, State
from gpucheck.tools.bisect.session import Session
from gpucheck.tools.bisect.signature import Answer
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable
from gpucheck.tools.bisect.sources.packages import Packages
from gpucheck.tools.bisect.target import Target
from tests.library.conftest import index, library_files, make_wheel, write_files

__all__ = ["index", "make_wheel"]  # fixtures

CASE = "matmul/0/exact"
WRONG = Failure("wrong output", "", (0,), ("y: row 1 of 2",))
CRASH = Failure("crash", "", (0,), ("killed by SIGSEGV",))

PASSED = Observation(CaseState.PASSED, CASE, bits="aaaa", inputs="i")
FAILED = Observation(CaseState.FAILED, CASE, (WRONG,))
OTHER = Observation(CaseState.FAILED, CASE, (CRASH,))
UNBUILDABLE = Observation(CaseState.UNBUILDABLE, CASE, reason="SyntaxError")
BROKEN = Observation(CaseState.BROKEN, CASE, reason="no GPU")
OBSERVATIONS = {"g": PASSED, "b": FAILED, "o": OTHER, "u": UNBUILDABLE, "x": BROKEN}

Show = Observation | Callable[[], Observation]


@dataclass
class Teller:
    """Hears what a search says."""

    decided_names: list[tuple[str, Answer]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def running(self, candidate: Candidate, number: int) -> None: ...

    def decided(self, candidate: Candidate, answer: Answer, words: str) -> None:
        self.decided_names.append((candidate.name, answer))
        self.words.append(words)


@dataclass
class World:
    """Versions ``0``, ``1``, ... of a package and what runs with them show."""

    work: Path
    shows: dict[str, Show] = field(default_factory=dict)  # by requirement
    runs: list[str] = field(default_factory=list)  # requirement of each run made
    teller: Teller = field(default_factory=Teller)

    def state(
        self, letters: str | Mapping[int, Show], find: Find = Find.BAD, keys: str = "", **changes: object
    ) -> State:
        """A fresh search.

        Args:
            letters: what each version shows, a letter of ``OBSERVATIONS`` each; or the observations themselves.
            keys: a letter each; versions with equal letters are equal.
        """
        shows: dict[int, Show] = (
            dict(enumerate(map(OBSERVATIONS.__getitem__, letters))) if isinstance(letters, str) else {}
        )
        shows |= {} if isinstance(letters, str) else letters
        named = [(str(number), f"p=={keys[number] if keys else number}") for number in range(len(shows))]
        self.shows |= {f"p=={number}": show for number, show in shows.items()}
        state = State(
            self.work,
            Packages("p", "0", str(len(shows) - 1), "/lib"),
            Target("smoke", (CASE,), "cpu"),
            find,
            candidates=[Candidate(name, key, f"title {name}") for name, key in named],
        )
        for name, value in changes.items():
            setattr(state, name, value)
        state.save()
        return state

    def session(self, state: State) -> Session:
        return Session(state, self.take, self.teller)

    def take(self, target: Target, prepared: Prepared, folder: Path) -> Observation:
        requirement = (prepared.paths[0] / "requirement").read_text()
        self.runs.append(requirement.removeprefix("p=="))
        show = self.shows[requirement]
        return show() if callable(show) else show


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Nothing is downloaded; a version that is not known cannot be unpacked."""
    made = World(tmp_path / "search")
    made.work.mkdir()

    def unpack(self: Packages, requirement: str, folder: str) -> None:
        if requirement not in made.shows:
            raise Unbuildable(f"no wheel of {requirement}")
        Path(folder, "requirement").write_text(requirement)

    monkeypatch.setattr(Packages, "_unpack", unpack)
    return made


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """The folder of a stand-in library."""
    return write_files(tmp_path / "library" / PACKAGE, library_files()).parent
