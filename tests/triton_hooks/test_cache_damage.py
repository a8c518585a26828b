from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucheck.triton_hooks import cache_damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of two whole entries."""
    for name in ("AAA", "BBB"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "k.json").write_text(json.dumps({"shared": 1024}))
        (tmp_path / name / "k.cubin").write_bytes(b"\xff\x00")
    return tmp_path


def json_error() -> json.JSONDecodeError:
    return json.JSONDecodeError("Expecting value", "", 0)


def test_whole_entries_are_not_blamed(folder: Path) -> None:
    assert cache_damage.first_damaged(folder) is None
    assert cache_damage.damage_note(json_error(), folder) == ""


@pytest.mark.parametrize("content", [b"", b'{"shared": 10', b"\xff\xfe"])
def test_a_damaged_entry_is_named(folder: Path, content: bytes) -> None:
    (folder / "BBB" / "k.json").write_bytes(content)
    assert cache_damage.damage_note(json_error(), folder) == f" (damaged cache entry: {folder / 'BBB' / 'k.json'})"


def test_other_errors_do_not_look(folder: Path) -> None:
    (folder / "BBB" / "k.json").write_bytes(b"")
    assert cache_damage.damage_note(ValueError("x"), folder) == ""
