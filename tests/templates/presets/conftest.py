"""Runs shell presets with stand-ins for gpucheck and for the commands of a cluster, which write down their calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpucheck.templates.presets import presets

RECORD = """\
import json, os, sys
with open({calls!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""


@dataclass(frozen=True)
class StandIns:
    """A folder with stand-ins on PATH."""

    folder: Path

    def stand_in(self, name: str, code: str = "") -> Path:
        """An executable Python script that writes its arguments down and then does ``code``."""
        tool = self.folder / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        record = RECORD.format(calls=str(self.folder / "calls"), name=name)
        tool.write_text(f"#!{sys.executable} -IS\n{record}{code}\n")
        tool.chmod(0o755)
        return tool

    def gpucheck(self, code: int, said: str = "", verdict: str = "", *, name: str = "gpucheck") -> Path:
        """A gpucheck that makes its run folder, writes a node verdict, says something and ends."""
        make = "os.makedirs(sys.argv[sys.argv.index('--out') + 1])\n"
        if verdict:
            make += f"open(sys.argv[sys.argv.index('--node-verdict') + 1], 'w').write({verdict!r})\n"
        return self.stand_in(name, f"{make}print({said!r})\nsys.exit({code})")

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a stand-in."""
        log = self.folder / "calls"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return [line[1:] for line in lines if line[0] == name]

    def run(self, preset: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a shell preset as printed."""
        script = self.folder / f"{preset}.sh"
        script.write_text(presets()[preset].text)
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        known = {"PATH": path, "HOME": str(self.folder), "PYTHON": sys.executable}
        known |= {"STATE": str(self.folder / "state"), "GPUCHECK": str(self.folder / "bin" / "gpucheck")}
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, env={**known, **environ}, capture_output=True, text=True)


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    """With a logger, so that nothing reaches the machine's own log."""
    stand_ins = StandIns(tmp_path)
    stand_ins.stand_in("logger")
    return stand_ins
