from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpucheck.host.nvidia_smi import Answer, Reply, ask


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A place for a stand-in on a PATH of its own."""
    return tmp_path / "nvidia-smi"


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("print(sys.argv[1:])", Answer(Reply.ANSWERED, "['-L']\n")),
        ("print('no driver'); sys.exit(9)", Answer(Reply.REFUSED, "no driver", 9)),
        ("sys.stdout.buffer.write(bytes([255]))", Answer(Reply.ANSWERED, "�")),
        ("import time; time.sleep(600)", Answer(Reply.SILENT)),
    ],
)
def test_every_way_to_reply(tool: Path, script: str, answer: Answer) -> None:
    tool.write_text(f"#!{sys.executable} -IS\nimport sys\n{script}\n")
    tool.chmod(0o755)
    assert ask(["-L"], {"PATH": str(tool.parent)}, 0.5 if answer.reply is Reply.SILENT else 300) == answer


def test_no_tool(tool: Path) -> None:
    assert ask(["-L"], {"PATH": str(tool.parent)}) == Answer(Reply.ABSENT)
    tool.write_text("not to be run")
    assert ask(["-L"], {"PATH": str(tool.parent)}) == Answer(Reply.ABSENT)
