"""What holds for every check, on every case of the smoke scenario."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpucheck.checks import CHECKS, load
from gpucheck.model.case import Case
from gpucheck.model.errors import UsageError
from gpucheck.plan import scenario
from gpucheck.verify.digest import whole
from gpucheck.verify.extremes import among
from gpucheck.verify.judge import judge

CASES = list({step.case.id: step.case for step in scenario.load(scenario.find("smoke")).steps}.values())


def inputs_of(case: Case, seed: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(case.input_seed if seed is None else seed)
    return load(case.check).inputs(case, generator)


def digest(inputs: dict[str, Tensor]) -> str:
    return whole(*(inputs[name] for name in sorted(inputs)))


def test_every_check_is_known_by_its_own_name() -> None:
    for name in CHECKS:
        assert load(name).spec.name == name and load(name).spec.summary
    with pytest.raises(UsageError, match="unknown check 'matmull'; known: matmul"):
        load("matmull")


@pytest.mark.parametrize("name", CHECKS)
def test_defaults_make_a_case(name: str) -> None:
    check = load(name)
    for param in check.spec.params:
        assert param.accepts(param.default) and param.help
    valid = [data for data in check.spec.data_kinds if check.reason_against(check.spec.defaults, data) is None]
    assert valid == list(check.spec.data_kinds)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_inputs_are_determined_by_the_seed_alone(case: Case) -> None:
    torch.manual_seed(1)
    first = inputs_of(case)
    torch.manual_seed(2)
    torch.rand(3)
    assert digest(inputs_of(case)) == digest(first)
    assert all(tensor.device.type == "cpu" for tensor in first.values())
    assert digest(inputs_of(case, seed=case.input_seed ^ 1)) != digest(first)


def test_inputs_that_are_said_to_come_late_are_inputs() -> None:
    made: dict[str, set[str]] = {}
    for case in CASES:
        made.setdefault(case.check, set()).update(inputs_of(case))
        assert {*load(case.check).late_inputs} & made[case.check], "a case with late inputs would prove nothing"
    assert made and not [name for name, inputs in made.items() if not {*load(name).late_inputs} <= inputs]


def test_cases_do_not_share_their_data() -> None:
    digests = [digest(inputs_of(case)) for case in CASES]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_reference_is_deterministic_and_leaves_the_inputs_alone(case: Case) -> None:
    check, inputs = load(case.check), inputs_of(case)
    before = digest(inputs)
    first, second = check.reference(case, inputs), check.reference(case, inputs)
    assert digest(inputs) == before
    axes = check.axes(case, inputs)
    assert set(axes) == set(first)
    for name, expected in first.items():
        value, error = expected.estimate.value, expected.estimate.error
        assert whole(value) == whole(second[name].estimate.value) and value.dtype == torch.float64
        assert torch.isfinite(value).all() if expected.also is None else not among(value, ~expected.also).any()
        assert error is None or (error.shape == value.shape and torch.isfinite(error).all() and (error >= 0).all())
        assert len(axes[name].names) == len(axes[name].tile) == value.ndim


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_rounded_reference_is_judged_right_and_one_flipped_bit_wrong(case: Case) -> None:
    """The judge, the bounds and the axes of a check fit together, on every output of it."""
    check, inputs = load(case.check), inputs_of(case)
    expected, axes = check.reference(case, inputs), check.axes(case, inputs)
    right = {key: item.estimate.value.to(item.dtype).contiguous() for key, item in expected.items()}
    result = judge(right, expected, axes)
    assert not result.mismatches and not result.violations
    for name, output in right.items():
        if not output.numel():
            continue
        wrong = output.clone()
        words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = wrong.view(words[output.element_size()]).flatten()
        bits[-1] ^= 1 << (8 * output.element_size() - 2)
        result = judge({**right, name: wrong}, expected, axes)
        assert [mismatch.output for mismatch in result.mismatches] == [name]
        assert result.mismatches[0].wrong == 1
