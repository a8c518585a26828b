from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.observation import Observation
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.saved_search import FILE, Find, load, made_with
from gpucheck.tools.bisect.sources import AnySource, Commits, EngineReleases, Packages, Patches, Releases
from gpucheck.tools.bisect.target import Target
from tests.tools.bisect.conftest import BROKEN, FAILED, OTHER, PASSED, UNBUILDABLE, WRONG, World


@pytest.mark.parametrize(
    "source",
    [
        Commits("/r", "python", "a", "b"),
        Releases("vllm", "1", "2"),
        EngineReleases("vllm", "1", "2", "/lib"),
        Packages("triton", "1", "2", "/lib"),
        Patches(("/p/1.patch", "/p/2.patch"), "/lib"),
    ],
)
def test_a_state_survives_its_plain_form(world: World, source: AnySource) -> None:
    state = world.state("gb", Find.FIX, bits=True, repeat=3, source=source)
    sources, engines = ("--problem", "p"), ("e",)
    state.target = Target(
        "s", ("a", "b"), "cuda", 2, 0, "peer", "initialised", 30.0, 1.5, "a (peer)", WRONG, sources, engines
    )
    many = Observation(CaseState.FAILED, "c", (replace(WRONG, ranks=(1,)), WRONG), seconds=1.5)
    state.of(state.candidates[1]).extend([FAILED, PASSED, OTHER, UNBUILDABLE, BROKEN, many])
    state.save()
    for path in (world.work, world.work / FILE):
        again = load(path)
        assert (again.work, again.source, again.target) == (state.work, state.source, state.target)
        assert (again.find, again.bits, again.repeat) == (Find.FIX, True, 3)
        assert (again.candidates, again.observations) == (state.candidates, state.observations)
    assert sorted(path.name for path in world.work.iterdir()) == [FILE], "nothing is left of the writing"


def test_a_search_that_an_earlier_version_began_has_no_engines(world: World) -> None:
    state = world.state("gb")
    item = json.loads((world.work / FILE).read_text())
    del item["target"]["engines"]
    (world.work / FILE).write_text(json.dumps(item))
    assert load(world.work).target == state.target


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the state of a search"),
        ('{"schema": 1}', "is not the state of a search"),
        ('{"schema": 99, "observations": {}}', "has schema 99, this gpucheck reads up to 1"),
        ('{"schema": 1, "observations": {}}', "is damaged"),
    ],
)
def test_what_is_no_state(world: World, content: str, words: str) -> None:
    (world.work / FILE).write_text(content)
    with pytest.raises(UsageError, match=words):
        load(world.work)


def test_no_file(world: World) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load(world.work / "gone")


def test_runs_of_other_software_are_not_mixed(world: World) -> None:
    world.state("gb")
    item = json.loads((world.work / FILE).read_text())
    assert item["made_with"] == made_with()
    item["made_with"]["torch"] = "0.1"
    (world.work / FILE).write_text(json.dumps(item))
    with pytest.raises(UsageError, match="runs of unlike software cannot be compared: torch was 0.1, is"):
        load(world.work)
