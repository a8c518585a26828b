"""The shell presets at work, with stand-ins for gpucheck and cluster; their options are tried on the real command."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.templates.presets.conftest import StandIns
from tests.templates.presets.test_files import KUBERNETES, containers

VERDICT = '{\n "verdict": "CRITICAL",\n "reason": "rank 1: kernel bug",\n "fix": "Take another release."\n}\n'
REPORT = "ok  matmul/dense  0.1 s\nFAIL  1 finding\nquick · 2 x H200\n\n1  wrong output   rank 1\n"


def understood(arguments: list[str]) -> None:
    """The real command takes the options, on a node with as many GPUs as they expect."""
    from typer.testing import CliRunner

    from gpucheck.cli.app import app
    from gpucheck.launch.gpus import Found

    dry = [*arguments, "--dry-run"]
    assert arguments[arguments.index("--device") + 1] == "cuda"
    count = int(arguments[arguments.index("--expect-gpus") + 1]) if "--expect-gpus" in arguments else 8
    with patch("gpucheck.launch.gpus.find", lambda: Found(("NVIDIA H200",) * count)):
        done = CliRunner().invoke(app, dry)
    assert done.exit_code == 0, (shlex.join(dry), done.output, done.exception)


@pytest.mark.parametrize(
    ("code", "environ", "ends"),
    [
        (0, {}, 0),
        (1, {}, 1),
        (3, {}, 3),
        (3, {"ON_INCONCLUSIVE": "accept"}, 0),
        (1, {"ON_INCONCLUSIVE": "accept"}, 1),
        (124, {"ON_INCONCLUSIVE": "accept"}, 0),
        (2, {}, 2),
    ],
)
def test_the_prolog_ends_as_the_run_does(stand_ins: StandIns, code: int, environ: dict[str, str], ends: int) -> None:
    stand_ins.gpucheck(code, REPORT)
    done = stand_ins.run("slurm-prolog", SLURM_JOB_ID="42", SLURM_JOB_GPUS="2,3", **environ)
    assert done.returncode == ends, done.stderr
    (call,) = stand_ins.calls("gpucheck")
    assert call[:8] == ["run", "quick", "--device", "cuda", "--expect-gpus", "2", "--timeout", "45"]
    understood(call)
    kept = list((stand_ins.folder / "state/runs").glob("job-42-*.txt"))
    assert len(kept) == (code != 0) == len(stand_ins.calls("logger"))
    assert all(file.read_text() == REPORT + "\n" for file in kept)


def test_the_prolog_tests_the_gpus_of_the_job(stand_ins: StandIns) -> None:
    stand_ins.stand_in(
        "gpucheck", "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['TRITON_CACHE_DIR'])\nsys.exit(1)"
    )
    stand_ins.run("slurm-prolog", SLURM_JOB_GPUS="2,3", LIBRARY="path:/a b")
    (said,) = (stand_ins.folder / "state/runs").glob("*.txt")
    assert said.read_text() == f"2,3 {stand_ins.folder}/state/triton\n"
    (call,) = stand_ins.calls("gpucheck")
    assert call[call.index("--library") + 1] == "path:/a b"
    assert (stand_ins.folder / "state/runs").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("preset", "variables"), [("slurm-prolog", {"SLURM_JOB_GPUS": "2,3"}), ("slurm-health", {})])
def test_faults_are_accepted_where_a_file_is_named(stand_ins: StandIns, preset: str, variables: dict[str, str]) -> None:
    stand_ins.gpucheck(0)
    stand_ins.stand_in("nvidia-smi")
    stand_ins.run(preset, **variables, ACCEPT="/a b.toml")
    stand_ins.run(preset, **variables)
    named, unnamed = stand_ins.calls("gpucheck")
    assert named[named.index("--accept") + 1] == "/a b.toml" and "--accept" not in unnamed


def test_a_job_without_gpus_is_not_held_up(stand_ins: StandIns) -> None:
    stand_ins.gpucheck(1)
    assert stand_ins.run("slurm-prolog", SLURM_JOB_ID="42").returncode == 0
    assert stand_ins.calls("gpucheck") == []


def health(stand_ins: StandIns, code: int, *, smi: str = "", verdict: str = VERDICT, **environ: str) -> int:
    stand_ins.stand_in("scontrol")
    stand_ins.stand_in("nvidia-smi", smi)
    stand_ins.gpucheck(code, REPORT, verdict)
    return stand_ins.run("slurm-health", SLURMD_NODENAME="n7", **environ).returncode


def test_the_health_check_drains_a_node_that_computes_wrong(stand_ins: StandIns) -> None:
    assert health(stand_ins, 1) == 1
    (call,) = stand_ins.calls("gpucheck")
    understood(call)
    assert float(call[call.index("--timeout") + 1]) <= 45
    (drain,) = stand_ins.calls("scontrol")
    assert drain[:3] == ["update", "NodeName=n7", "State=DRAIN"]
    assert drain[3].startswith("Reason=gpucheck: rank 1: kernel bug, see /")
    assert (stand_ins.folder / "state/node-verdict.json").read_text() == VERDICT


def test_a_python_that_cannot_run_gpucheck_drains_nothing(stand_ins: StandIns) -> None:
    assert health(stand_ins, 1, verdict="") == 2
    assert stand_ins.calls("scontrol") == [] and len(stand_ins.calls("logger")) == 1


def test_the_health_check_ends_before_slurm_kills_it_whatever_hangs(stand_ins: StandIns) -> None:
    stand_ins.stand_in("timeout", "os.execvp(sys.argv[4], sys.argv[4:])")
    assert health(stand_ins, 1) == 1
    asked = stand_ins.calls("timeout")
    assert [call[3] for call in asked] == ["nvidia-smi", asked[1][3], "scontrol"] and "gpucheck" in asked[1][4]
    smi, _, drain = (int(grace) + int(limit) for _, grace, limit, *_ in asked)
    grace, end = int(asked[1][1]), 52  # the run ends 52 s after the start, however long nvidia-smi took
    assert 0 < int(asked[1][2]) <= end and smi < end and end + grace + drain < 60


def test_a_healthy_node_stays_and_keeps_nothing(stand_ins: StandIns) -> None:
    assert health(stand_ins, 0) == 0
    assert stand_ins.calls("scontrol") == [] and list((stand_ins.folder / "state/runs").iterdir()) == []


def test_no_verdict_drains_nothing(stand_ins: StandIns) -> None:
    assert health(stand_ins, 2) == 2
    assert stand_ins.calls("scontrol") == [] and len(stand_ins.calls("logger")) == 1


def test_a_node_at_work_is_left_alone(stand_ins: StandIns) -> None:
    assert health(stand_ins, 1, smi="print(4711)") == 0
    assert stand_ins.calls("gpucheck") == [] and stand_ins.calls("scontrol") == []


def test_a_node_whose_driver_is_broken_is_drained(stand_ins: StandIns) -> None:
    assert health(stand_ins, 0, smi="sys.exit(9)") == 1
    ((*_, reason),) = stand_ins.calls("scontrol")
    assert reason == "Reason=gpucheck: nvidia-smi does not answer" and stand_ins.calls("gpucheck") == []


def test_a_node_with_other_gpus_than_it_should_have_is_drained(stand_ins: StandIns) -> None:
    stand_ins.stand_in("scontrol")
    stand_ins.stand_in("nvidia-smi")
    said = "gpucheck: --device cuda: --expect-gpus 8, 7 can be used; nothing was checked"
    stand_ins.gpucheck(2, said, VERDICT)
    assert stand_ins.run("slurm-health", SLURMD_NODENAME="n7", GPUS="8").returncode == 2
    (call,) = stand_ins.calls("gpucheck")
    assert call[call.index("--expect-gpus") + 1] == "8"
    understood(call)
    ((*_, reason),) = stand_ins.calls("scontrol")
    assert reason == "Reason=gpucheck: --expect-gpus 8, 7 can be used; nothing was checked"


def test_a_node_without_the_drivers_tool_is_left_alone_only_without_gpus(stand_ins: StandIns) -> None:
    stand_ins.stand_in("scontrol")
    stand_ins.gpucheck(1)
    devices = stand_ins.folder / "pci" / "0000:3b:00.0"
    devices.mkdir(parents=True)
    (devices / "vendor").write_text("0x8086\n")
    known = {
        "PCI": str(stand_ins.folder / "pci"),
        "SLURMD_NODENAME": "n7",
        "PATH": f"{stand_ins.folder / 'bin'}:/usr/bin:/bin",
    }
    assert stand_ins.run("slurm-health", **known).returncode == 0 and stand_ins.calls("scontrol") == []
    (devices / "vendor").write_text("0x10de\n")
    assert stand_ins.run("slurm-health", **known).returncode == 1
    ((*_, reason),) = stand_ins.calls("scontrol")
    assert reason == "Reason=gpucheck: there is no nvidia-smi" and stand_ins.calls("gpucheck") == []


SRUN = """\
import subprocess
options = [argument for argument in sys.argv[1:] if argument.startswith("--")][:2]
command = sys.argv[1 + len(options):]
for node in range(3):
    code = subprocess.run(command, env={**os.environ, "SLURM_NODEID": str(node)}).returncode
sys.exit(code)
"""


def test_the_job_runs_every_node_with_its_number(stand_ins: StandIns) -> None:
    stand_ins.stand_in("scontrol", "print('n1\\nn2\\nn3')")
    stand_ins.stand_in("srun", SRUN)
    stand_ins.stand_in("gpucheck", "sys.exit(1)")
    out = str(stand_ins.folder / "o")
    done = stand_ins.run(
        "slurm-job",
        "--seed",
        "7",
        SLURM_JOB_ID="9",
        SLURM_JOB_NODELIST="n[1-3]",
        SLURM_NNODES="3",
        SLURM_GPUS_ON_NODE="8",
        OUT=out,
    )
    assert done.returncode == 1, done.stderr
    calls = stand_ins.calls("gpucheck")
    for node, call in enumerate(calls):
        expected = f"run gate --device cuda --out {out} --expect-gpus 8 --nnodes 3 --node-rank {node}"
        expected += " --rdzv-endpoint n1:29500 --rdzv-id gpucheck-9 --seed 7"
        assert call == shlex.split(expected)
        understood(call)
    assert len(calls) == 3
    assert stand_ins.calls("scontrol") == [["show", "hostnames", "n[1-3]"]]


def test_torchrun_without_a_scheduler(stand_ins: StandIns) -> None:
    stand_ins.stand_in("gpucheck", "sys.exit(3)")
    known = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n1", "OUT": "/shared/run"}
    assert stand_ins.run("torchrun", "--nproc", "4", GPUS="4", **known).returncode == 3
    (call,) = stand_ins.calls("gpucheck")
    assert call[call.index("--expect-gpus") + 1] == "4"
    assert call[-4:] == ["--rdzv-endpoint", "n1:29500", "--nproc", "4"]
    understood(call)
    for missing in known:
        done = stand_ins.run("torchrun", **{name: value for name, value in known.items() if name != missing})
        assert done.returncode not in (0, 3) and missing in done.stderr
    assert len(stand_ins.calls("gpucheck")) == 1


@pytest.mark.parametrize("name", KUBERNETES)
@pytest.mark.parametrize(
    ("code", "said"), [(0, REPORT.replace("FAIL", "PASS")), (1, REPORT), (3, "gpucheck: no GPU\n")]
)
def test_the_pod_ends_as_the_run_does_and_leaves_its_head(stand_ins: StandIns, name: str, code: int, said: str) -> None:
    stand_ins.stand_in("python3", f"print({said!r}, end='')\nsys.exit({code})")
    (gate,) = [container for container in containers(name) if container["name"] == "gate"]
    (stand_ins.folder / "scratch").mkdir()
    script = gate["command"][2].replace("/scratch", str(stand_ins.folder / "scratch"))
    script = script.replace("/dev/termination-log", str(stand_ins.folder / "message"))
    done = subprocess.run(
        ["/bin/sh", "-c", script, *gate["command"][3:], *gate["args"]],
        env={"PATH": f"{stand_ins.folder / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == said
    head = Path(stand_ins.folder, "message").read_text()
    assert head == said.replace("ok  matmul/dense  0.1 s\n", "") and len(head) <= 2048
    (call,) = stand_ins.calls("python3")
    assert call[0] == "/carried/gpucheck.pyz" and call[-2:] == ["--out", f"{stand_ins.folder}/scratch/run"]
    understood(call[1:])
