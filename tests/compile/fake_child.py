"""Stands in for the compiling process, without torch: what it does with a case is what the case is called."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpucheck.compile.outcome import Built, CaseBuilt, Kernel
from gpucheck.model.case import Case


def main(question: Path, answer: Path) -> None:
    asked = json.loads(question.read_text())
    known = {kernel["key"]: kernel for kernel in asked["known"]}

    def write(**event: Any) -> None:
        with open(answer, "a") as file:
            file.write(json.dumps(event) + "\n")

    for item in asked["cases"]:
        case = Case.from_json(item)
        if case.id == "before":
            sys.exit("no such library")
        write(event="begin", case=case.id)
        if case.id == "host":
            print("Traceback\nMemoryError: too much", flush=True)
            os._exit(3)
        key = f"key of {case.id}"
        built, kernel, said = Built.COMPILED, Kernel(key, "_kernel", Built.COMPILED).to_json(), ""
        if key in known:
            built, kernel = Built.FAILED, known[key]
        elif case.id in ("dies", "hangs"):
            write(event="kernel", key=key, name="_kernel", place="lib/host.py:5")
            if case.id == "dies":
                print("Assertion `computeCapability not supported' failed.", flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)
        elif case.id == "environment":
            said = json.dumps({**os.environ, "pid": os.getpid(), "parent": os.getppid()})
        elif case.id == "server":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        write(event="kernel", key=key, name="_kernel", place="")
        write(event="built", key=key)
        result = CaseBuilt(case.id, built, said, "", 1, (key,)).to_json()
        write(event="case", result=result, kernels=[kernel], compiled=1)
