"""What stands for modules that a release of SGLang asks for and that are not here."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from gpucheck.library.engines import sglang_stand_ins
from gpucheck.library.engines.sglang_stand_ins import NORMS

ASKS = "if not _is_cuda:\n    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release whose layer norms can be written; what stands in is gone afterwards."""
    if find_spec("vllm") is not None:
        pytest.skip("vllm is installed: nothing stands in for it")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "sglang" / "srt" / "layers").mkdir(parents=True)
    return tmp_path


def test_layer_norms_that_a_release_takes_from_vllm_import_and_compute_nothing(root: Path) -> None:
    (root / "sglang/srt/layers/layernorm.py").write_text(ASKS)
    said: list[str] = []
    sglang_stand_ins.layer_norms(said, root)
    assert said == [f"{NORMS} whose classes raise"]
    with pytest.raises(NotImplementedError, match="is not here"):
        import_module(NORMS).RMSNorm(64)
    with pytest.raises(ModuleNotFoundError):
        import_module("vllm")


@pytest.mark.parametrize(
    "text", ["", "class RMSNorm: ...\n", "# from vllm.model_executor.layers.layernorm import RMSNorm\n"]
)
def test_nothing_stands_in_for_layer_norms_that_a_release_has_itself(root: Path, text: str) -> None:
    (root / "sglang/srt/layers/layernorm.py").write_text(text)
    said: list[str] = []
    sglang_stand_ins.layer_norms(said, root)
    assert said == [] and NORMS not in sys.modules
