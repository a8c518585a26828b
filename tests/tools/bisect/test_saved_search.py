from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.saved_search import FILE, Find, load, made_with
from tests.tools.bisect.conftest import FAILED, PASSED, WRONG, World


def test_a_state_survives_its_plain_form(world: World) -> None:
    state = world.state("gb", Find.FIX, bits=True, repeat=3)
    state.target = replace(state.target, known=WRONG, label="l", seed=0, timeout=1.5)
    state.of(state.candidates[1]).extend([FAILED, PASSED])
    state.save()
    for path in (world.work, world.work / FILE):
        again = load(path)
        assert (again.work, again.source, again.target) == (state.work, state.source, state.target)
        assert (again.find, again.bits, again.repeat) == (Find.FIX, True, 3)
        assert (again.candidates, again.observations) == (state.candidates, state.observations)
    assert sorted(path.name for path in world.work.iterdir()) == [FILE], "nothing is left of the writing"


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
