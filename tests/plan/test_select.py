from __future__ import annotations

from pathlib import Path

import pytest

from gpucheck.model.errors import NothingToRunError, UsageError
from gpucheck.plan.scenario import Scenario, find, load
from gpucheck.plan.select import of_engines, select


@pytest.fixture(scope="module")
def smoke() -> Scenario:
    return load(find("smoke"))


def test_nothing_asked_for_keeps_everything(smoke: Scenario) -> None:
    assert select(smoke) == smoke


def test_checks_and_cases_narrow(smoke: Scenario) -> None:
    topk = select(smoke, ["topk"])
    assert {step.case.check for step in topk.steps} == {"topk"} and len(topk.steps) < len(smoke.steps)
    two = select(smoke, ["topk", "moe"])
    assert {step.case.check for step in two.steps} == {"topk", "moe"}
    wanted = topk.steps[1].case.id
    assert [step.case.id for step in select(smoke, [], [wanted]).steps] == [wanted]
    assert [step.case.id for step in select(smoke, ["topk"], [wanted]).steps] == [wanted]


def test_a_case_of_another_check_leaves_nothing(smoke: Scenario) -> None:
    wanted = select(smoke, ["topk"]).steps[0].case.id
    with pytest.raises(NothingToRunError, match="no case of moe"):
        select(smoke, ["moe"], [wanted])


def test_unknown_names(smoke: Scenario) -> None:
    with pytest.raises(UsageError, match=r"unknown check 'topq'; known: .*topk"):
        select(smoke, ["topk", "topq"])
    known = smoke.steps[0].case.id
    with pytest.raises(UsageError, match=r"has no case .*; close: .*" + known) as caught:
        select(smoke, [], [known[:-1]])
    assert "gpucheck list --cases --scenario smoke" in str(caught.value)
    with pytest.raises(UsageError, match="has no case ''; see"):
        select(smoke, [], [""])
    with pytest.raises(UsageError):
        select(smoke, [], [known, "nothing/like/it"])  # one good one does not hide the bad one


def test_a_placement_moves_every_case(tmp_path: Path) -> None:
    group = '[[cases]]\ncheck = "topk"\ndata = "exact"\n'
    (tmp_path / "mine.toml").write_text(
        group
        + 'placement = ["pinned", "visible"]\n'
        + group
        + 'placement = "peer"\nlate = true\nexpect = "fail"\n'
        + group
        + 'm = 2\nplacement = "context0"\nexpect = "fail"\n'
    )
    loaded = load(tmp_path / "mine.toml")
    moved = select(loaded, placement="peer").steps
    assert [(step.conditions.placement, step.conditions.late, step.case["m"], bool(step.expect)) for step in moved] == [
        ("peer", False, 16, False),  # pinned and visible, once
        ("peer", False, 2, False),  # what was expected under another placement is not expected here
        ("peer", True, 16, True),
    ]
    with pytest.raises(UsageError, match="--placement is 'nowhere', expected one of pinned, "):
        select(loaded, placement="nowhere")


def test_an_empty_scenario_has_nothing_to_run() -> None:
    empty = Scenario("empty", None, "", 0, 1.0, 1.0, 0.0, ())
    with pytest.raises(NothingToRunError) as caught:
        select(empty)
    assert caught.value.exit_code == 5


def test_cases_of_engines_are_planned_only_where_the_engine_is_at_hand(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[[cases]]\ncheck = "topk"\ndata = "exact"\n'
        '[[cases]]\ncheck = "vllm_moe"\noptional = true\n'
        '[[cases]]\ncheck = "vllm_moe"\noptional = true\nprocess_group = "initialised"\nm = 3\n'
        '[[cases]]\ncheck = "topk"\ndata = "exact"\nengine = "vllm"\n'
    )
    loaded = load(tmp_path / "mine.toml")
    assert [(step.case.check, step.conditions.engine) for step in loaded.steps] == [
        ("topk", ""),
        ("vllm_moe", "vllm"),  # by the check itself
        ("topk", "vllm"),  # a library that an engine has changed, as the scenario asks
        ("vllm_moe", "vllm"),
    ]
    rows = {step.row for step in loaded.steps}
    assert rows == {"topk", "topk (in vllm)", "vllm_moe", "vllm_moe (process group)"}
    assert of_engines(loaded, {"vllm"}) == loaded
    left = of_engines(loaded, ()).steps
    assert [step.row for step in left] == ["topk", "topk (in vllm)"], (
        "what is not optional stays, and is inapplicable when it runs"
    )
    with pytest.raises(NothingToRunError, match="vllm, which is not installed here") as caught:
        of_engines(select(loaded, ["vllm_moe"]), ())
    assert "--engine vllm==VERSION" in str(caught.value)


def test_an_engine_that_is_asked_for_has_cases_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text('[[cases]]\ncheck = "vllm_moe"\noptional = true\n[[cases]]\ncheck = "topk"\n')
    loaded = load(tmp_path / "some.toml")
    assert of_engines(loaded, {"vllm"}, asked=True) == loaded
    with pytest.raises(UsageError, match="--engine names sglang, and no case chosen of scenario some"):
        of_engines(loaded, {"vllm", "sglang"}, asked=True)
    assert of_engines(loaded, {"vllm", "sglang"}) == loaded, "installed ones serve what there is"
