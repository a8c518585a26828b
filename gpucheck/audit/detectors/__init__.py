"""Detectors of device hazards: each is a function from a parsed package to hazards. Add one here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpucheck.audit.detectors import allocations, caches, calls, launches, metadata, queries, ranks, shared
from gpucheck.audit.hazard import Hazard
from gpucheck.audit.package import Package

Detector = Callable[[Package], Iterator[Hazard]]

DETECTORS: tuple[Detector, ...] = (
    queries.fixed_and_current_device,
    caches.caches,
    shared.options,
    shared.singletons,
    metadata.synchronising,
    launches.without_guard,
    allocations.unqualified,
    calls.module_registration,
    calls.allocator,
    calls.global_rng,
    calls.environment,
    ranks.global_rank,
)
