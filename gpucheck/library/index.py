"""Finds the wheels of a release on pip's indexes: the simple API as JSON (PEP 691) or HTML (PEP 503)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from gpucheck.library.pip_settings import Address, PipSettings, address
from gpucheck.model.errors import InfrastructureError, UsageError

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
OTHER_WAY = "--library path:DIR takes a copy from a folder, with no network"


@dataclass(frozen=True)
class Wheel:
    """One wheel offered by an index."""

    filename: str
    address: Address
    version: str
    build: tuple[int, str]  # build tag; (0, "") where the file name has none
    platform: str
    yanked: bool = False


class _IndexFailed(Exception):
    """An index gave no usable answer; the text says why, without its address."""


def find_wheels(name: str, version: str, settings: PipSettings, session: Any) -> list[Wheel]:
    """The wheels of one release, best first: not yanked, x86-64 Linux, other Linux, the rest, higher build tag.

    The first index that offers the release is taken; all its platforms serve, since only Python files are read.

    Args:
        name: distribution name in any spelling.
        version: the release, without local part: then any local part will do.
        settings: where to look.
        session: a ``requests.Session``.

    Raises:
        UsageError: every index answered and none has the release.
        InfrastructureError: an index that may have it could not be asked.
    """
    failures: list[str] = []
    versions: set[str] = set()
    for offered in _each_answer(name, settings, session, failures):
        wheels = [wheel for wheel in offered if same_version(wheel.version, version)]
        if wheels:
            return sorted(wheels, key=_preference)
        versions.update(wheel.version for wheel in offered)
    if failures:
        why = "\n".join(failures)
        raise InfrastructureError(f"cannot look up {name} {version} on pip's indexes:\n{why}\n  or  {OTHER_WAY}")
    raise UsageError(_no_such_release(name, version, versions, settings))


def find_versions(name: str, settings: PipSettings, session: Any) -> dict[str, bool]:
    """The versions of a distribution on all indexes that have wheels, and whether all of a version are yanked.

    Raises:
        UsageError: every index answered and none knows the distribution.
        InfrastructureError: no index that could be asked knows it, and one could not be asked.
    """
    failures: list[str] = []
    found: dict[str, bool] = {}
    for wheel in (wheel for offered in _each_answer(name, settings, session, failures) for wheel in offered):
        found[wheel.version] = found.get(wheel.version, True) and wheel.yanked
    if not found and failures:
        why = "\n".join(failures)
        raise InfrastructureError(f"cannot look up the versions of {name} on pip's indexes:\n{why}")
    if not found:
        raise UsageError(f"no wheel of {name} on {', '.join(index.host for index in settings.indexes)}; check the name")
    return found


def _each_answer(name: str, settings: PipSettings, session: Any, failures: list[str]) -> Iterator[list[Wheel]]:
    """The wheels that each index offers; adds a line to ``failures`` for each that gives no answer."""
    if not settings.indexes:
        failures.append("  pip's settings name no index (no-index)")
    for index in settings.indexes:
        try:
            yield _offered(index, name, settings, session)
        except _IndexFailed as error:
            failures.append(f"  {index.host}  {error}")


def same_version(offered: str, wanted: str) -> bool:
    """Whether a wheel of version ``offered`` satisfies ``==wanted``; a local part counts only where it is asked for."""
    public, _, _ = offered.partition("+")
    return _canonical(offered if "+" in wanted else public) == _canonical(wanted)


def normalise(name: str) -> str:
    """A distribution name as indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _offered(index: Address, name: str, settings: PipSettings, session: Any) -> list[Wheel]:
    """All wheels of a distribution on one index; none where the index does not know it."""
    page = Address(f"{index.url.rstrip('/')}/{normalise(name)}/", index.auth)
    local = urlsplit(index.url).scheme == "file"
    links = _file_links(page) if local else _http_links(page, settings, session)
    found = (_wheel(url, yanked, name, page) for url, yanked in links)
    return [wheel for wheel in found if wheel]


def _http_links(page: Address, settings: PipSettings, session: Any) -> list[tuple[str, bool]]:
    import requests

    try:
        answer = session.get(page.url, headers={"Accept": _ACCEPT}, **settings.request_options(page))
    except (requests.RequestException, OSError, ValueError) as error:
        raise _IndexFailed(request_failure(error)) from None
    if answer.status_code in (404, 410):
        return []
    if answer.status_code != 200:
        raise _IndexFailed(f"answered {answer.status_code} {answer.reason}")
    kind = answer.headers.get("Content-Type", "").lower()
    if "json" in kind:
        return _json_links(answer.text, answer.url)
    return _html_links(answer.text, answer.url)


def _json_links(text: str, base: str) -> list[tuple[str, bool]]:
    try:
        files = json.loads(text)["files"]
        return [(urljoin(base, entry["url"]), entry.get("yanked", False) is not False) for entry in files]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _IndexFailed("answered with JSON that is not a project page") from None


def _html_links(text: str, base: str) -> list[tuple[str, bool]]:
    parser = _Anchors(base)
    parser.feed(text)
    return parser.links


def _file_links(page: Address) -> list[tuple[str, bool]]:
    """Links of a ``file:`` index: a folder with ``index.html``, or with the wheels themselves."""
    folder = Path(url2pathname(urlsplit(page.url).path))
    try:
        if (folder / "index.html").is_file():
            return _html_links((folder / "index.html").read_text(encoding="utf-8", errors="replace"), page.url)
        return [(path.as_uri(), False) for path in folder.glob("*.whl")]
    except OSError as error:
        raise _IndexFailed(f"cannot be read: {error.strerror}") from None


class _Anchors(HTMLParser):
    """Collects the links of a simple index page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.links: list[tuple[str, bool]] = []  # (absolute URL, yanked)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("a", "base") or not values.get("href"):
            return
        try:
            target = urljoin(self.base, values["href"] or "")
        except ValueError:  # no valid address
            return
        if tag == "base":
            self.base = target
        else:
            self.links.append((target, "data-yanked" in values))


def _wheel(url: str, yanked: bool, name: str, page: Address) -> Wheel | None:
    """Reads a link; None where it is no wheel of this distribution."""
    link = address(url.partition("#")[0])
    filename = unquote(urlsplit(link.url).path.rpartition("/")[2])
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) not in (5, 6) or normalise(parts[0]) != normalise(name):
        return None
    if link.auth is None and link.host == page.host:
        link = Address(link.url, page.auth)
    tag = re.match(r"(\d+)(.*)", parts[2]) if len(parts) == 6 else None
    build = (int(tag[1]), tag[2]) if tag else (0, "")
    return Wheel(filename, link, parts[1], build, parts[-1], yanked)


def _preference(wheel: Wheel) -> tuple[Any, ...]:
    linux = "linux" in wheel.platform
    place = 0 if linux and "x86_64" in wheel.platform else 1 if linux else 2
    number, suffix = wheel.build
    return wheel.yanked, "+" in wheel.version, place, -number, suffix, wheel.filename


def _canonical(version: str) -> str:
    """A version without the differences that do not count: case, a leading v, trailing zeros of the release."""
    text = version.strip().lower().removeprefix("v").replace("_", ".")
    match = re.match(r"(\d+(?:\.\d+)*)(.*)", text)
    if match is None:
        return text
    return re.sub(r"(\.0+)+$", "", match[1]) + match[2].replace("-", ".")


def _no_such_release(name: str, version: str, versions: set[str], settings: PipSettings) -> str:
    hosts = ", ".join(index.host for index in settings.indexes)
    if not versions:
        return f"no wheel of {name} on {hosts}.\n  check  the name\n  or     {OTHER_WAY}"
    newest = sorted(versions, key=lambda text: [int(part) for part in re.findall(r"\d+", text)])[-8:]
    return f"{name} has no wheel of version {version} on {hosts}.\n  newest  {', '.join(newest)}\n  or      {OTHER_WAY}"


def request_failure(error: BaseException) -> str:
    """Why a request failed, in words that hold no address and no credentials."""
    import requests

    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    for kind, text in (
        (requests.exceptions.SSLError, "its certificate was not accepted; pip's setting `cert` names a CA bundle"),
        (requests.exceptions.ProxyError, "the proxy refused or could not be reached"),
        (requests.exceptions.Timeout, "did not answer in time"),
        (requests.exceptions.ConnectionError, "cannot be reached"),
    ):
        if any(isinstance(entry, kind) for entry in links):
            return text
    for entry in links:
        if isinstance(entry, requests.exceptions.HTTPError) and entry.response is not None:
            return f"answered {entry.response.status_code} {entry.response.reason}"
    return f"the request failed ({type(error).__name__})"
