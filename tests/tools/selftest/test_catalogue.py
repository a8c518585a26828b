"""Each fault is well-formed: it has a place, one case of its own, and says what a report must say."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from gpucheck import checks
from gpucheck.checks import sources
from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import ExitCode, InfrastructureError, UsageError
from gpucheck.model.record import Outcome
from gpucheck.plan.scenario import load
from gpucheck.tools.selftest import startup
from gpucheck.tools.selftest.assess import label_of
from gpucheck.tools.selftest.catalogue import FAULTS, choose
from gpucheck.tools.selftest.catalogue.common import KERNEL
from gpucheck.tools.selftest.catalogue.controls import BYSTANDERS, CASES, OTHER_CONFIG
from gpucheck.tools.selftest.fault import (
    CacheDamage,
    Candidate,
    Edit,
    Fault,
    Hook,
    Session,
    Startup,
    Target,
    UnderConditions,
)
from gpucheck.tools.selftest.injection import Injector, Planted, reason_against, write_scenario

KNOWN_WHEELS = ("wheel:vllm==0.33.0", "wheel:vllm==0.21.0")  # contents B and C
each = pytest.mark.parametrize("fault", [*FAULTS, OTHER_CONFIG], ids=lambda fault: str(fault.name))


@each
def test_a_fault_makes_one_case(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Injector(tmp_path, tmp_path, 1).candidates_with([Planted(fault, (0,))])
    monkeypatch.setattr(checks._registry, "_sources", {})
    checks.activate(sources.find([], options[1::4], options[3::4], checks.CHECKS)[0])
    write_scenario(tmp_path / "one.toml", [fault.case, *fault.beside, *BYSTANDERS], case_timeout=5)
    labels = [step.label for step in load(tmp_path / "one.toml").steps]
    assert labels.count(label_of(fault)) == 1


@each
def test_a_fault_says_what_a_report_must_say(fault: Fault) -> None:
    expected = fault.expected
    for pattern in (expected.title, *expected.says):
        re.compile(pattern)
    assert fault.summary and not fault.summary.endswith(".")
    assert fault.targets and set(fault.machines) <= {"cpu", "cuda"}
    assert (expected.exit_code is ExitCode.FAIL) is (expected.outcome not in (Outcome.LOST, Outcome.INAPPLICABLE))
    assert (fault.session is Session.LOST) is (expected.outcome is Outcome.LOST)
    assert fault.expected.outcome is Outcome.PASS or expected.title


@each
def test_what_a_fault_names_exists(fault: Fault) -> None:
    plant = fault.plant
    if isinstance(plant, Hook):
        pytest.importorskip("torch")
        from gpucheck.tools.selftest import matmul_faults

        assert list(inspect.signature(getattr(matmul_faults, plant.name)).parameters) == [
            "call",
            *_rest(matmul_faults, plant.name),
        ]
        assert fault.columns, "a hook takes the calls with as many columns as its case"
    elif isinstance(plant, Startup):
        assert callable(getattr(startup, plant.name))
    elif isinstance(plant, Edit):
        assert "{anchor}" in plant.text or plant.text != plant.anchor
    elif isinstance(plant, Candidate):
        pytest.importorskip("triton")
        from gpucheck.tools.selftest import planted_cheats, planted_twins

        assert callable(getattr(planted_cheats, plant.kind).forward)
        assert plant.kind in planted_cheats.CHEATS and planted_twins.twin_of(plant.kind) in vars(planted_twins)
        assert fault.session is Session.CANDIDATES
    elif isinstance(plant, CacheDamage):
        assert fault.session is Session.CACHE
    else:
        assert isinstance(plant, UnderConditions) and Target.OTHERS in fault.targets


def _rest(module: object, name: str) -> list[str]:
    names = list(inspect.signature(getattr(module, name)).parameters)[1:]
    assert len(names) == 2 and names[1] == "memory"
    return names


def test_names_and_columns_are_nobody_elses() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    columns = [fault.columns for fault in (*FAULTS, OTHER_CONFIG) if fault.columns]
    assert len(columns) == len(set(columns))
    assert not {group["n"] for group in BYSTANDERS if "n" in group} & set(columns)
    edited = [fault.columns for fault in FAULTS if isinstance(fault.plant, Edit) and fault.plant.file == KERNEL]
    assert not any(number % 16 == 0 for number in edited if number), "compiled kernels take these otherwise"


def test_the_controls_make_cases(tmp_path: Path) -> None:
    write_scenario(tmp_path / "controls.toml", CASES)
    steps = load(tmp_path / "controls.toml").steps
    assert {step.case.data for step in steps} == {"exact", "normal"}
    assert {step.case.params.get("split_k") for step in steps} >= {0, 1, 4}
    assert any(step.case.params.get("load") == "one" for step in steps), "experts without tokens"
    assert any(step.case.params.get("m") == 1 for step in steps), "one token"
    assert any(step.conditions.repeat > 1 for step in steps)


@pytest.fixture(scope="module", params=KNOWN_WHEELS)
def library(request: pytest.FixtureRequest) -> LibraryCopy:
    try:
        return resolve(parse_source(request.param))
    except InfrastructureError as error:
        pytest.skip(f"{request.param} is neither cached nor to be had: {error}")


def test_every_fault_has_a_place_in_known_copies(library: LibraryCopy) -> None:
    assert [reason for fault in FAULTS if (reason := reason_against(fault, library.package))] == []


def test_a_copy_without_the_place_says_so(tmp_path: Path) -> None:
    (tmp_path / "matmul_ogs.py").write_text("nothing\n")
    hook, edit = choose(["fallback", "no-launch"])
    assert reason_against(hook, tmp_path) == ""
    assert reason_against(hook, tmp_path / "other") == "this copy of the library has no matmul_ogs.py"
    assert reason_against(edit, tmp_path).startswith("matmul_ogs.py holds 0 times, not once: ")


def test_faults_are_chosen_by_name() -> None:
    assert [fault.name for fault in choose(["bit-7", "exit", "bit-7"])] == ["bit-7", "exit"]
    assert choose([]) == FAULTS
    with pytest.raises(UsageError, match="unknown fault 'bit-8'; known: peer-access, "):
        choose(["bit-8"])
