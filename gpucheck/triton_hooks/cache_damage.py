"""Triton's kernel cache as a failing launch leaves it."""

from __future__ import annotations

import json
from pathlib import Path

from gpucheck.model.record import DAMAGED_ENTRY

MOST_FILES = 20_000  # looked at before giving up
UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, EOFError)


def damage_note(error: Exception, folder: Path) -> str:
    """`` (damaged cache entry: FILE)`` where an error came from reading an entry of the cache in a folder, else ""."""
    if not isinstance(error, UNREADABLE):
        return ""
    found = first_damaged(folder)
    return f" ({DAMAGED_ENTRY}: {found})" if found else ""


def first_damaged(cache: Path) -> Path | None:
    """An entry's description that is no JSON; None where all are, as far as they were looked at."""
    for number, path in enumerate(cache.glob("*/*.json")):
        if number == MOST_FILES:
            break
        if damage(path):
            return path
    return None


def damage(path: Path) -> str:
    """What is wrong with a JSON file, or ""."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not data:
        return "empty"
    try:
        json.loads(data)
    except ValueError as error:
        return f"no JSON: {error}"
    return ""
