"""Where checks of one's own come from: what is found, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.checks import CHECKS, Registry
from gpucheck.checks import sources as found_by
from gpucheck.model.check_source import SourceKind
from gpucheck.model.errors import UsageError

CHECK = """
from gpucheck.checks.base import Check
from gpucheck.model.case import CheckSpec, Param


class Mine(Check):
    late_inputs = ()
    spec = CheckSpec("mine", "one of mine", (Param("n", 3, "values", label="n"),), ("exact",))

    def inputs(self, case, generator): return {}
    def reference(self, case, inputs): return {}
    def launch(self, case, prepared, runtime): return {}
    def kernels(self, case, runtime): return ()
    def axes(self, case, inputs): return {}
"""
PROBLEM = """
from torch import nn
class Model(nn.Module):
    def forward(self, x): return x
def get_inputs(): return []
def get_init_inputs(): return []
"""
CANDIDATE = "from torch import nn\nclass ModelNew(nn.Module):\n    forward = None\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return name

    return write


def test_a_file_names_its_checks_and_they_are_made_from_its_bytes(write: object) -> None:
    (source,), _ = found_by.find([write("mine.py", CHECK)], [], [], CHECKS)  # type: ignore[operator]
    assert source.kind is SourceKind.FILE and source.checks == ("mine",)
    check = found_by.make(source, "mine")
    assert check.spec.case({"n": 5}, "exact", 0).id == "mine/n5/exact"
    Path("mine.py").write_text(CHECK.replace("n", "m"))
    with pytest.raises(UsageError, match=r"mine.py changed since the run was planned: its SHA-256 was \w{12}, is \w"):
        found_by.make(source, "mine")
    Path("mine.py").unlink()
    with pytest.raises(UsageError, match=r"mine.py, where a check comes from, cannot be read: No such file"):
        found_by.make(source, "mine")


def test_a_file_of_checks_may_have_any_name_and_one_of_anything_is_refused_in_words(write: object) -> None:
    (source,), _ = found_by.find([write("checks-without-suffix", CHECK)], [], [], CHECKS)  # type: ignore[operator]
    assert source.checks == ("mine",) and found_by.make(source, "mine").spec.name == "mine"
    Path("bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="bytes.toml cannot be loaded: SyntaxError"):
        found_by.find(["bytes.toml"], [], [], CHECKS)


def test_a_pair_is_named_after_its_candidate_and_neither_is_run(write: object) -> None:
    pytest.importorskip("torch")
    loud = "raise SystemExit('executed')\n"
    pair = write("hard.py", PROBLEM + loud), write("fast.py", CANDIDATE + loud)  # type: ignore[operator]
    (source,), _ = found_by.find([], [pair[0]], [pair[1]], CHECKS)
    assert source.kind is SourceKind.PROBLEM and source.checks == ("fast",)
    assert source.options == [
        "--problem",
        str(Path("hard.py").resolve()),
        "--candidate",
        str(Path("fast.py").resolve()),
    ]
    assert found_by.make(source, "fast").spec.summary.startswith("fast.py against hard.py; bound: derived from Model")
    with pytest.raises(UsageError, match=r"hard.py cannot be loaded: SystemExit: executed"):
        found_by.module_of(source, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ValueError('no\\nmore')", r"wrong.py cannot be loaded: ValueError: no$"),
        (CHECK.replace("    late_inputs = ()\n", ""), r"Mine is not a complete check: it lacks late_inputs$"),
        (CHECK.replace("    def axes", "    def axis"), r"Mine is not a complete check: it lacks axes$"),
        (CHECK.replace('CheckSpec("mine"', 'tuple; dict(a=("mine"').replace('("exact",))', '("exact",)))'), "is a"),
        (CHECK + "class Again(Mine): pass\n", r"has two checks named 'mine': rename one"),
        (CHECK.replace('"mine"', '"matmul"'), r"a check named 'matmul', and so has gpucheck itself: rename one"),
    ],
)
def test_a_file_that_is_no_check_says_what_it_lacks(write: object, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found_by.find([write("wrong.py", text)], [], [], CHECKS)  # type: ignore[operator]


def test_a_check_that_wants_arguments_cannot_be_made(write: object) -> None:
    text = CHECK + "    def __init__(self, size): pass\n"
    (source,), _ = found_by.find([write("mine.py", text)], [], [], CHECKS)  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"Mine cannot be made without arguments: TypeError: .*'size'"):
        found_by.make(source, "mine")


@pytest.mark.parametrize(
    ("problem", "candidate", "words"),
    [
        (PROBLEM, "\0", r"fast.py is not Python: "),
        (PROBLEM.replace("get_init_inputs", "init"), CANDIDATE, r"--problem hard.py does not define get_init_inputs$"),
        (PROBLEM, PROBLEM, r"--candidate fast.py does not define ModelNew$"),
        (PROBLEM.replace("forward", "call"), CANDIDATE, r"--problem hard.py: Model has no forward$"),
    ],
)
def test_a_pair_that_lacks_something_is_refused(write: object, problem: str, candidate: str, words: str) -> None:
    pair = write("hard.py", problem), write("fast.py", candidate)  # type: ignore[operator]
    with pytest.raises(UsageError, match=words):
        found_by.find([], [pair[0]], [pair[1]], CHECKS)


def test_names_may_come_from_branches_and_other_files(write: object) -> None:
    text = "try:\n    from fast import ModelNew\nexcept ImportError:\n    ModelNew = None\n"
    pair = write("hard.py", PROBLEM.replace("nn.Module", "Base")), write("fast.py", text)  # type: ignore[operator]
    (source,), _ = found_by.find([], [pair[0]], [pair[1]], CHECKS)
    assert source.checks == ("fast",)


def test_a_registry_knows_what_is_active_and_no_more(write: object) -> None:
    (source,), _ = found_by.find([write("mine.py", CHECK)], [], [], CHECKS)  # type: ignore[operator]
    registry = Registry(CHECKS)
    registry.activate([source])
    assert registry.names() == (*CHECKS, "mine") and registry.load("mine").spec.name == "mine"
    assert Path(source.files[0]).parent in registry.folders()
    registry.activate([])
    with pytest.raises(UsageError, match=r"unknown check 'mine'; known: matmul, "):
        registry.load("mine")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (CHECK, ""),
        (CHECK.replace('"mine"', '"other"'), r"is a check that calls itself 'other': both names must be the same"),
        ("Mine = 3", r"is no class derived from gpucheck.checks.base.Check"),
        ("import no_such_package", r"cannot be loaded: ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_packages_offer_checks_that_are_imported_on_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, words: str
) -> None:
    name = f"theirs{abs(hash(module))}"
    (tmp_path / f"{name}.py").write_text(module)
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[gpucheck.checks]\nmine = {name}:Mine\nmatmul = {name}:Mine\ngone = no_such_package:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    _, offered = found_by.find([], [], [], CHECKS)
    (source,) = [source for source in offered if source.target == f"{name}:Mine"]
    assert source.checks == ("mine",), "a name that gpucheck has itself stays gpucheck's"
    if words:
        with pytest.raises(UsageError, match=rf"the entry point mine = {name}:Mine of gpucheck.checks {words}"):
            found_by.make(source, "mine")
    else:
        assert found_by.make(source, "mine").spec.name == "mine"
