"""Weights while compiling: one is laid out for each form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpucheck.checks.no_launch import CompileRuntime
from gpucheck.library import adapters


class Adapter:
    name = "fake"

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []

    def weight(self, *form: Any) -> int:
        self.made.append(form)
        return len(self.made)


def test_weights_of_one_form_are_laid_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = Adapter()
    monkeypatch.setattr(adapters, "load", lambda root, generation: adapter)
    library = CompileRuntime("/library", "v3.5").library
    codes, scales = torch.zeros(4, 8, 16, dtype=torch.uint8), torch.zeros(4, 1, 16, dtype=torch.uint8)

    def weight(data: Any = codes, scale: Any = scales, kind: str = "mxfp4", layout: str = "default") -> int:
        made: int = library.weight(kind, data, scale, layout, None)
        return made

    assert weight() == weight(torch.ones_like(codes)) == 1, "values are all that differs"
    others = [
        weight(codes[:2]),
        weight(codes.mT.contiguous().mT),
        weight(codes.view(torch.int8)),
        weight(scale=None),
        weight(scale=scales[:, :, :8]),
        weight(kind="fp8_e4m3"),
        weight(layout="strided"),
    ]
    assert others == [2, 3, 4, 5, 6, 7, 8] and len(adapter.made) == 8
    assert library.name == "fake"
