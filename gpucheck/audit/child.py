"""The probing process: ``python -m gpucheck.audit.child QUESTION ANSWER``; started by :mod:`gpucheck.audit.probe`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpucheck.model.errors import GpucheckError, Inapplicable


def main(question: Path, answer: Path) -> None:
    """Answers the questions of one file into another."""
    asked = json.loads(question.read_text(encoding="utf-8"))
    try:
        result: dict[str, Any] = {"answers": _answers(asked)}
    except (Inapplicable, GpucheckError) as error:
        result = {"problem": str(error)}
    answer.write_text(json.dumps(result), encoding="utf-8")


def _answers(asked: dict[str, Any]) -> list[tuple[bool | None, str]]:
    from gpucheck import interpreter
    from gpucheck.library.adapters import load

    interpreter.install()
    before = set(sys.modules)
    adapter = load(Path(asked["root"]), asked["generation"])
    from gpucheck.audit.probes import Probing

    return Probing(adapter, Path(asked["package"]), asked["hazards"], before).answers()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
