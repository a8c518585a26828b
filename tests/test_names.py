"""What things are called: no two files alike, and none of the words that only those who wrote them would know."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import gpucheck

PACKAGE = Path(gpucheck.__file__).parent
ROOT = PACKAGE.parent
IN_EACH_REGISTRY = {"__init__.py", "__main__.py", "base.py", "common.py"}
RETIRED = {
    "astray": "launched on another device",
    "bereft": "peer lost",
    "conduct": "violations",
    "courier": "record client",
    "mend": "fix",
    "sighting": "failed case",
    "undying": "unkillable",
    "witness": "replay capture",
    "zygote": "forkserver",
}
"""Names and words that are gone, and what a reader of this field knows instead."""
OLD_FILES = {"CHANGELOG.md", "test_json_schema.py", "test_names.py"}  # tell what the schema before this one held
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".sh", ".template", ".css", ".js"}


def test_a_tab_of_an_editor_names_one_file() -> None:
    counts = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name not in IN_EACH_REGISTRY)
    assert not [name for name, count in counts.items() if count > 1]


def test_words_that_were_retired_stay_away() -> None:
    if not (ROOT / "CONTRIBUTING.md").is_file():
        pytest.skip("no checkout: the tests and texts are not part of an installed package")
    words = re.compile(rf"(?<![a-z])({'|'.join(RETIRED)})(?![a-z])", re.IGNORECASE)
    folders = (PACKAGE, ROOT / "scenarios", ROOT / "tests", ROOT / ".ci")
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]
    found = []
    for path in [*files, *ROOT.glob("*.md")]:
        text = path.read_text(encoding="utf-8") if path.name not in OLD_FILES else ""
        found += [
            f"{path.relative_to(ROOT)}: {match[0]}: {RETIRED[match[0].lower()]}" for match in words.finditer(text)
        ]
    assert not found
