from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--until", "0"), "--until is 0, expected a share of tiles above 0 and below 1, such as 1e-7"),
        (("--until", "1"), "--until is 1, expected"),
        (("--until", "nan"), "--until is nan, expected"),
        (("--seconds", "0"), "--seconds"),
        (("--datapaths", "tensor bf61"), "--datapaths names 'tensor bf61', expected one of tensor fp16, tensor bf16"),
        (("--datapaths", ","), "--datapaths names no datapath"),
        (("--write", "report.txt"), "the suffix chooses the format"),
        (("--expect-gpus", "1"), "--device cpu uses 0 GPUs"),
        (("--idle",), "--idle leaves a GPU to others, and there is none with --device cpu"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_runs(
    gpucheck: Command, here: Path, arguments: tuple[str, ...], words: str
) -> None:
    answer = gpucheck("screen", "--device", "cpu", *arguments)
    assert answer.code in (2, 3) and words in answer.message
    assert not [*here.iterdir()]


def test_a_folder_that_holds_something_is_not_written_to(gpucheck: Command, here: Path) -> None:
    (here / "kept").mkdir()
    (here / "kept" / "file").touch()
    answer = gpucheck("screen", "--device", "cpu", "--out", "kept")
    assert answer.code == 2 and "is not empty" in answer.message
