"""Check sources as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from gpucheck.model.check_source import CheckSource, SourceKind, content_hash, source_of
from gpucheck.model.plain import read


@pytest.mark.parametrize(
    ("kind", "files", "options"),
    [
        (SourceKind.FILE, ("mine.py",), ["--check-file", "mine.py"]),
        (SourceKind.PROBLEM, ("hard.py", "fast.py"), ["--problem", "hard.py", "--candidate", "fast.py"]),
        (SourceKind.ENTRY_POINT, ("theirs.py",), []),
    ],
)
def test_a_source_survives_its_plan_and_names_its_options(
    tmp_path: Path, kind: SourceKind, files: tuple[str, ...], options: list[str]
) -> None:
    paths = tuple(tmp_path / name for name in files)
    for path in paths:
        path.write_text(path.name)
    source = source_of(kind, ("mine",), paths, "theirs:Mine")
    assert read(CheckSource, json.loads(json.dumps(asdict(source)))) == source
    assert source.options == [str(tmp_path / word) if word in files else word for word in options]
    assert source.hashes == tuple(content_hash(name.encode()) for name in files)
