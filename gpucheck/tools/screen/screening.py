"""A screen of all GPUs of a node: what is planned, the processes of its GPUs, and what goes into the run folder."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpucheck.diagnose.chance import count_needed
from gpucheck.host.forkserver import Forkserver
from gpucheck.host.node_gpus import places
from gpucheck.host.nvidia_smi import table
from gpucheck.host.visible_gpus import VARIABLE, alone
from gpucheck.model.case import Case
from gpucheck.model.conditions import Conditions
from gpucheck.model.plan import NO_LIBRARY, Environment, Plan, Step
from gpucheck.model.record import Outcome, Record
from gpucheck.model.screened import CHECK, Screened
from gpucheck.model.vocabulary import Attempted, ExperimentName
from gpucheck.records.run_folder import write_json
from gpucheck.records.writer import RecordWriter
from gpucheck.tools.screen.datapaths import DATAPATHS, LEAST_CAPABILITY, Datapath, ceiling, chosen
from gpucheck.tools.screen.gpu_screen import MODULE, GpuScreen, Known, at_once, environment
from gpucheck.tools.screen.special_digests import SPECIAL

FRESH = 3  # processes that run the datapaths again which were wrong
MOST_FRESH_SECONDS = 10.0  # of each of them
FIELDS = ("index", "uuid", "name", "pci.bus_id", "compute_cap", "temperature.gpu", "clocks.current.sm")
STATE_EVERY = 2.0  # s


@dataclass(frozen=True)
class Gpu:
    """A GPU of this node as nvidia-smi describes it; a stand-in where there is none."""

    uuid: str = ""
    bus: str = ""
    architecture: str = ""
    temperature: int | None = None
    sm_clock: int | None = None


@dataclass
class Screening:
    """What is asked for, and what came of it.

    Args:
        folder: of the run; its plan is written here.
        seconds: that each GPU is screened at most.
        tiles: that every multiprocessor is to run of each datapath; 0: as many as the seconds allow.
        idle: the GPU is left to any other process.
        plants: faults of a self-test, each with the rank of its GPU, as
            :class:`gpucheck.tools.screen.tile_launches.Plant` takes it.
    """

    folder: Path
    plan: Plan
    seconds: float
    tiles: int = 0
    idle: bool = False
    plants: Sequence[Mapping[str, Any]] = ()
    progress: Callable[[str], None] = lambda text: None
    interrupted: Callable[[], int] = lambda: 0  # the signal that ends it early, or 0
    _gpus: list[Gpu] = field(default_factory=list)
    _extremes: dict[int, tuple[int, int]] = field(default_factory=dict)  # rank -> highest temperature, lowest clock

    def run(self) -> dict[str, Any]:
        """Screens and writes records; gives the content of ``outcome.json``."""
        begin = time.monotonic()
        write_json(self.folder / "plan.json", self.plan.to_json())
        writers = [RecordWriter(self.folder, rank) for rank in range(self.plan.nproc)]
        for rank, writer in enumerate(writers):
            writer.start(rank=rank, host=os.uname().nodename, pid=os.getpid())
            for number in range(len(self.plan.steps)):
                writer.begin(number)
        stop = threading.Event()
        with ExitStack() as servers:
            started = [servers.enter_context(self._server(rank)) for rank in range(self.plan.nproc)]
            self._gpus = gpus(self.plan)
            known = known_paths(self.plan)
            screens = self._screened(started, known, self.seconds, self.tiles, stop)
            for screen, writer in zip(screens, writers, strict=True):
                if screen.done or not self.interrupted():
                    self._write(screen, writer)
            wrong = {screen.rank: [name for name, tally in screen.tallies.items() if tally.wrong] for screen in screens}
            for _ in range(FRESH):
                if any(wrong.values()) and not self.interrupted():
                    self._again(started, known, wrong, screens, writers)
            stop.set()
        received = self.interrupted()
        for writer in writers:
            if received:
                writer.stop(received)
            else:
                writer.end()
        seconds = time.monotonic() - begin
        return {"code": None if received else 0, "timed_out": False, "signal": received, "seconds": seconds}

    def _server(self, rank: int) -> Forkserver:
        entry = alone(os.environ.get(VARIABLE), rank)
        return Forkserver.started(MODULE, environment(self.plan.device, entry))

    def _screened(
        self,
        servers: Sequence[Forkserver],
        known: Mapping[str, Known],
        seconds: float,
        tiles: int,
        stop: threading.Event,
    ) -> list[GpuScreen]:
        """All GPUs, at once; their states are watched from then on until ``stop``."""
        screens = [
            GpuScreen(rank, known, self._asked(rank), partial(self._state, rank)) for rank in range(self.plan.nproc)
        ]
        self._all(screens, servers, lambda screen, server: screen.prepare(server))
        slowest = max((sum(screen.tile_seconds.values()) for screen in screens), default=0.0)
        if tiles:
            self.progress(f"{tiles:,} tiles of each datapath take about {tiles * slowest:.0f} s")
        self.progress(f"screening {self.plan.nproc} GPU(s) for {'at most ' if tiles else ''}{seconds:g} s")
        threading.Thread(target=self._watch_states, args=(stop,), daemon=True).start()
        self._all(screens, servers, lambda screen, server: screen.run(server, seconds, tiles))
        return screens

    def _all(
        self,
        screens: Sequence[GpuScreen],
        servers: Sequence[Forkserver],
        work: Callable[[GpuScreen, Forkserver], None],
    ) -> None:
        pairs = zip(screens, servers, strict=True)
        at_once([partial(work, screen, server) for screen, server in pairs], self.interrupted)

    def _asked(self, rank: int) -> dict[str, Any]:
        asked = {"device": self.plan.device, "seed": self.plan.seed, "uuid": self._gpus[rank].uuid, "idle": self.idle}
        plants = [{**plant} for plant in self.plants if plant["rank"] == rank]
        return {**asked, "plants": [{key: plant[key] for key in plant if key != "rank"} for plant in plants]}

    def _state(self, rank: int) -> dict[str, Any]:
        return {"temperature": self._gpus[rank].temperature, "sm_clock": self._gpus[rank].sm_clock}

    def _watch_states(self, stop: threading.Event) -> None:
        """Asks again and again how warm the GPUs are and how fast they run, and keeps the extremes."""
        while self.plan.device == "cuda" and not stop.wait(STATE_EVERY):
            with suppress(Exception):
                self._gpus = gpus(self.plan)
                for rank, gpu in enumerate(self._gpus):
                    if gpu.temperature is not None and gpu.sm_clock is not None:
                        warmest, slowest = self._extremes.get(rank, (gpu.temperature, gpu.sm_clock))
                        self._extremes[rank] = max(warmest, gpu.temperature), min(slowest, gpu.sm_clock)

    def _again(
        self,
        servers: Sequence[Forkserver],
        known: Mapping[str, Known],
        wrong: Mapping[int, Sequence[str]],
        screens: Sequence[GpuScreen],
        writers: Sequence[RecordWriter],
    ) -> None:
        """Runs what was wrong in a fresh process of each GPU that was, for as long as the first one did."""
        again = []
        for rank, names in wrong.items():
            if not names:
                continue
            first = screens[rank]
            seconds = sum(first.tallies[name].seconds for name in names)
            paths = {name: first.known[name] for name in names}
            for name in names:  # bits that nobody promises are held against those that most gave before
                paths[name] = replace(paths[name], digests=first.tallies[name].known)
            screen = GpuScreen(rank, paths, self._asked(rank), partial(self._state, rank))
            again.append((screen, servers[rank], min(seconds, MOST_FRESH_SECONDS)))
        self.progress(f"wrong tiles: {len(again)} GPU(s) run them again in a fresh process")

        def work(screen: GpuScreen, server: Forkserver, seconds: float) -> None:
            screen.prepare(server)
            screen.run(server, seconds, 0)

        at_once([partial(work, *each) for each in again], self.interrupted)
        for screen, *_ in again:
            self._write(screen, writers[screen.rank], ExperimentName.REPEAT)

    def _write(self, screen: GpuScreen, writer: RecordWriter, experiment: Attempted = "") -> None:
        for number, step in enumerate(self.plan.steps):
            name = str(step.case["datapath"])
            if not experiment or name in screen.known:
                record = self._record(screen, name, number)
                if record is not None:
                    writer.result(replace(record, experiment=experiment) if experiment else record)

    def _record(self, screen: GpuScreen, name: str, number: int) -> Record | None:
        """The record of one datapath; None where its GPU did not come to it: then the case is lost."""
        step = self.plan.steps[number]
        record = Record(number, step.case.id, screen.rank, Outcome.PASS, placement=step.conditions.placement)
        gpu = self._gpus[screen.rank]
        record = replace(record, host=os.uname().nodename, pid=os.getpid(), gpu=gpu.uuid, bus=gpu.bus)
        if screen.facts:
            record = replace(record, device="cpu" if self.plan.device == "cpu" else screen.facts["name"])
        if ended := screen.ended.get(name):
            return replace(record, outcome=ended.outcome, message=ended.message, traceback=ended.traceback)
        tally = screen.tallies.get(name)
        if tally is None or not tally.launches:
            words = f"the process of the GPU: {screen.problem}"
            return replace(record, outcome=Outcome.LOST, message=words) if screen.problem else None
        screened = self._part(screen, name)
        record = replace(record, screened=screened, seconds={"screen": tally.seconds})
        if tally.path.exact is False:
            digest = hashlib.sha256(tally.known.tobytes()).hexdigest()[:16]
            record = replace(record, digests={"functions": digest}, inputs="functions")
        if tally.wrong:
            owners = [f"multiprocessor {each.number}" for each in screened.wrong]
            return replace(record, outcome=Outcome.MISMATCH, message=f"wrong bits on {', '.join(owners[:8])}")
        short = self._short(screen, screened)
        return replace(record, outcome=Outcome.HARNESS, message=short) if short else record

    def _short(self, screen: GpuScreen, screened: Screened) -> str:
        """Why right tiles are not enough, in words; "" where they are."""
        ran = len(screened.tiles)
        table = SPECIAL.get(screened.architecture)
        if not screen.known[screened.datapath].path.exact and table and screen.agreed(screened.datapath) != [*table]:
            return (
                f"all multiprocessors agree, but not with the table of {screened.architecture}: either this GPU or its "
                "compiler rounds otherwise than the one of the table, or all of them are wrong"
            )
        if ran < screened.multiprocessors:
            return f"{ran} of {screened.multiprocessors} multiprocessors ran it: something else occupies the others"
        if screened.fewest < self.tiles:
            return (
                f"each multiprocessor ran {screened.fewest:,} tiles at least, and {self.tiles:,} are needed for what "
                "--until asks: give it more --seconds"
            )
        return ""

    def _part(self, screen: GpuScreen, name: str) -> Screened:
        tally, gpu = screen.tallies[name], self._gpus[screen.rank]
        tiles, total = tally.tiles, sum(each.seconds for each in screen.tallies.values())
        architecture, multiprocessors = screen.architecture, screen.facts["multiprocessors"]
        temperature, sm_clock = self._extremes.get(screen.rank, (gpu.temperature, gpu.sm_clock))
        source = "the CPU"
        if not tally.path.exact:
            table = f"the table of {architecture}" if architecture in SPECIAL else f"no table of {architecture}"
            source = f"most multiprocessors and {table}" if architecture else "most multiprocessors"
        return Screened(
            datapath=name,
            tile=tally.path.tile,
            tiles_a_digest=tally.path.tiles,
            numbers=[*tiles],
            tiles=[*tiles.values()],
            multiprocessors=multiprocessors,
            seconds=tally.seconds,
            share=tally.seconds / total if total else 0.0,
            rate=sum(tiles.values()) * tally.path.work / tally.seconds if tally.seconds else 0.0,
            unit=tally.path.unit,
            ceiling=ceiling(architecture, name, multiprocessors),
            source=source,
            gpu=screen.facts["name"],
            uuid=gpu.uuid,
            bus=gpu.bus,
            architecture=architecture,
            temperature=temperature,
            sm_clock=sm_clock,
            waited=screen.waited,
            wrong=tally.wrong_multiprocessors(),
        )


def planned(
    device: str,
    nproc: int,
    seed: int,
    environment: Environment,
    command: list[str],
    names: Sequence[str],
) -> Plan:
    """The plan of a screen: a step for each datapath.

    Args:
        names: of datapaths; empty for all that a GPU here has.
    """
    found = [_capability(gpu.architecture) for gpu in gpus_of(nproc)] if device == "cuda" else []
    least = max(filter(None, found), default=(9, 0))
    paths = [path for path in chosen(least) if not names or path.name in names]
    conditions = Conditions("cpu") if device == "cpu" else Conditions()
    steps = tuple(Step(_case(path, seed), conditions, optional=path.format in LEAST_CAPABILITY) for path in paths)
    return Plan(
        id=uuid.uuid4().hex[:12],
        scenario=CHECK,
        title="every multiprocessor against exact data",
        seed=seed,
        created=time.time(),
        device=device,
        nproc=nproc,
        nnodes=1,
        timeout=0.0,
        case_timeout=0.0,
        experiments=MOST_FRESH_SECONDS * FRESH,
        library=NO_LIBRARY,
        environment=environment,
        command=command,
        steps=steps,
    )


def tiles_for(power: float) -> int:
    """The tiles that every multiprocessor must run for a fault of this rate a tile to be seen."""
    return count_needed(power)


def datapath_names() -> list[str]:
    """All that some GPU has."""
    return [path.name for path in DATAPATHS]


def _case(path: Datapath, seed: int) -> Case:
    slug = path.name.lower().replace(" ", "-")
    return Case(CHECK, {"datapath": path.name}, "exact", f"{CHECK}/{slug}", path.name, seed)


def known_paths(plan: Plan) -> dict[str, Known]:
    """What is known of each planned datapath before anything runs."""
    from gpucheck.tools.screen.known_tiles import known_bits, known_digests

    wanted = {str(step.case["datapath"]) for step in plan.steps}
    found = {}
    for path in DATAPATHS:
        if path.name in wanted:
            sized = path.small() if plan.device == "cpu" else path
            bits = known_bits(sized, plan.seed)
            found[path.name] = Known(sized, known_digests(bits) if bits else None, bits)
    return found


def gpus(plan: Plan) -> list[Gpu]:
    """The GPUs of the ranks, in their order; without facts on the CPU, and where nvidia-smi does not tell."""
    found = gpus_of(plan.nproc) if plan.device == "cuda" else []
    return found if len(found) == plan.nproc else [Gpu()] * plan.nproc


def gpus_of(nproc: int) -> list[Gpu]:
    """The first GPUs that ranks of this node run on."""
    _, rows = table(list(FIELDS))
    used = places([(row[0], row[1]) for row in rows])[:nproc]
    found = [rows[place] for place in used]
    return [
        Gpu(row[1], row[3], "sm_" + row[4].replace(".", ""), _number(row[5]), _number(row[6].removesuffix(" MHz")))
        for row in found
    ]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _capability(architecture: str) -> tuple[int, int] | None:
    digits = architecture.removeprefix("sm_")
    return (int(digits[:-1]), int(digits[-1])) if digits.isdigit() else None
