"""Asking ``nvidia-smi``, which may be absent, refuse, or never answer."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

LIMIT = 30.0  # s; without persistence mode eight GPUs take several


class Reply(Enum):
    """How nvidia-smi replied."""

    ANSWERED = "answered"
    ABSENT = "absent"
    REFUSED = "refused"  # it ended with an exit code
    SILENT = "silent"  # it ran past its limit


@dataclass(frozen=True)
class Answer:
    """What nvidia-smi said."""

    reply: Reply
    text: str = ""  # its output; where it refused, its message
    code: int = 0


def ask(arguments: Sequence[str], environ: Mapping[str, str] | None = None, limit: float = LIMIT) -> Answer:
    """Runs nvidia-smi.

    One that does not answer is killed and not waited for: a process stuck in the driver does not die.

    Args:
        environ: where its PATH is taken from; this process's environment by default.
        limit: seconds.
    """
    try:
        process = subprocess.Popen(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=None if environ is None else dict(environ),
        )
    except OSError:
        return Answer(Reply.ABSENT)
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        return Answer(Reply.SILENT)
    if process.returncode:
        return Answer(Reply.REFUSED, text.strip(), process.returncode)
    return Answer(Reply.ANSWERED, text)


def table(
    fields: Sequence[str], environ: Mapping[str, str] | None = None, limit: float = LIMIT
) -> tuple[Answer, list[list[str]]]:
    """What nvidia-smi says of each GPU: its answer, and a row for each line that has all the fields."""
    answer = ask([f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], environ, limit)
    text = answer.text if answer.reply is Reply.ANSWERED else ""
    rows = [[part.strip() for part in line.split(",", len(fields) - 1)] for line in text.splitlines()]
    return answer, [row for row in rows if len(row) == len(fields)]
