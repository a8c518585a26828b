from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.conditions import Conditions
from gpucheck.model.errors import UsageError
from gpucheck.model.record import Outcome
from gpucheck.tools.bisect.observation import Failure
from gpucheck.tools.bisect.target import Target, from_run
from tests.conftest import Synthetic

COMMAND = ["gpucheck", "run", "/s/mine.toml", "--nproc", "2", "--seed", "7"]


def stored(synthetic: Synthetic, folder: Path, outcomes: Any = None, **changes: Any) -> Path:
    plan = synthetic.plan(cases=3, ranks=2, command=COMMAND, seed=7, **changes)
    default = {(1, 1): Outcome.MISMATCH, (2, 0): Outcome.CRASH}
    return synthetic.write(folder, synthetic.run(plan, default if outcomes is None else outcomes))


def test_the_first_finding_of_a_stored_run(synthetic: Synthetic, tmp_path: Path) -> None:
    target = from_run(stored(synthetic, tmp_path / "run"))
    assert (target.scenario, target.cases, target.label) == ("/s/mine.toml", ("matmul/1/exact",), "matmul/1/exact")
    assert (target.nproc, target.seed, target.device, target.placement) == (2, 7, "cuda", None)
    assert target.known == Failure("undetermined: wrong output", "undetermined", (1,))


def test_a_case_of_a_stored_run(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = stored(synthetic, tmp_path / "run")
    target = from_run(folder, ["matmul/2/exact"])
    assert target.label == "matmul/2/exact" and target.known and target.known.words == "crash, rank 0"
    both = from_run(folder, ["matmul/2/exact", "matmul/1/exact"])
    assert both.cases == ("matmul/2/exact", "matmul/1/exact") and both.label == "matmul/1/exact"


@pytest.mark.parametrize(
    ("placement", "command", "wanted"),
    [("pinned", [], None), ("cpu", [], None), ("peer", [], "peer"), ("cpu", ["--placement", "visible"], "visible")],
)
def test_the_placement(
    synthetic: Synthetic, tmp_path: Path, placement: str, command: list[str], wanted: str | None
) -> None:
    plan = synthetic.plan(cases=1, under=[Conditions(placement)], command=[*COMMAND, *command])
    synthetic.write(tmp_path / "run", synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    assert from_run(tmp_path / "run").placement == wanted


@pytest.mark.parametrize(
    ("group", "command", "wanted"),
    [
        ("none", [], None),
        ("initialised", [], "initialised"),
        ("initialised", ["--process-group", "initialised"], "initialised"),
        ("none", ["--process-group", "none"], "none"),
    ],
)
def test_the_process_group(
    synthetic: Synthetic, tmp_path: Path, group: str, command: list[str], wanted: str | None
) -> None:
    plan = synthetic.plan(cases=1, under=[Conditions(process_group=group)], command=[*COMMAND, *command])
    synthetic.write(tmp_path / "run", synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    target = from_run(tmp_path / "run")
    assert (target.process_group, target.label) == (wanted, plan.steps[0].label)


@pytest.mark.parametrize(
    ("cases", "outcomes", "words"),
    [
        ([], {}, "holds no failure to search for: matmul/0/exact passed"),
        (["matmul/0/exact"], None, "holds no failure of matmul/0/exact to search for: matmul/0/exact passed"),
        (["gone"], None, "has no case 'gone'"),
        ([], {(0, 0): Outcome.LOST}, "holds no failure to search for: matmul/0/exact no answer"),
    ],
)
def test_runs_without_the_failure(
    synthetic: Synthetic, tmp_path: Path, cases: list[str], outcomes: Any, words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        from_run(stored(synthetic, tmp_path / "run", outcomes), cases)
    assert words in str(refused.value)


def test_bits_of_a_run_that_passed(synthetic: Synthetic, tmp_path: Path) -> None:
    target = from_run(stored(synthetic, tmp_path / "run", {}), ["matmul/2/exact"], bits=True)
    assert (target.label, target.cases, target.known) == ("matmul/2/exact", ("matmul/2/exact",), None)


@pytest.mark.parametrize("scenario", [[], ["/s/mine.toml"]])
def test_checks_that_were_brought_along(synthetic: Synthetic, tmp_path: Path, scenario: list[str]) -> None:
    brought = ["--check-file", "/a.py", "--problem", "/p.py", "--candidate", "/c.py"]
    plan = synthetic.plan(cases=1, command=["gpucheck", "run", *scenario, *brought, "--nproc", "1"])
    synthetic.write(tmp_path / "run", synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    target = from_run(tmp_path / "run")
    assert (target.scenario, list(target.sources)) == ("".join(scenario), brought)


def test_the_engines_of_a_stored_run(synthetic: Synthetic, tmp_path: Path) -> None:
    """So a search of patches to the library, as an engine calls it, needs no more options than the run did."""
    plan = synthetic.plan(command=[*COMMAND, "--engine", "vllm==1.0", "--engine", "path:/e"])
    synthetic.write(tmp_path / "run", synthetic.run(plan, {(0, 0): Outcome.MISMATCH}))
    target = from_run(tmp_path / "run")
    assert target.engines == ("vllm==1.0", "path:/e")
    assert "--engine vllm==1.0 --engine path:/e --engine sglang==2" in " ".join(
        target.command(None, Path("/out"), "sglang==2")
    )
    hand = target.by_hand("--library", "wheel:vllm==1.1")
    assert hand.startswith("gpucheck run /s/mine.toml --engine vllm==1.0 --engine path:/e --library wheel:vllm==1.1 ")
    assert "--device cuda" in hand and "--out" not in hand
    assert "--engine" not in " ".join(Target("smoke", ("a",), "cpu").command(None, Path("/out")))


def test_several_nodes(synthetic: Synthetic, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a run over 2 nodes; a search runs on one"):
        from_run(stored(synthetic, tmp_path / "run", nnodes=2))


def test_the_command() -> None:
    target = Target(
        "smoke",
        ("a", "b"),
        "cpu",
        nproc=2,
        seed=0,
        placement="visible",
        process_group="none",
        experiments=30.0,
        timeout=9.5,
    )
    command = target.command(Path("/lib"), Path("/out"))
    assert command[:5] == [sys.executable, "-m", "gpucheck", "run", "smoke"]
    options = dict(zip(command[5::2], command[6::2], strict=False))
    assert "--quiet" in command and "--library" in options
    text = " ".join(command)
    for part in (
        "--library path:/lib",
        "--out /out",
        "--device cpu",
        "--nproc 2",
        "--seed 0",
        "--placement visible",
        "--process-group none",
        "--experiments 30.0",
        "--timeout 9.5",
        "--case a --case b",
    ):
        assert part in text
    plain = " ".join(Target("smoke", ("a",), "auto").command(Path("/lib"), Path("/out")))
    assert "--library" not in Target("smoke", ("a",), "auto").command(None, Path("/out"))
    own = Target("", ("a",), "auto", sources=("--check-file", "/mine.py")).command(Path("/lib"), Path("/out"))
    assert own[4:6] == ["--check-file", "/mine.py"], "no scenario but theirs"
    assert not any(option in plain for option in ("--nproc", "--seed", "--placement", "--process-group"))
    assert "--experiments 0" in plain, "what is not to count need not be made"
