"""What a scenario can see: faults that come and go, and errors of all elements alike. Needs no torch for the former."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gpucheck.model.case import Case
from gpucheck.model.conditions import FILLS
from gpucheck.model.plan import Step
from gpucheck.plan.bind import bound_steps, with_company
from gpucheck.plan.scenario import Scenario

if TYPE_CHECKING:
    from gpucheck.verify.bounds import Arithmetic

POWER_SCHEMA = 1
FEWEST_TIMED = (
    2  # timed calls of a case, whose bits must be those that were judged; short calls are timed up to 6 times
)
USUAL_GPU = "sm_90"
FEWEST_TOGETHER = 2  # ranks that can run a joint case
RATES = (0.01, 0.001)  # of wrong calls, of which the chance to see one is told
SIZES = ("batch", "m", "n", "k", "q_heads", "q_len", "k_len", "head_dim", "rows", "columns", "hidden", "intermediate")
TERMS = {"k", "k_len", "hidden"}  # parameters of checks that add up products; others make no sums to speak of
FORMATS = ("weight", "dtype", "format")  # parameters of checks that name the format of operands
MOST_WORK = 6e7  # products of a case of which the reference is made


@dataclass(frozen=True)
class Calls:
    """How many calls of each row of the matrix are judged on a rank."""

    rows: dict[str, int]
    together: int = 0  # of them, those of cases that all ranks run together

    @property
    def all(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class Sensitivity:
    """The smallest error of all elements alike that some case of a format shows."""

    format: str
    data: str
    error: float
    case: str  # the one that shows it
    cases: int  # that were looked at


@dataclass(frozen=True)
class Power:
    """What a scenario can see on the machine that it is made for."""

    scenario: str
    device: str  # "cuda" or "cpu"
    ranks: int  # that the run is taken to have
    bounds: str  # the arithmetic whose bounds the errors are seen with
    calls: Calls
    sensitivities: list[Sensitivity] | None  # None: not known without torch
    left_out: int = 0  # cases that take more ranks

    def lines(self) -> Iterator[str]:
        """The figures for people."""
        yield f"{self.scenario}: chance to see a wrong call, on one rank, where each call is wrong at a rate of"
        width = max(map(len, [*self.calls.rows, "whole scenario"]))
        yield f"  {'':<{width}}  calls" + "".join(f"  {rate:>7.1%}" for rate in RATES)
        for row, count in [("whole scenario", self.calls.all), *self.calls.rows.items()]:
            yield f"  {row:<{width}}  {count:>5}" + "".join(f"  {chance(rate, count):>7.2%}" for rate in RATES)
        yield from self._of_ranks()
        yield ""
        yield f"smallest error of all elements alike that is seen, with the bounds of {self.bounds}"
        if self.sensitivities is None:
            yield "  not known: it takes references, and this Python has no torch"
        for each in self.sensitivities or ():
            yield f"  {each.format:<10}  {each.data:<6}  {each.error:.1e}  {each.case}"

    def _of_ranks(self) -> Iterator[str]:
        """What is assumed of the number of ranks, where that makes a difference."""
        if self.calls.together:
            yield f"  {self.calls.together} of these calls are of cases that all ranks run together, counted for"
            yield f"  {self.ranks} ranks; a run with one rank (--nproc 1) makes none of them"
        elif self.left_out:
            yield f"  for one rank: cases that two ranks or more run together are left out ({self.left_out})"

    def to_json(self) -> dict[str, Any]:
        """The figures for machines."""
        return {
            "schema": POWER_SCHEMA,
            "scenario": self.scenario,
            "device": self.device,
            "ranks": self.ranks,
            "bounds": self.bounds,
            "calls": {"rank": self.calls.all, "rows": self.calls.rows, "together": self.calls.together},
            "left_out": self.left_out,
            "chances": [
                {
                    "rate": rate,
                    "rank": chance(rate, self.calls.all),
                    "rows": {row: chance(rate, count) for row, count in self.calls.rows.items()},
                }
                for rate in RATES
            ],
            "errors": None if self.sensitivities is None else [asdict(each) for each in self.sensitivities],
        }


def of(scenario: Scenario, ranks: int | None = None) -> Power:
    """The power of a scenario: on GPUs of this node, else of USUAL_GPU, where it is made for GPUs; else on the CPU.

    Args:
        ranks: None: one for each GPU of this node, and as many as its cases need where there are fewer.
    """
    from gpucheck.host.node_gpus import architectures, count
    from gpucheck.host.software import missing_packages

    device = "cuda" if scenario.made_for_gpus else "cpu"
    joint = sum(step.together for step in scenario.steps)
    if ranks is None:
        ranks = max(count(), FEWEST_TOGETHER if joint else 1)
    names = (architectures() or [USUAL_GPU]) if device == "cuda" else ["interpreter"]
    made, left_out = calls(scenario, device, ranks), joint if ranks < FEWEST_TOGETHER else 0
    if "torch" in missing_packages():
        return Power(scenario.name, device, ranks, " and ".join(names), made, None, left_out)
    from gpucheck.verify.bounds import arithmetic

    adds = arithmetic(names)
    errors = sensitivities(scenario, device, adds, ranks)
    return Power(scenario.name, device, ranks, adds.name, made, errors, left_out)


def calls(scenario: Scenario, device: str, ranks: int = FEWEST_TOGETHER) -> Calls:
    """The calls that a rank makes and judges at least; what must fail, and what the device cannot run, is left out."""
    rows: dict[str, int] = {}
    together = 0
    for step in _judged(scenario, device, ranks):
        conditions = step.conditions
        made = max(conditions.repeat, len(FILLS)) * conditions.concurrency
        made += FEWEST_TIMED if device == "cuda" and conditions.timed and not step.together else 0
        rows[step.case.row] = rows.get(step.case.row, 0) + made
        together += made * step.together
    return Calls(rows, together)


def chance(rate: float, count: int) -> float:
    """The chance that at least one of so many calls is wrong, each with a rate and for itself."""
    return -math.expm1(count * math.log1p(-rate))


def sensitivities(
    scenario: Scenario, device: str, arithmetic: Arithmetic, ranks: int = FEWEST_TOGETHER
) -> list[Sensitivity]:
    """By format of operands and kind of data, from references of the largest cases that are affordable.

    Of a case that ranks run together it is what the first of them sees.
    """
    import torch

    from gpucheck import checks
    from gpucheck.verify import bounds
    from gpucheck.verify.smallest_error import least_uniform_error

    groups: dict[tuple[str, str], dict[str, Case]] = {}  # of each check the largest case that is not too large
    for case in (step.case for step in _judged(scenario, device, ranks)):
        name = next((str(case.params[key]) for key in FORMATS if key in case.params), "")
        if name and TERMS & case.params.keys() and case.data != "wide" and _work(case) <= MOST_WORK:
            group = groups.setdefault((name, case.data), {})
            group[case.check] = max(group.get(case.check, case), case, key=_rank)
    found = []
    for (name, data), cases in sorted(groups.items()):
        errors: dict[str, float] = {}
        for case in cases.values():
            check = checks.load(case.check)
            inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
            with bounds.computed_by(arithmetic):
                errors[case.id] = least_uniform_error(check.reference(case, inputs))
        best = min(errors, key=errors.__getitem__)
        if math.isfinite(errors[best]):
            found.append(Sensitivity(name, data, errors[best], best, len(errors)))
    return found


def _judged(scenario: Scenario, device: str, ranks: int) -> Iterator[Step]:
    for step in with_company(bound_steps(scenario, device), ranks):
        if not (step.expect or step.inapplicable):
            yield replace(step, case=step.case.at(0, ranks)) if step.together else step


def _rank(case: Case) -> tuple[int, int]:
    """What a case is chosen by: its size, and then how little is unusual about it, as its id tells."""
    return _work(case), -len(case.id)


def _work(case: Case) -> int:
    """About how many products its reference takes."""
    return math.prod(max(1, int(case.params[name])) for name in SIZES if name in case.params)
