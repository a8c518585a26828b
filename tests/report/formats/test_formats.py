from __future__ import annotations

from pathlib import Path

import pytest

import gpucheck.report.formats
from gpucheck.report.blocks import Report
from gpucheck.report.formats import FORMATS, render


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_writes_text_that_utf8_holds(busy: Report, hostile: Report, suffix: str) -> None:
    for report in (busy, hostile):
        text = render(report, suffix)
        assert text.endswith("\n") and text.encode().decode() == text and "\x1b" not in text


@pytest.mark.parametrize("module", FORMATS.values())
def test_a_format_is_a_module_of_the_package(module: str) -> None:
    folder = Path(gpucheck.report.formats.__file__).parent
    assert (folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()
