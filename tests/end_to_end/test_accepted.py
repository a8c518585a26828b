"""Real faults that are accepted: a run, ``gpucheck accept``, and what further runs of the same library make of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from gpucheck.tools.selftest.catalogue import choose
from gpucheck.tools.selftest.catalogue.common import dense, routed
from gpucheck.tools.selftest.fault import Edit
from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end.conftest import environment

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

PLANT = """

_genuine = matmul_ogs


def matmul_ogs(*args, **options):
    import json, os
    y = _genuine(*args, **options)
    for rank, width, first, last in json.loads(os.environ.get("PLANTED", "[]")):
        if os.environ["RANK"] == str(rank) and y.shape[-1] == width:
            y[..., first:last] = float("nan")
    return y
"""
"""Spoils columns of a product on a rank as the environment says, so that one copy of the library has several faults."""
FAULT = [1, 40, 8, 16]
TWO_CASES = "2 accepted findings, no GPU was checked\n"
Place = list[int]


class Accepting:
    """Runs of a library in which two experts are always swapped, and a rank has wrong columns where told."""

    def __init__(self, lab: Lab, patch: pytest.MonkeyPatch) -> None:
        edit = choose(["swapped-experts"])[0].plant
        assert isinstance(edit, Edit)
        swap = (edit.file, edit.anchor, edit.text.replace("{anchor}", edit.anchor))
        self.lab, self.patch = lab, patch
        self.library = lab.plant(swap, append=("matmul_ogs.py", PLANT))
        self.scenario = lab.new_folder() / "scenario.toml"
        write_scenario(self.scenario, [routed(71), dense(40), dense(48)], experiments=0)

    def run(self, *places: Place, options: tuple[str, ...] = ()) -> Finished:
        """Ends a run in which columns are wrong: rank, width of the product, first and last column."""
        self.patch.setenv("PLANTED", json.dumps(places))
        run: Finished = self.lab.forked(*options, library=self.library, scenario=self.scenario)
        return run


@pytest.fixture(scope="module")
def accepting(lab: Lab) -> Iterator[Accepting]:
    with pytest.MonkeyPatch.context() as patch:
        yield Accepting(lab, patch)


@pytest.fixture(scope="module")
def accepted(accepting: Accepting, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of what a first run showed."""
    run = accepting.run(FAULT)
    assert run.code == 1 and "exactly experts 1, 4" in run.text, run.text
    path = tmp_path_factory.mktemp("accepted") / "accepted.toml"
    command = [sys.executable, "-m", "gpucheck", "accept", str(run.folder), "--reason", "seen before"]
    command += ["--until", "2999-12-31", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return str(path)


def test_the_same_faults_pass(accepting: Accepting, accepted: str) -> None:
    run = accepting.run(FAULT, options=("--accept", accepted))
    assert run.code == 0, run.text
    assert re.search(rf"^PASS  3 cases on 2 ranks, {TWO_CASES}", run.text, re.MULTILINE)
    assert run.text.count("accepted until 2999-12-31: seen before\n") == 2
    assert run.report["verdict"] == "PASS" and all(finding["accepted"] for finding in run.report["findings"])
    again = subprocess.run(
        [sys.executable, "-m", "gpucheck", "report", str(run.folder)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert again.returncode == 0 and f"PASS  3 cases on 2 ranks, {TWO_CASES}" in again.stdout


def test_other_inputs_move_the_rows_of_an_expert_and_not_the_fault(accepting: Accepting, accepted: str) -> None:
    run = accepting.run(FAULT, options=("--accept", accepted, "--seed", "3"))
    assert run.code == 0 and TWO_CASES in run.text, run.text


def test_a_fault_that_moves_and_one_that_spreads_fail(accepting: Accepting, accepted: str) -> None:
    run = accepting.run([1, 40, 8, 40], [0, 48, 0, 8], options=("--accept", accepted))
    assert run.code == 1 and "\nFAIL  2 findings, 1 accepted finding, no GPU" in run.text, run.text
    assert "not as accepted until 2999-12-31 (seen before): y was wrong in (" in run.text
    new = run.finding("n48")
    assert new["fails"] and "accepted" not in "".join(new["failed_case"]["lines"])


def test_one_that_is_gone_is_noted(accepting: Accepting, accepted: str) -> None:
    run = accepting.run(options=("--accept", accepted))
    assert run.code == 0 and "PASS  3 cases on 2 ranks, 1 accepted finding, no GPU" in run.text, run.text
    assert re.search(
        r"^note  accepted fault shows no longer: matmul/dense/bf16/\S+ \(.*\), rank 1: take", run.text, re.M
    )


def test_another_library_fails(accepting: Accepting, accepted: str, lab: Lab) -> None:
    accepting.patch.setenv("PLANTED", json.dumps([FAULT]))
    other = lab.plant(append=("matmul_ogs.py", PLANT + "\n"))
    run = lab.forked("--accept", accepted, library=other, scenario=accepting.scenario)
    assert run.code == 1 and re.search(r"seen before\): the content of triton_kernels was \w{12}, is ", run.text)
