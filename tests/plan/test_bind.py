from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from gpucheck.library.copies import LibraryCopy
from gpucheck.model import canary
from gpucheck.model.plan import Plan, PlannedLibrary
from gpucheck.plan import bind, scenario
from gpucheck.plan.bind import bound_steps, build

TEXT = """
timeout = 50
[[cases]]
check = "topk"
data = "exact"
placement = ["pinned", "visible"]
m = [1, 2]
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Plan]:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    copy = LibraryCopy(tmp_path, tmp_path / "triton_kernels", "path", "f" * 64, "B", "v3.5")

    def make(device: str, timeout: float | None = None, nnodes: int = 1) -> Plan:
        loaded = scenario.load(path)
        return build(
            loaded,
            copy,
            device=device,
            nproc=2,
            nnodes=nnodes,
            environment={"software": {}},
            command=["gpucheck", "run", str(path)],
            timeout=timeout,
        )

    return make


def test_placements_stay_with_gpus_and_fall_together_without(make: Callable[..., Plan]) -> None:
    assert [step.conditions.placement for step in make("cuda").steps] == ["pinned", "pinned", "visible", "visible"]
    cpu = make("cpu").steps
    assert [(step.conditions.placement, step.case["m"]) for step in cpu] == [("cpu", 1), ("cpu", 2)]


def test_what_needs_gpus_is_inapplicable_without_them_and_never_runs_as_something_else(
    make: Callable[..., Plan], tmp_path: Path
) -> None:
    group = '[[cases]]\ncheck = "topk"\ndata = "exact"\n'
    every = 'placement = ["pinned", "visible", "unpinned", "context0", "peer"]\n'
    (tmp_path / "mine.toml").write_text(group + every + group + "late = true\n" + group + "repeat = 4\n")
    loaded = scenario.load(tmp_path / "mine.toml")
    assert bound_steps(loaded, "cuda") == loaded.steps and not [step for step in loaded.steps if step.inapplicable]
    assert [
        (step.conditions.placement, step.conditions.late, step.conditions.repeat, step.inapplicable)
        for step in bound_steps(loaded, "cpu")
    ] == [
        ("cpu", False, 1, ""),
        ("pinned", True, 1, "late inputs need a GPU"),
        ("cpu", False, 4, ""),
        ("unpinned", False, 1, "placement unpinned needs GPUs"),
        ("context0", False, 1, "placement context0 needs GPUs"),
        ("peer", False, 1, "placement peer needs GPUs"),
    ]
    plan = make("cpu")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_there_is_one_canary_and_it_must_fail(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("canary = true" + TEXT)
    loaded = scenario.load(tmp_path / "mine.toml")
    for device, placement in (("cuda", "pinned"), ("cpu", "cpu")):
        (only,) = (step for step in bound_steps(loaded, device) if step.case.check == canary.CHECK)
        assert only.expect is not None and not only.inapplicable
        assert only.conditions.placement == placement
    assert not any(step.case.check == canary.CHECK for step in bound_steps(replace(loaded, canary=False), "cpu"))


def test_a_canary_asks_for_no_process_of_its_own(tmp_path: Path) -> None:
    groups = "".join(
        f'[[cases]]\ncheck = "swiglu"\nm = 3\nn = {width}\nplacement = "{placement}"\n'
        for width, placement in ((8, "pinned"), (10, "pinned"), (8, "visible"))
    )
    (tmp_path / "groups.toml").write_text(f"canary = true\n{groups}")
    steps = bound_steps(scenario.load(tmp_path / "groups.toml"), "cuda")
    found = [step.conditions.placement if step.case.check != canary.CHECK else "canary" for step in steps]
    assert list(dict.fromkeys(found)) == ["pinned", "canary", "visible"]
    assert found.index("canary") == found.index("visible") - 1


def test_what_is_shown_before_a_run_is_what_runs(make: Callable[..., Plan], tmp_path: Path) -> None:
    loaded = scenario.load(tmp_path / "mine.toml")
    for device in ("cuda", "cpu"):
        assert bound_steps(loaded, device) == make(device).steps


def test_plan_round_trips_with_its_ids(make: Callable[..., Plan]) -> None:
    plan = make("cuda", nnodes=3)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert (plan.world_size, plan.timeout, plan.library["name"]) == (6, 50.0, "B")
    assert make("cuda", timeout=7.5).timeout == 7.5


def test_runs_have_names_of_their_own(make: Callable[..., Plan]) -> None:
    assert make("cpu").id != make("cpu").id


def test_the_plan_holds_what_its_type_says_of_the_library(make: Callable[..., Plan]) -> None:
    assert {*make("cuda").library} == {*get_type_hints(PlannedLibrary)}


@pytest.mark.parametrize(("free", "device", "left_out"), [(5, "cpu", True), (50, "cpu", False), (5, "cuda", False)])
def test_a_joint_case_that_the_host_has_no_memory_for_says_so_and_is_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, device: str, left_out: bool
) -> None:
    path = tmp_path / "s.toml"
    group = '[[cases]]\ncheck = "collectives"\ndata = "exact"\n'
    path.write_text(f'{group}n = [100, 16777216]\ndtype = "fp32"\n{group}operation = "all_gather"\nn = 4194304\n')
    monkeypatch.setattr(bind, "available_memory", lambda: free << 30)
    steps = bind.with_memory(bound_steps(scenario.load(path), device), device, nproc=8, ranks=8)
    told = [step.inapplicable for step in steps if step.case.check == "collectives"]
    assert [bool(words) for words in told] == [False, left_out, left_out]
    assert not left_out or told[1] == "on the CPU its 8 ranks take up to 11.0 GiB of memory, and 5.0 GiB are free"
