"""All families together, and what their lines add up to."""

from __future__ import annotations

import json

import pytest

from gpucheck.tools.doctor import examine, host_lines
from gpucheck.tools.doctor.line import Line, Status, exit_code, fail, ok, warn
from tests.tools.doctor.conftest import FakeMachine

BLIND = fail("x", "not seen", "report it", looked=False)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([ok("a", "")], 0),
        ([ok("a", ""), warn("b", "", "do")], 0),
        ([warn("b", "", "do", looked=False)], 0),
        ([ok("a", ""), fail("b", "", "do")], 1),
        ([BLIND, fail("b", "", "do")], 1),
        ([ok("a", ""), BLIND], 3),
    ],
)
def test_exit_codes(lines: list[Line], code: int) -> None:
    assert exit_code(lines) == code


def test_advice_goes_with_what_is_not_well() -> None:
    with pytest.raises(AssertionError):
        Line("x", Status.WARN, "value")
    with pytest.raises(AssertionError):
        Line("x", Status.OK, "value", "do something")


def test_ids_are_unique_and_stable(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.gpus(2)
    monkeypatch.setattr("gpucheck.tools.doctor.device_lines.look", lambda machine: [ok("matmul", "exact", "0")])
    monkeypatch.setattr("gpucheck.tools.doctor.library_lines.look", lambda machine: [ok("copy", "B")])
    lines = examine.examine(fake.machine)
    ids = [line.id for line in lines]
    assert len(set(ids)) == len(ids)
    expected = {"driver.version", "gpu.0.ecc", "gpu.1.ecc", "log.xid", "software.python", "library.copy"}
    assert expected | {"setting.variables", "cache.folder", "host.memory", "device.0.matmul"} <= set(ids)
    assert [family.name for family in examine.FAMILIES] == list(dict.fromkeys(line.family for line in lines))
    json.dumps([line.to_json() for line in lines])


def test_a_family_that_breaks_costs_its_own_lines_only(fake: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "FAMILIES", [f for f in examine.FAMILIES if f.name in ("host", "log", "cache")])
    fake.write("dev/kmsg", "")

    def broken(_: object) -> list[Line]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(host_lines, "look", broken)
    lines = examine.examine(fake.machine)
    (line,) = [line for line in lines if line.family == "host"]
    assert line.value == "could not be looked at: ZeroDivisionError: by zero" and not line.looked
    assert {line.family for line in lines} == {"host", "log", "cache"} and exit_code(lines) == 3
