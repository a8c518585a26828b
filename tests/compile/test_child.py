from __future__ import annotations

from dataclasses import fields

import pytest

pytest.importorskip("torch", reason="needs torch")

from gpucheck.checks.base import Runtime
from gpucheck.compile.child import Bench


def test_the_bench_of_compiling_offers_what_checks_may_use() -> None:
    bench = Bench("", "")
    offered = {*vars(bench), *vars(Bench)}
    missing = {field.name for field in fields(Runtime)} - offered
    assert not missing, f"checks may use {missing}: give gpucheck.compile.child.Bench one that runs nothing"


def test_a_check_that_asks_for_a_library_it_said_it_does_without_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="needs no library and asks for one"):
        Bench("", "").library  # noqa: B018 - asking is what fails
