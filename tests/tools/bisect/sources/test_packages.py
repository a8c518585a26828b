"""Versions of a package, unpacked by pip from an index of this machine; nothing is installed."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from gpucheck.model.errors import InfrastructureError
from gpucheck.tools.bisect.run_once import environment
from gpucheck.tools.bisect.sources.base import Candidate, Unbuildable
from gpucheck.tools.bisect.sources.packages import Packages
from tests.library.conftest import Index


def wheel(version: str, text: str = "") -> bytes:
    """A wheel of ``someparts`` that needs another package; its module holds ``text``, else the version."""
    buffer = io.BytesIO()
    info = f"someparts-{version}.dist-info"
    members = {
        "someparts/__init__.py": text or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: someparts\nVersion: {version}\nRequires-Dist: absent\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
        hashes = {name: base64.urlsafe_b64encode(sha256(text.encode()).digest()) for name, text in members.items()}
        rows = [f"{name},sha256={value.decode().rstrip('=')},\n" for name, value in hashes.items()]
        archive.writestr(f"{info}/RECORD", "".join([*rows, f"{info}/RECORD,,\n"]))
    return buffer.getvalue()


@pytest.fixture
def source(index: Index, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    """Some versions on an index; what pip is told about environments must not matter for a private folder."""
    (tmp_path / "constraints.txt").write_text("someparts==0.1\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("PIP_USER", "1")
    wheels = {f"someparts-{version}-py3-none-any.whl": wheel(version) for version in ("1.0", "1.1", "2.0")}
    wheels["someparts-1.2-py3-none-any.whl"] = wheel("1.2", "VERSION = '1.1'\n")
    wheels["someparts-1.5-cp27-none-win32.whl"] = b""
    index.offer(wheels, "someparts", hashed=False)
    return Packages("someparts", "1.0", "2.0", str(library))


def test_a_version_is_what_a_run_imports_while_it_is_used(source: Packages, index: Index, tmp_path: Path) -> None:
    candidates = source.candidates()
    assert [candidate.name for candidate in candidates] == ["1.0", "1.1", "1.5", "2.0"]
    assert candidates[1].title == "1.1 - 1.2 (2 releases)", "equal but for the metadata"
    assert len({candidate.key for candidate in candidates}) == 4 and index.sent < 40_000
    seen = []
    for candidate in (candidates[1], candidates[3]):
        with source.prepared(candidate, tmp_path) as prepared:
            code = "import someparts; print(someparts.VERSION)"
            variables = environment(prepared.paths, str(tmp_path / "cache"))
            answer = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
            seen.append(answer.stdout.strip())
            assert str(prepared.library) == source.library
        assert not prepared.paths[0].exists()
    assert seen == ["1.1", "2.0"]
    assert source.details(candidates[1]) == ["someparts==1.1"]


def test_a_version_without_a_wheel_that_fits(source: Packages, tmp_path: Path) -> None:
    reason = "no wheel fits this Python and platform: someparts==1.5"
    known = source.candidates()[2]
    assert known.lacks == reason
    for candidate in (known, Candidate("1.5", "told by number")):
        with pytest.raises(Unbuildable, match=reason), source.prepared(candidate, tmp_path):
            pass


def test_wheels_that_cannot_be_read_in_parts_are_told_apart_by_number(source: Packages, index: Index) -> None:
    index.ranges = False
    assert [candidate.name for candidate in source.candidates()] == ["1.0", "1.1", "1.2", "1.5", "2.0"]


def test_an_index_that_fails(source: Packages, index: Index, tmp_path: Path) -> None:
    index.files["/files/someparts-1.0-py3-none-any.whl"] = b"no zip archive"
    broken = Candidate("1.0", "someparts==1.0")
    with pytest.raises(InfrastructureError, match="pip could not unpack someparts==1.0"):
        source.prepared(broken, tmp_path).__enter__()
