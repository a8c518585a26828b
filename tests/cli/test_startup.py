"""The command starts in a blink and shows stored runs on a machine without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gpucheck.model.record import Outcome
from gpucheck.report.formats import FORMATS
from tests.conftest import Synthetic

WATCH = """
import json, os, sys
from gpucheck.cli.app import main
heavy = ("torch", "triton", "triton_kernels", "numpy", "gpucheck.worker", "gpucheck.verify.bounds")
for arguments in json.loads(sys.argv[1]):
    if not os.fork():
        sys.argv = ["gpucheck", *arguments]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        print("ended", json.dumps([code, [name for name in heavy if name in sys.modules]]), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
"""Runs each command in a process of its own, in which nothing is loaded but what every command begins with."""


def outcomes(*commands: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Exit code of each command and the heavy modules that it imported."""
    program = [sys.executable, "-c", WATCH, json.dumps(commands)]
    result = subprocess.run(program, capture_output=True, text=True, check=True)
    ends = [line.partition(" ")[2] for line in result.stderr.splitlines() if line.startswith("ended ")]
    return [(code, heavy) for code, heavy in map(json.loads, ends)]


def test_a_stored_run_is_shown_without_torch(synthetic: Synthetic, tmp_path: Path) -> None:
    plan = synthetic.plan(cases=2, ranks=2)
    folder = synthetic.write(tmp_path / "run", synthetic.run(plan, {(1, 1): Outcome.MISMATCH}))
    accepted = str(tmp_path / "accepted.toml")
    given = ("--reason", "known", "--until", "2999-12-31", "--out", accepted)
    files = [tmp_path / f"r{suffix}" for suffix in FORMATS]
    assert outcomes(
        ("report", str(folder)),
        ("report", str(folder), "--json", "-"),
        ("diff", str(folder), str(folder)),
        ("accept", str(folder), *given),
        ("report", str(folder), "--accept", accepted),
        ("report", str(folder), *(part for file in files for part in ("--write", str(file)))),
        ("report", "--schema"),
    ) == [(1, []), (1, []), (0, []), (0, []), (0, []), (1, []), (0, [])]
    assert all(file.stat().st_size for file in files)


def test_lists_dry_runs_and_usage_errors_need_no_torch() -> None:
    right = [["list"], ["list", "--checks"], ["list", "--cases"], ["run", "smoke", "--dry-run", "--device", "cpu"]]
    assert outcomes(*right, ["run", "nope"]) == [(0, [])] * 4 + [(2, [])]


TYPER_ALONE = "import typer, typer.rich_utils"  # what every help page of Typer loads, whosoever


def test_the_list_of_commands_loads_nothing_to_draw_boxes_with() -> None:
    script = (
        "import sys; from gpucheck.cli.app import main; sys.argv[1:] = ['--help']\ntry: main()\nexcept SystemExit: pass"
    )
    loaded = "\nprint(*(name for name in sys.modules if name.split('.')[0] in ('rich', 'markdown_it', 'pygments')))"
    done = subprocess.run([sys.executable, "-c", script + loaded], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "", done.stderr
    assert "kernel and region is wrong" in done.stdout, "what a command does is told in full"


def loaded(script: str, *arguments: str) -> int:
    """How many modules a script loads: what a short command costs, whatever else this machine does."""
    count = "\nprint(len(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", "import sys\n" + script + count, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1])


RUN = "from gpucheck.cli.app import main\ntry: main()\nexcept SystemExit: pass"


def test_help_reports_and_comparisons_load_little_more_than_typer_alone(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=2, ranks=8)))
    assert loaded(RUN, "--help") < 1.6 * loaded("import typer")
    alone = loaded(TYPER_ALONE)
    for arguments in ["report", str(folder)], ["report", "--schema"], ["diff", str(folder), str(folder)]:
        assert loaded(RUN, *arguments) < 1.8 * alone, arguments


def test_a_reader_that_stops_early_is_no_pass_and_no_traceback(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = synthetic.write(tmp_path / "run", synthetic.run(synthetic.plan(cases=2)))
    process = subprocess.Popen(
        [sys.executable, "-m", "gpucheck", "report", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) != 0 and b"Traceback" not in error
