from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpucheck.diagnose.conclude import conclude
from gpucheck.model.record import Outcome
from gpucheck.report import blocks
from gpucheck.report.blocks import Report
from gpucheck.report.formats.json import SCHEMA, render
from gpucheck.report.formats.json_schema import of_type, report_schema
from tests.conftest import Synthetic

DATA = Path(__file__).parents[2] / "data"
STORED = DATA / f"report-schema-{SCHEMA}.json"
OPEN = ("library", "environment")  # of the plan: what is known of them grows with every machine

Path_ = tuple[str | int, ...]


def parsed(report: Report) -> Any:
    return json.loads(render(report))


OURS = jsonschema.Draft202012Validator(report_schema())


def valid(item: Any, schema: dict[str, Any] | None = None) -> bool:
    return bool((jsonschema.Draft202012Validator(schema) if schema else OURS).is_valid(item))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())
    assert json.loads(json.dumps(report_schema())) == report_schema()


def test_reports_are_valid(busy: Report, hostile: Report) -> None:
    for report in (busy, hostile):
        OURS.validate(parsed(report))


@pytest.mark.parametrize("outcome", list(Outcome))
def test_reports_of_every_outcome_are_valid(synthetic: Synthetic, outcome: Outcome) -> None:
    run = synthetic.run(synthetic.plan(cases=1), {(0, 0): outcome})
    OURS.validate(parsed(blocks.build(run, conclude(run))))


def test_a_run_of_no_cases_or_under_way_is_valid(synthetic: Synthetic) -> None:
    run = synthetic.run(synthetic.plan(cases=0))
    run.outcome = {}
    OURS.validate(parsed(blocks.build(run, conclude(run))))


def closed(schema: Any, name: str = "") -> Any:
    """The schema that allows no key it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(item, key) for key, item in schema.items()}
    return {**inner, "additionalProperties": False} if "required" in schema and name not in OPEN else inner


def test_no_key_goes_undescribed(busy: Report) -> None:
    item = small(busy)
    assert valid(item, closed(report_schema()))
    item["results"][0]["novelty"] = 1
    assert valid(item) and not valid(item, closed(report_schema()))


def described(item: Any, schema: dict[str, Any], path: Path_ = ()) -> Iterator[tuple[Path_, dict[str, Any]]]:
    """Every place of a document that the schema describes, with its part of the schema."""
    yield path, schema
    for part in schema.get("anyOf", [schema]):
        if isinstance(item, dict):
            for key, inner in part.get("properties", {}).items():
                yield from described(item[key], inner, (*path, key))
        if isinstance(item, list) and "items" in part:
            for number, inner_item in enumerate(item):
                yield from described(inner_item, part["items"], (*path, number))


def changed(item: Any, path: Path_, *value: Any) -> Any:
    """The document with another value at a place, or without the key; all else is that of the first one itself."""
    step, *further = path
    whole = copy.copy(item)
    if further:
        whole[step] = changed(item[step], tuple(further), *value)
    elif value:
        whole[step] = value[0]
    else:
        del whole[step]
    return whole


def small(busy: Report) -> Any:
    """A document with everything in it, once."""
    item = parsed(busy)
    item["results"] = [result for result in item["results"] if result["mismatches"] and result["violations"]][:1]
    item["findings"], item["places"], item["rows"] = item["findings"][:1], item["places"][:1], item["rows"][:1]
    for mismatch in item["results"][0]["mismatches"]:
        mismatch["heat"]["per_mille"] = [[0, 1000]]
    assert item["results"] and valid(item)
    return item


def test_a_key_that_goes_missing_is_noticed(busy: Report) -> None:
    item = small(busy)
    keys = [path for path, _ in described(item, report_schema()) if path and isinstance(path[-1], str)]
    assert len(keys) > 80 and ("results", 0, "mismatches", 0, "heat", "tile") in keys
    assert [path for path in keys if valid(changed(item, path))] == []


def test_a_value_that_changes_its_type_is_noticed(busy: Report) -> None:
    item = small(busy)
    places = [path for path, _ in described(item, report_schema()) if path and path[-1] not in ("software", "exactly")]
    unnoticed = [path for path in places if any(valid(changed(item, path, bad)) for bad in ({"x": []}, [[[]]]))]
    assert unnoticed == []
    strings = [path for path, part in described(item, report_schema()) if path and part == {"type": "string"}]
    numbers = [path for path, part in described(item, report_schema()) if path and part == {"type": "integer"}]
    assert strings and numbers
    assert [path for path in strings if valid(changed(item, path, 1))] == []
    assert [path for path in numbers if valid(changed(item, path, "1")) or valid(changed(item, path, 0.5))] == []


def test_odd_values_are_noticed(busy: Report) -> None:
    item = small(busy)
    for path, value in (
        (("schema",), SCHEMA + 1),
        (("verdict",), "FINE"),
        (("results", 0, "outcome"), "splendid"),
        (("results", 0, "tightness"), "much"),
        (("results", 0, "seconds", "compile"), "long"),
        (("rows", 0, "ranks", 0), {"splendid": 1}),
        (("rows", 0, "ranks", 0), {"pass": -1}),
    ):
        assert not valid(changed(item, path, value)), path
    for value in ("nan", "inf", "-inf", 0, 0.5):
        assert valid(changed(item, ("results", 0, "tightness"), value))


def kept(stored: Any, now: Any, path: str = "") -> Iterator[str]:
    """Promises of the stored schema that the one of now breaks."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key, value in stored.items():
            if key == "description":
                continue
            if key not in now:
                yield f"{path}/{key} is gone"
            elif key in ("required", "enum"):
                yield from (f"{path}: {name!r} is gone" for name in value if name not in now[key])
            else:
                yield from kept(value, now[key], f"{path}/{key}")
    elif stored != now:
        yield f"{path} was {stored}, is {now}"


def test_a_version_keeps_what_it_promised() -> None:
    broken = list(kept(json.loads(STORED.read_text()), report_schema()))
    assert broken == [], (
        "readers rely on every key: where one goes or changes, raise SCHEMA in gpucheck/report/formats/json.py "
        f"and store `gpucheck report --schema` as report-schema-{SCHEMA + 1}.json; keys that only come need nothing"
    )


def test_version_2_renames_two_keys_of_findings_and_keeps_all_else_of_version_1() -> None:
    finding = "/properties/findings/items"
    assert set(kept(json.loads((DATA / "report-schema-1.json").read_text()), report_schema())) == {
        "/properties/schema/const was 1, is 2",
        f"{finding}: 'remedy' is gone",
        f"{finding}: 'sightings' is gone",
        f"{finding}/properties/remedy is gone",
        f"{finding}/properties/sightings is gone",
    }


def test_a_broken_promise_is_noticed() -> None:
    schema, missing, retyped = (copy.deepcopy(report_schema()) for _ in range(3))
    del missing["properties"]["results"]["items"]["properties"]["mismatches"]["items"]["properties"]["region"]
    retyped["properties"]["folder"] = {"type": "integer"}
    schema["properties"]["novelty"] = {"type": "string"}
    schema["required"].append("novelty")
    assert list(kept(report_schema(), schema)) == []
    assert len(list(kept(report_schema(), missing))) == 1 and len(list(kept(report_schema(), retyped))) == 1


def test_a_type_that_no_report_holds_is_an_error_not_a_hole() -> None:
    with pytest.raises(TypeError, match="no JSON Schema for"):
        of_type(complex)
