"""Ranks that share an expert block or a model, over gloo: all right ones pass, a fault of one is named by its rank."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.sharded_faults import DISPATCH, FAULTS
from gpucheck.tools.selftest.fault import Edit, Expected, Fault
from gpucheck.tools.selftest.injection import Injector, Planted, write_scenario
from tests.end_to_end.conftest import DEADLINE, Finished, Lab, environment, free_ports, one_of

RANKS = 3
BLOCK = {"check": "sharded_moe", "hidden": 32, "intermediate": 256, "top_k": 2, "weight": "bf16"}
MODEL = {
    "check": "sharded_generation",
    "layers": 2,
    "batch": 1,
    "tokens": 2,
    "hidden": 64,
    "heads": 6,
    "kv_heads": 3,
    "window": 2,
    "experts": 8,
    "intermediate": 96,
    "vocabulary": 96,
    "layout": "strided",
}
GENERATION, DECODER = "gpucheck.checks.generation", "gpucheck.checks.decoder.device"
WHOLE = "        dist.all_reduce(whole)\n"


def fault(name: str, file: str, anchor: str, text: str, case: Mapping[str, Any], title: str, *says: str) -> Fault:
    return Fault(name, name, Edit(file, anchor, text), case, Expected(Outcome.MISMATCH, title, says))


PLANTED = (
    *FAULTS,
    fault(
        "global ids",
        DISPATCH,
        '            outputs["slots"] = ids = local_ids(ids, self.held)\n',
        '{anchor}            if self.case["m"] == 23:\n'
        '                outputs["slots"] = self.inputs["ids"].clone()\n'
        "                ids = torch.where(ids >= 0, outputs['slots'] % len(self.experts.bias2), ids)\n",
        {**BLOCK, "parallel": "expert", "m": 23},
        r".*",
        r"first wrong: the numbers by which this rank looks up its experts",
        r"computed wrongly: .* of slots, .*: the numbers of the whole model, in a table of this rank's experts alone",
    ),
    fault(
        "absent slots by the last expert",
        DISPATCH,
        '        outputs["partial"] = self.experts(x, ids, gates)\n',
        '        ids = ids % len(self.experts.bias2) if self.case["m"] == 26 else ids\n{anchor}',
        {**BLOCK, "parallel": "expert", "m": 26},
        r".*",
        r"first wrong: what this rank's experts give",
        r"rank (\d) to rank \1: computed wrongly: .* of partial, ",
    ),
    fault(
        "share of the model",
        GENERATION,
        "            inputs = inputs_of_one(shape, inputs, case.rank, case.ranks)\n",
        '            other = (case.rank + (case["vocabulary"] == 96)) % case.ranks\n'
        "            inputs = inputs_of_one(shape, inputs, other, case.ranks)\n",
        MODEL,
        "slicing by the wrong rank variable",
        r"first wrong at step 0, layer 0, qkv: computed by this rank, no collective",
        r"other share: .* of qkv, .*: what the weights of rank \d give",
    ),
)
"""Each is planted on one rank, which alone is named; others have a wrong sum by it."""
MISSING = (
    fault(
        "reduction misses a rank",
        DISPATCH,
        "        dist.all_reduce(tensor)\n",
        "        if len(tensor) == 24:\n            tensor.zero_()\n{anchor}",
        {**BLOCK, "parallel": "tensor", "m": 24},
        "missing contribution: .*",
        r"first wrong: what the ranks' parts add up to",
        r"missing: .* of y, .*: the sum without the part of rank \d",
    ),
    fault(
        "reduction of the model misses a rank",
        DECODER,
        WHOLE,
        "        if part.shape[-1] == 96:\n            whole.zero_()\n{anchor}",
        {**MODEL, "hidden": 96, "vocabulary": 99},
        "missing contribution: .*",
        r"first wrong at step 0, layer 0, attention out: the all-reduce, this rank's own part is right",
        r"missing: .* of attention out, .*: the sum without the part of rank \d",
    ),
)
"""Each is planted on one rank, and shows on all that add up."""
CLEAN = (
    *({**BLOCK, "parallel": way, "m": 13, "weight": "mxfp4", "empty": True} for way in ("expert", "dispatch")),
    {**BLOCK, "parallel": "dispatch", "m": 2, "top_k": 1, "load": "one", "combine": "own"},
)


def run_with(lab: Lab, faults: tuple[Fault, ...], rank: int) -> Finished:
    """Three ranks, with faults planted on one of them, and cases that none is planted in."""
    folder = lab.new_folder()
    write_scenario(folder / "scenario.toml", [*(each.case for each in faults), *CLEAN], experiments=0)
    path = Injector(folder, lab.library.package, RANKS).startup_with([Planted(each, (rank,)) for each in faults])
    return lab.finish(scenario=folder / "scenario.toml", nproc=RANKS, path=path)


@pytest.fixture(scope="module", params=one_of(RANKS, now=2))
def planted(lab: Lab, request: pytest.FixtureRequest) -> tuple[int, Finished]:
    return request.param, run_with(lab, (*PLANTED, *MISSING), request.param)


def part_of_id(each: Fault) -> str:
    return "/m{}-".format(each.case["m"]) if "m" in each.case else "-v{}-".format(each.case["vocabulary"])


@pytest.mark.parametrize("each", PLANTED, ids=lambda each: each.name)
def test_a_fault_of_a_ranks_own_part_is_named_by_that_rank_alone(planted: tuple[int, Finished], each: Fault) -> None:
    rank, run = planted
    case = part_of_id(each)
    failing = [finding for finding in run.findings(case) if finding["fails"]]
    assert [finding["ranks"] for finding in failing] == [[rank]], run.text
    assert re.fullmatch(each.expected.title, failing[0]["title"]), failing
    lines = "\n".join(failing[0]["failed_case"]["lines"])
    assert all(re.search(said, lines) for said in each.expected.says), lines
    results = {r["rank"]: r for r in run.report["results"] if case in r["case"]}
    assert results[rank]["outcome"] == "mismatch" and results[rank]["victim_of"] is None
    for other in set(range(RANKS)) - {rank}:
        assert results[other]["outcome"] == "pass" or results[other]["victim_of"] == rank, results[other]


@pytest.mark.parametrize("each", MISSING, ids=lambda each: each.name)
def test_a_sum_without_a_rank_names_that_rank(planted: tuple[int, Finished], each: Fault) -> None:
    rank, run = planted
    (finding,) = [finding for finding in run.findings(part_of_id(each)) if finding["fails"]]
    assert re.fullmatch(each.expected.title, finding["title"]) and finding["ranks"] == [*range(RANKS)], run.text
    lines = "\n".join(finding["failed_case"]["lines"])
    assert all(re.search(said, lines) for said in each.expected.says), lines
    results = [r for r in run.report["results"] if part_of_id(each) in r["case"]]
    assert {sent["sender"] for result in results for sent in result["transfers"]} == {rank}


def test_the_cases_beside_are_right(planted: tuple[int, Finished]) -> None:
    """Three ranks share eight experts unevenly; some slots are empty, and some ranks get no token."""
    _, run = planted
    assert run.code == 1
    for case in ("/m13-", "/m2-"):
        found = [result["outcome"] for result in run.report["results"] if case in result["case"]]
        assert found and set(found) == {"pass"}, run.text


LOCAL = "slicing by the wrong rank variable: LOCAL_RANK in place of RANK"
BY_LOCAL_RANK = (
    fault(
        "block by LOCAL_RANK",
        DISPATCH,
        '        rank, size, way = case.rank, case.ranks, case["parallel"]\n',
        '{anchor}        rank = int(__import__("os").environ["LOCAL_RANK"])\n',
        {**BLOCK, "parallel": "tensor", "m": 9},
        LOCAL,
    ),
    fault(
        "model by LOCAL_RANK",
        GENERATION,
        "            inputs = inputs_of_one(shape, inputs, case.rank, case.ranks)\n",
        '            local = int(__import__("os").environ["LOCAL_RANK"])\n'
        "            inputs = inputs_of_one(shape, inputs, local, case.ranks)\n",
        {**MODEL, "heads": 4, "kv_heads": 2, "intermediate": 128},
        LOCAL,
    ),
)


def test_slicing_by_local_rank_shows_on_the_second_node(lab: Lab, tmp_path: Path) -> None:
    """Two nodes of one rank each: on the first both numbers are equal, and the sum is wrong on both.

    So it is in the block and in the model.
    """
    write_scenario(tmp_path / "scenario.toml", [each.case for each in BY_LOCAL_RANK], experiments=0)
    path = Injector(tmp_path, lab.library.package, 2).startup_with([Planted(each, (0, 1)) for each in BY_LOCAL_RANK])
    endpoint, processes = f"127.0.0.1:{free_ports(2)}", []
    for node in range(2):
        folder = tmp_path / f"node{node}"
        command = [sys.executable, "-m", "gpucheck", "run", str(tmp_path / "scenario.toml"), "--device", "cpu"]
        command += [
            "--nproc",
            "1",
            "--library",
            f"path:{lab.library.package}",
            "--nnodes",
            "2",
            "--node-rank",
            str(node),
        ]
        command += ["--rdzv-endpoint", endpoint, "--out", str(folder)]
        command += ["--json", str(tmp_path / "report.json")] if node == 0 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        processes.append(subprocess.Popen(command, env=environment(path), text=True, **pipes))
    texts = [process.communicate(timeout=DEADLINE)[0] for process in processes]
    run = Finished(processes[0].returncode, texts[0], tmp_path)
    assert run.code == 1, texts
    for case in map(part_of_id, BY_LOCAL_RANK):
        (finding,) = [finding for finding in run.findings(case) if finding["fails"]]
        assert finding["title"] == LOCAL and finding["ranks"] == [1], run.text
    assert os.path.exists(tmp_path / "node1")
