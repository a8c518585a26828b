"""Checks of one's own on the command line: bad ones end with one message, ``new`` writes good ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpucheck import checks
from gpucheck.model.plan import NO_LIBRARY
from tests.cli.conftest import Command, FakeRanks

DATA = Path(__file__).parents[1] / "data" / "problems"
GELU = ("--problem", str(DATA / "gelu.py"), "--candidate", str(DATA / "gelu_right.py"))


@pytest.fixture(autouse=True)
def no_sources_stay_active() -> Iterator[None]:
    yield
    checks.activate([])


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, ["--check-file", "mine.py"], "--check-file mine.py: there is no such file"),
        ("x = 1", ["--check-file", "mine.py"], "--check-file mine.py holds no check: expected a class derived from"),
        (
            "def f(:",
            ["--check-file", "mine.py"],
            "mine.py cannot be loaded: SyntaxError: invalid syntax (mine.py, line",
        ),
        ("def f(:", ["--problem", "mine.py", "--candidate", "mine.py"], "mine.py is not Python: SyntaxError: invalid"),
        (
            "x = 1",
            ["--problem", "mine.py", "--candidate", "mine.py"],
            "mine.py does not define Model and get_inputs and",
        ),
        (
            "from torch import nn\nclass ModelNew(nn.Module): pass",
            [*GELU[:3], "mine.py"],
            "--candidate mine.py: ModelNew has no forward",
        ),
        ("x = 1", ["--problem", "mine.py"], "--problem is given 1 time(s) and --candidate 0: expected one candidate"),
        (
            "x = 1",
            [*GELU, "--case", "gelu_right/trial9/normal"],
            "has no case 'gelu_right/trial9/normal'; close: gelu_ri",
        ),
        ("x = 1", [*GELU, "--checks", "gelu"], "--checks: unknown check 'gelu'; known: matmul, "),
    ],
)
def test_bad_input_is_one_message(
    gpucheck: Command, here: Path, text: str | None, options: list[str], words: str
) -> None:
    if text is not None:
        (here / "mine.py").write_text(text)
    answer = gpucheck("run", "--device", "cpu", *options)
    assert answer.code == 2 and words in answer.message and not answer.out
    assert not (here / "runs").exists()


def test_a_limit_of_large_pairs_that_is_no_number_is_told_and_none_at_all_is_the_usual_one(
    gpucheck: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for said, code in (("lots", 2), ("-1", 2), ("", 0)):
        monkeypatch.setenv("GPUCHECK_LARGE_PAIR", said)
        answer = gpucheck("run", "--device", "cpu", *GELU, "--dry-run")
        assert answer.code == code and ("expected a number of bytes" in answer.err) is bool(code)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the library, of which nothing is cached, and whose package index does not answer."""
    monkeypatch.setattr("gpucheck.library.library_option.locate_installed", lambda: None)
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


OWN = """
from gpucheck.checks.softmax import Softmax
from gpucheck.model.case import CheckSpec
class Mine(Softmax):
    spec = CheckSpec(name="mine", summary="mine", params=Softmax.spec.params)
    needs_library = {}
"""


def test_without_a_case_that_needs_the_library_none_is_looked_up_and_the_report_says_so(
    gpucheck: Command, ranks: FakeRanks, here: Path, closed: None
) -> None:
    (here / "mine.py").write_text(OWN.format(False))
    for number, options in enumerate(
        (["--check-file", "mine.py"], [*GELU, "--canary"], ["smoke", "--checks", "softmax,attention"])
    ):
        answer = gpucheck("run", *options, "--device", "cpu", "--json", "report.json", "--write", "r.prom")
        assert "no library checked (no case needs one)" in answer.out and len(ranks.plans) == number + 1, answer
        plan = ranks.plans[-1]
        assert not plan.has_library and "triton_kernels" not in plan.environment["software"]
        report = json.loads((here / "report.json").read_text())
        assert report["plan"]["library"] == NO_LIBRARY
        assert 'library="none",content="",origin="none"' in (here / "r.prom").read_text()
        folder = str(ranks.folders[-1])
        assert "no library checked" in gpucheck("report", folder).out
        assert gpucheck("diff", folder, folder).code == 0
        (here / "report.json").unlink()


def test_a_library_that_is_named_is_looked_up_though_no_case_needs_it(
    gpucheck: Command, ranks: FakeRanks, here: Path, closed: None, library: str
) -> None:
    answer = gpucheck("run", *GELU, "--device", "cpu", "--library", library)
    assert answer.code == 0 and "triton_kernels unknown (path, " in answer.out
    assert gpucheck("run", *GELU, "--device", "cpu", "--library", "path:gone").code == 2
    assert gpucheck("run", *GELU, "--device", "cpu", "--library", "installed").code == 3


def test_a_check_that_does_not_say_that_it_needs_no_library_is_named_where_there_is_none(
    gpucheck: Command, ranks: FakeRanks, here: Path, closed: None
) -> None:
    (here / "mine.py").write_text(OWN.format(True))
    answer = gpucheck("run", "--check-file", "mine.py", *GELU, "--device", "cpu")
    assert answer.code == 3 and not ranks.plans
    last = "needed by   mine; a check that calls nothing of the library says needs_library = False"
    assert answer.message.splitlines()[-1].strip() == last


def test_a_scenario_names_checks_that_are_given(gpucheck: Command, here: Path) -> None:
    (here / "mine.toml").write_text('[[cases]]\ncheck = "gelu_right"\ntrial = [1, 7]\n')
    answer = gpucheck("run", "mine.toml", "--device", "cpu", "--dry-run", *GELU)
    assert answer.out.splitlines()[:2] == ["gelu_right/trial1/normal", "gelu_right/trial7/normal"]
    answer = gpucheck("run", "mine.toml", "--device", "cpu", "--dry-run")
    assert answer.code == 2 and "unknown check 'gelu_right'" in answer.message


def test_what_is_given_is_listed(gpucheck: Command, here: Path) -> None:
    cases = gpucheck("list", "--cases", *GELU).out.splitlines()
    assert cases == [f"gelu_right/trial{number}/normal" for number in (1, 2, 3)]
    answer = gpucheck("list", "--checks", *GELU)
    assert "gelu_right: gelu_right.py against gelu.py; bound: derived from Model" in answer.out
    assert "gelu_right" not in gpucheck("list", "--checks").out


def test_new_writes_a_check_its_wrong_twin_and_a_scenario(gpucheck: Command, here: Path) -> None:
    answer = gpucheck("new", "check", "double_it", "--dir", "kernels")
    written = ["double_it.py", "double_it_wrong.py", "double_it.toml"]
    assert answer.code == 0 and answer.out.splitlines()[:3] == [f"wrote kernels/{name}" for name in written]
    assert answer.out.splitlines()[3:] == [
        "passes   gpucheck run kernels/double_it.toml --check-file kernels/double_it.py",
        "fails    gpucheck run kernels/double_it.toml --check-file kernels/double_it_wrong.py",
    ]
    text = "".join((here / "kernels" / name).read_text() for name in written)
    assert "class DoubleIt(Check):" in text and "NAME" not in text and "CLASS" not in text
    pytest.importorskip("ruff")
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E,F,B,UP,SIM",
        "--line-length",
        "120",
        "kernels",
    ]
    done = subprocess.run(ruff, cwd=here, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Double", "a check cannot be called 'Double': expected lowercase letters, digits and underscores"),
        ("2x", "a check cannot be called '2x'"),
        ("../up", "a check cannot be called '../up'"),
        ("class", "a check cannot be called 'class'"),
        ("matmul", "gpucheck has a check called 'matmul' itself; choose another name"),
    ],
)
def test_new_refuses_names(gpucheck: Command, here: Path, name: str, words: str) -> None:
    answer = gpucheck("new", "check", name)
    assert answer.code == 2 and words in answer.message
    assert not list(here.iterdir())


def test_new_overwrites_nothing(gpucheck: Command, here: Path) -> None:
    (here / "mine.toml").write_text("precious")
    answer = gpucheck("new", "check", "mine")
    assert answer.code == 2 and "mine.toml exists already; choose another name or --dir" in answer.message
    assert [path.name for path in here.iterdir()] == ["mine.toml"]
    answer = gpucheck("new", "check", "mine", "--dir", "mine.toml")
    assert answer.code == 2 and "--dir mine.toml is no folder" in answer.message
