"""Faults of public software that are known: the table in ``known_faults.toml``, read when a finding may be one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from importlib.resources import files
from typing import Any

from gpucheck.diagnose.causes import CAUSES
from gpucheck.diagnose.error_pattern import PATTERNS
from gpucheck.diagnose.version_range import clauses
from gpucheck.library.content import GENERATIONS
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Outcome
from gpucheck.model.vocabulary import ViolationKind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = "known_faults.toml"
LAST = "last"  # of a group: the one with the highest number
SIZE = "{size}"  # in ``detail``: the size of the case that fits ``shapes``, rounded up to a block
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

Scalar = int | float | bool | str


@dataclass(frozen=True)
class Shapes:
    """Sizes by their remainder: one of the named parameters must leave one within the bounds."""

    any: tuple[str, ...]  # parameters of a case; those that it lacks do not count
    modulo: int
    residues: tuple[int, ...]  # smallest and largest that fit
    block: int = 1  # what a size is rounded up to where ``detail`` names it

    def fitting(self, params: Mapping[str, Scalar]) -> list[int]:
        """The sizes that fit."""
        first, last = self.residues
        sizes = [params[name] for name in self.any if name in params]
        return [size for size in sizes if isinstance(size, int) and first <= size % self.modulo <= last]


@dataclass(frozen=True)
class Fingerprint:
    """What a failed case must be for a fault to be this one; a field that is empty asks nothing."""

    causes: tuple[str, ...] = ()  # of the finding
    checks: tuple[str, ...] = ()
    params: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)  # of the case -> values
    below: Mapping[str, int] = field(default_factory=dict)  # of the case -> what it must be less than, one of them
    conditions: Mapping[str, tuple[Scalar, ...]] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    shapes: Shapes | None = None
    kernels: tuple[str, ...] = ()  # one of them was launched; a star stands for anything
    gpus: tuple[str, ...] = ()  # architectures, likewise; "interpreter" is the CPU
    generations: tuple[str, ...] = ()  # of the library's API, which a modified copy keeps
    contents: tuple[str, ...] = ()  # of the library, by the name that gpucheck knows it by
    versions: Mapping[str, str] = field(default_factory=dict)  # software -> range
    where_recorded: Mapping[str, str] = field(default_factory=dict)  # the same, for what not every run writes down
    outcomes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()  # how a wrong output looks
    violations: tuple[str, ...] = ()  # one of them is there
    clean: bool = False  # no violation is there
    detail: str = ""  # regular expression, in what a violation says
    message: str = ""  # the same, in what was raised
    groups: Mapping[str, str] = field(
        default_factory=dict
    )  # grouping -> LAST, where rows of some groups alone are wrong


@dataclass(frozen=True)
class Proof:
    """A command that shows the cure here."""

    shows: str  # what it shows, in words
    run: tuple[str, ...] = ()  # options of ``gpucheck run`` with the case
    whole: tuple[str, ...] = ()  # scenario and options of ``gpucheck run`` with cases of its own
    bisect: tuple[str, ...] = ()  # options of ``gpucheck bisect`` with the case
    twin: Mapping[str, Scalar] = field(default_factory=dict)  # parameters of a case without the fault, if it is planned
    needs: Mapping[str, str] = field(default_factory=dict)  # software -> range that the command needs


@dataclass(frozen=True)
class KnownFault:
    """A fault that was found, reported or mended in public."""

    id: str  # what `gpucheck explain` takes
    title: str
    means: str
    shows: str
    upstream: tuple[str, ...]  # "owner/name#number", or where it was published
    good: tuple[str, ...]  # first good releases: of the library, of Triton, of engines
    workaround: str
    fits: tuple[Fingerprint, ...]  # any of them
    proof: tuple[Proof, ...] = ()
    alike: bool = False  # upstream has a fault of this kind; whether it is the same one, no fingerprint can tell

    @property
    def parts(self) -> dict[str, str]:
        """The texts of its page, by what they tell."""
        return {
            "means": self.means,
            "shows": self.shows,
            "upstream": ", ".join(self.upstream) or "no report is known",
            "fixed": f"in {'; '.join(self.good)}" if self.good else "no release is known to be free of it",
            "instead": self.workaround,
        }


@lru_cache(maxsize=1)
def known_faults() -> tuple[KnownFault, ...]:
    """The table."""
    return parse(files("gpucheck.diagnose").joinpath(TABLE).read_text(encoding="utf-8"), TABLE)


def page(name: str) -> KnownFault | None:
    """The known fault of this id, in any case of letters."""
    return next((fault for fault in known_faults() if fault.id == name.strip().lower()), None)


def parse(text: str, name: str) -> tuple[KnownFault, ...]:
    """The faults of a table.

    Raises:
        ValueError: says which entry, what was found there and what was expected.
    """
    try:
        listed = tomllib.loads(text).get("fault", [])
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name} is no TOML: {error}") from None
    found: dict[str, KnownFault] = {}
    for number, item in enumerate(listed, start=1):
        where = f"{name}, fault {number} ({item.get('id', 'without id')})"
        fault = _made(KnownFault, item, where)
        if fault.id in found or not ID.fullmatch(fault.id):
            raise ValueError(f"{where}: id is {fault.id!r}, expected words joined by - that no other fault has")
        if not fault.fits:
            raise ValueError(f"{where}: fits is empty, expected at least one fingerprint")
        for each in fault.fits:
            _check(each, where)
        for proof in fault.proof:
            _check_ranges(proof.needs, where)
        found[fault.id] = fault
    return tuple(found.values())


def _made(kind: type[Any], item: Any, where: str) -> Any:
    """A dataclass of what a table of TOML says."""
    if not isinstance(item, dict):
        raise ValueError(f"{where}: found {item!r}, expected a table")
    known = {each.name: each for each in fields(kind)}
    for key in item:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}, expected one of {', '.join(known)}")
    missing = [
        each.name
        for each in known.values()
        if each.default is MISSING and each.default_factory is MISSING and each.name not in item
    ]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    return kind(**{key: _value(str(known[key].type), item[key], f"{where}: {key}") for key in item})


def _value(kind: str, item: Any, where: str) -> Any:
    """An entry of TOML as the type that a field is annotated with."""
    parts: dict[str, type[Any]] = {
        "Shapes | None": Shapes,
        "tuple[Fingerprint, ...]": Fingerprint,
        "tuple[Proof, ...]": Proof,
    }
    if kind in parts:
        if kind.startswith("tuple"):
            return tuple(_made(parts[kind], each, where) for each in _typed(item, list, where))
        return _made(parts[kind], item, where)
    if kind.startswith("tuple"):
        return tuple(_typed(each, int if "int" in kind else str, where) for each in _typed(item, list, where))
    if kind.startswith("Mapping"):
        several = "tuple" in kind
        listed = _typed(item, dict, where).items()
        return {
            key: tuple(value if isinstance(value, list) else [value]) if several else value for key, value in listed
        }
    return _typed(item, {"str": str, "int": int, "bool": bool}[kind], where)


def _typed(item: Any, kind: type[Any], where: str) -> Any:
    if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
        raise ValueError(f"{where} is {item!r}, expected {kind.__name__}")
    return item


def _check(fingerprint: Fingerprint, where: str) -> None:
    """Raises ValueError where a fingerprint names what does not exist, and so could never fit."""
    if not fingerprint.causes and not fingerprint.message:
        raise ValueError(
            f"{where}: fits asks for neither causes nor message, expected what tells the fault from others"
        )
    words: list[tuple[str, Iterable[str], Iterable[str]]] = [
        ("causes", fingerprint.causes, CAUSES),
        ("patterns", fingerprint.patterns, [*PATTERNS, *(f"wrong {name}" for name in fingerprint.groups)]),
        ("generations", fingerprint.generations, GENERATIONS),
        ("outcomes", fingerprint.outcomes, [outcome.value for outcome in Outcome if outcome.failed]),
        ("violations", fingerprint.violations, [kind.value for kind in ViolationKind]),
        ("conditions", fingerprint.conditions, [each.name for each in fields(Conditions)]),
        ("groups", fingerprint.groups.values(), [LAST]),
    ]
    for key, given, expected in words:
        for word in given:
            if word not in [*expected]:
                raise ValueError(f"{where}: {key} has {word!r}, expected one of {', '.join(expected)}")
    shapes = fingerprint.shapes
    if shapes and not (len(shapes.residues) == 2 and 0 <= shapes.residues[0] <= shapes.residues[1] < shapes.modulo):
        raise ValueError(f"{where}: residues are {[*shapes.residues]}, expected two from 0 to {shapes.modulo - 1}")
    _check_ranges({**fingerprint.versions, **fingerprint.where_recorded}, where)
    for pattern in (fingerprint.detail, fingerprint.message):
        _attempt(re.compile, pattern.replace(SIZE, "1"), where)


def _check_ranges(ranges: Mapping[str, str], where: str) -> None:
    for each in ranges.values():
        _attempt(clauses, each, where)


def _attempt(read: Callable[[str], object], text: str, where: str) -> None:
    try:
        read(text)
    except (ValueError, re.error) as error:
        raise ValueError(f"{where}: {text!r}: {error}") from None
