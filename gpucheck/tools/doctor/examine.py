"""The families of facts, and looking at all of them at once."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from gpucheck.model.errors import UsageError
from gpucheck.tools.doctor.line import Line, fail
from gpucheck.tools.doctor.machine import Machine


@dataclass(frozen=True)
class Family:
    """Facts that belong together."""

    name: str  # first part of the ids of its lines
    title: str
    module: str  # has ``look(machine) -> list[Line]``; imported when it is used


FAMILIES = (
    Family("driver", "driver", "gpucheck.tools.doctor.driver_lines"),
    Family("gpu", "GPUs", "gpucheck.tools.doctor.gpu_lines"),
    Family("log", "kernel log", "gpucheck.tools.doctor.kernel_log_lines"),
    Family("software", "software", "gpucheck.tools.doctor.software_lines"),
    Family("library", "library", "gpucheck.tools.doctor.library_lines"),
    Family("setting", "settings", "gpucheck.tools.doctor.setting_lines"),
    Family("cache", "Triton cache", "gpucheck.tools.doctor.cache_lines"),
    Family("host", "host", "gpucheck.tools.doctor.host_lines"),
    Family("device", "tried on each device", "gpucheck.tools.doctor.device_lines"),
)


def examine(machine: Machine) -> list[Line]:
    """The lines of all families, in their order. A family that breaks costs its own lines only.

    Raises:
        UsageError: ``--library`` names what is not there.
    """
    with ThreadPoolExecutor(len(FAMILIES)) as pool:
        return [line for lines in pool.map(lambda family: _look(family, machine), FAMILIES) for line in lines]


def _look(family: Family, machine: Machine) -> list[Line]:
    try:
        lines: list[Line] = importlib.import_module(family.module).look(machine)
    except UsageError:
        raise
    except Exception as error:
        lines = [
            fail(
                "look",
                f"could not be looked at: {type(error).__name__}: {error}",
                "this is a fault of gpucheck, not of the machine: report it with this line",
                looked=False,
            )
        ]
    return [replace(line, family=family.name) for line in lines]
