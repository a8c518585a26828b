"""The canary's output is right but for one bit of one element."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gpucheck import checks
from gpucheck.checks.attention import Attention
from gpucheck.model import canary
from gpucheck.verify.judge import judge


def test_one_bit_is_flipped_and_judged_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check = checks.load(canary.CHECK)
    case = check.spec.case(canary.PARAMS, "exact", 0)
    inputs = check.inputs(case, torch.Generator().manual_seed(case.input_seed))
    expected = check.reference(case, inputs)
    right = expected["o"].estimate.value.to(expected["o"].dtype)
    monkeypatch.setattr(Attention, "launch", lambda *_: {"o": right.clone()})
    outputs = check.launch(case, inputs, SimpleNamespace(device=torch.device("cpu")))
    (mismatch,) = judge(outputs, expected, check.axes(case, inputs)).mismatches
    assert (mismatch.wrong, tuple(mismatch.first), mismatch.bits) == (1, canary.INDEX, [canary.BIT])


def test_no_scenario_can_name_it() -> None:
    assert canary.CHECK not in checks.names()
