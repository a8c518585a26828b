"""What a scenario may say of conditions, which of them go together, and which need GPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpucheck.library.engines import MODULES
from gpucheck.model.conditions import CACHES, CONSUMERS, PROCESS_GROUPS, STREAMS, Conditions
from gpucheck.model.placement_table import PLACEMENTS, scenario_placements

MOST_REPEATS = 10_000
MOST_THREADS = 64

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is accepted, and what is, in words."""


def one_of(*choices: str) -> Rule:
    """One of a few words."""
    words = ("one of " if len(choices) > 1 else "") + ", ".join(choices)
    return lambda value: isinstance(value, str) and value in choices, words


def whole(lowest: int, highest: int) -> Rule:
    """A whole number within a range."""
    return lambda value: type(value) is int and lowest <= value <= highest, f"{lowest} to {highest}"


def real(accepts: Callable[[float], bool], words: str) -> Rule:
    """A number that meets a condition."""
    return lambda value: type(value) in (int, float) and accepts(value), words


TRUTH: Rule = (lambda value: isinstance(value, bool), "true or false")

KEYS: dict[str, Rule] = {
    "placement": (lambda value: value in scenario_placements(), one_of(*scenario_placements())[1]),
    "process_group": one_of(*PROCESS_GROUPS),
    "late": TRUTH,
    "consumer": one_of(*CONSUMERS),
    "stream": one_of(*STREAMS),
    "concurrency": whole(1, MOST_THREADS),
    "cache": one_of(*CACHES),
    "warm_up": TRUTH,
    "repeat": whole(1, MOST_REPEATS),
    "synchronised": TRUTH,
    "engine": one_of(*MODULES),
}
"""The keys of a group of cases that set a field of :class:`Conditions`."""


def conflict(conditions: Conditions) -> str:
    """Why conditions do not go together, or ""."""
    warming = " or ".join(name for name in scenario_placements() if PLACEMENTS[name].warms_up)
    ordered = conditions.late or conditions.consumer != "waits"
    placed, whole_node = conditions.placed, conditions.whole_node
    conflicts = {
        f"a side stream makes its device current, which placement {conditions.placement} must not": (
            not placed.device_current and conditions.stream == "side"
        ),
        "late inputs and consumers are for one thread at a time": ordered and conditions.concurrency > 1,
        f"placement {conditions.placement} has one process for all ranks, so it takes concurrency 1": (
            whole_node and conditions.concurrency > 1
        ),
        f"placement {conditions.placement} has one process for all ranks, so none shares its cache": (
            whole_node and conditions.cache != "shared"
        ),
        f"placement {conditions.placement} has one process for all ranks, so there is no group of ranks": (
            whole_node and conditions.process_group != "none"
        ),
        f"placement {conditions.placement} has one process for all ranks, and an engine has one for each": (
            whole_node and conditions.engine != ""
        ),
        f"a warm-up on device 0 goes with placement {warming}": conditions.warm_up and not placed.warms_up,
    }
    return next((reason for reason, present in conflicts.items() if present), "")


def reason_against_company(conditions: Conditions) -> str:
    """Why ranks cannot run a case together under these conditions, or ""."""
    reasons = {
        f"placement {conditions.placement} has one process for all ranks": conditions.whole_node,
        f"placement {conditions.placement} leaves its GPU alone": not conditions.placed.device_current,
        "concurrency is for calls of one rank": conditions.concurrency > 1,
        "late inputs and other consumers are part of the check": conditions.late or conditions.consumer != "waits",
        "no rank has a warm-up or a cache of its own": conditions.warm_up or conditions.cache != "shared",
    }
    return next((reason for reason, present in reasons.items() if present), "")


def needs_gpus(conditions: Conditions) -> str:
    """Why conditions mean nothing without GPUs, or "".

    Threads of one process run their host code, locks and caches at once on the CPU too, in memory that stands in for
    the devices.
    """
    needing = {
        f"placement {conditions.placement} needs GPUs": not conditions.placed.without_gpus,
        "late inputs need a GPU": conditions.late,
        "a prompt consumer needs a GPU": conditions.consumer == "prompt",
        "a side stream needs a GPU": conditions.stream != "default",
        "Triton's interpreter has no kernel cache": conditions.cache != "shared",
        "a warm-up on another device needs GPUs": conditions.warm_up,
        "launches of the interpreter are waited for anyway": conditions.synchronised,
    }
    return next((reason for reason, asked in needing.items() if asked), "")
