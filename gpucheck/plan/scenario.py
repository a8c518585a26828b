"""Scenario files: TOML that says which cases run, under which placements, with which limits."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpucheck
from gpucheck.model.case import CheckSpec
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.placement_table import PLACEMENTS
from gpucheck.model.plan import EXPECTED_RANKS, STRAGGLER, ExpectedFailure, Step
from gpucheck.plan.scenario_conditions import KEYS, TRUTH, Rule, conflict, one_of, real, reason_against_company

if TYPE_CHECKING:
    from gpucheck.checks.base import Check

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TIMEOUT = 600.0  # s, for the whole run, where a scenario does not say
CASE_TIMEOUT = 120.0  # s, for one case on one rank, likewise
EXPERIMENTS = 60.0  # s that each rank may spend on trying failed cases under other conditions, likewise
LONGEST = 7 * 24 * 3600.0  # s; longer waits than any run needs overflow timers
LIMIT = real(lambda value: 0 < value <= LONGEST, f"seconds above 0, at most {LONGEST:g}")
TOP_LEVEL: dict[str, Rule] = {
    "title": (lambda value: isinstance(value, str), "a string"),
    "seed": (lambda value: type(value) is int and value >= 0, "a whole number, 0 or more"),
    "timeout": LIMIT,
    "case_timeout": LIMIT,
    "experiments": real(lambda value: 0 <= value <= LONGEST, f"seconds, 0 for none, at most {LONGEST:g}"),
    "screen": real(lambda value: 0 <= value <= LONGEST, f"seconds, 0 for none, at most {LONGEST:g}"),
    "bench": TRUTH,
    "straggler": real(lambda value: 1 < value < math.inf, "a factor above 1"),
    "canary": TRUTH,
    "compile_ahead": TRUTH,
    "device": (lambda value: value == "cuda", "cuda: runs on the CPU only with --device cpu"),
    "cases": (lambda value: isinstance(value, list), "[[cases]] tables"),
}


def _known_cause() -> Rule:
    """Loads all causes, so only a scenario that names one pays for that."""
    from gpucheck.diagnose.causes import CAUSES

    return one_of(*CAUSES)


SINGLE: dict[str, Callable[[], Rule]] = {
    "optional": lambda: TRUTH,
    "expect": lambda: one_of("fail"),
    "cause": _known_cause,
    "expect_ranks": lambda: one_of(*EXPECTED_RANKS),
}
"""Keys of a group that take one value, no list."""
GROUP_KEYS = ("check", "data", *KEYS, *SINGLE)


@dataclass(frozen=True)
class Scenario:
    """A parsed and checked scenario."""

    name: str
    path: Path | None  # None for a built-in one
    title: str
    seed: int
    timeout: float  # s, for the whole run
    case_timeout: float  # s, for one case on one rank
    experiments: float  # s each rank may spend on trying failed cases under other conditions
    steps: tuple[Step, ...]
    implied: bool = False  # made of checks that were given without a scenario
    bench: bool = False  # speed is measured at length
    straggler: float = STRAGGLER  # see :class:`gpucheck.model.plan.Plan`
    compile_ahead: bool = False  # see :class:`gpucheck.model.plan.Plan`
    device: str = ""  # "cuda": made for GPUs, and on the CPU only where the user says --device cpu
    screen: float = 0.0  # see :class:`gpucheck.model.plan.Plan`
    canary: bool = False  # whether a case that is wrong on purpose proves that the detector sees

    @property
    def made_for_gpus(self) -> str:
        """The name of a scenario that does not run on the CPU unless the user says so; "" for others."""
        return self.name if self.device == "cuda" else ""


def find(name: str) -> Path:
    """The file of a scenario given by built-in name or by path.

    Raises:
        UsageError: neither a file nor a built-in name.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if path.is_dir():
            raise UsageError(f"scenario {name} is a folder, expected a .toml file")
        if not path.is_file():
            raise UsageError(f"scenario file {name} does not exist")
        return path
    built_in = builtin()
    if name not in built_in:
        raise UsageError(
            f"unknown scenario {name!r}; built in: {', '.join(built_in)}; or give the path of a .toml file"
        )
    return built_in[name]


def builtin() -> dict[str, Path]:
    """Name -> file of the built-in scenarios, from a checkout or an installed wheel."""
    package = Path(gpucheck.__file__).resolve().parent
    for folder in (package / "scenarios", package.parent / "scenarios"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def load(path: Path, seed: int | None = None) -> Scenario:
    """Reads and checks a scenario.

    Args:
        path: a TOML file.
        seed: replaces the scenario's seed.

    Raises:
        UsageError: unreadable, malformed, or with a key, check, value or type that is not known.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from None
    for key, value in document.items():
        if key not in TOP_LEVEL:
            raise UsageError(f"{path}: unknown key {key!r}; known: {', '.join(TOP_LEVEL)}")
        accepts, words = TOP_LEVEL[key]
        if not accepts(value):
            raise UsageError(f"{path}: {key} is {value!r}, expected {words}")
    actual_seed = document.get("seed", 0) if seed is None else seed
    steps: dict[tuple[Conditions, str], Step] = {}
    for number, group in enumerate(document.get("cases", []), start=1):
        for step in _expand(group, actual_seed, f"{path}: [[cases]] number {number}"):
            steps.setdefault(step.key, step)
    ordered = sorted(steps.values(), key=lambda step: _order(step.conditions))
    return Scenario(
        name=path.stem,
        path=None if path in builtin().values() else path.resolve(),
        title=document.get("title", path.stem),
        seed=actual_seed,
        timeout=float(document.get("timeout", TIMEOUT)),
        case_timeout=float(document.get("case_timeout", CASE_TIMEOUT)),
        experiments=float(document.get("experiments", EXPERIMENTS)),
        steps=tuple(ordered),
        bench=document.get("bench", False),
        straggler=float(document.get("straggler", STRAGGLER)),
        compile_ahead=document.get("compile_ahead", False),
        screen=float(document.get("screen", 0.0)),
        canary=document.get("canary", False),
        device=document.get("device", ""),
    )


def _order(conditions: Conditions) -> tuple[str, int, bool, bool, bool]:
    """Steps that can share a process come one after the other, the usual ones first, those of engines last."""
    place = list(PLACEMENTS).index(conditions.placement)
    grouped = conditions.process_group != "none"
    return conditions.engine, place, conditions.together, grouped, conditions.cache != "shared"


def _expand(group: Any, seed: int, where: str) -> Iterator[Step]:
    """All combinations of one ``[[cases]]`` table; a list value stands for each of its items."""
    from gpucheck.checks import load, names

    if not isinstance(group, dict) or not isinstance(group.get("check"), str):
        raise UsageError(f'{where}: needs check = "NAME"; known checks: {", ".join(names())}')
    if group["check"] not in names():
        raise UsageError(f"{where}: unknown check {group['check']!r}; known: {', '.join(names())}")
    try:
        check = load(group["check"])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    spec = check.spec
    single = _single(group, where)
    choices = {
        key: value if isinstance(value, list) else [value]
        for key, value in group.items()
        if key != "check" and key not in SINGLE
    }
    for key, values in choices.items():
        if not values:
            raise UsageError(f"{where}: {key} is an empty list, expected at least one value")
        for value in values:
            _check_value(spec, key, value, where)
    data_kinds = choices.pop("data", list(spec.usual_data))
    if check.engine:
        choices.setdefault("engine", [check.engine])
    if reason := _engine_conflict(check, choices.get("engine", ())):
        raise UsageError(f"{where}: {reason}")
    conditions = _conditions({key: choices.pop(key) for key in KEYS if key in choices}, where)
    if check.together:
        if reason := next(filter(None, map(reason_against_company, conditions)), ""):
            raise UsageError(f"{where}: all ranks run {spec.name} together: {reason}")
        conditions = list(dict.fromkeys(replace(each, process_group=TOGETHER) for each in conditions))
    elif not check.late_inputs and any(each.late for each in conditions):
        raise UsageError(
            f"{where}: late inputs need a check that names some in late_inputs, and {spec.name} names none"
        )
    for combination in itertools.product(*choices.values()):
        params = {**spec.defaults, **dict(zip(choices, combination, strict=True))}
        problems = {data: check.reason_against(params, data) for data in data_kinds}
        if any(problems.values()) and ("data" in group or all(problems.values())):
            raise UsageError(f"{where}: {next(filter(None, problems.values()))}")
        for data in (data for data in data_kinds if not problems[data]):
            case = spec.case(params, data, seed)
            yield from (Step(case, each, **single) for each in conditions)


def _engine_conflict(check: Check, engines: Iterable[str]) -> str:
    """Why a check does not run in a process of these engines, or ""."""
    for engine in engines:
        if check.engine and engine != check.engine:
            return f"engine is {engine!r}, and {check.spec.name} calls {check.engine}"
        if not check.engine and not check.needs_library:
            return f"engine goes with checks of the library, which an engine may change; {check.spec.name} uses none"
    return ""


def _conditions(choices: Mapping[str, list[Any]], where: str) -> list[Conditions]:
    """All combinations of the conditions that a group names."""
    combinations = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
    made = [Conditions(**combination) for combination in combinations]
    for each in made:
        if reason := conflict(each):
            raise UsageError(f"{where}: {reason}")
    return made


def _single(group: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a :class:`Step` that hold for a whole group."""
    given = {key: group[key] for key in SINGLE if key in group}
    for key, value in given.items():
        accepts, words = SINGLE[key]()
        if isinstance(value, list):
            raise UsageError(f"{where}: {key} is a list, expected {words}")
        if not accepts(value):
            raise UsageError(f"{where}: {key} is {value!r}, expected {words}")
    expect, cause, ranks = given.get("expect", ""), given.get("cause", ""), given.get("expect_ranks", "all")
    if not expect and (cause or ranks != "all"):
        raise UsageError(f'{where}: cause and expect_ranks go with expect = "fail"')
    return {"optional": given.get("optional", False), "expect": ExpectedFailure(cause, ranks) if expect else None}


def _check_value(spec: CheckSpec, key: str, value: Any, where: str) -> None:
    if key == "data":
        if value not in spec.data_kinds:
            raise UsageError(f"{where}: data is {value!r}, expected one of {', '.join(spec.data_kinds)}")
        return
    if key in KEYS:
        accepts, words = KEYS[key]
        if not accepts(value):
            raise UsageError(f"{where}: {key} is {value!r}, expected {words}")
        return
    for param in spec.params:
        if param.name == key:
            if not param.accepts(value):
                raise UsageError(f"{where}: {key} is {value!r}, expected {param.expected()}")
            return
    known = ", ".join([*GROUP_KEYS, *(param.name for param in spec.params)])
    raise UsageError(f"{where}: unknown key {key!r} for check {spec.name}; known: {known}")
