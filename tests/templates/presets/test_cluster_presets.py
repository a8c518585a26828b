"""The presets for what watches over clusters: each has the form that its reader asks for, and its script is tried.

The schemas are written after what the readers read: node-problem-detector's ``pkg/custompluginmonitor/types``, gpud's
``pkg/custom-plugins/types.go`` with its validation, NVSentinel's preflight checks, and Kyverno's ClusterPolicy.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.diagnose.node_verdict import node_verdict
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.formats.node_json import CONDITION, render, without_run
from gpucheck.tools.attest.statement import PROOF
from gpucheck.tools.attest.statement_schema import statement_schema
from tests.conftest import Synthetic
from tests.templates.presets.conftest import StandIns
from tests.templates.presets.test_files import PRESETS, documents, installed
from tests.templates.presets.test_shell import understood

DURATION = {"type": "string", "pattern": r"^(\d+(h|m|s))+$"}
TEXT = {"type": "string", "minLength": 1}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object that has these keys and no others: what a reader does not know it would not do."""
    properties = {**required, **optional}
    return {"type": "object", "required": [*required], "properties": properties, "additionalProperties": False}


NODE_PROBLEM_DETECTOR = closed(
    {
        "plugin": {"const": "custom"},
        "source": TEXT,
        "conditions": {"type": "array", "items": closed({"type": TEXT, "reason": TEXT, "message": TEXT})},
        "rules": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {"type": {"enum": ["temporary", "permanent"]}, "reason": TEXT, "path": TEXT},
                condition=TEXT,
                args={"type": "array", "items": {"type": "string"}},
                timeout=DURATION,
                invoke_interval=DURATION,
            ),
        },
    },
    pluginConfig=closed(
        {},
        invoke_interval=DURATION,
        timeout=DURATION,
        max_output_length={"type": "integer", "maximum": 4096},
        concurrency={"type": "integer"},
        enable_message_change_based_condition_update={"type": "boolean"},
        skip_initial_status={"type": "boolean"},
    ),
    metricsReporting={"type": "boolean"},
)
MATCH = closed({"regex": TEXT})
GPUD = {
    "type": "array",
    "items": closed(
        {
            "plugin_name": {"type": "string", "maxLength": 128, "minLength": 1},
            "plugin_type": {"enum": ["init", "component", "component_list"]},
            "run_mode": {"enum": ["auto", "manual"]},
            "health_state_plugin": closed(
                {
                    "steps": {
                        "type": "array",
                        "minItems": 1,
                        "items": closed(
                            {
                                "name": TEXT,
                                "run_bash_script": closed(
                                    {"content_type": {"enum": ["plaintext", "text/plain", "base64"]}, "script": TEXT}
                                ),
                            }
                        ),
                    }
                },
                parser=closed(
                    {
                        "json_paths": {
                            "type": "array",
                            "items": closed(
                                {"query": {"type": "string", "pattern": r"^\$\."}, "field": TEXT},
                                expect=MATCH,
                                suggested_actions={
                                    "type": "object",
                                    "propertyNames": {
                                        "enum": [
                                            "IGNORE_NO_ACTION_REQUIRED",
                                            "REBOOT_SYSTEM",
                                            "HARDWARE_INSPECTION",
                                            "CHECK_USER_APP_AND_GPU",
                                        ]
                                    },
                                    "additionalProperties": MATCH,
                                },
                            ),
                        }
                    },
                    log_path=TEXT,
                ),
            ),
        },
        timeout=DURATION,
        interval=DURATION,
        tags={"type": "array", "items": TEXT},
    ),
}


def fits(item: Any, schema: dict[str, Any]) -> None:
    pytest.importorskip("jsonschema").validate(item, schema)


@pytest.fixture
def verdicts(synthetic: Synthetic) -> dict[str, str]:
    """Node verdicts as gpucheck writes them, by their state."""
    written = {}
    for state, outcome, said in (
        ("PASS", Outcome.PASS, []),
        ("WARNING", Outcome.PASS, [{"rank": 0, "kind": "corrected", "text": '2 "new" errors'}]),
        ("CRITICAL", Outcome.PASS, [{"rank": 0, "kind": "uncorrected", "text": "1 new uncorrected error"}]),
        ("SOFTWARE", Outcome.MISMATCH, []),
        ("UNKNOWN", Outcome.LOST, []),
    ):
        run = synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome})
        run.driver = said
        conclusion = conclude(run)
        written[state] = render(blocks.build(run, conclusion), node_verdict(run, conclusion))
    return written


def script_file(folder: Path, text: str, name: str = "script.sh") -> Path:
    script = folder / name
    script.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}")
    done = subprocess.run([installed("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return script


# node-problem-detector


def test_the_plugin_of_node_problem_detector_is_one() -> None:
    (config_map,) = documents("node-problem-detector")
    pytest.importorskip("kubernetes_validate").validate(config_map, "1.29", strict=True)
    config = json.loads(config_map["data"]["gpucheck.json"])
    fits(config, NODE_PROBLEM_DETECTOR)
    (condition,), (rule,) = config["conditions"], config["rules"]
    assert rule["condition"] == condition["type"] == CONDITION, "a permanent problem needs a default of its condition"
    assert rule["path"].rpartition("/")[2] in config_map["data"] and rule["path"].startswith("/config/gpucheck/")
    assert float(rule["timeout"][:-1]) <= float(config["pluginConfig"]["timeout"][:-1])


@pytest.mark.parametrize(
    ("state", "change", "code", "says"),
    [
        ("PASS", None, 0, "every case was right"),
        ("WARNING", None, 0, 'rank 0: 2 \\"new\\" errors'),
        ("CRITICAL", None, 1, "rank 0: 1 new uncorrected error. Reset the GPU: "),
        ("SOFTWARE", None, 1, "rank 0: "),
        ("UNKNOWN", None, 2, "rank 0: "),
        ("PASS", "missing", 2, "gpucheck has left no verdict on this node"),
        ("PASS", "cut", 2, "the verdict of gpucheck is cut"),
        ("PASS", "old", 2, "the verdict of gpucheck is older than 26 h"),
        ("PASS", "other", 2, "there is no verdict in "),
    ],
)
def test_the_plugin_tells_the_last_verdict(
    tmp_path: Path, verdicts: dict[str, str], state: str, change: str | None, code: int, says: str
) -> None:
    (config_map,) = documents("node-problem-detector")
    script = script_file(tmp_path, config_map["data"]["gpucheck.sh"])
    verdict = tmp_path / "verdict.json"
    text = verdicts[state]
    if change != "missing":
        verdict.write_text(text[: len(text) // 2] if change == "cut" else "{}\n" if change == "other" else text)
    if change == "old":
        os.utime(verdict, (time.time() - 27 * 3600,) * 2)
    environ = {**os.environ, "VERDICT": str(verdict)}
    done = subprocess.run(["bash", str(script)], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "") and done.stdout.startswith(says), done.stdout
    assert len(done.stdout.splitlines()) == 1


# gpud


def test_the_plugin_of_gpud_is_one() -> None:
    (specs,) = documents("gpud-plugin")
    fits(specs, GPUD)
    (spec,) = specs
    hours, minutes = spec["interval"], spec["timeout"]
    assert hours.endswith("h") and minutes.endswith("m"), "an interval is a minute at least"
    limit = int(
        re.findall(r"timeout -k 2 (\d+)", spec["health_state_plugin"]["steps"][0]["run_bash_script"]["script"])[0]
    )
    assert limit + 25 < 60 * int(minutes[:-1]), "the script ends by itself"


def healthy(spec: dict[str, Any], printed: str, code: int) -> tuple[bool, set[str]]:
    """What gpud makes of a script that ended, and what it suggests: the first JSON in its output is looked at."""
    if code:
        return False, set()
    if "{" not in printed:
        return True, set()
    item, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    fit, actions = True, set()
    for path in spec["health_state_plugin"]["parser"]["json_paths"]:
        value: Any = item
        for key in path["query"].removeprefix("$.").split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if "expect" in path:
            fit &= value is not None and bool(re.search(path["expect"]["regex"], value))
        for action, rule in path.get("suggested_actions", {}).items():
            actions |= {action} if re.search(rule["regex"], value or "") else set()
    return fit, actions


@pytest.mark.parametrize(
    ("state", "code", "fit", "actions"),
    [
        ("PASS", 0, True, set()),
        ("WARNING", 0, True, set()),
        ("CRITICAL", 0, False, {"HARDWARE_INSPECTION"}),
        ("SOFTWARE", 1, False, {"CHECK_USER_APP_AND_GPU"}),
        ("UNKNOWN", 3, False, set()),
        ("", 1, False, set()),
    ],
)
def test_gpud_is_told_the_verdict_of_idle_gpus(
    stand_ins: StandIns, verdicts: dict[str, str], state: str, code: int, fit: bool, actions: set[str]
) -> None:
    ((spec,),) = documents("gpud-plugin")
    stand_ins.stand_in("nvidia-smi")
    stand_ins.gpucheck(code, "a report { with } braces", verdicts.get(state, ""))
    done = run_gpud(stand_ins, spec)
    assert healthy(spec, done.stdout + done.stderr, done.returncode) == (fit, actions)
    (call,) = stand_ins.calls("gpucheck")
    understood(call)


def test_gpud_is_told_the_last_verdict_of_busy_gpus_while_it_is_young(
    stand_ins: StandIns, verdicts: dict[str, str]
) -> None:
    ((spec,),) = documents("gpud-plugin")
    stand_ins.stand_in("nvidia-smi", "print(4711)")
    assert healthy(spec, run_gpud(stand_ins, spec).stdout, 0) == (True, set())
    verdict = stand_ins.folder / "state" / "node-verdict.json"
    verdict.write_text(verdicts["CRITICAL"])
    assert healthy(spec, run_gpud(stand_ins, spec).stdout, 0)[0] is False
    os.utime(verdict, (time.time() - 49 * 3600,) * 2)
    assert run_gpud(stand_ins, spec).stdout == "" and stand_ins.calls("gpucheck") == []


def run_gpud(stand_ins: StandIns, spec: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (step,) = spec["health_state_plugin"]["steps"]
    script = script_file(stand_ins.folder, step["run_bash_script"]["script"])
    path = f"{stand_ins.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    known = {"PATH": path, "STATE": str(stand_ins.folder / "state"), "PYTHON": installed("python")}
    known |= {"GPUCHECK": str(stand_ins.folder / "bin" / "gpucheck")}
    return subprocess.run(["bash", str(script)], env=known, capture_output=True, text=True)


# NVSentinel


def preflight() -> dict[str, Any]:
    (values,) = documents("nvsentinel-preflight")
    assert values["global"] == {"preflight": {"enabled": True}}
    (container,) = values["preflight"]["initContainers"]
    return dict(container)


def test_the_preflight_check_is_a_container() -> None:
    container = preflight()
    assert container.pop("defaultEnabled") is True, "the one key that is the webhook's and not the container's"
    assert container["name"].startswith("preflight-")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"initContainers": [container]}}
    pod["spec"]["containers"] = [{"name": "c", "image": "i"}]  # type: ignore[index]
    pytest.importorskip("kubernetes_validate").validate(pod, "1.29", strict=True)
    injected = {"NODE_NAME", "PLATFORM_CONNECTOR_SOCKET", "PROCESSING_STRATEGY"}
    assert not injected & {each["name"] for each in container["env"]}


@pytest.mark.parametrize(
    ("code", "state", "strategy", "ends"),
    [
        (0, "PASS", "EXECUTE_REMEDIATION", 0),
        (1, "CRITICAL", "EXECUTE_REMEDIATION", 1),
        (2, "UNKNOWN", "EXECUTE_REMEDIATION", 2),
        (1, "", "EXECUTE_REMEDIATION", 2),  # Python itself failed
        (1, "CRITICAL", "STORE_ONLY", 0),
        (1, "CRITICAL", "", 1),
    ],
)
def test_the_preflight_check_ends_as_asked_for(
    stand_ins: StandIns, verdicts: dict[str, str], code: int, state: str, strategy: str, ends: int
) -> None:
    container = preflight()
    stand_ins.gpucheck(code, "the report", verdicts.get(state, ""), name="python3")
    script = container["command"][2].replace("/tmp/gpucheck", str(stand_ins.folder / "g"))
    script_file(stand_ins.folder, script)
    message = stand_ins.folder / "message"
    path = f"{stand_ins.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-c", script, container["command"][3], *container["args"]],
        env={"PATH": path, "MESSAGE": str(message), "PROCESSING_STRATEGY": strategy},
        capture_output=True,
        text=True,
    )
    assert done.returncode == ends, done.stderr
    assert done.stdout.startswith("the report\n")
    assert message.read_text().startswith(f"{state}: " if state else "")
    (call,) = stand_ins.calls("python3")
    assert call[0] == "/gpucheck.pyz" and call[call.index("--exit-codes") + 1] == "preflight"
    understood(call[1:])


# Kubernetes node condition


@pytest.fixture
def api() -> Iterator[tuple[str, dict[str, Any]]]:
    """An API server with one node; takes a patch of its status as Kubernetes does."""
    node: dict[str, Any] = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/strategic-merge-patch+json"
            for new in body["status"]["conditions"]:  # their merge key is the type
                kept = [each for each in node["status"]["conditions"] if each["type"] != new["type"]]
                node["status"]["conditions"] = [*kept, new]
            self.answer()

        def answer(self) -> None:
            node["asked"].append((self.command, self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(node).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", node
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_objects_of_the_node_condition_fit_together() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    objects = {each["kind"]: each for each in documents("node-condition")}
    for each in objects.values():
        validate.validate(each, "1.29", strict=True)
        validate.validate(each, validate.latest_version(), strict=True)
    pod = objects["Job"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    (subject,), role = objects["ClusterRoleBinding"]["subjects"], objects["ClusterRoleBinding"]["roleRef"]
    assert subject["name"] == objects["ServiceAccount"]["metadata"]["name"]
    assert role["name"] == objects["ClusterRole"]["metadata"]["name"]
    (check,) = pod["containers"]
    gpus = check["resources"]["limits"]["nvidia.com/gpu"]
    assert check["args"][check["args"].index("--expect-gpus") + 1] == str(gpus)
    names = {volume["name"] for volume in pod["volumes"]}
    assert names == {mount["name"] for each in (*pod["initContainers"], check) for mount in each["volumeMounts"]}


def test_the_verdict_becomes_a_condition_of_the_node(
    stand_ins: StandIns, verdicts: dict[str, str], api: tuple[str, dict[str, Any]]
) -> None:
    url, node = api
    (stand_ins.folder / "token").write_text("secret\n")
    seen = []
    for state, code in (("PASS", 0), ("WARNING", 0), ("CRITICAL", 1), ("UNKNOWN", 2), ("", 1)):
        assert write_condition(stand_ins, url, code, verdicts.get(state, "")) == code
        ready, condition = node["status"]["conditions"]
        assert ready == {"type": "Ready", "status": "True"} and condition["type"] == CONDITION
        seen.append((condition["status"], condition["reason"]))
        for moment in ("lastHeartbeatTime", "lastTransitionTime"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", condition[moment])
    assert seen == [
        ("False", "GpusFit"),
        ("False", "GpusFit"),
        ("True", "GpuFaulty"),
        ("Unknown", "NoVerdict"),
        ("Unknown", "NoVerdict"),
    ]
    assert node["asked"][:2] == [
        ("GET", "/api/v1/nodes/n7", "Bearer secret"),
        ("PATCH", "/api/v1/nodes/n7/status", "Bearer secret"),
    ]


def test_a_condition_keeps_the_time_of_its_last_change(
    stand_ins: StandIns, verdicts: dict[str, str], api: tuple[str, dict[str, Any]]
) -> None:
    url, node = api
    (stand_ins.folder / "token").write_text("secret\n")
    old = {"type": CONDITION, "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    node["status"]["conditions"] = [old]
    write_condition(stand_ins, url, 0, verdicts["PASS"])
    assert node["status"]["conditions"][0]["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    write_condition(stand_ins, url, 1, verdicts["CRITICAL"])
    assert node["status"]["conditions"][0]["lastTransitionTime"] > "2020-01-01T00:00:00Z"


def test_a_condition_that_cannot_be_written_fails_the_pod(stand_ins: StandIns, verdicts: dict[str, str]) -> None:
    (stand_ins.folder / "token").write_text("secret\n")
    assert write_condition(stand_ins, "http://127.0.0.1:1", 0, verdicts["PASS"]) == 2


def write_condition(stand_ins: StandIns, url: str, code: int, verdict: str) -> int:
    """Runs the script of the pod, whose Python is a stand-in for gpucheck and itself for all else."""
    (job,) = (each for each in documents("node-condition") if each["kind"] == "Job")
    (check,) = job["spec"]["template"]["spec"]["containers"]
    scratch = stand_ins.folder / "scratch"
    subprocess.run(["rm", "-rf", str(scratch)], check=True)
    scratch.mkdir()
    stand_ins.gpucheck(code, "the report", verdict, name="gpucheck-run")
    python = installed("python")
    stand_ins.stand_in(
        "python3",
        "if sys.argv[1] == '-c':\n"
        f"    os.execv({python!r}, [{python!r}, '-S', *sys.argv[1:]])\n"
        f"os.execv({str(stand_ins.folder / 'bin/gpucheck-run')!r}, sys.argv[1:])",
    )
    script = check["command"][2].replace("/scratch", str(scratch))
    script_file(stand_ins.folder, script)
    environ = {each["name"]: each["value"] for each in check["env"] if "value" in each}
    environ |= {"PATH": f"{stand_ins.folder / 'bin'}:/usr/bin:/bin", "API": url, "NODE_NAME": "n7"}
    environ["ACCOUNT"] = str(stand_ins.folder)
    command = ["/bin/sh", "-c", script, check["command"][3], *check["args"]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.stdout.startswith("the report\n"), done.stderr
    call = stand_ins.calls("gpucheck-run")[-1]
    understood(call)
    return done.returncode


# Kyverno


def test_the_policy_asks_for_what_a_statement_says() -> None:
    (policy,) = documents("kyverno-policy")
    assert (policy["apiVersion"], policy["kind"]) == ("kyverno.io/v1", "ClusterPolicy")
    assert policy["spec"]["validationFailureAction"] == "Enforce"
    (rule,) = policy["spec"]["rules"]
    (images,) = rule["verifyImages"]
    (attestation,) = images["attestations"]
    assert attestation["type"] == PROOF and attestation["attestors"][0]["entries"][0]["keys"]["publicKeys"]
    (conditions,) = attestation["conditions"]
    known = statement_schema()["properties"]["predicate"]
    for condition in conditions["all"]:
        assert set(condition) == {"key", "operator", "value"}
        (path,) = re.findall(r"(?:result|run)\.[a-z]+", condition["key"])
        inner = known
        for key in path.split("."):
            inner = inner["properties"][key]
        assert condition["operator"] in ("Equals", "LessThanOrEquals")
        if condition["operator"] == "Equals":
            fits(condition["value"], inner)


def test_what_presets_read_of_a_verdict_is_there_in_every_kind_of_it(verdicts: dict[str, str]) -> None:
    for text in (*verdicts.values(), without_run("why", 0.0)):
        for key in ("verdict", "reason", "fix"):
            assert len(re.findall(rf'^ "{key}": ".*",$', text, re.MULTILINE)) == 1, "scripts find it by its indent"
        assert len(re.findall(r'^  "message": ".*"$', text, re.MULTILINE)) == 1 and text.endswith("\n}\n")
    assert "gpucheck run quick --node-verdict" in PRESETS["node-problem-detector"].text
