"""``gpucheck bisect --wheel`` with an engine: the search and its words are real, its runs are stand-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.record import Outcome
from tests.cli.conftest import Command
from tests.conftest import Synthetic
from tests.library.conftest import index, library_files, make_wheel

__all__ = ["index", "make_wheel"]  # fixtures

pytest.importorskip("remotezip")

CASE = "vllm_moe/m16-h320-i320-e8-top4/normal"
OF_ENGINE = ["--case", CASE, "--device", "cpu", "--nproc", "1", "--out", "w"]
ENDS = ["--wheel", "vllm", "--from", "1.0", "--to", "1.4"]


@pytest.fixture
def releases(
    here: Path, index: Any, make_wheel: Any, synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """Releases of vllm from 1.0 on, right from 1.3 on; 1.1 lacks what gpucheck calls. Commands of the runs made."""
    held = {f"vllm/third_party/triton_kernels/{name}": text for name, text in library_files().items()}
    needed = {"vllm/model_executor/models/gpt_oss.py": ""}
    wheels = {f"vllm-1.{n}-py3-none-any.whl": make_wheel("", {**held, **(needed if n != 1 else {})}) for n in range(5)}
    index.offer(wheels)
    commands: list[list[str]] = []

    def run(command: list[str], environment: Any, log: Path, limit: float) -> bool:
        commands.append(command[3:])
        release = command[command.index("--engine") + 1]
        wrong = release in ("vllm==1.0", "vllm==1.2")
        plan = synthetic.plan(cases=1)
        step = replace(plan.steps[0], case=replace(plan.steps[0].case, id=CASE, check="vllm_moe"))
        run = synthetic.run(replace(plan, steps=(step,)), {(0, 0): Outcome.MISMATCH} if wrong else {})
        synthetic.write(Path(command[command.index("--out") + 1]), run)
        return True

    monkeypatch.setattr("gpucheck.tools.bisect.run_once._run", run)
    monkeypatch.setattr("gpucheck.library.engines.engine_fetch.packages_for", lambda name, root, cache=None: root)
    return commands


def test_the_first_release_of_an_engine_that_is_right(gpucheck: Command, here: Path, releases: list[list[str]]) -> None:
    answer = gpucheck("bisect", *ENDS, *OF_ENGINE, "--find", "fix")
    assert answer.code == 0, answer.out + answer.err
    assert "\nfirst fixed release: 1.3\n          --engine vllm==1.3\n" in answer.out
    for release in ("1.2", "1.3"):
        assert f"gpucheck run serving --engine vllm=={release} --device cpu --nproc 1" in answer.out, "on both sides"
    assert all(command[:2] == ["run", "serving"] and "--library" not in command for command in releases)
    assert {command[command.index("--engine") + 1] for command in releases} == {f"vllm==1.{n}" for n in (0, 2, 3, 4)}
    state = json.loads((here / "w" / "state.json").read_text())
    assert state["source"] == {"kind": "engines", "name": "vllm", "old": "1.0", "new": "1.4", "library": ""}
    made = len(releases)
    assert gpucheck("bisect", "--resume", "w").out == answer.out and len(releases) == made


def test_the_first_release_of_an_engine_that_is_wrong_beside_one_that_cannot_be_taken(
    gpucheck: Command, here: Path, releases: list[list[str]]
) -> None:
    ends = [*ENDS[:2], "--from", "1.3", "--to", "1.4"]
    answer = gpucheck("bisect", *ends, *OF_ENGINE, "--find", "fault")
    assert answer.code == 2 and "the bad end 1.4 does not show what is searched for" in answer.err
    answer = gpucheck("bisect", *ENDS, *OF_ENGINE[:-1], "v", "--find", "fix", "--to", "1.3")
    assert (
        answer.code == 0
        and "skip  1.1" in answer.out
        and "holds no vllm/model_executor/models/gpt_oss.py" in answer.out
    )


def test_one_library_for_all_releases_of_an_engine(
    gpucheck: Command, here: Path, releases: list[list[str]], library: str
) -> None:
    assert gpucheck("bisect", *ENDS, *OF_ENGINE, "--find", "fix", "--library", library).code == 0
    (root,) = {command[command.index("--library") + 1] for command in releases}
    assert root.startswith(f"path:{here / 'w'}"), "a copy that nobody changes meanwhile"


def test_an_engine_beside_the_releases_that_are_searched(
    gpucheck: Command, here: Path, releases: list[list[str]]
) -> None:
    answer = gpucheck("bisect", *ENDS, *OF_ENGINE, "--engine", "vllm==1.0")
    assert answer.code == 2 and "each release is an engine of its own" in answer.message
