"""Which probe confirms which kind of hazard; kinds without one are read from the source alone."""

from __future__ import annotations

from gpucheck.tools.audit.hazard import Kind
from gpucheck.tools.audit.probes import probe_launches, probe_queries, probe_state
from gpucheck.tools.audit.probes.base import Probe

PROBES: dict[Kind, Probe] = {
    Kind.FIXED_DEVICE: probe_queries.fixed,
    Kind.FIXED_DEVICE_USER: probe_queries.fixed,
    Kind.CURRENT_DEVICE: probe_queries.current,
    Kind.CAPABILITY_CACHE: probe_queries.cached,
    Kind.KERNEL_CACHE: probe_state.kernel_cache,
    Kind.MODULE_REGISTRATION: probe_state.module_registration,
    Kind.PROCESS_OPTION: probe_state.option,
    Kind.METADATA_SWITCH: probe_state.option,
    Kind.ALLOCATOR: probe_state.allocator,
    Kind.SCRATCH_CACHE: probe_state.scratch,
    Kind.DISTRIBUTED_SINGLETON: probe_state.singleton,
    Kind.GLOBAL_RNG: probe_state.global_rng,
    Kind.NO_DEVICE_GUARD: probe_launches.guard,
    Kind.ALLOCATION: probe_launches.allocation,
}
