from __future__ import annotations

import io
import random
import socket
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpucheck.library.fetch import fetch, recorded_content
from gpucheck.model.errors import InfrastructureError, UsageError

pytest.importorskip("remotezip")

MakeWheel = Callable[..., bytes]
LINUX = "vllm-1.0-cp38-abi3-manylinux_2_28_x86_64.whl"
ANY = "vllm-1.0-py3-none-any.whl"


@pytest.mark.parametrize("prefix", ["vllm/third_party/triton_kernels/", "triton_kernels/"])
def test_only_the_library_is_taken_and_then_cached(
    index: Any, make_wheel: MakeWheel, tmp_path: Path, prefix: str
) -> None:
    index.offer({LINUX: make_wheel(prefix)})
    copy = fetch("vllm", "1.0")
    assert copy.root == tmp_path / "cache/libraries/vllm-1.0"
    assert (copy.origin, copy.generation, copy.installed) == ("vllm 1.0", "v3.5", False)
    names = {path.relative_to(copy.package).as_posix() for path in copy.package.rglob("*") if path.is_file()}
    assert "tensor_details/layout.py" in names and len(names) == 9 and not any(name.endswith(".so") for name in names)

    asked = len(index.requests)
    assert fetch("VLLM", "1.0") == copy
    assert len(index.requests) == asked


def test_a_large_wheel_is_not_downloaded(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel(native=random.Random(1).randbytes(4 << 20))})
    fetch("vllm", "1.0")
    assert len(index.files[f"/files/{LINUX}"]) > 4 << 20
    assert 0 < index.sent < 512 << 10


def test_members_that_do_not_belong_are_left_out(index: Any, make_wheel: MakeWheel) -> None:
    files = {**_files(), "../outside.py": "", "huge.txt": " " * (5 << 20), "notes.md": "kept"}
    index.offer({LINUX: make_wheel("triton_kernels/", files)})
    copy = fetch("vllm", "1.0")
    assert (copy.package / "notes.md").read_text() == "kept"
    assert not (copy.package / "huge.txt").exists() and not (copy.root / "outside.py").exists()


def _files() -> dict[str, str]:
    names = (
        "__init__.py",
        "numerics.py",
        "specialize.py",
        "target_info.py",
        "tensor.py",
        "testing.py",
        "matmul_ogs.py",
    )
    return {**dict.fromkeys(names, ""), "routing.py": "", "tensor_details/layout.py": "BlackwellMXValueLayout = 1"}


@pytest.mark.parametrize(
    ("fault", "found"),
    [({"altered": ("tensor.py",)}, "other bytes"), ({"unrecorded": ("tensor.py",)}, "no entry in RECORD")],
)
def test_every_file_must_match_the_record(
    index: Any, make_wheel: MakeWheel, tmp_path: Path, fault: dict[str, tuple[str, ...]], found: str
) -> None:
    index.offer({LINUX: make_wheel(**fault)})
    with pytest.raises(InfrastructureError, match=found) as caught:
        fetch("vllm", "1.0")
    assert "triton_kernels/tensor.py" in str(caught.value) and LINUX in str(caught.value)
    assert not (tmp_path / "cache/libraries").exists()


def test_a_changed_cached_copy_is_reported_and_fetched_again(
    index: Any, make_wheel: MakeWheel, capsys: pytest.CaptureFixture[str]
) -> None:
    index.offer({LINUX: make_wheel()})
    copy = fetch("vllm", "1.0")
    (copy.package / "routing.py").write_text("# changed")
    assert fetch("vllm", "1.0").content == copy.content
    assert (copy.package / "routing.py").read_text() != "# changed"
    seen = capsys.readouterr()
    assert "its files were changed" in seen.err and str(copy.root) in seen.err and seen.out == ""


def test_yanked_wheels_serve_only_where_nothing_else_does(index: Any, make_wheel: MakeWheel, tmp_path: Path) -> None:
    wheels = {LINUX: make_wheel(altered=("tensor.py",)), ANY: make_wheel()}
    index.offer(wheels, attributes={LINUX: 'data-yanked="bad build"'})
    assert fetch("vllm", "1.0").origin == "vllm 1.0"
    index.offer({ANY: wheels[ANY]}, attributes={ANY: "data-yanked"})
    assert fetch("vllm", "1.0", cache=tmp_path / "other").origin == "vllm 1.0 (yanked)"


def test_wheels_without_the_library(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel("other/triton_kernels/")})
    with pytest.raises(UsageError, match=f"hold no genuine triton_kernels: {LINUX}") as caught:
        fetch("vllm", "1.0")
    assert "--library path:DIR" in str(caught.value)


def test_an_unrelated_package_of_the_same_name_is_not_taken(index: Any, make_wheel: MakeWheel, tmp_path: Path) -> None:
    index.offer({LINUX: make_wheel("triton_kernels/", {"__init__.py": "", "rotary_embedding.py": ""})})
    with pytest.raises(UsageError, match="with numerics.py, specialize.py"):
        fetch("vllm", "1.0")
    assert not (tmp_path / "cache").exists()


def test_two_copies_in_one_wheel_are_not_mixed(index: Any, make_wheel: MakeWheel) -> None:
    other = {f"vllm/third_party/triton_kernels/{name}": text for name, text in _files().items()}
    index.offer({LINUX: make_wheel("", {**other, "triton_kernels/__init__.py": "", "triton_kernels/stray.py": ""})})
    copy = fetch("vllm", "1.0")
    assert not (copy.package / "stray.py").exists()
    assert (copy.package / "matmul_ogs.py").exists()


def test_one_platform_without_the_library_is_passed_over(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel("other/"), ANY: make_wheel()})
    assert fetch("vllm", "1.0").generation == "v3.5"


def test_missing_release(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel()})
    with pytest.raises(UsageError, match="no wheel of version 2.0"):
        fetch("vllm", "2.0")
    with pytest.raises(UsageError, match="no wheel of other"):
        fetch("other", "2.0")


def test_no_network(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:s3cret@127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(InfrastructureError, match="cannot be reached") as caught:
            fetch("vllm", "1.0")
    assert "--library path:DIR" in str(caught.value)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert index.requests == []


def test_a_private_index_gets_its_password_and_nobody_else(
    index: Any, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.password = "s3cret"
    index.offer({LINUX: make_wheel()})
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://user:s3cret@"))
    copy = fetch("vllm", "1.0")
    assert "s3cret" not in (copy.root / "origin.json").read_text()

    del index.files[f"/files/{LINUX}"]
    with pytest.raises(InfrastructureError, match="answered 404") as caught:
        fetch("vllm", "1.0", cache=copy.root)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_server_without_ranges(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel()})
    index.ranges = False
    with pytest.raises(InfrastructureError, match="does not answer range requests"):
        fetch("vllm", "1.0")


def test_server_that_refuses_ranges_from_the_end(index: Any, make_wheel: MakeWheel) -> None:
    index.offer({LINUX: make_wheel()})
    index.suffix_ranges = False
    assert fetch("vllm", "1.0").generation == "v3.5"


def test_a_file_that_is_no_archive(index: Any) -> None:
    index.offer({LINUX: b"not a wheel" * 100})
    with pytest.raises(InfrastructureError, match="no sound zip archive"):
        fetch("vllm", "1.0")


def test_local_index(index: Any, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "simple/vllm").mkdir(parents=True)
    (tmp_path / "simple/vllm" / ANY).write_bytes(make_wheel())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "simple").as_uri())
    assert fetch("vllm", "1.0").origin == "vllm 1.0"
    assert index.requests == ["/simple/vllm/"]


def test_an_unsupported_library_is_named(index: Any, make_wheel: MakeWheel) -> None:
    files = {name: text for name, text in _files().items() if name != "matmul_ogs.py"}
    index.offer({LINUX: make_wheel(files=files)})
    with pytest.raises(UsageError, match="neither matmul_ogs.py nor matmul.py"):
        fetch("vllm", "1.0")


def test_without_remotezip(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "remotezip", None)
    with pytest.raises(InfrastructureError, match="pip install remotezip") as caught:
        fetch("vllm", "1.0")
    assert "--library path:DIR" in str(caught.value) and index.requests == []


def test_the_recorded_content_of_a_version(index: Any, make_wheel: MakeWheel) -> None:
    """Equal but for the metadata is equal; the wheel that suits best is the one that counts."""
    other = make_wheel(files={"more.py": ""})
    wheels = {"vllm-1.0-py3-none-any.whl": make_wheel(), "vllm-1.1-py3-none-any.whl": make_wheel()}
    wheels |= {"vllm-1.2-py3-none-any.whl": other, "vllm-1.2-py2-none-any.whl": make_wheel()}
    wheels |= {f"vllm-{version}-py3-none-any.whl": without_hashes(make_wheel()) for version in ("2.0", "2.1")}
    index.offer(wheels)

    def content(version: str, *tags: str) -> str | None:
        return recorded_content(
            "vllm", version, lambda name: next((n for n, tag in enumerate(tags) if tag in name), None)
        )

    assert (
        content("1.0", "py3") == content("1.1", "py3") == content("1.2", "py2", "py3") != content("1.2", "py3", "py2")
    )
    assert content("1.0", "py2") is None
    assert content("2.0", "py3") != content("2.1", "py3")


def without_hashes(wheel: bytes) -> bytes:
    """The same wheel with a RECORD that says nothing."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive, zipfile.ZipFile(buffer, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, b"" if name.endswith("/RECORD") else archive.read(name))
    return buffer.getvalue()
