"""Faults planted into the layers of an engine: each is caught and its layer told, and the bare library stays right."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.checks.sglang_moe import SglangMoe
from gpucheck.tools.selftest.injection import write_scenario
from tests.end_to_end.planted_models import linked_copy
from tests.end_to_end.test_engines import EVERY, fetched
from tests.module_files import load_module

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Lab

PLANTS = Path(__file__).parents[1] / "data" / "planted_sglang.py"
MODEL = "sglang/srt/models/gpt_oss.py"
LAYERS = {  # what the report says of each fault beside that the outputs are wrong
    "missing pad": "loader: scales of the first product are 10 groups, a product reads 12, and nothing pads them",
    "pad of another value": "loader: scales of the first product are padded with 255, which is NaN",
    "scales of another expert": "loader: up_scale and down_scale are the next expert's",
    "wrong swizzle": "loader: weights of the first product differ in",
    "gate and up exchanged": "loader: gate and up are exchanged",
    "gate and up not interleaved": "loader: gate and up in turn are taken for halves",
    "rows shifted by one": "loader: columns of down are shifted by one",
    "weights of another expert": "loader: up are the expert's before",
    "first bias dropped": "first product: its bias is left out",
    "second bias dropped": "second product: its bias is left out",
    "clamp left out": "activation: nothing is clamped",
    "another alpha": "activation: sigmoid(x)",
    "weights of experts left out": "router: its weights are not applied",
    "weights of other rows": "router: its weights go to the next row",
    "rows of other tokens": "first product: its rows are of other tokens",
    "last choice left out": "reduce: the expert chosen last is left out",
    "not renormalised": "router: its weights are a softmax over all experts",
    "other experts chosen": "router: experts are chosen by logits of the other sign",
    "slice by LOCAL_RANK": "loader: tp rank 1 holds what is rank 0's",
    "second bias on every rank": "second product: its bias is added by more ranks than the first",
    "stale weights after a second load": "loader: up and up_scale and down and down_scale are still those of",
    "stale scales after a second load": "loader: up_scale and down_scale are still those of the checkpoint before",
    "split pinned": "raised in the first product",
    "block pinned": "raised in the first product",
    "library's choice of a launch replaced": "raised in the second product",
    "library's choice of experts replaced": "router: its weights are logits, without a softmax",
}
BY_LOADER = ("second bias on every rank",)
"""What a loader does to the layer that is told."""
OFTEN = (  # one of each layer; make engines plants all
    "missing pad",
    "gate and up exchanged",
    "second bias dropped",
    "clamp left out",
    "weights of other rows",
    "rows of other tokens",
    "last choice left out",
    "slice by LOCAL_RANK",
    "stale scales after a second load",
    "library's choice of a launch replaced",
)
CASES = {  # what the case of a fault has beside its number of experts
    "slice by LOCAL_RANK": {"tp": 2},
    "second bias on every rank": {"tp": 2},
    "stale weights after a second load": {"reload": True},
    "stale scales after a second load": {"reload": True},
}


SIZES = {"m": 4, "hidden": 320, "intermediate": 128, "top_k": 2}
BARE = {"check": "moe", "weight": "mxfp4", "m": 4, "hidden": 256, "intermediate": 128, "experts": 4, "top_k": 2}
"""The expert block of the bare library, which stays right."""
LIMITS = {"experiments": 0, "timeout": 900, "case_timeout": 300}


def case_of(experts: int, name: str) -> str:
    """The id of the case of a fault."""
    return SglangMoe.spec.case(params_of(experts, name), "normal", 0).id


def params_of(experts: int, name: str) -> dict[str, object]:
    return {**SIZES, "experts": experts, **CASES.get(name, {})}


def planted_engine(root: Path, folder: Path) -> str:
    """A copy of an engine to plant faults in; what ``--engine`` takes."""
    linked_copy(root, folder, {})  # with the byte code, which goes by the time of the source
    return f"path:{folder}"


def plant(engine: Path, plants: Path, files: Mapping[str, str]) -> None:
    """Puts faults into a copy of an engine.

    Args:
        plants: a module that goes beside the package.
        files: the function of ``plants`` that is called with a module, by the file of that.
    """
    for file, function in files.items():
        install = f"\n\nimport sys as _sys\nimport {plants.stem}\n{plants.stem}.{function}(_sys.modules[__name__])\n"
        rewrite(engine / file, (engine / file).read_text(encoding="utf-8") + install)
    shutil.copy(plants, engine)


def rewrite(path: Path, text: str) -> None:
    """Gives a file another text; what was linked to it keeps its own."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


def test_each_fault_of_an_engines_layers_is_caught_and_the_bare_library_stays_right(lab: Lab, tmp_path: Path) -> None:
    plants = load_module(PLANTS)
    assert list(plants.PLANTED) == list(LAYERS)
    numbers = {number: name for number, name in enumerate(LAYERS, plants.FIRST) if EVERY or name in OFTEN}
    assert len(numbers) == len(LAYERS if EVERY else OFTEN)

    engine = planted_engine(fetched("sglang", "0.5.19").root, tmp_path / "engine")
    plant(tmp_path / "engine", PLANTS, {MODEL: "install"})
    faulty = {plants.FIRST - 1: "nothing", **numbers}
    cases = [{"check": "sglang_moe", **params_of(*fault)} for fault in faulty.items()]
    write_scenario(tmp_path / "scenario.toml", [BARE, *cases], **LIMITS)
    finished = lab.forked("--engine", engine, scenario=tmp_path / "scenario.toml", nproc=1, library=None)
    assert finished.code == 1, finished.text
    assert "changed: its files have the content" in finished.text, "a model that was edited is not that of the release"
    results = finished.results(0)
    right = [case for case, record in results.items() if record["outcome"] == "pass"]
    assert len(right) == 2, f"the block without a fault and the bare library's: {right}"
    assert any(case.startswith("moe/") for case in right)
    for experts, name in numbers.items():
        record = results[case_of(experts, name)]
        assert record["outcome"] in ("mismatch", "error"), (name, record)
        assert LAYERS[name] in record["message"], (name, record)
        if record["outcome"] == "mismatch":
            as_given = "not the loader: " in record["message"]
            assert as_given is ("loader" not in LAYERS[name] and name not in BY_LOADER), (name, record)
