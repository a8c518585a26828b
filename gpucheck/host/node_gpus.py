"""The GPUs that the ranks of this node run on, as nvidia-smi and CUDA_VISIBLE_DEVICES tell together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from gpucheck.host.nvidia_smi import Answer, Reply, ask, table
from gpucheck.host.visible_gpus import VARIABLE, Gpu, Listing, parse_listing, visible


def listing(environ: Mapping[str, str]) -> tuple[Answer, Listing]:
    """What nvidia-smi lists; where its list cannot be read, the GPUs that it gives as a table."""
    answer = ask(["-L"], environ)
    found = parse_listing(answer.text)
    if answer.reply is Reply.ANSWERED and not found.gpus:
        other, rows = table(["index", "uuid", "name"], environ)
        gpus = tuple(Gpu(row[0], row[1], row[2]) for row in rows if row[0].isdigit())
        if gpus:
            return other, Listing(gpus)
    return answer, found


def architectures(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The architectures of the GPUs that the ranks of this node run on, "sm_90" for one; empty without an answer."""
    answer, rows = table(["index", "uuid", "compute_cap"], environ)
    if len(rows) < len(answer.text.splitlines()) or not all(re.fullmatch(r"\d+\.\d", row[2]) for row in rows):
        return []
    used = places([(row[0], row[1]) for row in rows], environ)
    return sorted({"sm_" + rows[place][2].replace(".", "") for place in used})


def free_memory(environ: Mapping[str, str] = os.environ) -> list[int]:
    """Bytes on the GPU of each rank of this node that are free for several processes; empty without an answer.

    0 where a GPU takes one process only, or where it is not known: of a MIG instance nvidia-smi tells nothing.
    """
    _, rows = table(["index", "uuid", "memory.free", "mig.mode.current", "compute_mode"], environ)
    shared = [
        re.match(r"\d+(?= MiB$)", row[2]) if row[3] != "Enabled" and row[4] == "Default" else None for row in rows
    ]
    used = places([(row[0], row[1]) for row in rows], environ) if rows else []
    return [int(found[0]) << 20 if (found := shared[place]) else 0 for place in used]


def count(environ: Mapping[str, str] = os.environ) -> int:
    """How many GPUs the ranks of this node can run on; 0 without an answer."""
    return len(visible(listing(environ)[1].gpus, environ.get(VARIABLE)).devices)


def places(gpus: Sequence[tuple[str, str]], environ: Mapping[str, str] = os.environ) -> list[int]:
    """Which of some GPUs the ranks of this node run on, in the order of the ranks.

    Args:
        gpus: nvidia-smi's number and UUID of each.
    """
    value = environ.get(VARIABLE)
    listed: Sequence[Gpu] = [Gpu(index, uuid) for index, uuid in gpus]
    if value and "MIG-" in value:
        listed = listing(environ)[1].gpus
    of_uuid = {uuid: place for place, (_, uuid) in enumerate(gpus)}
    devices = visible(listed, value).devices
    return [of_uuid[device.gpu.uuid] for device in devices if device.gpu.uuid in of_uuid]
