"""What must stay green: cases without a fault, beside faults and by themselves, and one change that is none."""

from __future__ import annotations

from typing import Any

from gpucheck.model.record import Outcome
from gpucheck.tools.selftest.catalogue.common import attention, dense, routed
from gpucheck.tools.selftest.fault import Expected, Fault, Hook, Target

BYSTANDERS: tuple[dict[str, Any], ...] = (dense(100), routed(104), attention(20))
"""Cases in every run with planted faults, with nothing planted in them."""

CASES: tuple[dict[str, Any], ...] = (
    *BYSTANDERS,
    dense(41, k=200, data=["exact", "normal"]),  # neither columns nor terms are whole blocks
    dense(40, k=256, split_k=[1, 4], out="fp32", bias=True, data=["exact", "normal"]),
    dense(40, m=1, weight="mxfp4", k=128),
    routed(40, load="one", data=["exact", "normal"]),  # most experts have no tokens
    routed(44, load="skewed", scatter=True, gammas=True),
    attention(37, mask=["causal", "full"], sinks=True, data=["exact", "normal"]),
    dense(48, repeat=4, data="normal"),
)
"""The cases of the run without any fault."""

OTHER_CONFIG = Fault(
    "other-config",
    "one rank takes another valid tile",
    Hook("other_config"),
    dense(101, m=70, data="normal"),
    Expected(Outcome.PASS, ""),
    (Target.EACH,),
)
"""Planted beside the faults of each rank."""
