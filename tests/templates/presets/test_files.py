"""Every preset is what the tools that take it want."""

from __future__ import annotations

import itertools
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from gpucheck.plan.scenario import builtin
from gpucheck.templates.presets import presets

PRESETS = presets()
SHELL = [name for name, preset in PRESETS.items() if preset.text.startswith("#!")]
KUBERNETES = [name for name in PRESETS if name.startswith("kubernetes")]


def documents(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(PRESETS[name].text))


def installed(tool: str) -> str:
    """A command of this environment."""
    path = Path(sysconfig.get_path("scripts"), tool)
    if not path.exists():
        pytest.skip(f"needs {tool}")
    return str(path)


def test_what_there_is() -> None:
    assert list(PRESETS) == [
        "container-image",
        "github-actions",
        "gpud-plugin",
        "kubernetes-init",
        "kubernetes-job",
        "kyverno-policy",
        "node-condition",
        "node-problem-detector",
        "nvsentinel-preflight",
        "slurm-health",
        "slurm-job",
        "slurm-prolog",
        "torchrun",
    ]
    for preset in PRESETS.values():
        assert preset.title and not preset.title.endswith(".") and preset.text.endswith("\n")
        assert max(map(len, preset.text.splitlines())) <= 120


@pytest.mark.parametrize("name", SHELL)
def test_shell_is_clean(name: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(PRESETS[name].text)
    done = subprocess.run([installed("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_scripts_inside_kubernetes_objects_are_clean(name: str, tmp_path: Path) -> None:
    (text,) = scripts(name)
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\n{text}")
    done = subprocess.run([installed("shellcheck"), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def pod(name: str) -> dict[str, Any]:
    """The pod of the only object of a preset."""
    (document,) = documents(name)
    spec: dict[str, Any] = document["spec"]["template"]["spec"]
    return spec


def containers(name: str) -> list[dict[str, Any]]:
    return [*pod(name)["initContainers"], *pod(name)["containers"]]


def scripts(name: str) -> list[str]:
    return [container["command"][2] for container in containers(name) if container["name"] == "gate"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_the_api_takes_them(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for document in documents(name):
        for version in ("1.29", validate.latest_version()):
            validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", KUBERNETES)
def test_their_parts_fit_together(name: str) -> None:
    (document,) = documents(name)
    selector = document["spec"].get("selector", {}).get("matchLabels")
    assert selector in (None, document["spec"]["template"]["metadata"]["labels"])
    volumes = {volume["name"] for volume in pod(name)["volumes"]}
    mounted = {mount["name"] for container in containers(name) for mount in container.get("volumeMounts", [])}
    assert mounted == volumes
    gpus = [c["resources"]["limits"]["nvidia.com/gpu"] for c in containers(name) if "resources" in c]
    assert gpus and len(set(gpus)) == 1, "the server must get the GPUs that the gate has tested"
    images = {c["image"] for c in containers(name) if c["name"] != "carry"}
    assert len(images) == 1, "what is tested must be what serves"
    (gate,) = [container for container in containers(name) if container["name"] == "gate"]
    gpus = gate["resources"]["limits"]["nvidia.com/gpu"]
    assert gate["args"][gate["args"].index("--expect-gpus") + 1] == str(gpus)
    assert gate["args"][0] in builtin() and all(isinstance(argument, str) for argument in gate["args"])
    assert float(gate["args"][gate["args"].index("--timeout") + 1]) < document["spec"].get("activeDeadlineSeconds", 60)


def test_the_gate_comes_before_the_server() -> None:
    assert [container["name"] for container in pod("kubernetes-init")["initContainers"]] == ["carry", "gate"]
    assert [container["name"] for container in pod("kubernetes-init")["containers"]] == ["server"]


def test_a_wrong_verdict_ends_the_job_and_an_inconclusive_one_is_tried_again() -> None:
    (job,) = documents("kubernetes-job")
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and 1 in rule["onExitCodes"]["values"]
    assert 3 not in rule["onExitCodes"]["values"] and job["spec"]["backoffLimit"] == 1
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_workflow_is_one(tmp_path: Path) -> None:
    file = tmp_path / "gpucheck.yaml"
    file.write_text(PRESETS["github-actions"].text)
    command = [installed("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_preset_mentions_built_in_scenarios_only() -> None:
    words = [(name, line.split("SCENARIO:-")[1].split("}")[0]) for name, line in lines() if "SCENARIO:-" in line]
    words += [(name, line.split('"$GPUCHECK" run ')[1].split()[0]) for name, line in lines() if '" run ' in line]
    assert len(words) >= 8
    for name, word in words:
        assert word in (*builtin(), '"$SCENARIO"'), f"{name} runs {word}"


def lines() -> list[tuple[str, str]]:
    return list(
        itertools.chain(*([(name, line) for line in preset.text.splitlines()] for name, preset in PRESETS.items()))
    )
