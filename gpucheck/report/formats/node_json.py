"""The verdict for each GPU of a node as JSON, for what watches over a cluster."""

from __future__ import annotations

import json
import time
from typing import Any

from gpucheck import __version__
from gpucheck.diagnose.node_verdict import GPU, SOFTWARE, UNDECIDED, NodeState, NodeVerdict, Reason
from gpucheck.report.blocks import Report
from gpucheck.report.escape import one_line
from gpucheck.report.formats.json_schema import DIALECT, of_type, schema_of_array, schema_of_object

SCHEMA = 1  # rises when a key goes, or changes its type or meaning; keys may come at any time
CONDITION = "GpuProblem"
"""Type of the Kubernetes node condition; as usual for those that tell of problems, its status is True for a problem."""
MESSAGE = 1024  # characters of a node condition's message
_STATUS = {NodeState.CRITICAL: "True", NodeState.UNKNOWN: "Unknown"}
_REASONS = {
    (NodeState.CRITICAL, GPU): "GpuFaulty",
    (NodeState.CRITICAL, SOFTWARE): "SoftwareComputesWrong",
    (NodeState.CRITICAL, UNDECIDED): "ComputesWrong",
}


def render(report: Report, verdict: NodeVerdict) -> str:
    """The text of a JSON file, as :func:`schema` describes it; the keys that scripts look for come first."""
    places = {place.rank: place for place in report.places}
    gpus = []
    for gpu in verdict.gpus:
        place = places[gpu.rank]
        known = {"rank": gpu.rank, "host": place.host, "gpu": place.gpu, "bus": place.bus, "name": place.device}
        gpus.append({**known, **_plain(gpu.worst), "further": [_plain(each) for each in gpu.reasons[1:]]})
    seconds = report.seconds or 0.0
    return _text(verdict.worst, report.plan.created + seconds, report.plan.scenario, report.folder, gpus)


def without_run(message: str, now: float) -> str:
    """The same where no run came about, or none that can be read.

    Args:
        message: why, in words.
        now: seconds since the epoch.
    """
    return _text(Reason(NodeState.UNKNOWN, UNDECIDED, message), now, "", "", [])


def schema() -> dict[str, Any]:
    """The JSON Schema: every key is required, keys that are not named may come with any version."""
    reason = {
        "verdict": NodeState,
        "blames": {"enum": [GPU, SOFTWARE, UNDECIDED, ""], "description": "Replacing the GPU helps against the first."},
        "reason": str,
        "fix": str,
    }
    strings = dict.fromkeys(("host", "gpu", "bus", "name"), str)
    further = {"further": schema_of_array(schema_of_object(reason, "What else is known of the GPU."))}
    gpu = schema_of_object({"rank": int, **strings, **reason, **further}, "A GPU, by its rank; gpu is its UUID.")
    condition = {
        "type": {"const": CONDITION},
        "status": {"enum": ["True", "False", "Unknown"]},
        "reason": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "maxLength": 1024},
        "message": {"type": "string", "maxLength": MESSAGE},
    }
    top = {
        **reason,
        "schema": {"const": SCHEMA},
        "checked": {**of_type(str), "description": "When the run ended, in UTC as RFC 3339 has it."},
        "gpucheck": str,
        "scenario": str,
        "run": str,
        "condition": schema_of_object(condition, "The same as a Kubernetes node condition."),
        "gpus": schema_of_array(gpu),
    }
    return {
        "$schema": DIALECT,
        "title": "gpucheck node verdict",
        **schema_of_object(top, "The verdict on a node is that of its worst GPU."),
    }


def _plain(reason: Reason) -> dict[str, str]:
    return {
        "verdict": reason.state.value,
        "blames": reason.blames,
        "reason": one_line(reason.reason),
        "fix": one_line(reason.fix),
    }


def _text(worst: Reason, checked: float, scenario: str, folder: str, gpus: list[dict[str, Any]]) -> str:
    plain = _plain(worst)
    condition = {
        "type": CONDITION,
        "status": _STATUS.get(worst.state, "False"),
        "reason": _REASONS.get(
            (worst.state, worst.blames), "NoVerdict" if worst.state is NodeState.UNKNOWN else "GpusFit"
        ),
        "message": " ".join(filter(None, (f"{worst.state.value}: {plain['reason']}.", plain["fix"])))[:MESSAGE],
    }
    item = {
        **plain,
        "schema": SCHEMA,
        "checked": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(checked)),
        "gpucheck": __version__,
        "scenario": scenario,
        "run": folder,
        "condition": condition,
        "gpus": gpus,
    }
    return json.dumps(item, indent=1) + "\n"
