"""The JSON Schema of the report for machines; most of it follows from the types of what is shown."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from gpucheck.model.conditions import Conditions
from gpucheck.model.finding import Finding
from gpucheck.model.plan import Plan, PlannedEngine, PlannedLibrary
from gpucheck.model.record import Outcome, Record, Verdict
from gpucheck.model.vocabulary import Vocabulary
from gpucheck.report.blocks import Place, Result
from gpucheck.report.formats.json import ACCEPTED, EXPECTED, OF_RECORD, OF_RESULT, SCHEMA, WARNED
from gpucheck.report.screen_summary import ScreenSummary
from gpucheck.report.timings import Speed

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}]},
    type(None): {"type": "null"},
    Any: {},
}


def report_schema() -> dict[str, Any]:
    """The schema: every key is required, keys that are not named may come with any version."""
    count = {"type": "integer", "minimum": 0}
    row = {
        "row": str,
        "cases": count,
        "ranks": schema_of_array(
            {
                "type": "object",
                "description": "One a rank: how many cases ended how.",
                "propertyNames": {"enum": [*(outcome.value for outcome in Outcome), EXPECTED, ACCEPTED, WARNED]},
                "additionalProperties": count,
            }
        ),
    }
    top = {
        "schema": {"const": SCHEMA},
        "verdict": Verdict,
        "gpus_checked": {**count, "description": "Ranks that worked on a GPU; 0: no GPU was checked."},
        "headline": list[str],
        "ranks": list[int],
        "rows": schema_of_array(schema_of_object(row, "A row of the matrix: one check under one set of conditions.")),
        "findings": list[Finding],
        "notes": list[str],
        "bounds": str,
        "stages": dict[str, float],
        "timing": list[str],
        "speed": Speed,
        "screen": ScreenSummary,
        "seconds": float | None,
        "folder": str,
        "plan": _plan(),
        "places": list[Place],
        "results": schema_of_array(_result()),
    }
    title = {"$schema": DIALECT, "title": "gpucheck report"}
    return {**title, **schema_of_object(top, "The report of a run; its version is the value of `schema`.")}


def _plan() -> dict[str, Any]:
    library = {name: kind for name, kind in get_type_hints(PlannedLibrary).items() if name != "patches"}
    hints = get_type_hints(Plan)
    shown = (field.name for field in fields(Plan) if field.name not in ("steps", "replay"))
    keys: dict[str, Any] = {name: hints[name] for name in shown}
    keys["library"] = schema_of_object(
        library, "The copy of triton_kernels under test; origin none: no case needs one."
    )
    engine = schema_of_object(get_type_hints(PlannedEngine), "An engine whose own path was tested.")
    engine["required"] = [name for name in engine["required"] if name in PlannedEngine.__required_keys__]
    keys["engines"] = schema_of_array(engine)
    keys["environment"] = schema_of_object(
        {"software": dict[str, Any]}, "Software and machine that the run was started on."
    )
    return schema_of_object(keys, "What the run was asked to do, without its cases.")


def _result() -> dict[str, Any]:
    of_result, of_record = get_type_hints(Result), get_type_hints(Record)
    keys = {"conditions": Conditions, "passes": int, "failed_passes": int, "printed": list[str]}
    keys |= {name: of_result[name] for name in OF_RESULT} | {name: of_record[name] for name in OF_RECORD}
    return schema_of_object(keys, "One case on one rank.")


def schema_of_object(keys: Mapping[str, Any], description: str) -> dict[str, Any]:
    properties = {name: kind if isinstance(kind, dict) else of_type(kind) for name, kind in keys.items()}
    return {"type": "object", "description": description, "required": [*keys], "properties": properties}


def schema_of_array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def of_type(kind: Any) -> dict[str, Any]:
    """The schema of a type as ``dataclasses.asdict`` and ``json`` write it.

    Raises:
        TypeError: a type that no report holds so far.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if origin in (Union, types.UnionType):
        return {"anyOf": [of_type(argument) for argument in arguments]}
    if origin in (list, tuple):
        return schema_of_array(of_type(arguments[0]))
    if origin is dict:
        return {"type": "object", "additionalProperties": of_type(arguments[1])}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        description = (kind.__doc__ or "").partition("\n")[0]
        return schema_of_object({field.name: hints[field.name] for field in fields(kind)}, description)
    if isinstance(kind, type) and issubclass(kind, Vocabulary):
        return of_type(str)  # a word that this version does not know is written too
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    raise TypeError(f"no JSON Schema for {kind!r}")
