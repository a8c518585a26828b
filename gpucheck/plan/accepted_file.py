"""Files of accepted faults: TOML that ``gpucheck accept`` writes, people edit, and ``--accept`` reads."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any

from gpucheck.model.accepted import AcceptedFault, Region
from gpucheck.model.errors import UsageError
from gpucheck.model.plain import read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = "accepted"
HEAD = """\
# Faults that are known and do not fail a run of gpucheck: gpucheck run --accept FILE
# Each holds for as long as it shows as below, until the end of its last day in UTC.
"""


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


def _is_table_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(accepts, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_spans(value: Any) -> bool:
    return isinstance(value, list) and all(_is_list_of(int)(span) and len(span) == 2 for span in value)


Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is accepted, and what is, in words."""
KEYS: dict[str, Rule] = {
    "case": (_is_text, "the id of a case"),
    "ranks": (lambda value: _is_list_of(int)(value) and bool(value), "a list of ranks"),
    "cause": (_is_text, "a cause, as the report names it"),
    "outcome": (_is_text, "an outcome, as the JSON report names it"),
    "shows": (_is_list_of(str), "a list of strings"),
    "regions": (lambda value: isinstance(value, list), "[[accepted.regions]] tables"),
    "seed": (_is_number, "a seed, 0 or more"),
    "content": (_is_table_of(lambda value: isinstance(value, str)), "names with hashes"),
    "reason": (_is_text, "why the fault is accepted, in a line"),
    "until": (lambda value: type(value) is date, "a day such as 2027-01-31, without quotes"),
}
REGION_KEYS: dict[str, Rule] = {
    "output": (lambda value: isinstance(value, str), "the name of an output"),
    "exactly": (_is_table_of(_is_list_of(int)), "groups, such as { expert = [31] }"),
    "spans": (_is_spans, "[first, last] for each axis"),
    "wrong": (_is_number, "a number of elements"),
    "total": (_is_number, "a number of elements"),
}


def read_files(names: Sequence[str]) -> list[AcceptedFault]:
    """The accepted faults of files.

    Raises:
        UsageError: a file that cannot be read, is no TOML, or has a key or value that does not belong there.
    """
    return [fault for name in names for fault in _read(Path(name))]


def _read(path: Path) -> list[AcceptedFault]:
    option = f"--accept {path}"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{option}: not valid TOML: {error}; gpucheck accept writes such a file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} cannot be read as text: {error}") from None
    except OSError as error:
        raise UsageError(f"{option} cannot be read: {error.strerror}") from None
    if unknown := [key for key in document if key != TABLE]:
        raise UsageError(f"{option}: unknown key {unknown[0]!r}, expected [[{TABLE}]] tables and nothing else")
    tables = document.get(TABLE, [])
    if not isinstance(tables, list):
        raise UsageError(f"{option}: {TABLE} is {tables!r}, expected [[{TABLE}]] tables")
    return [
        _fault(table, f"{option}: [[{TABLE}]] number {number}", path) for number, table in enumerate(tables, start=1)
    ]


def _fault(table: Any, where: str, path: Path) -> AcceptedFault:
    _check(table, KEYS, where)
    for number, region in enumerate(table["regions"], start=1):
        _check(region, REGION_KEYS, f"{where}: [[{TABLE}.regions]] number {number}")
    return read(AcceptedFault, {**table, "until": table["until"].isoformat(), "file": str(path)})


def _check(table: Any, keys: Mapping[str, Rule], where: str) -> None:
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r}, expected a table with {', '.join(keys)}")
    for key in table:
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key!r}; known: {', '.join(keys)}")
    for key, (accepts, words) in keys.items():
        if key not in table:
            raise UsageError(f"{where}: {key} is missing, expected {words}; gpucheck accept writes all of them")
        if not accepts(table[key]):
            found = table[key].isoformat() if hasattr(table[key], "isoformat") else repr(table[key])
            raise UsageError(f"{where}: {key} is {found}, expected {words}")


def written(faults: Sequence[AcceptedFault]) -> str:
    """The content of a file of accepted faults."""
    lines = [HEAD]
    for fault in faults:
        item = {name: value for name, value in asdict(fault).items() if name in KEYS}
        if item["regions"]:
            del item["regions"]  # tables of their own, at the end
        lines += [f"[[{TABLE}]]", *(f"{name} = {_value(name, value)}" for name, value in item.items())]
        for region in fault.regions:
            values = ((field.name, getattr(region, field.name)) for field in fields(Region))
            lines += [f"[[{TABLE}.regions]]", *(f"{name} = {_value(name, value)}" for name, value in values)]
        lines.append("")
    return "\n".join(lines)


def _value(name: str, value: Any) -> str:
    if name == "until":
        return str(value)
    if isinstance(value, dict):
        pairs = ", ".join(f"{_string(key)} = {_value('', item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value("", item) for item in value) + "]"
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(text: str) -> str:
    """A basic string of TOML, which escapes as JSON does, and further characters that no text file should hold."""
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", quoted)
