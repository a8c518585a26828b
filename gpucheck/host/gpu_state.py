"""What ``nvidia-smi -q -x`` says, as plain data.

The XML form is asked because every driver gives it: a list of fields that holds one name the driver does not know is
refused as a whole, while an element that is not there reads as "not known". Elements that drivers have renamed are
looked up under all their names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field

from gpucheck.host.nvidia_smi import LIMIT, Answer, Reply, ask

__all__ = ["LIMIT", "Gpu", "Process", "Reply", "Snapshot", "parse", "snapshot"]

UNKNOWN = re.compile(r"|\[?(N/A|Not Supported|Unknown Error|GPU is lost|ERR!)\]?|.*deprecated")
ERROR = re.compile(r"Unknown Error|GPU is lost|ERR!")
CORRECTABLE = re.compile(r"(?<!un)(correctable|single_bit)")
UNCORRECTABLE = re.compile(r"uncorrectable|double_bit")


@dataclass(frozen=True)
class Process:
    """A process that uses a GPU."""

    pid: int
    name: str
    memory: str  # "1024 MiB", or ""


@dataclass(frozen=True)
class Gpu:
    """One GPU; "" and None stand for what the driver does not say."""

    index: int  # nvidia-smi's number: PCI order
    name: str
    uuid: str
    bus: str
    memory_total: int | None = None  # MiB
    memory_used: int | None = None  # MiB
    sm_clock: int | None = None  # MHz
    sm_clock_max: int | None = None  # MHz
    throttle: tuple[str, ...] = ()  # active reasons but idleness, as named by the driver without prefix
    temperature: int | None = None  # C
    headroom: int | None = None  # C up to where the GPU slows itself down
    ecc: str = ""  # "Enabled", "Disabled"
    uncorrectable: Mapping[str, int] = field(default_factory=dict)  # counters above 0, since the driver was loaded
    uncorrectable_ever: Mapping[str, int] = field(default_factory=dict)  # over the life of the GPU
    correctable: int = 0  # since the driver was loaded
    sram_threshold_exceeded: bool = False
    remap_pending: bool = False  # rows to be remapped, or pages to be retired, at the next reset
    remap_failed: bool = False
    recovery: str = ""  # what the driver says must be done: "Reset", "Reboot", ...; "" for nothing
    mig: str = ""  # "Enabled", "Disabled"
    mig_devices: int = 0
    compute_mode: str = ""  # "Default", "Exclusive_Process", "Prohibited"
    persistence: str = ""  # "Enabled", "Disabled"
    errors: tuple[str, ...] = ()  # elements that hold an error in place of a value
    fabric: str = ""  # state of the NVSwitch fabric: "Completed", "In Progress", ...
    processes: tuple[Process, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """One answer of nvidia-smi."""

    answer: Answer
    driver: str = ""
    cuda: str = ""  # newest CUDA the driver runs, "13.0"
    gpus: tuple[Gpu, ...] = ()
    remarks: tuple[str, ...] = ()  # what it printed around the XML
    readable: bool = True  # False: it answered, and not with the XML that was asked for


def snapshot(environ: Mapping[str, str], limit: float = LIMIT) -> Snapshot:
    """Asks nvidia-smi for everything it knows."""
    answer = ask(["-q", "-x"], environ, limit)
    return parse(answer) if answer.reply is Reply.ANSWERED else Snapshot(answer)


def parse(answer: Answer) -> Snapshot:
    """Reads an answer."""
    before, start, rest = answer.text.partition("<nvidia_smi_log>")
    body, end, after = rest.partition("</nvidia_smi_log>")
    remarks = [
        line.strip() for line in (before + after).splitlines() if line.strip() and not line.startswith(("<?", "<!"))
    ]
    try:
        root = ElementTree.fromstring(start + body + end)
    except ElementTree.ParseError:
        return Snapshot(answer, remarks=tuple(remarks), readable=False)
    gpus = tuple(_gpu(number, element) for number, element in enumerate(root.findall("gpu")))
    return Snapshot(answer, _text(root, "driver_version"), _text(root, "cuda_version"), gpus, tuple(remarks))


def _gpu(index: int, gpu: ElementTree.Element) -> Gpu:
    volatile, aggregate = gpu.find("ecc_errors/volatile"), gpu.find("ecc_errors/aggregate")
    pending = (
        "remapped_rows/remapped_row_pending",
        "retired_pages/pending_retirement",
        "retired_pages/pending_blacklist",
    )
    return Gpu(
        index=index,
        name=_text(gpu, "product_name") or "unnamed GPU",
        uuid=_text(gpu, "uuid"),
        bus=_text(gpu, "pci/pci_bus_id") or gpu.get("id", ""),
        memory_total=_number(gpu, "fb_memory_usage/total"),
        memory_used=_number(gpu, "fb_memory_usage/used"),
        sm_clock=_number(gpu, "clocks/sm_clock"),
        sm_clock_max=_number(gpu, "max_clocks/sm_clock"),
        throttle=_throttle(gpu),
        temperature=_number(gpu, "temperature/gpu_temp"),
        headroom=_headroom(gpu),
        ecc=_text(gpu, "ecc_mode/current_ecc"),
        uncorrectable=_counters(volatile, UNCORRECTABLE),
        uncorrectable_ever=_counters(aggregate, UNCORRECTABLE),
        correctable=sum(_counters(volatile, CORRECTABLE).values()),
        sram_threshold_exceeded=_text(gpu, "ecc_errors/aggregate/sram_threshold_exceeded") == "Yes",
        remap_pending=any(_text(gpu, path) == "Yes" for path in pending),
        remap_failed=_text(gpu, "remapped_rows/remapped_row_failure") == "Yes",
        recovery=_text(gpu, "gpu_recovery_action").replace("None", ""),
        mig=_text(gpu, "mig_mode/current_mig"),
        mig_devices=len(gpu.findall("mig_devices/mig_device")),
        compute_mode=_text(gpu, "compute_mode"),
        persistence=_text(gpu, "persistence_mode"),
        errors=tuple(element.tag for element in gpu.iter() if ERROR.search(element.text or "")),
        fabric=_text(gpu, "fabric/state"),
        processes=tuple(_processes(gpu)),
    )


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    return "" if UNKNOWN.fullmatch(text) else text


def _number(element: ElementTree.Element, path: str) -> int | None:
    """The number that starts a text such as ``"81559 MiB"``."""
    match = re.match(r"-?\d+", _text(element, path))
    return int(match[0]) if match else None


def _throttle(gpu: ElementTree.Element) -> tuple[str, ...]:
    """Active reasons for a lower clock; drivers before 535 call them throttle reasons."""
    reasons = []
    for group in ("clocks_event_reason", "clocks_throttle_reason"):
        for element in gpu.iterfind(f"{group}s/*"):
            if (element.text or "").strip() == "Active":
                reasons.append(element.tag.removeprefix(f"{group}_"))
    return tuple(reason for reason in reasons if reason != "gpu_idle")


def _headroom(gpu: ElementTree.Element) -> int | None:
    """Newer GPUs report the distance to the limit itself, older ones the limit."""
    distance, slows_at = (
        _number(gpu, "temperature/gpu_temp_tlimit"),
        _number(gpu, "temperature/gpu_temp_slow_threshold"),
    )
    temperature = _number(gpu, "temperature/gpu_temp")
    if distance is not None:
        return distance
    return slows_at - temperature if slows_at is not None and temperature is not None else None


def _counters(element: ElementTree.Element | None, names: re.Pattern[str]) -> dict[str, int]:
    """Counters above 0 whose names match; in old drivers they lie one level deeper and have a total each."""
    found: dict[str, int] = {}
    for counter in () if element is None else element.iter():
        text = (counter.text or "").strip()
        if names.search(counter.tag) and text.isdigit() and int(text):
            found[counter.tag] = int(text)
        elif names.search(counter.tag) and len(counter):
            total = counter.findtext("total", "").strip()
            if total.isdigit() and int(total):
                found[counter.tag] = int(total)
    return found


def _processes(gpu: ElementTree.Element) -> list[Process]:
    return [
        Process(
            _number(element, "pid") or 0,
            _text(element, "process_name") or "a process whose name is not shown",
            _text(element, "used_memory"),
        )
        for element in gpu.iterfind("processes/process_info")
    ]
