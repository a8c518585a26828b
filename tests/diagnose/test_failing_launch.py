"""Which kernel a crash or hang is blamed on, and when none is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.failing_launch import Place, place
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Outcome, Underway
from gpucheck.records.run_folder import Run
from tests.conftest import Synthetic

LAUNCHED = Underway("_second", "m.py:7", 2)
BLOCKED = Underway("_first", "m.py:5", 1)
NEXT = "next: --experiments 60 waits for each launch and so names the one"


class Failed:
    """A run of one case that fails on rank 1 of 2."""

    def __init__(self, synthetic: Synthetic, outcome: Outcome, device: str = "cuda", **changes: Any) -> None:
        self.synthetic = synthetic
        plan = synthetic.plan(cases=1, ranks=2, device=device)
        self.run: Run = synthetic.run(plan, {(0, 1): {"outcome": outcome, **changes}})

    def again(self, outcome: Outcome, **changes: Any) -> Failed:
        record = self.synthetic.record(self.run.plan, 0, 1, outcome, experiment="synchronised", **changes)
        self.run.experiments[(0, 1)] = {"synchronised": [record]}
        return self

    @property
    def place(self) -> Place:
        return place(self.run, self.run.records[(0, 1)])


def sticky(synthetic: Synthetic, **changes: Any) -> Failed:
    message = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    return Failed(synthetic, Outcome.CRASH, sticky=True, message=message, underway=LAUNCHED, **changes)


def test_no_kernel_is_named_before_launches_were_waited_for(synthetic: Synthetic) -> None:
    found = sticky(synthetic).place
    assert found == Place("", f"last launched: _second (m.py:7) or one of the 1 before it; {NEXT}")


def test_the_kernel_that_failed_when_each_launch_was_waited_for(synthetic: Synthetic) -> None:
    failed = sticky(synthetic).again(Outcome.CRASH, sticky=True, underway=BLOCKED)
    assert failed.place == Place("_first", "when each launch was waited for, in _first (m.py:5)")
    returned = sticky(synthetic).again(Outcome.CRASH, sticky=True, underway=replace(BLOCKED, open=0))
    assert returned.place.kernel == "_first", "the error of a launch may show at the very next call"


def test_an_error_that_stays_away_names_no_kernel(synthetic: Synthetic) -> None:
    found = sticky(synthetic).again(Outcome.PASS).place
    assert found.kernel == "" and found.words.endswith("it did not happen again when each launch was waited for")


def test_an_error_outside_of_launches(synthetic: Synthetic) -> None:
    failed = sticky(synthetic).again(Outcome.CRASH, sticky=True, kernels=["_k"], source="m.py:9")
    words = "when each launch was waited for, outside of any Triton launch at m.py:9; under test: _k"
    assert failed.place == Place("", words)


@pytest.mark.parametrize("change", ["cpu", "debug", "synchronised"])
def test_where_launches_are_waited_for_anyway_the_record_itself_tells(synthetic: Synthetic, change: str) -> None:
    failed = Failed(synthetic, Outcome.HANG, "cpu" if change == "cpu" else "cuda", underway=BLOCKED)
    (step,) = failed.run.plan.steps
    if change == "synchronised":
        step = replace(step, conditions=Conditions(synchronised=True))
    failed.run.plan = replace(failed.run.plan, debug=change == "debug", steps=(step,))
    assert failed.place == Place("_first", "in _first (m.py:5)")


def test_a_hang_in_host_code_has_no_kernel(synthetic: Synthetic) -> None:
    assert Failed(synthetic, Outcome.HANG).place.kernel == ""
    again = Failed(synthetic, Outcome.HANG, underway=LAUNCHED).again(Outcome.HANG, underway=replace(BLOCKED, open=0))
    assert again.place == Place("", "when each launch was waited for, no launch was under way: it hung in host code")


def test_titles_name_what_and_where(synthetic: Synthetic) -> None:
    failed = sticky(synthetic).again(Outcome.CRASH, sticky=True, underway=BLOCKED)
    (finding,) = conclude(failed.run).findings
    assert (finding.title, finding.cause, finding.ranks) == ("crash: illegal memory access in _first", "crash", [1])
    assert "when each launch was waited for, in _first (m.py:5)" in finding.cases[0].lines
    (finding,) = conclude(sticky(synthetic).run).findings
    assert finding.title == "crash: illegal memory access"
    hung = Failed(synthetic, Outcome.HANG, underway=LAUNCHED, message="no result within 6 s")
    (finding,) = conclude(hung.run).findings
    assert (finding.title, finding.cause) == ("hang", "hang") and NEXT in finding.cases[0].lines[1]
    (finding,) = conclude(hung.again(Outcome.HANG, underway=BLOCKED).run).findings
    assert finding.title == "hang: in _first"


def test_kernels_that_fail_alike_are_findings_of_their_own(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=2, one_row=True)
    lost = {"outcome": Outcome.CRASH, "sticky": True, "message": "CUDA error: device-side assert triggered"}
    run = synthetic.run(plan, {(0, 0): lost, (1, 0): lost})
    for number, kernel in enumerate(("_a", "_b")):
        again = synthetic.record(plan, number, 0, Outcome.CRASH, sticky=True, underway=Underway(kernel, "", 1))
        run.experiments[(number, 0)] = {"synchronised": [again]}
    titles = [finding.title for finding in conclude(run).findings]
    assert titles == ["crash: device-side assert in _a", "crash: device-side assert in _b"]
