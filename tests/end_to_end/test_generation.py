"""Faults in a decoding, planted in a copy of the library: the report says where it went another way first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Finished, Lab

SCENARIO = Path(__file__).parents[1] / "data" / "generation.toml"
HOST = "matmul_ogs.py"
WRAPPER = """

import os

from gpucheck.checks.decoder import device

_genuine, _attention, _seen = matmul_ogs, device.flash_attention, []


def matmul_ogs(x, w, bias, **options):
    rank = os.environ["RANK"]
    vocabulary = device._sizes.vocabulary
    logits = w.shape[-1] == vocabulary
    if logits:
        _seen.append(vocabulary)
    step = _seen.count(vocabulary) % device._sizes.tokens
    y = None
    if vocabulary == 66 and w.ndim == 3 and options.get("gather_indx") is not None:
        device._ups += 1
        if device._ups % 2 == 0:
            storage = type(w.storage)(w.storage.data[device._swapped], w.storage.layout)
            w = type(w)(storage, dtype=w.dtype, shape=list(w.shape), shape_max=list(w.shape_max))
    if vocabulary == 67 and step == 3 and w.ndim == 3:
        raise RuntimeError("planted on purpose")
    y = _genuine(x, w, bias, **options)
    if vocabulary == 64 and logits and rank == "1" and step == 4:
        y += 3 * y.roll(1, -1)
    return y


class _Decoder(device.Decoder):
    def __init__(self, shape, *arguments):
        device._sizes, device._ups = shape, 0
        super().__init__(shape, *arguments)


def _without_window(*tensors, **options):
    if device._sizes.vocabulary == 65:
        options["window"] = 0
    return _attention(*tensors, **options)


device.Decoder, device.flash_attention = _Decoder, _without_window
device._swapped = [expert ^ 1 for expert in range(32)]
"""
