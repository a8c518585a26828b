"""Probes, one for each kind of hazard. Only the probing process imports this; it needs torch and triton."""

from __future__ import annotations

from gpucheck.tools.audit.probes.base import Probing

__all__ = ["Probing"]
