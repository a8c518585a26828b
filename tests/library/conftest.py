"""A tiny stand-in library, wheels that carry it and a package index on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

FEATURES: dict[str, dict[str, str]] = {
    "v3.4": {"matmul_ogs.py": "", "routing.py": "", "tensor_details/layout.py": "class OtherLayout: ..."},
    "v3.5": {"matmul_ogs.py": "", "routing.py": "", "tensor_details/layout.py": "class BlackwellMXValueLayout: ..."},
    "v3.6": {"matmul_ogs.py": "", "tensor.py": "class SparseMatrix:\n    ..."},
    "v3.7": {"matmul.py": "class PrecisionConfig:\n    b_mx_scale: object = None\n"},
    "v3.8": {"matmul.py": "class PrecisionConfig:\n    b_mx_scale: object = None\n    b_microblock_size: int = 0\n"},
}
GENUINE = ("__init__.py", "numerics.py", "specialize.py", "target_info.py", "tensor.py", "testing.py")


def library_files(generation: str = "v3.5") -> dict[str, str]:
    """Text by relative path of a stand-in library with the features of a generation."""
    return {**dict.fromkeys(GENUINE, "raise RuntimeError('imported')\n"), **FEATURES[generation]}


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    for relative, text in files.items():
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def make_library() -> Callable[..., Path]:
    """Writes a stand-in library as the given package folder."""

    def make(package: Path, generation: str = "v3.5") -> Path:
        return write_files(package, library_files(generation))

    return make


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of installed packages; all that this machine has installed is hidden."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    standard = sysconfig.get_path("stdlib")
    kept = [entry for entry in sys.path if entry.startswith(standard) and "site-packages" not in entry]
    monkeypatch.setattr(sys, "path", [str(folder), *kept])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if isinstance(finder, type)])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("triton_kernels", "vllm")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


@pytest.fixture
def make_wheel() -> Callable[..., bytes]:
    """Builds a wheel; ``altered`` members get other bytes than RECORD says, ``unrecorded`` ones no entry."""

    def make(
        prefix: str = "vllm/third_party/triton_kernels/",
        files: Mapping[str, str] | None = None,
        altered: tuple[str, ...] = (),
        unrecorded: tuple[str, ...] = (),
        native: bytes = b"\x7fELF",
    ) -> bytes:
        members = {prefix + name: text.encode() for name, text in (files or library_files()).items()}
        members |= {"vllm/__init__.py": b"", "vllm/big.so": native, prefix + "native.so": b"\x7fELF"}
        rows = []
        for name, data in members.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            if name.removeprefix(prefix) not in unrecorded:
                rows.append(f"{name},sha256={digest},{len(data)}")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data + b"#" if name.removeprefix(prefix) in altered else data)
            archive.writestr("vllm-1.0.dist-info/RECORD", "\n".join([*rows, "vllm-1.0.dist-info/RECORD,,"]))
        return buffer.getvalue()

    return make


@dataclass
class Index:
    """A package index; fill ``pages`` and ``files`` before use."""

    url: str = ""
    pages: dict[str, tuple[str, str]] = field(default_factory=dict)  # path -> (content type, text)
    files: dict[str, bytes] = field(default_factory=dict)  # path -> bytes
    ranges: bool = True
    suffix_ranges: bool = True
    password: str | None = None
    sent: int = 0  # bytes of files sent
    requests: list[str] = field(default_factory=list)

    def offer(
        self,
        wheels: Mapping[str, bytes],
        name: str = "vllm",
        attributes: Mapping[str, str] | None = None,
        hashed: bool = True,
    ) -> None:
        """Lists wheels on an HTML page, with extra attributes on some links, and hashes that pip would refuse."""
        digest = "#sha256=00" * hashed
        links = [f'<a href="../../files/{key}{digest}" {(attributes or {}).get(key, "")}>{key}</a>' for key in wheels]
        self.pages[f"/simple/{name}/"] = "text/html", "<!DOCTYPE html><html><body>" + "\n".join(links)
        self.files |= {f"/files/{key}": data for key, data in wheels.items()}


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            index.requests.append(self.path)
            if index.password:
                wanted = "Basic " + base64.b64encode(f"user:{index.password}".encode()).decode()
                if self.headers.get("Authorization") != wanted:
                    return self.answer(401, b"")
            if self.path in index.pages:
                kind, text = index.pages[self.path]
                return self.answer(200, text.encode(), {"Content-Type": kind})
            if self.path in index.files:
                return self.file(index.files[self.path])
            return self.answer(404, b"")

        def file(self, data: bytes) -> None:
            asked = self.headers.get("Range", "").removeprefix("bytes=")
            if not asked or not index.ranges:
                return self.answer(200, data)
            first, _, last = asked.partition("-")
            if not first and not index.suffix_ranges:
                return self.answer(416, b"")
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            return self.answer(206, data[start:stop], headers)

        def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
                index.sent += len(body) if self.path in index.files else 0

    return Handler


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """A running index that pip's settings name, and an empty cache; nothing else of this machine's settings."""
    offered = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(offered))
    offered.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    for key in ("EXTRA_INDEX_URL", "NO_INDEX", "PROXY", "TRUSTED_HOST", "TIMEOUT", "CERT", "CLIENT_CERT"):
        monkeypatch.delenv(f"PIP_{key}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", offered.url)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(tmp_path / "cache"))
    yield offered
    server.shutdown()
    server.server_close()
