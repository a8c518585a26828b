from __future__ import annotations

import pytest

from gpucheck.checks.no_launch import CompileRuntime

pytest.importorskip("torch")


def test_a_check_that_asks_for_a_library_it_said_it_does_without_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="says that it needs no library .* and asks for one"):
        CompileRuntime("", "").library  # noqa: B018 - asking is what fails
