"""What two statements say otherwise, such as those of two pods that should be alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from gpucheck.diagnose.wording import counted
from gpucheck.tools.attest.statement_file import Statement

SHOWN = 5


def differences(a: Statement, b: Statement) -> Iterator[str]:
    """What differs of what was proven and of what it was proven on; names of machines and times are no difference."""
    for name, one, other in _facts(a.predicate, b.predicate):
        if one != other:
            yield f"{name}: {_words(one)} against {_words(other)}"
    yield from _outputs(a.predicate, b.predicate)


def remarks(a: Statement, b: Statement) -> Iterator[str]:
    """What is worth knowing and no difference."""
    one, other = ({gpu["gpu"] for gpu in each.predicate["gpus"] if gpu["gpu"]} for each in (a, b))
    if one & other:
        yield f"both are about {counted(len(one & other), 'GPU')} of the same UUID"
    if a.predicate["run"]["id"] == b.predicate["run"]["id"]:
        yield "both are about one run"
    for name in ("torch", "triton"):
        x, y = (each.predicate["software"][name] for each in (a, b))
        if x["version"] == y["version"] and x["fingerprint"] != y["fingerprint"]:
            yield f"{name} {x['version']} was installed apart on each: its files have other sizes or times"


def _facts(a: dict[str, Any], b: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, *path in (
        ("verdict", "result", "verdict"),
        ("scenario", "run", "scenario"),
        ("seed", "run", "seed"),
        ("judged by", "run", "judged"),
        ("ranks", "result", "ranks"),
        ("GPUs checked", "result", "gpusChecked"),
        ("gpucheck", "gpucheck", "version"),
        ("driver", "software", "driver"),
        ("python", "software", "python"),
        ("torch", "software", "torch", "version"),
        ("triton", "software", "triton", "version"),
        ("library", "software", "library", "content"),
        ("patches", "software", "patches"),
        ("calls judged on each rank", "power", "calls", "fewestOfARank"),
        ("least screened", "power", "screen"),
    ):
        one, other = a, b
        for key in path:
            one, other = one[key], other[key]
        if name == "least screened":
            one, other = _screened(one), _screened(other)
        yield name, one, other
    yield "GPUs", _gpus(a), _gpus(b)
    yield "engines", _engines(a), _engines(b)
    yield "findings", _findings(a), _findings(b)


def _gpus(said: dict[str, Any]) -> list[str]:
    names = Counter(gpu["name"] for gpu in said["gpus"])
    return [f"{count} x {name or 'none'}" for name, count in sorted(names.items())]


def _engines(said: dict[str, Any]) -> list[str]:
    return [f"{engine['name']} {engine['version']}" for engine in said["software"]["engines"]]


def _findings(said: dict[str, Any]) -> list[str]:
    return sorted(finding["title"] for finding in said["result"]["findings"])


def _screened(parts: Any) -> dict[str, int]:
    """The fewest tiles of each datapath on any multiprocessor."""
    fewest: dict[str, int] = {}
    for part in parts:
        fewest[part["datapath"]] = min(part["fewestTiles"], fewest.get(part["datapath"], part["fewestTiles"]))
    return fewest


def _outputs(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    one, other = ({each["case"]: each["ended"] for each in said["outputs"]} for said in (a, b))
    for words, cases in (("only in A", one.keys() - other.keys()), ("only in B", other.keys() - one.keys())):
        if cases:
            yield f"{counted(len(cases), 'case')} {words}: {_few(sorted(cases))}"
    ended, bits = [], []
    for case in sorted(one.keys() & other.keys()):
        x, y = one[case], other[case]
        if {each["outcome"] for each in x} != {each["outcome"] for each in y}:
            ended.append(case)
        elif {each["sha256"] for each in x} != {each["sha256"] for each in y}:
            bits.append(case)
    if ended:
        yield f"{counted(len(ended), 'case')} ended otherwise: {_few(ended)}"
    if bits:
        yield f"other inputs or output bits in {counted(len(bits), 'case')}: {_few(bits)}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return str(value) if value != "" else "none"


def _few(words: list[str]) -> str:
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")
