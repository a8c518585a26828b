"""``--node-verdict`` and ``--exit-codes``: what a cluster gets of every way to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.cli import exit_codes
from gpucheck.model.record import Outcome
from tests.cli.conftest import Command, FakeRanks
from tests.conftest import Synthetic

CORRECTED = [{"rank": 0, "kind": "corrected", "text": "2 new corrected memory errors (ECC)"}]


@pytest.mark.parametrize(
    ("outcome", "driver", "preflight", "nagios"),
    [
        (Outcome.PASS, [], 0, 0),
        (Outcome.PASS, CORRECTED, 0, 1),
        (Outcome.MISMATCH, [], 1, 2),
        (Outcome.LOST, [], 2, 3),
        (Outcome.INAPPLICABLE, [], 2, 3),
    ],
)
def test_of_a_stored_run(
    gpucheck: Command,
    here: Path,
    synthetic: Synthetic,
    outcome: Outcome,
    driver: list[object],
    preflight: int,
    nagios: int,
) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan(), {(0, 0): outcome}))
    (here / "run/driver-0.json").write_text(json.dumps(driver))
    answer = gpucheck("report", "run", "--exit-codes", "preflight", "--node-verdict", "-")
    state = {0: "WARNING" if driver else "PASS", 1: "CRITICAL", 2: "UNKNOWN"}[preflight]
    assert answer.code == preflight and json.loads(answer.out)["verdict"] == state and answer.err == ""
    assert gpucheck("report", "run", "--exit-codes=nagios").code == nagios


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "no-such-run"),
        ("report",),
        ("report", "run", "--no-such-option"),
        ("run", "no-such-scenario", "--device", "cpu"),
        ("run", "smoke", "--device", "cpu", "--library", "path:no-such-folder"),
        ("run", "smoke", "--nproc", "none"),
    ],
)
def test_what_is_no_verdict_is_unknown(gpucheck: Command, here: Path, arguments: tuple[str, ...]) -> None:
    assert gpucheck(*arguments, "--exit-codes", "preflight").code == 2
    assert gpucheck(*arguments, "--exit-codes", "nagios").code == 3


def test_a_crash_of_the_command_itself_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    for ends in (RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143), SystemExit("words")):

        def command(ends: BaseException = ends) -> None:
            raise ends

        with pytest.raises(SystemExit) as end:
            exit_codes.translated(command, "nagios")
        assert end.value.code == 3


def test_a_run_that_cannot_start_leaves_a_verdict_that_says_why(gpucheck: Command, here: Path) -> None:
    answer = gpucheck("run", "no-such-scenario", "--node-verdict", "-")
    item = json.loads(answer.out)
    assert item["verdict"] == "UNKNOWN" and item["reason"] in answer.err.replace("\n", " ")
    gpucheck("run", "no-such-scenario", "--node-verdict=v.json")
    assert json.loads((here / "v.json").read_text())["reason"] == item["reason"]


def test_a_run_writes_it(gpucheck: Command, ranks: FakeRanks, here: Path, library: str) -> None:
    (here / "mine.toml").write_text('[[cases]]\ncheck = "topk"\n')
    command = ["run", "mine.toml", "--device", "cpu", "--library", library, "--exit-codes", "preflight"]
    answer = gpucheck(*command, "--node-verdict", "-")
    assert answer.code == 2 and json.loads(answer.out)["reason"] == "rank 0: no GPU was checked"
    assert "PASS" in answer.err, "people still see the report"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--exit-codes", "icinga"], "--exit-codes is 'icinga', expected one of preflight, nagios"),
        (["--node-verdict", "-", "--json", "-"], "--json - and --node-verdict - both write to stdout"),
        (["--node-verdict", "gone/v.json"], "--node-verdict gone/v.json cannot be written"),
    ],
)
def test_options_that_mean_nothing(
    gpucheck: Command, here: Path, synthetic: Synthetic, options: list[str], words: str
) -> None:
    synthetic.write(here / "run", synthetic.run(synthetic.plan()))
    answer = gpucheck("report", "run", *options)
    assert answer.code == 2 and words in answer.err
    assert gpucheck("run", "--bisect", "--exit-codes", "nagios").code == 128


def test_the_schema_of_the_verdict(gpucheck: Command) -> None:
    assert json.loads(gpucheck("report", "--schema", "--node-verdict", "-").out)["title"] == "gpucheck node verdict"
