"""How long gpucheck takes on this machine, against an earlier version of itself and a bare script of the same kernels.

The gate and quick, or smoke without GPUs, and ``--help``: ``make bench-gpucheck ARGS="--against v1.2 --runs 5"``.

Versions run by turns, so that a machine that is busy for a while disturbs both. Prints medians, spreads and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bench"
KERNELS = ("import", "context", "compile", "launch", "copy")
HELPS = 7  # times that --help is asked for: it takes a fraction of a second


def options() -> argparse.Namespace:
    """The command line; what follows ``--`` goes to each ``gpucheck run``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--against", default="", help="an earlier version: a gpucheck.pyz, or a revision of git")
    parser.add_argument("--pyz", default="", help="this version as a gpucheck.pyz; built from these files by default")
    parser.add_argument("--runs", type=int, default=3, help="of each kind and version")
    parser.add_argument("--scenarios", default="", help="comma separated; gate,quick on GPUs, smoke without")
    parser.add_argument("--nproc", type=int, default=0, help="ranks; one a GPU, 2 without")
    parser.add_argument("--cold", action="store_true", help="each scenario also with an empty kernel cache")
    parser.add_argument("further", nargs="*", help="further options of gpucheck run")
    return parser.parse_args()


def archive(version: str) -> Path:
    """The gpucheck.pyz of a version: the file itself, or built from a revision of git; "": from these files."""
    if version.endswith(".pyz"):
        return Path(version).resolve()
    CACHE.mkdir(parents=True, exist_ok=True)
    if not version:
        subprocess.run([sys.executable, ROOT / ".ci/bundle/build.py", CACHE / "here.pyz"], check=True)
        return CACHE / "here.pyz"
    git = ["git", "-C", str(ROOT)]
    revision = subprocess.run([*git, "rev-parse", version], check=True, capture_output=True, text=True).stdout.strip()
    made = CACHE / f"{revision}.pyz"
    if not made.exists():
        with tempfile.TemporaryDirectory() as folder:
            content = subprocess.run([*git, "archive", revision], check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=content, check=True)
            subprocess.run([sys.executable, Path(folder, ".ci/bundle/build.py"), made], check=True)
    return made


def spent(command: Sequence[str | Path], **environment: str) -> tuple[float, float]:
    """Seconds that a command takes, and processor seconds; whatever it finds is not what is asked here."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    where = {"cwd": tempfile.gettempdir(), "env": {**os.environ, **environment}}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **where)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak_memory(run: Callable[[], object]) -> float:
    """The most GB that the processes which a function starts hold together, what they share counted once."""
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.5):
            parents = {}
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError):
                    parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            ours, held = {os.getpid()}, 0
            for _ in range(12):  # generations
                ours |= {pid for pid, parent in parents.items() if parent in ours}
            for pid in ours - {os.getpid()}:
                with suppress(OSError, ValueError, StopIteration):
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                    held += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
            most = max(most, held / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    ended.set()
    watcher.join()
    return most


def told(name: str, taken: dict[str, list[float]], unit: str = "s") -> dict[str, float]:
    """Prints medians and spreads of each version, and the ratio of the first to the others; gives the medians."""
    medians = {version: statistics.median(values) for version, values in taken.items() if values}
    first = next(iter(medians.values()))
    for version, value in medians.items():
        spread = f"{min(taken[version]):.2f} to {max(taken[version]):.2f}"
        beside = "" if version == next(iter(medians)) else f"   ratio {first / value:.2f}"
        print(
            f"{name:<24} {version:<12} {value:8.2f} {unit}   {spread} in {len(taken[version])} runs{beside}", flush=True
        )
    return medians


def bare(plan: Path, nproc: int, folder: Path) -> float:
    """Seconds of the bare script of a plan, the longest of all ranks: import, context, compile, launch and copy."""
    report = folder / f"bare-{time.monotonic_ns()}"
    script = [ROOT / ".ci/bench/bare.py", plan, report]
    spent([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), *script])
    ranks = [json.loads(path.read_text()) for path in folder.glob(f"{report.name}.*")]
    if len(ranks) != nproc or not all(rank["cases"] for rank in ranks):
        raise SystemExit(f"the bare script ran on {len(ranks)} of {nproc} ranks: start {' '.join(map(str, script))}")
    return max(sum(rank["seconds"].get(stage, 0.0) for stage in KERNELS) for rank in ranks)


def main() -> None:
    """Measures and prints."""
    asked = options()
    versions = {"here": archive(asked.pyz)} | ({"against": archive(asked.against)} if asked.against else {})
    import torch

    cuda, folder = torch.cuda.is_available(), Path(tempfile.mkdtemp(prefix="gpucheck-bench-"))
    nproc = asked.nproc or (torch.cuda.device_count() if cuda else 2)
    helps = {
        name: [spent([sys.executable, path, "--help"])[1] for _ in range(HELPS)] for name, path in versions.items()
    }
    helps["import typer"] = [spent([sys.executable, "-c", "import typer"])[1] for _ in range(HELPS)]
    told("--help, processor", helps)
    for scenario in (asked.scenarios or ("gate,quick" if cuda else "smoke")).split(","):

        def run(name: str, *, cold: bool = False, scenario: str = scenario) -> float:
            out = folder / f"{scenario}-{name}-{time.monotonic_ns()}"
            cache = {"TRITON_CACHE_DIR": f"{out}-cache"} if cold else {}
            command = [sys.executable, versions[name], "run", scenario, "--nproc", str(nproc), "--out", out]
            return spent([*command, "-q", *asked.further], **cache)[0]

        memory = {name: [peak_memory(lambda name=name: run(name))] for name in versions}  # it fills the caches too
        walls: dict[str, list[float]] = {name: [] for name in versions}
        for number in range(asked.runs):
            for name in list(versions)[:: 1 if number % 2 else -1]:
                walls[name].append(run(name))
        plan = max(folder.glob(f"{scenario}-here-*/plan.json"), key=os.path.getmtime)
        walls["bare script"] = [bare(plan, nproc, folder) for _ in range(asked.runs)]
        told(f"{scenario}, warm", walls)
        told(f"{scenario}, peak memory", memory, "GB")
        if asked.cold and cuda:
            told(f"{scenario}, cold", {name: [run(name, cold=True) for _ in range(asked.runs)] for name in versions})
    print(f"run folders and bare reports: {folder}")


if __name__ == "__main__":
    main()
