from __future__ import annotations

from gpucheck.templates.presets import presets
from tests.cli.conftest import Command
from tests.cli.test_startup import outcomes


def test_all_are_listed_with_what_they_are(gpucheck: Command) -> None:
    lines = gpucheck("preset").out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets())
    assert all(preset.title in line for preset, line in zip(presets().values(), lines, strict=True))


def test_one_is_printed_as_it_is(gpucheck: Command) -> None:
    for name, preset in presets().items():
        answer = gpucheck("preset", name)
        assert answer.code == 0 and answer.out == preset.text


def test_an_unknown_one_is_a_usage_error(gpucheck: Command) -> None:
    answer = gpucheck("preset", "cron")
    assert answer.code == 2 and "slurm-prolog" in answer.message


def test_no_torch_is_needed() -> None:
    assert outcomes(["preset", "torchrun"]) == [(0, [])]
