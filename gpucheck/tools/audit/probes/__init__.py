"""Probes that confirm a hazard, one for each kind; only the probing process imports them (needs torch and triton)."""

from __future__ import annotations

from gpucheck.tools.audit.probes.base import Probing

__all__ = ["Probing"]
