"""A question put to a module in a process of its own, and the path that leads a Python to gpucheck."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpucheck.host import isolated
from gpucheck.host.isolated import PACKAGE_PARENT, python_path

MODULE = """
from gpucheck.host.isolated import receive, send
def main(connection):
    question = receive(connection)
    {code}
"""


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    def ask(code: str, seconds: float = 60.0) -> Any:
        (tmp_path / "asked.py").write_text(MODULE.format(code=code))
        environment = {**os.environ, "PYTHONPATH": python_path(tmp_path), "MARK": "set"}
        return isolated.ask("asked", {"one": 1}, environment, seconds)

    return ask


def test_an_answer_comes_from_another_process_with_its_own_environment(ask: Any) -> None:
    pid, mark, question = ask("import os; send(connection, [os.getpid(), os.environ['MARK'], question])")
    assert pid != os.getpid() and mark == "set" and question == {"one": 1}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken')", "ended with exit code 1: RuntimeError: broken"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("connection.close()", "ended with exit code 0"),
        ("import os; os.write(connection.fileno(), b'1'); os._exit(3)", "ended with exit code 3"),
    ],
)
def test_a_process_that_ends_without_an_answer_says_how(ask: Any, code: str, words: str) -> None:
    with pytest.raises(ChildProcessError, match=words):
        ask(code)


def test_a_process_that_takes_too_long_is_ended(ask: Any) -> None:
    with pytest.raises(TimeoutError):
        ask("import time; time.sleep(600)", 1.0)


@pytest.mark.parametrize(
    ("first", "inherited", "path"),
    [
        ([], "", [PACKAGE_PARENT]),
        ([], f"/elsewhere{os.pathsep}", [PACKAGE_PARENT, "/elsewhere"]),
        (["/triton"], "/elsewhere", ["/triton", PACKAGE_PARENT, "/elsewhere"]),
        ([], os.pathsep.join(["/ahead", PACKAGE_PARENT, "/behind"]), ["/ahead", PACKAGE_PARENT, "/behind"]),
        (["/ahead"], os.pathsep.join(["/ahead", PACKAGE_PARENT]), ["/ahead", PACKAGE_PARENT]),
    ],
)
def test_python_path(first: list[str], inherited: str, path: list[str]) -> None:
    assert python_path(*first, environ={"PYTHONPATH": inherited}).split(os.pathsep) == path
