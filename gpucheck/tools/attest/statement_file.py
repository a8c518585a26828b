"""Reads a statement from a file, bare or inside the envelope that a signing tool put around it.

The signature of an envelope is for that tool to check: here it is only said whether there is one.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpucheck.model.errors import UsageError
from gpucheck.tools.attest.statement import SCHEMA
from gpucheck.tools.attest.statement_schema import problems, statement_schema

LARGEST = 64 << 20  # bytes
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Statement:
    """A statement that has the form of one."""

    path: Path
    item: dict[str, Any]
    signed: bool  # it lay in an envelope with signatures, which nobody has checked here

    @property
    def predicate(self) -> dict[str, Any]:
        predicate: dict[str, Any] = self.item["predicate"]
        return predicate


def read_statement(path: Path) -> Statement:
    """Reads one file.

    Raises:
        UsageError: there is none, or it holds no statement of gpucheck.
    """
    item = _parsed(path, _content(path))
    signed = False
    if isinstance(item, dict) and isinstance(item.get("dsseEnvelope"), dict):  # a bundle of sigstore
        item = item["dsseEnvelope"]
    if isinstance(item, dict) and "payload" in item:
        signed = bool(item.get("signatures"))
        if item.get("payloadType") != PAYLOAD_TYPE:
            _refuse(path, f"its payload is {item.get('payloadType')!r}, expected {PAYLOAD_TYPE!r}")
        try:
            item = _parsed(path, base64.b64decode(item["payload"], validate=True))
        except (binascii.Error, TypeError, ValueError):
            _refuse(path, "its payload is not base64")
    if isinstance(item, dict) and isinstance(item.get("predicate"), dict):
        version = item["predicate"].get("schema")
        if isinstance(version, int) and version > SCHEMA:
            _refuse(path, f"it has schema {version}, this gpucheck reads up to {SCHEMA}: use a newer gpucheck")
    if wrong := problems(item, statement_schema()):
        more = f"\n  and {len(wrong) - SHOWN_PROBLEMS} more" if len(wrong) > SHOWN_PROBLEMS else ""
        _refuse(path, "".join(f"\n  found     {each}" for each in wrong[:SHOWN_PROBLEMS]) + more)
    return Statement(path, item, signed)


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file, expected a statement of gpucheck attest")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        _refuse(path, f"it is larger than {LARGEST >> 20} MiB")
    return content


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except UnicodeDecodeError:
        _refuse(path, "it is no text")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        end = "it ends too early: the file was cut" if cut else "it is no JSON"
        _refuse(path, f"{end} ({error.msg} at {place})")
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is no JSON that all tools read alike ({error})")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that stands twice some tools read the first and some the last value: one of them would be deceived."""
    item = dict(pairs)
    if len(item) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} stands twice")
    return item


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


def _refuse(path: Path, why: str) -> NoReturn:
    raise UsageError(f"{path} is no statement of gpucheck attest: {why}")
