"""Reads members of a public wheel by HTTP range requests, each compared with the wheel's own RECORD."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gpucheck.library.index import OTHER_WAY, Wheel, request_failure
from gpucheck.library.pip_settings import PipSettings
from gpucheck.model.errors import InfrastructureError

_READ_AHEAD = 128 << 10  # bytes
_GAP = 64 << 10  # bytes between two wanted members that are read too, rather than asked for around
_MOST_AT_ONCE = 8 << 20  # bytes of one request
_HEADER = 512  # bytes at most of a member's own header beside its name

_UNHASHED = (".dist-info/RECORD", ".dist-info/RECORD.jws", ".dist-info/RECORD.p7s")

T = TypeVar("T")


def session() -> Any:
    """A ``requests`` session with a few quick retries."""
    try:
        import remotezip  # noqa: F401 - it brings requests along
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry
    except ImportError as error:
        raise InfrastructureError(
            f"taking the library out of a wheel needs the package {error.name}, which is not installed.\n"
            f"  do  pip install remotezip\n  or  {OTHER_WAY}"
        ) from error
    made = requests.Session()
    retry = Retry(total=2, backoff_factor=0.2, status_forcelist=(502, 503, 504), raise_on_status=False)
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    return made


def read_wheel(
    wheel: Wheel, settings: PipSettings, session: Any, read: Callable[[zipfile.ZipFile, Wheel], dict[str, T]]
) -> dict[str, T]:
    """What ``read`` takes from a wheel."""
    import remotezip
    import requests

    try:
        with _open(wheel, settings, session) as archive:
            return read(archive, wheel)
    except remotezip.RangeNotSupported:
        why = "its server does not answer range requests; download and unpack the wheel yourself"
    except (zipfile.BadZipFile, zlib.error, EOFError):
        why = "it is no sound zip archive"
    except (remotezip.RemoteZipError, requests.RequestException, OSError) as error:
        why = request_failure(error)
    raise InfrastructureError(
        f"cannot read {wheel.filename} from {wheel.address.host}: {why}.\n  or  {OTHER_WAY}"
    ) from None


def _open(wheel: Wheel, settings: PipSettings, session: Any) -> zipfile.ZipFile:
    """The wheel as an archive whose members are read on demand."""
    parts = urlsplit(wheel.address.url)
    if parts.scheme == "file":
        return zipfile.ZipFile(url2pathname(parts.path))
    import remotezip

    spans: list[tuple[int, int]] = []
    options = {"session": session, "fetcher": _read_ahead_fetcher(spans), **settings.request_options(wheel.address)}
    try:
        archive = remotezip.RemoteZip(wheel.address.url, **options)
    except remotezip.RangeNotSupported:
        raise
    except remotezip.RemoteZipError:  # some servers refuse a range counted from the end
        archive = remotezip.RemoteZip(wheel.address.url, support_suffix_range=False, **options)
    archive.gpucheck_spans = spans
    return archive  # type: ignore[no-any-return]


def read_members(archive: zipfile.ZipFile, wheel: Wheel, members: Iterable[zipfile.ZipInfo]) -> dict[str, bytes]:
    """Member name -> bytes, each compared with the SHA-256 in the wheel's RECORD.

    Raises:
        InfrastructureError: one does not match, or RECORD does not have it.
    """
    wanted = sorted(members, key=lambda info: info.header_offset)
    hashes = record_hashes(archive)
    spans = getattr(archive, "gpucheck_spans", [])
    spans += _spans(wanted)
    read = {}
    for info in wanted:
        name, data = info.filename, archive.read(info)
        if _sha256(data) != hashes.get(name) and not name.endswith(_UNHASHED):
            found = "other bytes: damaged on the way, or altered" if name in hashes else "no entry in RECORD"
            raise InfrastructureError(
                f"{name} in {wheel.filename} from {wheel.address.host} does not match the wheel's RECORD.\n"
                f"  found     {found}\n"
                "  expected  its SHA-256 as RECORD gives it\n"
                f"  do        try again, or with another index; or {OTHER_WAY}"
            )
        read[name] = data
    return read


def _spans(members: Sequence[zipfile.ZipInfo]) -> list[tuple[int, int]]:
    """First and last byte of what one request reads: members side by side, up to a size."""
    spans: list[tuple[int, int]] = []
    for info in members:
        first = info.header_offset
        last = first + info.compress_size + len(info.filename.encode()) + _HEADER
        if spans and first - spans[-1][1] < _GAP and last - spans[-1][0] < _MOST_AT_ONCE:
            spans[-1] = spans[-1][0], max(last, spans[-1][1])
        else:
            spans.append((first, last))
    return spans


def _read_ahead_fetcher(spans: list[tuple[int, int]]) -> type:
    """A fetcher that asks for more than one member at once: to the end of a span, where the first byte lies in one."""
    import remotezip

    class ReadAhead(remotezip.RemoteFetcher):
        start = 0  # offset in the wheel of the bytes at hand
        data = b""

        def fetch(self, data_range: tuple[int, int | None], stream: bool = False) -> Any:
            first, last = data_range
            if last is None:
                return super().fetch(data_range, stream)
            if first < self.start or last >= self.start + len(self.data):
                ahead = next((end for begin, end in spans if begin <= first <= end), first + _READ_AHEAD - 1)
                self.data = super().fetch((first, max(last, ahead))).read()
                self.start = first
            offset, size = first - self.start, last - first + 1
            return remotezip.PartialBuffer(io.BytesIO(self.data[offset : offset + size]), first, size, False)

    return ReadAhead


def record_hashes(archive: zipfile.ZipFile) -> dict[str, str]:
    """Member name -> urlsafe base64 SHA-256 without padding, from the wheel's RECORD."""
    record = next((name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)), None)
    if record is None:
        return {}
    rows = csv.reader(archive.read(record).decode("utf-8", errors="replace").splitlines())
    return {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) >= 2 and row[1].startswith("sha256=")}


def _sha256(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
