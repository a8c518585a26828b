"""What the forkserver of an engine imports: packages of others alone, in the environment of the engine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library import engines
from gpucheck.library.engines.base import NVML_CHECK, Engine
from gpucheck.library.engines.sglang_engine import Sglang
from gpucheck.library.engines.vllm_engine import Vllm

pytest.importorskip("torch")

SAID = "import os, sys\nsys.imported_ahead.append((__name__, os.environ.get('HF_HUB_OFFLINE'), os.environ.get({!r})))\n"


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A release of vllm with packages to import ahead; its own module must not be imported."""
    packages = tmp_path / "packages"
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise AssertionError('the engine itself')")
    packages.mkdir()
    (packages / "slowone.py").write_text(SAID.format(NVML_CHECK))
    (packages / "broken.py").write_text("raise ImportError('half of it is here')")
    (packages / "threaded.py").write_text("import sys\nsys.thread_ahead.start()\n")
    monkeypatch.setattr(sys, "imported_ahead", [], raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(engines, "_planned", None)
    monkeypatch.setattr(Engine, "scratch", "", raising=False)
    with pytest.MonkeyPatch.context() as variables:
        variables.setattr(os, "environ", dict(os.environ))
        yield {
            "name": "vllm",
            "version": "9.9",
            "root": str(tmp_path),
            "packages": str(packages),
            "origin": "path",
            "installed": False,
        }
    for name in ("slowone", "broken", "threaded"):
        sys.modules.pop(name, None)


def test_only_packages_of_others_are_imported_and_in_the_environment_of_the_engine(
    planned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Vllm, "ahead", ("slowone", "not_here_at_all"))
    engines.import_ahead(planned, "cpu")
    assert sys.imported_ahead == [("slowone", "1", "1")]  # type: ignore[attr-defined]
    assert NVML_CHECK not in os.environ, "the processes of the engine ask as they always do"
    assert "vllm" not in sys.modules
    engines.settle(planned, "cpu", str(tmp_path))
    assert sys.path.count(planned["root"]) == 1, "a fork settles again"


def test_what_is_here_and_does_not_import_is_left_to_the_engine(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vllm, "ahead", ("broken",))
    with pytest.raises(ImportError, match="half of it"):
        engines.import_ahead(planned, "cpu")


def test_a_thread_that_no_fork_would_have_is_no_way_to_import(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(sys, "thread_ahead", threading.Thread(target=done.wait), raising=False)
    monkeypatch.setattr(Vllm, "ahead", ("threaded",))
    try:
        with pytest.raises(RuntimeError, match="has started a thread"):
            engines.import_ahead(planned, "cpu")
    finally:
        done.set()


def test_the_driver_asked_before_a_fork_is_no_way_to_import(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vllm, "ahead", ("slowone",))
    monkeypatch.setattr("torch.cuda._is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match="has asked the driver"):
        engines.import_ahead(planned, "cuda")


@pytest.mark.parametrize("adapter", [Vllm, Sglang])
def test_no_module_of_an_engine_or_of_the_library_is_imported_ahead(adapter: type[Engine]) -> None:
    """These may read a rank or a GPU when they are imported, so each process imports them by itself."""
    assert adapter.ahead and not {name.partition(".")[0] for name in adapter.ahead} & {
        "vllm",
        "sglang",
        "triton_kernels",
    }
