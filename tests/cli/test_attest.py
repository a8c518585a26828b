"""``gpucheck attest`` and ``gpucheck verify`` as they are typed."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.model.record import Outcome
from tests.cli.conftest import Command
from tests.conftest import Synthetic


@pytest.fixture
def stored(here: Path, synthetic: Synthetic) -> Path:
    """A run that passed on two GPUs an hour ago."""
    run = synthetic.run(synthetic.plan(cases=2, ranks=2, created=time.time() - 3600), seconds=1.0)
    run.records = {key: replace(record, gpu=f"GPU-{key[1]}") for key, record in run.records.items()}
    return synthetic.write(here / "run", run)


def test_a_statement_is_written_and_holds(gpucheck: Command, stored: Path, here: Path) -> None:
    printed = gpucheck("attest", "run")
    assert gpucheck("attest", "run", "--out", "s.json").code == printed.code == 0
    assert (here / "s.json").read_text() == printed.out
    answer = gpucheck("verify", "s.json", "--run", "run", "--max-age", "24h")
    assert answer.code == 0 and answer.out.startswith("PROVEN  PASS, smoke on 2 x NVIDIA H200, run 0123456789ab\n")
    assert answer.out.count("  ok  ") == 3 and "--  signature       there is none here" in answer.out
    assert gpucheck("verify", "s.json", "--max-age", "10m").code == 1
    assert json.loads(gpucheck("attest", "run", "--predicate").out) == json.loads(printed.out)["predicate"]


def test_an_image_can_be_what_it_is_about(gpucheck: Command, stored: Path) -> None:
    statement = json.loads(gpucheck("attest", "run", "--subject", f"vllm@sha256:{'a' * 64}").out)
    assert statement["subject"][0] == {"name": "vllm", "digest": {"sha256": "a" * 64}}
    assert gpucheck("attest", "run", "--subject", "vllm:latest").code == 2


def test_a_run_that_failed_gives_no_proof(gpucheck: Command, here: Path, synthetic: Synthetic) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan(), {(0, 0): Outcome.MISMATCH}))
    answer = gpucheck("attest", "run", "--out", "s.json")
    assert answer.code == 1 and "no proof: its verdict is FAIL" in answer.message and not (here / "s.json").exists()
    assert gpucheck("attest", "run", "--out", "s.json", "--any-verdict").code == 0
    answer = gpucheck("verify", "s.json")
    assert answer.code == 1 and answer.out.startswith("NO PROOF  FAIL, ")


def test_two_statements_are_compared(gpucheck: Command, stored: Path, here: Path) -> None:
    gpucheck("attest", "run", "--out", "a.json")
    item = json.loads((here / "a.json").read_text())
    item["predicate"]["software"]["driver"] = "580.2"
    (here / "b.json").write_text(json.dumps(item))
    answer = gpucheck("verify", "a.json", "--against", "b.json")
    assert answer.code == 1 and "  XX  driver: none against 580.2\n" in answer.out
    answer = gpucheck("verify", "a.json", "--against", "a.json")
    assert answer.code == 0 and "a.json against a.json: alike\n" in answer.out
    item["predicate"]["result"]["verdict"] = "FAIL"
    (here / "b.json").write_text(json.dumps(item))
    assert "b.json does not hold" in gpucheck("verify", "a.json", "--against", "b.json").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attest"], "attest needs the folder of a run"),
        (["attest", "none"], "none is no run folder"),
        (["attest", "s.json"], "s.json is no folder"),
        (["attest", "run", "--out", "gone/s.json"], "--out gone/s.json cannot be written: there is no folder"),
        (["verify", "none"], "none cannot be read"),
        (["verify", "run"], "run is no regular file"),
        (["verify", "run/plan.json"], "run/plan.json is no statement of gpucheck attest"),
        (["verify", "s.json", "--max-age", "yesterday"], "--max-age is 'yesterday'"),
        (["verify", "s.json", "--run", "none"], "none is no run folder"),
        (["verify", "s.json", "--against", "run/plan.json"], "run/plan.json is no statement"),
    ],
)
def test_what_cannot_be(gpucheck: Command, stored: Path, here: Path, arguments: list[str], words: str) -> None:
    gpucheck("attest", "run", "--out", "s.json")
    answer = gpucheck(*arguments)
    assert answer.code == 2 and words in answer.message


def test_a_run_folder_that_is_not_the_one(gpucheck: Command, stored: Path, here: Path) -> None:
    gpucheck("attest", "run", "--out", "s.json")
    shutil.copytree(stored, here / "copy")
    assert gpucheck("verify", "s.json", "--run", "copy").code == 0
    with open(here / "copy/records/rank-00000.jsonl", "a") as file:
        file.write("{}\n")
    answer = gpucheck("verify", "s.json", "--run", "copy")
    assert (
        answer.code == 1 and answer.out.startswith("DOES NOT HOLD  ") and "rank-00000.jsonl was changed" in answer.out
    )


def test_the_schema_of_a_statement(gpucheck: Command) -> None:
    assert json.loads(gpucheck("attest", "--schema").out)["title"] == "gpucheck statement"
