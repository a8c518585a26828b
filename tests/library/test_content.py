from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.library.content import (
    GENERATIONS,
    KNOWN,
    TRITON_RANGES,
    content_hash,
    detect_generation,
    known,
    triton_problem,
)
from gpucheck.model.errors import UsageError
from tests.library.conftest import write_files

MakeLibrary = Callable[..., Path]


def test_hash_covers_names_and_bytes_of_python_files_only(tmp_path: Path, make_library: MakeLibrary) -> None:
    package = make_library(tmp_path / "one/triton_kernels")
    before = content_hash(package)
    assert content_hash(make_library(tmp_path / "two/triton_kernels")) == before
    (package / "__pycache__").mkdir()
    (package / "__pycache__/tensor.cpython-312.pyc").write_bytes(b"compiled")
    (package / "notes.md").write_text("notes")
    assert content_hash(package) == before

    (package / "tensor.py").write_text((package / "tensor.py").read_text() + " ")
    changed = content_hash(package)
    assert changed != before
    (package / "testing.py").rename(package / "testing2.py")
    assert content_hash(package) not in (before, changed)


def test_hash_tells_where_one_file_ends(tmp_path: Path) -> None:
    for folder, texts in (("one", ("ab", "c")), ("two", ("a", "bc"))):
        (tmp_path / folder).mkdir()
        for name, text in zip(("x.py", "y.py"), texts, strict=True):
            (tmp_path / folder / name).write_text(text)
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")


def test_the_table_is_sound() -> None:
    assert [entry.name for entry in KNOWN] == list("ABCDEF")
    assert tuple(dict.fromkeys(entry.generation for entry in KNOWN)) == GENERATIONS == tuple(TRITON_RANGES)
    assert len({entry.content for entry in KNOWN}) == len(KNOWN)
    for entry in KNOWN:
        assert len(entry.content) == 64 and set(entry.content) <= set("0123456789abcdef")
        assert known(entry.content) is entry
        name, _, version = entry.example.partition("==")
        assert version in [
            last for carrier in entry.carriers if carrier.distribution == name for last in [carrier.last]
        ]
    assert known("0" * 64) is None


@pytest.mark.parametrize("generation", GENERATIONS)
def test_generation_by_features(tmp_path: Path, make_library: MakeLibrary, generation: str) -> None:
    package = make_library(tmp_path / "triton_kernels", generation)
    assert detect_generation(package) == generation
    (package / "specialize.py").write_text("# a local change\n")
    assert detect_generation(package) == generation


def test_the_main_branch_is_of_the_newest_generation_for_as_long_as_its_scales_are_arguments(tmp_path: Path) -> None:
    """As it was in August 2026: further fields and files beside those of content E, then one that is gone."""
    fields = ["a_mx_scale", "b_mx_scale", "b_mx_tensor_scale", "b_microblock_size", "intermediate_out_dtype"]
    config = "class PrecisionConfig:\n" + "".join(f"    {name}: object | None = None\n" for name in fields)
    flags = "class OptFlags:\n    swap_xw: bool | None\n    use_output_tma: bool | None\n    clc: bool = False\n"
    files = {"matmul.py": config, "fpsan.py": "", "tensor.py": "", "matmul_details/opt_flags.py": flags}
    package = write_files(tmp_path / "triton_kernels", files)
    assert detect_generation(package) == GENERATIONS[-1]
    (package / "matmul.py").write_text("class PrecisionConfig:\n    out_dtype: object | None = None\n")
    (package / "tensor.py").write_text("class Tensor:\n    scale_mx: object | None = None\n")
    with pytest.raises(UsageError, match="tensors carry their own scales .scale_mx in tensor.py.: newer than v3.8"):
        detect_generation(package)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "neither matmul_ogs.py nor matmul.py"),
        ({"matmul.py": "", "matmul_ogs.py": ""}, "both matmul_ogs.py and matmul.py"),
        ({"matmul_ogs.py": ""}, "without routing.py"),
        ({"matmul.py": "weights = b_mx_scale"}, "no field b_mx_scale"),
        ({"matmul.py": "", "tensor.py": "def wrap_torch_tensor(data, scale_mx=None): ..."}, "newer than v3.8"),
    ],
)
def test_unsupported_generation_is_refused_with_what_was_found(
    tmp_path: Path, files: dict[str, str], found: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=found) as caught:
        detect_generation(tmp_path)
    assert str(tmp_path) in str(caught.value) and "v3.4" in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "fits", "does_not"),
    [
        ("v3.4", ["3.4.0", "3.4.1.post2"], ["3.3.1", "3.5.0", "3.6.0", "4.0"]),
        ("v3.5", ["3.5.0", "3.5.1+git12", "3.9.0", "3.10.0"], ["3.4.0", "2.9"]),
        ("v3.6", ["3.6.0"], ["3.4.0"]),
        ("v3.7", ["3.7.1", "3.5.0"], ["3.4.0"]),
        ("v3.8", ["3.8.0", "3.9.0", "3.10.1"], ["3.7.1", "3.6.0"]),
    ],
)
def test_triton_range(generation: str, fits: list[str], does_not: list[str]) -> None:
    for version in fits:
        assert triton_problem(generation, version) is None
    for version in does_not:
        problem = triton_problem(generation, version)
        assert problem is not None and generation in problem and version in problem


def test_an_unreadable_triton_version_is_a_problem() -> None:
    assert "cannot read" in (triton_problem("v3.5", "main") or "")


@pytest.mark.skipif(not os.environ.get("GPUCHECK_TEST_NETWORK"), reason="GPUCHECK_TEST_NETWORK is not set")
@pytest.mark.parametrize("entry", KNOWN, ids=lambda entry: entry.example)
def test_the_real_wheels_carry_the_known_contents(tmp_path: Path, entry: object) -> None:
    from gpucheck.library.content import KnownContent
    from gpucheck.library.fetch import fetch

    assert isinstance(entry, KnownContent)
    name, _, version = entry.example.partition("==")
    copy = fetch(name, version, cache=tmp_path)
    assert (copy.name, copy.generation) == (entry.name, entry.generation)
    assert detect_generation(copy.package) == entry.generation
