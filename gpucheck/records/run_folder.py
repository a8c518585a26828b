"""Reads a run folder: the plan, the records of every rank, and a LOST record for each result that is missing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from gpucheck.model.accepted import AcceptedFault
from gpucheck.model.canary import CHECK
from gpucheck.model.errors import UsageError
from gpucheck.model.plan import Plan
from gpucheck.model.record import SCHEMA, Record
from gpucheck.model.screened import FOLDER
from gpucheck.model.vocabulary import ExperimentName
from gpucheck.records.followers import followers
from gpucheck.records.missing import Traces, lost


@dataclass
class Tally:
    """How often a rank has been through a case, over all passes."""

    runs: int = 0
    failed: int = 0


@dataclass
class Run:
    """A plan together with everything the ranks wrote."""

    folder: Path
    plan: Plan
    records: dict[tuple[int, int], Record]  # (step, rank), lost ones included
    experiments: dict[tuple[int, int], dict[ExperimentName, list[Record]]] = field(
        default_factory=dict
    )  # (step, rank) -> by name, a record for each process
    starts: dict[int, dict[str, Any]] = field(default_factory=dict)  # rank -> its start line
    ends: dict[int, dict[str, Any]] = field(default_factory=dict)  # rank -> its end line
    gpus: dict[int, dict[str, Any]] = field(default_factory=dict)  # rank -> state of its GPU as the driver reports it
    outcome: dict[str, Any] = field(default_factory=dict)  # outcome.json: how the launcher ended, times, changes
    canary: list[Record] = field(
        default_factory=list
    )  # by rank: the case that is wrong on purpose; no other field holds it
    torn: int = 0  # lines that could not be read, or that belong to no case of the plan
    tallies: dict[tuple[int, int], Tally] = field(default_factory=dict)  # (step, rank)
    driver: list[dict[str, Any]] = field(default_factory=list)  # messages of the GPU driver: "rank" or None, "text"
    further: dict[tuple[int, int], list[Record]] = field(
        default_factory=dict
    )  # (step, rank) -> failures in later passes; kept where faults are accepted: each must be the accepted one

    @property
    def ranks(self) -> range:
        return range(self.plan.world_size)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file as :func:`write_text` does."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """JSON as gpucheck writes it into files; for floats that JSON cannot hold see :func:`finite`."""
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it appears complete or not at all; a link or a device is written to directly."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk names no file
        raise
    finally:
        partial.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """Plain data: dataclasses as mappings, and floats that JSON cannot hold as strings: "nan", "inf", "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def read_plan(folder: Path) -> Plan:
    """Reads ``plan.json``.

    Raises:
        UsageError: the folder is no run folder, or one of a newer gpucheck, whose cases run under conditions that
            are unknown here: without them they would be other cases.
    """
    path = folder / "plan.json"
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is no run folder: it holds no plan.json") from None
    except NotADirectoryError:
        raise UsageError(f"{folder} is no folder; give the folder of a run") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(item, dict) or not isinstance(item.get("schema"), int):
        raise UsageError(f"{path} is not the plan of a gpucheck run")
    if item["schema"] > SCHEMA:
        raise UsageError(
            f"{path} has schema {item['schema']}, this gpucheck reads up to {SCHEMA}: use a newer gpucheck"
        )
    try:
        plan = Plan.from_json(item)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error!r}") from None
    for step, known in zip(item["steps"], plan.steps, strict=True):
        unknown = sorted(step.keys() - known.to_json().keys())
        if unknown:
            raise UsageError(
                f"{path}: {known.case.id} is to run under a condition that this gpucheck does not know.\n"
                f"  found     {', '.join(f'{name} = {json.dumps(step[name])}' for name in unknown)}\n"
                f"  expected  {', '.join(known.to_json())}\n"
                "  try       the gpucheck that made this plan, or a newer one"
            )
    return plan


def read_run(folder: Path, accepted: Sequence[AcceptedFault] = ()) -> Run:
    """Reads a run folder and adds a LOST record for every result that is missing.

    Of several results of a case on a rank the first failure counts, else the first result. A case whose last pass began
    and has no result is LOST, unless an earlier pass failed.

    Args:
        accepted: faults to accept beside those of the plan.

    Raises:
        UsageError: the folder is no run folder.
    """
    plan = read_plan(folder)
    run = Run(folder, replace(plan, accepted=(*plan.accepted, *accepted)), {})
    traces = {rank: Traces() for rank in run.ranks}
    for rank, path in rank_files(folder):
        for item in _lines(path, run):
            event = item.get("event")
            if event == "start":
                run.starts[rank] = item
            elif event == "end":
                run.ends[rank] = item
            elif event == "gpu" and isinstance(item.get("rank"), int):
                run.gpus[item["rank"]] = item
            elif event == "result":
                _take(run, rank, item)
            if rank in traces:
                traces[rank].see(item)
    run.outcome = _outcome(folder / "outcome.json")
    by_itself = run.outcome.get("code") is not None
    for number in range(len(run.plan.steps)):
        for rank in run.ranks:
            known = run.records.get((number, rank))
            if known is None or (not known.outcome.failed and number in traces[rank].open_steps):
                run.records[(number, rank)] = lost(run.plan, number, rank, traces, by_itself=by_itself)
    run.records.update({(record.step, record.rank): record for record in followers(run.plan, run.records.values())})
    run.driver = _driver(folder)
    _set_canary_aside(run)
    _take_screen(run)
    return run


def _set_canary_aside(run: Run) -> None:
    """Moves the canary out of plan and records into ``run.canary``: it counts in nothing else."""
    last = len(run.plan.steps) - 1
    if last >= 0 and run.plan.steps[last].case.check == CHECK:
        run.canary = [run.records.pop((last, rank)) for rank in run.ranks]
        run.tallies = {(step, rank): tally for (step, rank), tally in run.tallies.items() if step != last}
        run.plan = replace(run.plan, steps=run.plan.steps[:last])


def _take_screen(run: Run) -> None:
    """Adds the datapaths of the screen that followed the ranks, as further steps; none where it did not begin."""
    folder = run.folder / FOLDER
    if not run.plan.screen or not (folder / "plan.json").is_file():
        return
    screen = read_run(folder)
    if screen.plan.nproc != run.plan.world_size:
        return
    first = len(run.plan.steps)
    run.plan = replace(run.plan, steps=(*run.plan.steps, *screen.plan.steps))
    for (step, rank), record in screen.records.items():
        run.records[(first + step, rank)] = replace(record, step=first + step)
    for (step, rank), attempts in screen.experiments.items():
        run.experiments[(first + step, rank)] = attempts
    run.tallies |= {(first + step, rank): tally for (step, rank), tally in screen.tallies.items()}
    run.driver += screen.driver
    run.torn += screen.torn
    run.outcome = {**run.outcome, "screen_seconds": screen.outcome.get("seconds")}


def rank_files(folder: Path) -> list[tuple[int, Path]]:
    """The record files of a run folder, with their ranks."""
    numbered = ((path.stem.removeprefix("rank-"), path) for path in (folder / "records").glob("rank-*.jsonl"))
    return sorted((int(number), path) for number, path in numbered if number.isdigit())


def _take(run: Run, rank: int, item: dict[str, Any]) -> None:
    """Adds one result line; one that cannot be read or does not fit the plan counts as torn, its case as lost."""
    try:
        record = Record.from_json(item)
        planned = run.plan.steps[record.step].case.id if record.step >= 0 else None
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        planned = None
    if planned is None or record.case != planned or record.rank != rank or rank not in run.ranks:
        run.torn += 1
        return
    if record.experiment:
        run.experiments.setdefault((record.step, rank), {}).setdefault(record.experiment, []).append(record)
        return
    known = run.records.get((record.step, rank))
    if known is None or (record.outcome.failed and not known.outcome.failed):
        run.records[(record.step, rank)] = record
    elif record.outcome.failed and (run.plan.accepted or run.plan.judge != "both"):
        run.further.setdefault((record.step, rank), []).append(record)
    tally = run.tallies.setdefault((record.step, rank), Tally())
    tally.runs += 1
    tally.failed += record.outcome.failed


def _outcome(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(item, dict):
        raise UsageError(f"{path} is damaged: expected an object")
    return item


def _driver(folder: Path) -> list[dict[str, Any]]:
    """Messages of the GPU drivers of all nodes; a file that cannot be read is left out."""
    heard: list[dict[str, Any]] = []
    for path in sorted(folder.glob("driver-*.json")):
        try:
            items = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        heard += [item for item in items if isinstance(item, dict) and "text" in item]
    return heard


def _lines(path: Path, run: Run) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in filter(str.strip, file):
            try:
                item = json.loads(line)
            except ValueError:
                run.torn += 1
                continue
            if isinstance(item, dict):
                yield item
            else:
                run.torn += 1
