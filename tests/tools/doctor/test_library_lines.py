from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpucheck.library import installed, library_option
from gpucheck.library.cache import Damaged
from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.doctor import library_lines
from gpucheck.tools.doctor.line import Status
from tests.tools.doctor.conftest import FakeMachine, Only

HAZARD = "import torch\n\ndef sms():\n    return torch.cuda.get_device_properties(0).multi_processor_count\n"


@pytest.fixture
def copy(fake: FakeMachine) -> Path:
    """A copy of generation v3.7 with one hazard; importing it raises."""
    for name in ("__init__", "numerics", "specialize", "target_info", "tensor", "testing"):
        fake.write(f"lib/triton_kernels/{name}.py", "raise RuntimeError('imported')\n")
    fake.write("lib/triton_kernels/matmul.py", "class PrecisionConfig:\n    b_mx_scale: object = None\n")
    fake.write("lib/triton_kernels/target_info.py", HAZARD)
    fake.extra["library"] = library_option.parse_source(f"path:{fake.folder / 'lib'}")
    return fake.folder / "lib"


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probing has its own tests; here a hazard counts as confirmed."""

    def confirm(_: object, hazards: list) -> list:  # type: ignore[type-arg]
        return [replace(hazard, confirmed=True) for hazard in hazards]

    monkeypatch.setattr("gpucheck.tools.audit.probe.probe", confirm)


@pytest.fixture
def triton(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only Triton and torch there are."""
    file = fake.write("site/triton/__init__.py", "__version__ = '3.7.1'\n")
    monkeypatch.setattr(library_lines, "folder_of", lambda name: file.parent)
    return file


def test_a_copy_that_fits(fake: FakeMachine, copy: Path, triton: Path, only: Only) -> None:
    lines = library_lines.look(fake.machine)
    assert only(lines, "copy").value.startswith("triton_kernels unknown (path, ")
    assert "generation v3.7" in only(lines, "copy").value
    assert only(lines, "fit").value == "fits Triton 3.7.1"
    assert only(lines, "audit").value == "1 device hazards: 1 confirmed"
    assert {line.status for line in lines} == {Status.OK}


def test_hazards_matter_with_several_gpus(fake: FakeMachine, copy: Path, triton: Path, only: Only) -> None:
    fake.gpus(2)
    line = only(library_lines.look(fake.machine), "audit")
    assert line.status is Status.WARN and "set_device(local_rank)" in line.advice and "gpucheck audit" in line.advice


def test_a_copy_that_does_not_fit(fake: FakeMachine, copy: Path, triton: Path, only: Only) -> None:
    triton.write_text("__version__ = '3.4.0'\n")
    line = only(library_lines.look(fake.machine), "fit")
    assert line.status is Status.FAIL and "found Triton 3.4.0" in line.value and "library list" in line.advice


def test_without_triton_nothing_is_probed(
    fake: FakeMachine, copy: Path, only: Only, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_lines, "folder_of", lambda name: None)
    lines = library_lines.look(fake.machine)
    assert [line.fact for line in lines] == ["copy", "audit"]
    assert only(lines, "audit").value == "1 device hazards: 1 not probed"


def test_nothing_installed_fetches_nothing(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "locate_installed", lambda: None)
    monkeypatch.setattr("gpucheck.library.cache.read_cached", lambda folder: None)
    monkeypatch.setattr("gpucheck.library.fetch.fetch", lambda *_: pytest.fail("went to the network"))
    (line,) = library_lines.look(fake.machine)
    assert line.status is Status.WARN and "vllm==0.33.0" in line.advice and "--library path:DIR" in line.advice

    def damaged(_: Path) -> None:
        raise Damaged("its files were changed")

    monkeypatch.setattr("gpucheck.library.cache.read_cached", damaged)
    assert library_lines.look(fake.machine) == [line]


def test_an_unrelated_package_of_that_name_is_a_failure(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InfrastructureError("the installed one is not OpenAI's library.\n  do  pip uninstall")

    monkeypatch.setattr("gpucheck.library.identity.check_installed_library", refuse)
    (line,) = library_lines.look(fake.machine)
    assert line.status is Status.FAIL and line.looked
    assert line.value == "the installed one is not OpenAI's library." and line.advice == "do pip uninstall"


def test_a_wheel_that_cannot_be_fetched_says_nothing_of_the_machine(
    fake: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: str) -> None:
        raise InfrastructureError("no network")

    monkeypatch.setattr("gpucheck.library.fetch.fetch", offline)
    fake.extra["library"] = library_option.parse_source("wheel:vllm==0.33.0")
    (line,) = library_lines.look(fake.machine)
    assert line.status is Status.FAIL and not line.looked
