from __future__ import annotations

import sys
import types

import pytest
import torch
import triton

from gpucheck.triton_hooks import interpreter


def test_install_is_idempotent_and_reports_itself() -> None:
    interpreter.install()
    assert interpreter.installed()


def test_install_refuses_a_library_that_is_bound_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_installed", False)
    monkeypatch.setitem(sys.modules, "triton_kernels", types.ModuleType("triton_kernels"))
    with pytest.raises(RuntimeError, match="before importing it"):
        interpreter.install()


def test_install_refuses_a_triton_bound_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_installed", False)
    monkeypatch.delitem(sys.modules, "triton_kernels", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        interpreter.install()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real device answers")
def test_stand_in_device_answers_the_questions_of_host_code() -> None:
    assert triton.runtime.driver.active.get_current_target().backend == "cuda"
    assert torch.cuda.get_device_capability() == (8, 0)
    assert torch.cuda.get_device_properties(0).multi_processor_count == 108
    assert torch.cuda.current_device() == 0
