"""Stands in for the compiling process, without torch: what it does with a case is what the case is called."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

from gpucheck.host.isolated import receive, send
from gpucheck.model.case import Case
from gpucheck.tools.compile.outcome import Built, CaseBuilt, Kernel


def main(connection: Connection) -> None:
    asked = receive(connection)
    known = {kernel["key"]: kernel for kernel in asked["known"]}
    for number in (1, 2):
        os.dup2(os.open(asked["output"], os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(asked["environment"])

    def write(**event: Any) -> None:
        send(connection, event)

    for item in asked["cases"]:
        case = Case.from_json(item)
        if case.id == "before":
            sys.exit("no such library")
        write(event="begin", case=case.id)
        if case.id == "host":
            print("Traceback\nMemoryError: too much", flush=True)
            os._exit(3)
        key = f"key of {case.id}"
        built, kernel, said = Built.COMPILED, asdict(Kernel(key, "_kernel", Built.COMPILED)), ""
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
        result = asdict(CaseBuilt(case.id, built, said, "", 1, (key,)))
        write(event="case", result=result, kernels=[kernel], compiled=1)
