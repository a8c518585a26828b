"""CONTRIBUTING.md against the tree, and the line on top of each folder: a map that is wrong is worse than none."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import fields
from pathlib import Path

import pytest

import gpucheck
from gpucheck.cli.app import COMMANDS
from gpucheck.model.conditions import Conditions
from gpucheck.model.record import Record
from gpucheck.plan.scenario import GROUP_KEYS, TOP_LEVEL
from gpucheck.report.formats import FORMATS
from gpucheck.worker.protocol import Reply

PACKAGE = Path(gpucheck.__file__).parent
ROOT = PACKAGE.parent
OUTSIDE = ("tests/", "scenarios/", ".ci/", "pyproject.toml")
NO_PATHS = {"gpucheck/", "plan.json", "outcome.json", "driver-N.json", "records/rank-NNNNN.jsonl", "logs/"}
"""Files of a run folder, and what paths are relative to."""

if not (ROOT / "CONTRIBUTING.md").is_file():
    pytest.skip("no checkout: the map is not part of an installed package", allow_module_level=True)
MAP = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = {path.parent for path in PACKAGE.rglob("*.py")}


def section(title: str) -> str:
    return MAP.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """What the first column of a section's table names."""
    rows = re.findall(r"^\| (.*?) \|", section(title), re.MULTILINE)[1:]
    return [row for row in rows if set(row) != {"-"}]


def in_tree(path: str) -> Path:
    return (ROOT if path.startswith(OUTSIDE) else PACKAGE) / path


def test_a_newcomer_reads_the_map_in_one_sitting() -> None:
    assert len(MAP.splitlines()) <= 200
    assert len(first_cells("Glossary")) == 30 and len(re.findall(r"^\d\. ", section("The way of a case"), re.M)) == 8


def test_the_map_names_each_folder_and_no_other() -> None:
    named = [row.strip("`/") for row in first_cells("Folders")]
    kept = [
        path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_dir() and "__pycache__" not in path.parts
    ]
    told = {
        str(path)
        for path in kept
        if len(path.parts) <= 2 and any(file.is_file() for file in (PACKAGE / path).iterdir())
    }
    assert sorted(named) == sorted(told)


def test_each_path_that_the_map_names_exists() -> None:
    paths = {path for path in re.findall(r"`([\w./-]+)`", MAP) if re.search(r"/|\.(py|toml|json|jsonl)$", path)}
    paths = {path for path in paths - NO_PATHS if not path.startswith("matmul/")}  # which is the id of a case
    assert len(paths) > 60
    assert not [path for path in sorted(paths) if not in_tree(path).exists()]


def test_each_name_that_is_said_to_be_in_a_file_is_in_it() -> None:
    text = re.sub(r"\s+", " ", MAP)
    places = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `([\w./-]+\.py)`", text)
    assert len(places) >= 9
    for *names, path in places:
        source = in_tree(path).read_text(encoding="utf-8")
        assert not [name for name in names if name and not re.search(rf"\b{name}\b", source)], (names, path)


def test_each_field_of_a_record_has_a_row_that_says_where_it_is_made() -> None:
    named = re.findall(r"`(\w+)`", " ".join(first_cells("Where a record comes from")))
    assert sorted(named) == sorted(field.name for field in fields(Record))


@functools.cache
def names_of(path: Path) -> tuple[set[str], set[str]]:
    """What the code of a file reads of anything, and what it sets: attributes, arguments and keys by name."""
    read, made = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            (made if isinstance(node.ctx, ast.Store) else read).add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            made.add(node.arg)
        elif isinstance(node, ast.Dict):
            made.update(key.value for key in node.keys if isinstance(key, ast.Constant))
    return read, made


def names_in(*folders: str) -> tuple[set[str], set[str]]:
    each = [names_of(path) for folder in folders for path in (PACKAGE / folder).rglob("*.py")]
    return set().union(*(read for read, _ in each)), set().union(*(made for _, made in each))


def test_what_is_recorded_asked_and_sent_is_made_by_one_side_and_read_by_the_other() -> None:
    """Found by name alone, so that what was forgotten is seen wherever no other thing has the same name."""
    reply, record, conditions = ({field.name for field in fields(kind)} for kind in (Reply, Record, Conditions))
    read, made = names_in("worker/device")
    assert not sorted(reply - read - made), "what the process with the GPU never fills"
    assert not sorted(reply - names_in("worker/supervisor")[0] - {"fills"}), (
        "what the supervisor never looks at; fills: settled"
    )
    assert not sorted(record - names_in("worker", "verify", "tools/screen")[1]), "what nothing records"
    shown, _ = names_in("diagnose", "report", "cli", "tools", "records")
    assert not sorted(record - shown), "what no verdict, report or command looks at"
    assert not sorted(conditions - names_in("worker")[0]), "what nothing applies"


LISTS = (
    ("checks/*.py", r"^    spec(: .*)? = \w*[Ss]pec\(", r"checks\.{}:"),
    ("report/formats/**/*.py", r"^def render\(report: Report", r'"{}"'),
    ("tools/selftest/catalogue/*.py", r"^FAULTS\b", r"\*{}\.FAULTS"),
    ("library/adapters/*.py", r"^class AdapterV", r'adapters\.{}"'),
    ("library/engines/*.py", r"^class \w+\(Engine\)", r"engines\.{}:"),
    ("cli/*.py", r"Annotated\[", r'\("{}", '),
)
"""Files of which some hold a thing of one kind, what shows that, and how the list of those names a file."""
UNLISTED = {"node_json", "termination", "options"}
"""Files that no suffix of a report and no command stands for."""


@pytest.mark.parametrize(("files", "holds", "form"), LISTS, ids=[files for files, *_ in LISTS])
def test_what_is_added_stands_in_the_list_that_finds_it(files: str, holds: str, form: str) -> None:
    registry = PACKAGE / files.split("*")[0] / ("app.py" if files.startswith("cli") else "__init__.py")
    paths = [path for path in PACKAGE.glob(files) if re.search(holds, path.read_text(encoding="utf-8"), re.MULTILINE)]
    names = {path.parent.name if path.stem == "__init__" else path.stem for path in paths if path != registry}
    named = registry.read_text(encoding="utf-8")
    assert names and not [name for name in names - UNLISTED if not re.search(form.format(name), named)]


def test_the_order_of_imports_is_the_one_that_holds() -> None:
    """import-linter holds the layers in pyproject.toml; the map says the same ones."""
    layers = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert layers
    held = "; ".join(re.findall('"(.*)"', layers[1])).replace(" | ", ", ")
    assert f"Imports run down only: {held}." in MAP


def test_each_loop_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {cell.strip("`").removeprefix("make ") for cell in first_cells("Loops")}
    assert {"quick", "check", "test"} <= targets <= {*re.findall(r"^(\w+):", makefile, re.MULTILINE)}


@pytest.mark.parametrize("folder", sorted(FOLDERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_in_one_line_what_lives_there(folder: Path) -> None:
    words = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert words, f"{folder}/__init__.py: say in one line what lives there"
    assert words.splitlines()[0].endswith((".", ":")) and len(words.splitlines()[0]) > 20, folder


def test_the_readme_names_each_scenario_key_command_and_format() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    cells = re.findall(r"^\| (`[^|]*) \|", sections["Scenarios"], re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)", cell)}
    assert not {path.stem for path in (ROOT / "scenarios").glob("*.toml")} - named
    assert not {*GROUP_KEYS} - {"check"} - named
    assert not [key for key in {*TOP_LEVEL} - {"cases"} if not re.search(rf"`{key}\b", sections["Scenarios"])]
    commands = sections["Commands"]
    assert not [name for name in COMMANDS if not re.search(rf"^\|.*`gpucheck {name}\b.* \|", commands, re.MULTILINE)]
    assert not [suffix for suffix in FORMATS if suffix not in commands]


def test_links_within_the_readme_and_to_the_map_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {"CONTRIBUTING.md"} <= {*links}
    for link in links:
        if link.startswith("#"):
            assert link[1:] in titles, link
        elif "://" not in link:
            assert (ROOT / link).exists(), link
