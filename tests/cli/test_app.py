from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from gpucheck import __version__
from gpucheck.checks import CHECKS, NEEDS, installed
from gpucheck.model.errors import UsageError
from tests.cli.conftest import Command


def test_help_and_version(gpucheck: Command) -> None:
    for option in ("-h", "--help"):
        answer = gpucheck(option)
        assert answer.code == 0 and all(name in answer.out for name in ("run", "list", "report", "library"))
        assert gpucheck("run", option).code == 0
    assert gpucheck("--version").out == f"gpucheck {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("--colour",), ("list", "x"), ("report",)])
def test_bad_commands_are_usage_errors(gpucheck: Command, arguments: tuple[str, ...]) -> None:
    answer = gpucheck(*arguments)
    assert answer.code == 2 and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x"), 3, "No space left on device: /x"),
        (OSError("odd"), 3, "odd"),
    ],
)
def test_what_happens_to_anyone_is_one_message(
    gpucheck: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("gpucheck.plan.scenario.builtin", fail)
    answer = gpucheck("list")
    assert (answer.code, answer.message) == (code, message)


def test_an_interruption_before_the_command_is_one_message_too(
    gpucheck: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpucheck.library.identity.check_identity", interrupted)
    answer = gpucheck("list")
    assert (answer.code, answer.message) == (130, "interrupted")
    monkeypatch.setattr("gpucheck.cli.app.main", interrupted)
    from gpucheck.__main__ import main

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and capsys.readouterr().err == "gpucheck: interrupted\n"


def test_what_others_said_commands_no_terminal(gpucheck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UsageError("nvidia-smi said \x1b[2J\x07\n  try  something")

    monkeypatch.setattr("gpucheck.plan.scenario.builtin", fail)
    assert gpucheck("list").message == "nvidia-smi said \\x1b[2J\\x07\n  try  something"


def test_a_bug_is_not_dressed_up(gpucheck: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.plan.scenario.builtin", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        gpucheck("list")


def test_list(gpucheck: Command) -> None:
    answer = gpucheck("list")
    assert answer.code == 0 and "smoke" in answer.out
    assert all(f"  {name} " in answer.out for name in filter(installed, CHECKS))


def test_checks_of_software_that_is_not_installed_are_not_listed(
    gpucheck: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed, file = NEEDS["transformers_moe"]
    package = tmp_path / needed
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('listing imports nothing')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, needed, raising=False)
    assert "transformers_moe" not in gpucheck("list").out + gpucheck("list", "--checks").out, "an older one"
    (package / file).parent.mkdir()
    (package / file).touch()
    assert "  transformers_moe " in gpucheck("list").out and "transformers_moe: " in gpucheck("list", "--checks").out


def test_list_checks_shows_every_key(gpucheck: Command) -> None:
    from gpucheck.checks import load

    text = gpucheck("list", "--checks").out
    for name in filter(installed, CHECKS):
        spec = load(name).spec
        assert f"{name}: {spec.summary}" in text
        assert all(f"  {param.name} " in text and param.expected() in text for param in spec.params)


def test_list_cases(gpucheck: Command) -> None:
    smoke = gpucheck("list", "--cases", "--scenario", "smoke").out.splitlines()
    assert len(smoke) > 50 and "matmul/dense/bf16/m33-n40-k96/exact" in smoke
    everything = gpucheck("list", "--cases").out.splitlines()
    assert {f"smoke  {line}" for line in smoke} <= set(everything) and len(everything) > len(smoke)
    assert gpucheck("list", "--cases", "--scenario", "nope").message.startswith("unknown scenario 'nope'")
    assert gpucheck("list", "--scenario", "smoke").message == "--scenario goes with --cases or --power"


def test_exit_codes_of_signals_are_those_of_the_shell() -> None:
    from gpucheck.model.errors import ExitCode

    assert ExitCode.INTERRUPTED == 128 + signal.SIGINT and ExitCode.TERMINATED == 128 + signal.SIGTERM
    assert ExitCode.BROKEN_PIPE == 128 + signal.SIGPIPE
