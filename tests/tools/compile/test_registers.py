from __future__ import annotations

from pathlib import Path

from gpucheck.tools.compile.registers import Usage, from_amdgcn, from_cuobjdump, usage

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function _matmul_NNT_bf16xbf16_64x64x64x1:
  REG:255 STACK:40 SHARED:1024 LOCAL:0 CONSTANT[0]:696 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
METADATA = """
\t.amdhsa_private_segment_fixed_size 16
amdhsa.kernels:
  - .agpr_count:     90
    .group_segment_fixed_size: 0
    .private_segment_fixed_size: 140
    .sgpr_count:     38
    .sgpr_spill_count: 0
    .vgpr_count:     346
    .vgpr_spill_count: 35
"""


def test_nvidia_resources_are_read() -> None:
    assert from_cuobjdump(RESOURCES) == Usage(255, 40)
    assert from_cuobjdump("cuobjdump fatal: no file") == Usage(None, None)


def test_amd_metadata_is_read() -> None:
    assert from_amdgcn(METADATA) == Usage(346, 140)
    assert from_amdgcn("; nothing here") == Usage(None, None)


def test_amd_assembly_needs_no_tool_and_nvidia_without_its_tool_stays_open(tmp_path: Path) -> None:
    assert usage({"amdgcn": METADATA, "hsaco": b"x"}, tmp_path) == Usage(346, 140)
    assert usage({"cubin": b"x"}, tmp_path) == Usage()


def test_a_tool_that_fails_leaves_the_usage_open(tmp_path: Path) -> None:
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert usage({"cubin": b"x"}, tmp_path) == Usage()  # not executable
    tool.chmod(0o755)
    assert usage({"cubin": b"x"}, tmp_path) == Usage()
    tool.write_text(f"#!/bin/sh\ntest -s \"$2\" && cat <<'EOF'\n{RESOURCES}\nEOF\n")
    assert usage({"cubin": b"x"}, tmp_path) == Usage(255, 40)
