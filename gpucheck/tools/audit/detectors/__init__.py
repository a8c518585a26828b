"""Detectors of device hazards: each is a function from a parsed package to hazards. Add one here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpucheck.tools.audit.detectors import (
    allocations,
    caches,
    launches,
    metadata,
    process_state,
    queries,
    ranks,
    shared,
)
from gpucheck.tools.audit.hazard import Hazard
from gpucheck.tools.audit.package import Package

Detector = Callable[[Package], Iterator[Hazard]]

DETECTORS: tuple[Detector, ...] = (
    queries.fixed_and_current_device,
    caches.caches,
    shared.options,
    shared.singletons,
    metadata.synchronising,
    launches.without_guard,
    allocations.unqualified,
    process_state.module_registration,
    process_state.allocator,
    process_state.global_rng,
    process_state.environment,
    ranks.global_rank,
)
