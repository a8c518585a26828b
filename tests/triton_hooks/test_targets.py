from __future__ import annotations

import pytest

from gpucheck.model.errors import UsageError
from gpucheck.triton_hooks.targets import DEFAULT, TARGETS, parse_targets

SHARED_MEMORY = {  # bytes a block may use, as the vendors' manuals give them
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "sm_121": 101_376,
    "gfx942": 65_536,
    "gfx950": 163_840,
}


def test_the_table_holds_the_figures_of_the_manuals() -> None:
    assert {name: target.shared_memory for name, target in TARGETS.items()} == SHARED_MEMORY
    assert {name: target.limits.shared_memory for name, target in TARGETS.items()} == SHARED_MEMORY
    assert [name for name, target in TARGETS.items() if target.amd] == ["gfx942", "gfx950"]
    assert [name for name, target in TARGETS.items() if target.limits.tensor_memory] == ["sm_100"]
    assert {target.limits.registers for target in TARGETS.values() if not target.amd} == {65_536}
    assert {target.limits.registers for target in TARGETS.values() if target.amd} == {131_072}


def test_targets_are_read_once_each_and_in_order() -> None:
    assert [target.name for target in parse_targets(["gfx942", "sm_90", "gfx942"])] == ["gfx942", "sm_90"]
    assert len(parse_targets(DEFAULT.split(","))) == 4


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown target 'sm_70'; known: sm_80 .A100., .*gfx950"):
        parse_targets(["sm_90", "sm_70"])


@pytest.mark.parametrize(
    ("target", "triton", "words"),
    [
        ("sm_121", "3.5.1", "Triton 3.5.1 does not know sm_121 (DGX Spark): 3.6 is the first that does"),
        ("sm_121", "3.6.0", ""),
        ("sm_121", "3.10.0+git12", ""),
        ("sm_120", "3.2.0", "Triton 3.2.0 does not know sm_120 (RTX 5090): 3.3 is the first that does"),
        ("gfx950", "3.2.0", "Triton 3.2.0 does not know gfx950 (MI355X): 3.3 is the first that does"),
        ("sm_86", "3.1.0", ""),
        ("sm_121", "unknown", ""),  # a build that does not say what it is: its compiler will
    ],
)
def test_a_triton_older_than_a_target_is_told_by_name(target: str, triton: str, words: str) -> None:
    assert TARGETS[target].unknown_to(triton) == words


NO_E4M3 = "type fp8e4nv not supported in this architecture. The supported fp8 dtypes are ('fp8e4b15', 'fp8e5')"


@pytest.mark.parametrize(
    ("target", "error", "lacking"),
    [
        ("sm_80", NO_E4M3, "sm_80 has no fp8 e4m3"),
        ("sm_86", NO_E4M3, "sm_86 has no fp8 e4m3"),
        ("sm_89", NO_E4M3, ""),  # it has the format: a Triton that says otherwise is at fault
        ("sm_90", NO_E4M3, ""),
        ("gfx942", NO_E4M3, ""),
        ("sm_80", NO_E4M3.replace("fp8e4nv", "fp8e5"), ""),
        ("gfx942", "Exception: ROCm linker /opt/rocm/llvm/bin/ld.lld not found", "the ld.lld of ROCm"),
        ("sm_90", "Exception: ROCm linker /opt/rocm/llvm/bin/ld.lld not found", ""),
    ],
)
def test_only_what_the_hardware_or_the_machine_lacks_excuses_an_error(target: str, error: str, lacking: str) -> None:
    found = TARGETS[target].lacks(f"ValueError: {error}")
    assert (lacking in found) if lacking else found == ""
