"""Which wrong results of ranks that work together follow from another rank's fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.conditions import TOGETHER, Conditions
from gpucheck.model.record import Outcome, Transfer, Verdict
from gpucheck.model.vocabulary import TransferFault
from gpucheck.records.run_folder import Run, read_run
from tests.conftest import Synthetic

RANKS = 3


def transfer(sender: int, receiver: int, fault: TransferFault) -> Transfer:
    return Transfer(sender, receiver, fault, "y", 0, 1, 1, 4)


def read(synthetic: Synthetic, folder: Path, faults: dict[int, tuple[int, TransferFault]], **conditions: str) -> Run:
    """One case, wrong on these ranks: rank -> sender and fault; all as read back from a run folder."""
    under = Conditions(**{"process_group": TOGETHER, **conditions})
    plan = synthetic.plan(cases=1, ranks=RANKS, under=[under])
    ends = {
        (0, rank): {"outcome": Outcome.MISMATCH, "inputs": f"of {rank}", "transfers": [transfer(sender, rank, fault)]}
        for rank, (sender, fault) in faults.items()
    }
    return read_run(synthetic.write(folder, synthetic.run(plan, ends)))


@pytest.mark.parametrize("own", [fault for fault in TransferFault if fault.own])
@pytest.mark.parametrize("other", [fault for fault in TransferFault if fault.may_follow])
def test_a_wrong_sum_follows_from_the_rank_whose_part_is_wrong(
    synthetic: Synthetic, tmp_path: Path, own: TransferFault, other: TransferFault
) -> None:
    run = read(synthetic, tmp_path, {0: (0, other), 1: (1, own)})
    assert [run.records[(0, rank)].victim_of for rank in range(RANKS)] == [1, None, None]
    conclusion = conclude(run)
    assert conclusion.verdict is Verdict.FAIL
    failing = [finding for finding in conclusion.findings if finding.fails]
    assert [finding.ranks for finding in failing] == [[1]]
    assert [f.ranks for f in conclusion.findings if f.title == "victim of another rank"] == [[0]]


def test_bytes_that_came_from_the_rank_at_fault_follow_as_well(synthetic: Synthetic, tmp_path: Path) -> None:
    run = read(synthetic, tmp_path, {0: (1, TransferFault.CORRUPT), 1: (0, TransferFault.OTHER_SHARE)})
    assert run.records[(0, 0)].victim_of == 1
    run = read(synthetic, tmp_path / "b", {0: (2, TransferFault.CORRUPT), 1: (0, TransferFault.OTHER_SHARE)})
    assert run.records[(0, 0)].victim_of is None, "they came from a rank without a fault"


@pytest.mark.parametrize(
    "faults",
    [
        {0: (0, TransferFault.REDUCED), 1: (1, TransferFault.REDUCED)},
        {0: (1, TransferFault.MISSING), 1: (1, TransferFault.MISSING)},
        {0: (0, TransferFault.COMPUTED), 1: (1, TransferFault.COMPUTED)},
        {0: (2, TransferFault.MISSING), 1: (1, TransferFault.COMPUTED)},
    ],
)
def test_what_no_other_ranks_part_explains_is_nobodys_victim(
    synthetic: Synthetic, tmp_path: Path, faults: dict[int, tuple[int, TransferFault]]
) -> None:
    run = read(synthetic, tmp_path, faults)
    assert [record.victim_of for record in run.records.values()] == [None] * RANKS
    ranks = {rank for finding in conclude(run).findings if finding.fails for rank in finding.ranks}
    assert ranks == {0, 1}


def test_ranks_that_run_a_case_alone_follow_nobody(synthetic: Synthetic, tmp_path: Path) -> None:
    faults = {0: (0, TransferFault.REDUCED), 1: (1, TransferFault.COMPUTED)}
    run = read(synthetic, tmp_path, faults, process_group="none")
    assert [record.victim_of for record in run.records.values()] == [None] * RANKS


def test_slicing_by_local_rank_is_told_where_nodes_have_several(synthetic: Synthetic) -> None:
    plan = replace(synthetic.plan(cases=1, ranks=2, under=[Conditions(process_group=TOGETHER)]), nnodes=2)

    def titles(sender: int) -> list[str]:
        end = {"outcome": Outcome.MISMATCH, "transfers": [transfer(sender, 3, TransferFault.OTHER_SHARE)]}
        return [finding.title for finding in conclude(synthetic.run(plan, {(0, 3): end})).findings if finding.fails]

    assert titles(1) == ["slicing by the wrong rank variable: LOCAL_RANK in place of RANK"]
    assert titles(2) == ["slicing by the wrong rank variable"]


def test_unwritten_slots_have_a_cause_of_their_own(synthetic: Synthetic) -> None:
    plan = synthetic.plan(cases=1, ranks=2, under=[Conditions(process_group=TOGETHER)])
    end = {"outcome": Outcome.MISMATCH, "transfers": [transfer(1, 0, TransferFault.UNWRITTEN)]}
    (finding,) = [each for each in conclude(synthetic.run(plan, {(0, 0): end})).findings if each.fails]
    assert finding.title == "unwritten slots summed" and finding.ranks == [0] and "-1" in finding.fix
