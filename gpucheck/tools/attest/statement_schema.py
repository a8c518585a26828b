"""The JSON Schema of a statement, and whether one fits it: gpucheck needs no validator installed for its own."""

from __future__ import annotations

import re
from typing import Any

from gpucheck.model.record import Verdict
from gpucheck.report.formats.json_schema import DIALECT, of_type, schema_of_array, schema_of_object
from gpucheck.tools.attest.statement import PROOF, REPORT, SCHEMA, STATEMENT

HEX = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
MOMENT = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"}
COUNT = {"type": "integer", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
RANKS = {"type": "array", "items": COUNT}
_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def statement_schema() -> dict[str, Any]:
    """The schema: every key is required, keys that are not named may come with any version."""
    subject = {"name": str, "digest": schema_of_object({"sha256": HEX}, "By algorithm.")}
    package = schema_of_object({"version": str, "fingerprint": str}, "")
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    step = schema_of_object({"count": COUNT, "sha256": HEX}, "The cases that were planned.")
    ended = {"outcome": str, "sha256": {"type": "string", "pattern": "^([0-9a-f]{64})?$"}, "ranks": RANKS}
    screen = {"rank": COUNT, "datapath": str, "multiprocessors": COUNT, "fewestTiles": COUNT, "rateSeen": SHARE}
    predicate = {
        "schema": {"const": SCHEMA},
        "gpucheck": schema_of_object({"version": str}, "What made the statement."),
        "run": _of(id=str, scenario=str, steps=step, seed=int, judged=str, started=MOMENT, ended=MOMENT),
        "result": _of(
            proof=bool,
            verdict=of_type(Verdict),
            ranks=COUNT,
            gpusChecked=COUNT,
            cases={"type": "object", "additionalProperties": COUNT},
            canary=bool,
            findings=schema_of_array(
                _of(title=str, ranks=RANKS, kind={"enum": ["fails", "warns", "open"]}, excuse=str)
            ),
        ),
        "power": _of(
            confidence=SHARE,
            calls=_of(fewestOfARank=COUNT, rateSeen=SHARE),
            chances=schema_of_array(_of(rate=SHARE, chance=SHARE)),
            screen=schema_of_array(schema_of_object(screen, "A datapath of a GPU.")),
        ),
        "gpus": schema_of_array(_of(rank=COUNT, host=str, gpu=str, bus=str, name=str)),
        "software": _of(
            driver=str,
            python=str,
            torch=package,
            triton=package,
            library=texts,
            patches=list[str],
            engines=schema_of_array(texts),
        ),
        "outputs": schema_of_array(
            _of(case=str, ended=schema_of_array(schema_of_object(ended, "Ranks that gave the same bits.")))
        ),
        "files": {"type": "object", "additionalProperties": HEX},
    }
    top = {
        "_type": {"const": STATEMENT},
        "subject": {**schema_of_array(schema_of_object(subject, "What the statement is about.")), "minItems": 1},
        "predicateType": {"enum": [PROOF, REPORT]},
        "predicate": schema_of_object(predicate, "What a run proved, on what, and what that rests on."),
    }
    return {"$schema": DIALECT, "title": "gpucheck statement", **schema_of_object(top, "An in-toto statement.")}


def problems(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """What does not fit, each with its place; of the words of JSON Schema those that :func:`statement_schema` uses."""
    where = place or "the statement"
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{where} is {_shown(value)}, expected {kind}"]
    if "const" in schema and (value != schema["const"] or isinstance(value, bool)):
        return [f"{where} is {_shown(value)}, expected {_shown(schema['const'])}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is {_shown(value)}, expected one of {', '.join(map(_shown, schema['enum']))}"]
    if "pattern" in schema and not re.fullmatch(schema["pattern"].strip("^$"), value):
        return [f"{where} is {_shown(value)}, which has not the form {schema['pattern']}"]
    if "minimum" in schema and not schema["minimum"] <= value <= schema.get("maximum", value):
        return [f"{where} is {_shown(value)}, which is out of range"]
    if kind == "array":
        found = [f"{where} is empty"] if len(value) < schema.get("minItems", 0) else []
        return found + [
            each for number, item in enumerate(value) for each in problems(item, schema["items"], f"{place}[{number}]")
        ]
    if kind == "object":
        named, others = schema.get("properties", {}), schema.get("additionalProperties")
        found = [f"{where} has no {name}" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            if inner := named.get(name, others):
                found += problems(item, inner, f"{place}.{name}" if place else name)
        return found
    return []


def _of(**keys: Any) -> dict[str, Any]:
    return schema_of_object(keys, "")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
