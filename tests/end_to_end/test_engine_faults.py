"""Faults planted into the layers of an engine: each is caught and its layer told, and the bare library stays right."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tests.end_to_end.test_engines import fetched

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Lab

PLANTS = Path(__file__).parents[1] / "data" / "planted_sglang.py"
MODEL = "sglang/srt/models/gpt_oss.py"
LAYERS = {  # what the report says of each fault beside that the outputs are wrong
    "missing pad": "passes differ",
    "pad of another value": "NaN",
    "scales of another expert": "loader: up_scale and down_scale are the next expert's",
    "wrong swizzle": "wrong",
    "gate and up exchanged": "loader: gate and up are exchanged",
    "gate and up not interleaved": "loader: gate and up in turn are taken for halves",
    "rows shifted by one": "loader: columns of down are shifted by one",
    "weights of another expert": "loader: up are the expert's before",
    "first bias dropped": "first product: its bias is left out",
    "second bias dropped": "second product: its bias is left out",
    "clamp left out": "activation: nothing is clamped",
    "another alpha": "activation: sigmoid(x)",
    "weights of experts left out": "router: its weights are not applied",
    "weights of other rows": "wrong",
    "rows of other tokens": "wrong",
    "last choice left out": "reduce: the expert chosen last is left out",
    "not renormalised": "router: its weights are a softmax over all experts",
    "other experts chosen": "wrong",
}


def planted_engine(root: Path, folder: Path, plants: Path, files: Mapping[str, str]) -> str:
    """A copy of the engine with all faults in it, in hard links where the disk allows; what ``--engine`` takes.

    Args:
        plants: a module that goes beside the package.
        files: the function of ``plants`` that is called with a module, by the file of that.
    """
    shutil.copytree(root, folder, copy_function=_link, ignore=shutil.ignore_patterns("__pycache__"))
    for file, function in files.items():
        install = f"\n\nimport sys as _sys\nimport {plants.stem}\n{plants.stem}.{function}(_sys.modules[__name__])\n"
        rewrite(folder / file, (root / file).read_text(encoding="utf-8") + install)
    shutil.copy(plants, folder)
    return f"path:{folder}"


def rewrite(path: Path, text: str) -> None:
    """Gives a file another text; what was linked to it keeps its own."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def scenario(folder: Path, experts: list[int]) -> Path:
    groups = f"""title = "faults in the layers of an engine"
experiments = 0
timeout = 900
case_timeout = 300

[[cases]]
check = "sglang_moe"
m = 4
hidden = 320
intermediate = 128
experts = {experts}
top_k = 2

[[cases]]
check = "moe"
weight = "mxfp4"
m = 4
hidden = 256
intermediate = 128
experts = 4
top_k = 2
"""
    path = folder / "scenario.toml"
    path.write_text(groups)
    return path


def test_each_fault_of_an_engines_layers_is_caught_and_the_bare_library_stays_right(lab: Lab, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("planted_sglang", PLANTS)
    assert spec and spec.loader
    plants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plants)
    assert list(plants.PLANTED) == list(LAYERS)
    numbers = dict(enumerate(LAYERS, plants.FIRST))

    engine = planted_engine(fetched("sglang", "0.5.19").root, tmp_path / "engine", PLANTS, {MODEL: "install"})
    path = scenario(tmp_path, [plants.FIRST - 1, *numbers])
    finished = lab.finish("--engine", engine, scenario=path, nproc=1, library=None)
    assert finished.code == 1, finished.text
    results = finished.results(0)
    right = [case for case, record in results.items() if record["outcome"] == "pass"]
    assert len(right) == 2, f"the block without a fault and the bare library's: {right}"
    assert any(case.startswith("moe/") for case in right)
    for experts, name in numbers.items():
        record = results[f"sglang_moe/m4-h320-i128-e{experts}-top2/normal"]
        assert record["outcome"] == "mismatch" and record["mismatches"], (name, record)
        words = f"wrong NaN {record['message']}" if record["mismatches"][0]["nan"] else f"wrong {record['message']}"
        words += " ".join(violation["kind"] for violation in record["violations"])
        assert LAYERS[name] in words, (name, words)
