from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.library.identity import check_identity, check_installed_library
from gpucheck.model.errors import ExitCode, InfrastructureError


def install(site: Path, distribution: str, *files: str) -> None:
    """Puts files and the metadata that claims them into a site-packages folder."""
    for name in files:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("raise RuntimeError('imported')")
    metadata = site / f"{distribution}.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text("".join(f"{name},sha256=x,1\n" for name in files))


def test_this_checkout_is_ours() -> None:
    check_identity()


def test_ours_alone_is_fine(tmp_path: Path) -> None:
    install(tmp_path, "gpucheck_harness-0.1.0", "gpucheck/__init__.py")
    install(tmp_path, "gpuchecker-3.0", "gpuchecker/__init__.py")
    check_identity(tmp_path / "gpucheck")


def test_a_distribution_of_that_name_with_other_files_is_fine(tmp_path: Path) -> None:
    install(tmp_path, "gpucheck-0.1.0", "pytest_gpucheck/__init__.py")
    check_identity(tmp_path / "gpucheck")


def test_the_unrelated_plugin_over_our_files_is_reported(tmp_path: Path) -> None:
    install(tmp_path, "gpucheck_harness-0.1.0", "gpucheck/__init__.py")
    install(tmp_path, "gpucheck-0.1.0", "gpucheck/__init__.py", "gpucheck/plugin.py")
    with pytest.raises(InfrastructureError) as caught:
        check_identity(tmp_path / "gpucheck")
    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.INCONCLUSIVE == 3
    assert all(
        part in message for part in ("gpucheck 0.1.0", str(tmp_path), "pip uninstall -y gpucheck gpucheck-harness")
    )


def test_it_is_cheap(tmp_path: Path, slowness: Callable[[], float]) -> None:
    for number in range(500):
        (tmp_path / f"package{number}-1.0.dist-info").mkdir()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        check_identity(tmp_path / "gpucheck")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.02 * slowness()


def test_unrelated_installed_library(site: Path, make_library: Callable[..., Path]) -> None:
    check_installed_library()

    package = site / "triton_kernels"
    package.mkdir()
    importlib.invalidate_caches()
    check_installed_library()  # a folder that happens to have the name is no installed package

    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    importlib.invalidate_caches()
    with pytest.raises(InfrastructureError, match="pip uninstall -y triton_kernels") as caught:
        check_installed_library()
    assert str(package) in str(caught.value)

    make_library(package)
    check_installed_library()
    assert "triton_kernels" not in sys.modules


def test_a_single_file_of_that_name(site: Path) -> None:
    (site / "triton_kernels.py").write_text("")
    with pytest.raises(InfrastructureError, match="single file"):
        check_installed_library()
