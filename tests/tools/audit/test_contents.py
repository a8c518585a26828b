"""The audit against what is known of the six released contents of the library, read by hand line by line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from gpucheck.tools.audit.hazard import Hazard
from gpucheck.tools.audit.scan import scan
from tests.tools.audit.conftest import cached_content

OLD, NEW = "matmul_ogs_details/", "matmul_details/"


class Scanned(NamedTuple):
    """What is found in a content."""

    name: str
    hazards: list[Hazard]
    seconds: float  # of the processor


def flags(folder: str, nvidia: str, amd: str, helpers: str, helper_amd: str) -> str:
    return (
        f"fixed-device {folder}opt_flags.py {nvidia} {amd}\n"
        f"fixed-device {folder}opt_flags_details/opt_flags_nvidia.py {helpers}\n"
        f"fixed-device {folder}opt_flags_details/opt_flags_amd.py {helper_amd}\n"
    )


COMMON = """
metadata-switch proton_opts.py 5
fixed-device-user swiglu.py 41
"""

KNOWN_PLACES = {
    "A": COMMON
    + flags(OLD, "167", "97", "46 80", "12")
    + """
capability-cache target_info.py 4
fixed-device target_info.py 77
current-device matmul_ogs.py 442
current-device matmul_ogs_details/opt_flags.py 160
fixed-device-user matmul_ogs.py 223 505
kernel-cache matmul_ogs.py 57
module-registration matmul_ogs.py 77
process-option matmul_ogs_details/opt_flags.py 250 251
allocator matmul_ogs.py 462
allocation matmul_ogs.py 644
scratch-cache matmul_ogs_details/_p_matmul_ogs.py 493
""",
    "B": COMMON
    + flags(OLD, "170", "98", "46 80", "12")
    + """
fixed-device target_info.py 54
current-device matmul_ogs.py 368
fixed-device-user matmul_ogs.py 426
kernel-cache matmul_ogs.py 57
module-registration matmul_ogs.py 77
process-option matmul_ogs_details/opt_flags.py 253 254
allocator matmul_ogs.py 396
allocation matmul_ogs.py 591
scratch-cache matmul_ogs_details/_p_matmul_ogs.py 459
""",
    "C": COMMON
    + flags(OLD, "215", "111", "53 90", "12")
    + """
fixed-device target_info.py 54
current-device matmul_ogs.py 373 427
current-device matmul_ogs_details/opt_flags.py 204
fixed-device-user matmul_ogs.py 500
kernel-cache matmul_ogs.py 89
kernel-cache reduce.py 98
kernel-cache specialize.py 180
module-registration specialize.py 197
process-option matmul_ogs_details/opt_flags.py 297 298
allocator matmul_ogs.py 474
allocation matmul_ogs.py 753
allocation roofline.py 89 137 148 149 150
scratch-cache matmul_ogs_details/_p_matmul_ogs.py 579
distributed-singleton distributed.py 170
""",
    "D": COMMON
    + flags(NEW, "234", "117", "63 114", "11")
    + """
fixed-device target_info.py 72
current-device matmul.py 274 346
current-device matmul_details/opt_flags.py 219 224
fixed-device-user matmul.py 409
fixed-device-user tensor_details/layout_details/blackwell_scale.py 271 366
kernel-cache matmul.py 69
kernel-cache reduce.py 148 485
kernel-cache specialize.py 183
module-registration specialize.py 200
process-option matmul_details/opt_flags.py 356 357
allocator matmul.py 383
allocation matmul.py 721
allocation roofline.py 89 136 156 157 158
allocation testing.py 247 249 251
scratch-cache matmul_details/_p_matmul.py 648
global-rng testing.py 242
""",
    "E": COMMON
    + flags(NEW, "250", "120", "101 160", "11")
    + """
fixed-device target_info.py 74
current-device matmul.py 450
current-device matmul_details/opt_flags.py 229 234
current-device reduce.py 173
fixed-device-user matmul.py 513
fixed-device-user tensor_details/layout_details/blackwell_scale.py 327 422
fixed-device-user reduce.py 156 186
kernel-cache matmul.py 81
kernel-cache reduce.py 645 1046
kernel-cache specialize.py 190
module-registration specialize.py 207
process-option matmul_details/opt_flags.py 405 406 407
process-option reduce.py 44 45
allocator matmul.py 487
allocation matmul.py 896
allocation roofline.py 89 136 156 157 158
allocation testing.py 247 249 251
scratch-cache matmul_details/_p_matmul.py 793
global-rng testing.py 242
""",
    "F": COMMON
    + flags(NEW, "246", "120", "82 135", "11")
    + """
fixed-device target_info.py 74
current-device matmul.py 291 431
current-device matmul_details/opt_flags.py 225 230
fixed-device-user matmul.py 494
fixed-device-user tensor_details/layout_details/blackwell_scale.py 283 378
fixed-device-user reduce.py 104
kernel-cache matmul.py 81
kernel-cache reduce.py 226 583
kernel-cache specialize.py 188
module-registration specialize.py 205
process-option matmul_details/opt_flags.py 384 385
process-option reduce.py 30
allocator matmul.py 468
allocation matmul.py 830
allocation roofline.py 89 136 156 157 158
allocation testing.py 247 249 251
scratch-cache matmul_details/_p_matmul.py 716
global-rng testing.py 242
""",
}

COMPLETE = (
    "fixed-device",
    "fixed-device-user",
    "capability-cache",
    "kernel-cache",
    "module-registration",
    "process-option",
    "allocator",
    "scratch-cache",
    "metadata-switch",
    "distributed-singleton",
    "global-rng",
    "allocation",
    "buffer-cache",
    "global-rank",
)
"""Kinds whose places above are all there are; of current-device only the direct questions are above."""


@pytest.fixture(scope="module", params=KNOWN_PLACES)
def scanned(request: pytest.FixtureRequest) -> Scanned:
    """A content that lies on this machine, looked through once."""
    package = cached_content(request.param).package
    begin = time.process_time()
    hazards = scan(package)
    return Scanned(request.param, hazards, time.process_time() - begin)


def places(text: str) -> set[tuple[str, int, str]]:
    rows = [line.split() for line in text.splitlines() if line]
    return {(file, int(line), kind) for kind, file, *lines in rows for line in lines}


def test_every_known_place_is_found_and_no_other_of_its_kind(scanned: Scanned) -> None:
    found = {(hazard.file, hazard.line, hazard.kind.value) for hazard in scanned.hazards}
    known = places(KNOWN_PLACES[scanned.name])
    assert known - found == set()
    assert {place for place in found - known if place[2] in COMPLETE} == set()


def test_further_kinds_are_on_the_lines_that_hold_them(scanned: Scanned) -> None:
    """What the table leaves out, by what must stand on the line."""
    words = {
        "current-device": ("capability", "version()", "native_mxfp", "tma_gather", "is_hip_", "current_target"),
        "no-device-guard": ("](",),
        "metadata-sync": (".item()", "int(", "float("),
        "environment": ("CUDA_VISIBLE_DEVICES",),
    }
    hazards = [hazard for hazard in scanned.hazards if hazard.kind.value in words]
    assert {hazard.kind.value for hazard in hazards} == set(words)
    for hazard in hazards:
        assert any(word in hazard.code for word in words[hazard.kind.value]), hazard


def test_a_scan_is_fast(scanned: Scanned, slowness: Callable[[], float]) -> None:
    assert scanned.seconds < 2.0 * slowness()
