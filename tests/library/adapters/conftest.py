"""Loads a real copy of the library into this process and runs its kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import pytest

from gpucheck.library.adapters import load
from gpucheck.library.adapters.base import Adapter
from gpucheck.library.library_option import LibraryCopy, parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.triton_hooks import interpreter

if importlib.util.find_spec("triton"):
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    major, minor = os.environ.get("GPUCHECK_TEST_CAPABILITY", "8.0").split(".")  # 9.0 tests Hopper's layouts
    interpreter.install(capability=(int(major), int(minor)))


@pytest.fixture(scope="session")
def library_copy() -> LibraryCopy:
    """The folder in GPUCHECK_TEST_LIBRARY, else what a run without options would test."""
    folder = os.environ.get("GPUCHECK_TEST_LIBRARY")
    if folder:
        return resolve(parse_source(f"path:{folder}"))
    try:
        return resolve(None)
    except InfrastructureError as error:
        pytest.skip(f"no library to test, set GPUCHECK_TEST_LIBRARY: {error}")


@pytest.fixture(scope="session")
def adapter(library_copy: LibraryCopy) -> Adapter:
    """The adapter to :func:`library_copy`."""
    pytest.importorskip("triton", reason="needs triton")
    return load(library_copy.root, library_copy.generation)
