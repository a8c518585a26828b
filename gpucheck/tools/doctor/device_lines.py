"""Basic operations of torch, tried for real on every device; the lines they give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gpucheck.host.forkserver import Forkserver
from gpucheck.host.isolated import python_path
from gpucheck.tools.doctor.line import Line, fail, ok, warn
from gpucheck.tools.doctor.machine import Machine
from gpucheck.tools.doctor.perform import Answer, try_all
from gpucheck.tools.doctor.software_lines import folder_of

CHILD = "gpucheck.tools.doctor.device_process"

SUSPECT = (
    "suspect this GPU: look at its ECC counters and the kernel log, reset it, and try again with nothing else on it"
)
TRY_ALONE = "try again; where it comes back, look at the kernel log and run with CUDA_LAUNCH_BLOCKING=1"


def look(machine: Machine) -> list[Line]:
    """The lines of what was tried, in a process of its own."""
    if folder_of("torch") is None:
        return []
    visible = len(machine.visible().devices)  # asks nvidia-smi before processes of ours show up in its answer
    return lines(ask(machine), visible, machine.deadline)


def ask(machine: Machine) -> list[Answer]:
    """What the processes that try things answer; the last answer says where they could not go on."""
    answers: list[Answer] = []
    environment = {**machine.environ, "PYTHONPATH": python_path(environ=machine.environ)}
    with Forkserver.started(CHILD, environment) as server:
        try:
            for answer in try_all(server, machine.deadline):
                answers.append(answer)
        except OSError as error:
            message = str(error).removeprefix("the forkserver ")
            answers.append({"operation": "end" if answers else "import", "outcome": "died", "message": message})
    return answers


def lines(answers: Sequence[Answer], visible: int, deadline: float) -> list[Line]:
    """What the answers mean.

    Args:
        answers: as :func:`ask` gives them.
        visible: devices that CUDA should show.
        deadline: seconds an operation was given.
    """
    found = []
    for answer in answers:
        operation = answer["operation"]
        if operation == "import":
            advice = "torch is installed and does not load: fix the installation, or LD_LIBRARY_PATH"
            found.append(fail("torch", f"the process that loads torch {answer['message']}", advice))
        elif operation == "survey":
            found += _survey(answer, visible, deadline)
        elif operation == "end":
            advice = "look at the message, at free memory and at the kernel log"
            found.append(fail("trying", f"the process that tries things {answer['message']}", advice))
        elif not operation.startswith("copy"):
            found.append(_line(answer, deadline))
    return [*found, *_seeds(answers), *_copies(answers, deadline)]


def _survey(answer: Answer, visible: int, deadline: float) -> list[Line]:
    problem = _problem(answer, deadline)
    if problem:
        advice = "no CUDA program works here: compare driver and CUDA versions, look at the kernel log, reset the GPUs"
        return [fail("count", f"CUDA does not start: {problem}", advice)]
    devices = answer["devices"]
    if len(devices) != visible:
        advice = "compare nvidia-smi -L, CUDA_VISIBLE_DEVICES, MIG and the CUDA build of torch"
        value = f"torch sees {len(devices)} GPU(s), nvidia-smi and CUDA_VISIBLE_DEVICES leave {visible}"
        return [fail("count", value, advice)]
    if not devices:
        return [warn("count", "no GPU is visible to torch; tried on the CPU", "see what the driver lines say above")]
    return [
        ok("count", f"torch sees {len(devices)} GPU(s)"),
        *_equality(devices),
        *_peers(len(devices), answer["peers"]),
    ]


def _equality(devices: Sequence[Answer]) -> list[Line]:
    """Whether the library's habit of asking device 0 is right for every device."""
    shared = [
        ok("shared memory", f"{device['shared memory']} bytes a block at most", str(number))
        for number, device in enumerate(devices)
        if device["shared memory"]
    ]
    first, unequal = devices[0], []
    for number, device in enumerate(devices):
        other = {key: value for key, value in device.items() if value != first[key]}
        if other:
            words = ", ".join(f"{key} {value} against {first[key]}" for key, value in other.items())
            advice = "the library asks device 0 for such properties: run this GPU alone, with CUDA_VISIBLE_DEVICES"
            unequal.append(warn("equal to device 0", words, advice, str(number)))
    if not unequal:
        words = f"{first['name']}, capability {first['capability']}, {first['multiprocessors']} multiprocessors"
        unequal = [ok("equal to device 0", f"all {len(devices)}: {words}")]
    return [*shared, *unequal]


def _peers(count: int, peers: Sequence[Sequence[int]]) -> list[Line]:
    """Which GPUs may access each other's memory."""
    pairs = count * (count - 1)
    if not pairs:
        return []
    if len(peers) == pairs:
        return [ok("peer access", f"all {pairs} pairs")]
    if not peers:
        return [ok("peer access", "none: copies go through the host")]
    targets: dict[int, list[int]] = defaultdict(list)
    for source, target in peers:
        targets[source].append(target)
    words = "; ".join(f"{source} to {', '.join(map(str, reached))}" for source, reached in sorted(targets.items()))
    advice = "copies between the others go through the host: look at nvidia-smi topo -m, IOMMU and ACS settings"
    return [warn("peer access", f"{len(peers)} of {pairs} pairs: {words}", advice)]


def _line(answer: Answer, deadline: float) -> Line:
    """What one operation on one device gave."""
    subject = answer["subject"].removeprefix("cuda:")
    problem = _problem(answer, deadline)
    if not problem:
        return ok(answer["operation"], answer["value"], subject)
    if answer["outcome"] == "skipped":
        return fail(answer["operation"], problem, "fix what came before", subject, looked=False)
    return fail(answer["operation"], problem, SUSPECT if answer["outcome"] == "done" else TRY_ALONE, subject)


def _problem(answer: Answer, deadline: float) -> str:
    """What is wrong with an answer, or ""."""
    if answer["outcome"] == "done":
        return str(answer["problem"])
    return {
        "raised": f"raised {answer.get('message')}",
        "died": f"its process {answer.get('message')}",
        "hung": f"hung: no answer within {deadline:g} s",
        "skipped": "not tried: too many processes died or hung before",
    }[answer["outcome"]]


def _seeds(answers: Sequence[Answer]) -> list[Line]:
    """Whether a seed gives the same numbers on all GPUs of a kind."""
    devices: list[Answer] = next((answer["devices"] for answer in answers if answer.get("devices")), [])
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        if answer["operation"] == "seed" and answer.get("digest") and answer["subject"].startswith("cuda:"):
            number = answer["subject"].removeprefix("cuda:")
            device = devices[int(number)]
            kinds[f"{device['name']} {device['multiprocessors']}"][answer["digest"]].append(number)
    found = []
    for digests in kinds.values():
        camps = sorted(digests.values(), key=len, reverse=True)
        if len(camps) > 1:
            words = " against ".join("GPU " + ", ".join(camp) for camp in camps)
            advice = SUSPECT.replace("this GPU", "the minority")
            found.append(fail("seeds agree", f"one seed, different numbers: {words}", advice))
        elif len(camps[0]) > 1:
            found.append(ok("seeds agree", f"one seed, the same numbers on {len(camps[0])} GPUs"))
    return found


def _copies(answers: Sequence[Answer], deadline: float) -> list[Line]:
    """The copies between each two GPUs: one line where all arrived, else one for each that did not."""
    copies = [answer for answer in answers if answer["operation"].startswith("copy")]
    found = []
    for answer in copies:
        problem = _problem(answer, deadline)
        if problem:
            source, target = answer["operation"].split()[1:]
            advice = (
                f"GPU {source} to {target}: look at NVLink (nvidia-smi nvlink -e), IOMMU and ACS settings;"
                " NCCL_P2P_DISABLE=1 avoids the path"
            )
            found.append(fail("copy", problem, advice, f"{source}-{target}", looked=answer["outcome"] != "skipped"))
    if copies and not found:
        return [ok("copy", f"all {len(copies)} pairs, {copies[0]['value']} each, checksums equal")]
    return found
