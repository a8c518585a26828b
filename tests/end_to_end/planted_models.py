"""Faults planted into the models of engines: edits of a copy, each of which takes effect for one size of vocabulary."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PLANTED = Path(__file__).parents[1] / "data" / "planted_model.py"
FIRST = 129  # as in PLANTED
IMPORT = "\n\nimport planted_model as _planted_model\n"


@dataclass(frozen=True)
class Fault:
    """One edit of an engine, and what the report says of it."""

    name: str
    file: str  # in the engine's package
    old: str  # an expression that occurs once, or at the place ``nth``
    new: str
    where: str  # layer and operation in the words of the report, for example "layer 0, rope"
    nth: int = 0


def linked_copy(package: Path, folder: Path, changed: Mapping[str, str]) -> None:
    """A copy of a package in hard links where the disk allows, some files with another text."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    shutil.copytree(package, folder, copy_function=link)
    for name, text in changed.items():
        (folder / name).unlink()
        (folder / name).write_text(text, encoding="utf-8")


def plant(package: Path, folder: Path, model_file: str, faults: Sequence[Fault]) -> None:
    """Copies a package into ``folder`` with all faults in it.

    Args:
        model_file: the file of the package that defines ``GptOssForCausalLM``.
    """
    texts = {name: (package / name).read_text(encoding="utf-8") for name in {model_file, *(f.file for f in faults)}}
    for number, fault in enumerate(faults):
        parts = texts[fault.file].split(fault.old)
        assert len(parts) > fault.nth + 1, f"{fault.file} does not hold: {fault.old}"
        place = fault.nth + 1
        choice = f"({fault.new} if _planted_model.planted({number}) else {fault.old})"
        texts[fault.file] = fault.old.join(parts[:place]) + choice + fault.old.join(parts[place:])
    for name in texts:
        texts[name] += IMPORT
    texts[model_file] += "_planted_model.begin(GptOssForCausalLM)\n"
    folder.mkdir(exist_ok=True)
    linked_copy(package, folder / package.name, texts)
    for metadata in package.parent.glob(f"{package.name}-*.dist-info"):
        linked_copy(metadata, folder / metadata.name, {})
    shutil.copy(PLANTED, folder)


def scenario(path: Path, check: str, sizes: str, faults: Sequence[Fault]) -> Path:
    """One case for the model without a fault, and one for each fault."""
    vocabularies = [FIRST - 1, *(FIRST + number for number in range(len(faults)))]
    path.write_text(
        f'title = "faults in the model of an engine"\nexperiments = 0\ntimeout = 1800\ncase_timeout = 600\n\n'
        f'[[cases]]\ncheck = "{check}"\nvocabulary = {vocabularies}\n{sizes}\n'
    )
    return path
