from __future__ import annotations

import os

import pytest

from gpucheck.host.env_vars import PREFIXES, restore, variables


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/cache")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setenv("AWS_SECRET", "x")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")


def test_only_what_changes_kernels_is_recorded() -> None:
    assert variables() == {"CUDA_VISIBLE_DEVICES": "4,5", "TRITON_CACHE_DIR": "/cache"}


def test_restored_are_those_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = variables()
    monkeypatch.setenv("TRITON_CACHE_DIR", "/other")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    restore(recorded, same_host=True)
    assert variables() == recorded and os.environ["AWS_SECRET"] == "x" and "TORCHELASTIC_RUN_ID" in os.environ


def test_gpus_of_another_host_mean_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = variables()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    restore(recorded, same_host=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    restore(recorded, same_host=False)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
