"""Does the answer for device 1 change, or is it taken from device 0?"""

from __future__ import annotations

from typing import Any

from gpucheck.tools.audit.hazard import Kind
from gpucheck.tools.audit.probes.base import Answer, Probing
from gpucheck.tools.audit.probes.probe_devices import PAIRS, two_devices


def fixed(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Asks with either device current: an answer that stays is that of the fixed device."""
    with two_devices(PAIRS[0]) as driver:
        first, second = (_ask(probing, hazard, driver, device) for device in (0, 1))
    if first != second:
        return False, f"answers {first} for cuda:0 and {second} for cuda:1"
    return True, f"with cuda:1 current it still answers {second}; {_contrast(second)}"


def current(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Asks with either device current: an answer that follows has no regard for where the tensors are."""
    same = None
    for pair in PAIRS:
        with two_devices(pair) as driver:
            first, second = (_ask(probing, hazard, driver, device) for device in (0, 1))
        if first != second:
            names = [device.amd or "{}.{}".format(*device.capability) for device in pair]
            return True, (
                f"tensors on cuda:1 ({names[1]}): answers {first} while cuda:0 ({names[0]}) is current,"
                f" {second} while cuda:1 is"
            )
        same = first
    return None, f"open: answers {same} for every pair of devices tried"


def cached(probing: Probing, hazard: dict[str, Any]) -> Answer:
    """Asks for device 0, then for device 1, with and without the cache emptied between."""
    for question in probing.of_kind(Kind.CURRENT_DEVICE, Kind.FIXED_DEVICE_USER):
        try:
            with two_devices(PAIRS[0]) as driver:
                truth = _ask(probing, question, driver, 1)
                _ask(probing, question, driver, 0)
                driver.current = 1
                stale = _describe(probing.value(question))
        except Exception:  # a question that cannot be put alone; another one can
            continue
        if stale != truth:
            what = question["expression"]
            return True, f"{what} answers {stale} for cuda:1 once cuda:0 has asked; asked first, cuda:1 gets {truth}"
    return None, "open: no question that can be put alone reads it"


def _ask(probing: Probing, hazard: dict[str, Any], driver: Any, device: int) -> str:
    """The answer with a device current and nothing remembered."""
    probing.clear_caches()
    driver.current = device
    return _describe(probing.value(hazard))


def _describe(answer: Any) -> str:
    if hasattr(answer, "multi_processor_count"):
        memory = answer.shared_memory_per_block_optin
        return f"{answer.multi_processor_count} multiprocessors and {memory:,} bytes of shared memory"
    if hasattr(answer, "arch"):
        return str(answer.arch)
    return str(answer)


def _contrast(seen: str) -> str:
    zero, one = PAIRS[0]
    if seen == str(zero.sms) or seen.startswith(f"{zero.sms} "):
        return f"cuda:1 has {one.sms} multiprocessors and {one.shared_memory:,} bytes of shared memory"
    return "the answer for cuda:0"
