"""Pip's index and connection settings, so that a machine that can install can also fetch; and pip itself at work.

Credentials may stand in these settings: they are split from the addresses at once and never printed.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from gpucheck.model.errors import InfrastructureError

_SECTIONS = ("global", "install", "download")  # a later one wins; the environment wins over all
_TRUE = ("1", "true", "yes", "on", "t", "y")
UNPACK_TIMEOUT = 1800.0  # seconds; a wheel has up to some hundred MB


@dataclass(frozen=True)
class Address:
    """A URL with its credentials taken out."""

    url: str
    auth: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """What may be printed: scheme and host, or a whole ``file:`` address. Other paths may hold tokens."""
        parts = urlsplit(self.url)
        return self.url if parts.scheme == "file" else f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True)
class PipSettings:
    """What pip would use to reach its indexes."""

    indexes: tuple[Address, ...]
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = field(default=None, repr=False)
    trusted_hosts: tuple[str, ...] = ()  # host or host:port
    timeout: float = 15.0  # seconds without an answer

    def request_options(self, address: Address) -> dict[str, Any]:
        """Keyword arguments for a request to ``address``; what is absent is left to the environment."""
        options: dict[str, Any] = {"timeout": self.timeout}
        parts = urlsplit(address.url)
        if address.auth:
            options["auth"] = address.auth
        if self.cert:
            options["verify"] = self.cert
        if parts.netloc in self.trusted_hosts or parts.hostname in self.trusted_hosts:
            options["verify"] = False
        if self.client_cert:
            options["cert"] = self.client_cert
        if self.proxy:
            options["proxies"] = {"http": self.proxy, "https": self.proxy}
        return options


def address(url: str) -> Address:
    """Splits ``user:password@`` from a URL."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return Address(url)
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    return Address(urlunsplit(parts._replace(netloc=host)), (unquote(name), unquote(password)))


def default_index() -> str:
    """The index that pip itself uses where none is configured.

    Raises:
        InfrastructureError: there is no pip to ask.
    """
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        raise InfrastructureError(
            "no package index is configured and this Python has no pip to take one from: "
            "set PIP_INDEX_URL, or give the library as --library path:DIR"
        ) from None
    return str(PyPI.simple_url)


def read_pip_settings(environ: Mapping[str, str] | None = None) -> PipSettings:
    """Reads pip's settings: environment, then its configuration files."""
    environ = os.environ if environ is None else environ
    values = _flatten(_from_pip(environ) or _from_files(config_files(environ)))
    for key in list(_KEYS):
        variable = "PIP_" + key.upper().replace("-", "_")
        if environ.get(variable):
            values[key] = environ[variable]

    urls = [] if values.get("no-index", "").lower() in _TRUE else [(values.get("index-url") or default_index()).strip()]
    if urls:
        urls += values.get("extra-index-url", "").split()
    return PipSettings(
        indexes=tuple(dict.fromkeys(address(url) for url in urls if url)),
        cert=values.get("cert"),
        client_cert=values.get("client-cert"),
        proxy=values.get("proxy"),
        trusted_hosts=tuple(values.get("trusted-host", "").split()),
        timeout=_seconds(values.get("timeout") or values.get("default-timeout")),
    )


_KEYS = (
    "index-url",
    "extra-index-url",
    "no-index",
    "cert",
    "client-cert",
    "proxy",
    "trusted-host",
    "timeout",
    "default-timeout",
)


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """Pip's configuration files on Linux and macOS, the weakest first."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = Path(environ.get("HOME") or "~").expanduser()
    config_home = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    shared = [
        Path(folder, "pip/pip.conf") for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder
    ]
    user = [home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    files = [*shared, Path("/etc/pip.conf"), *user, Path(sys.prefix, "pip.conf")]
    return [*files, Path(named)] if named else files


def _from_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """``section.key`` -> value as pip itself reports it; empty where pip is absent or does not answer."""
    if environ.get("PIP_CONFIG_FILE") == os.devnull:  # pip then reads no file at all
        return {}
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            timeout=20,
            env={**environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            cwd=sys.prefix,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    if answer.returncode != 0:
        return {}
    found = {}
    for line in answer.stdout.splitlines():
        key, equals, value = line.partition("=")
        if not equals:
            continue
        try:
            found[key] = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
    return found


def _from_files(paths: list[Path]) -> dict[str, str]:
    """``section.key`` -> value from configuration files; a broken or unreadable file counts as empty."""
    found = {}
    for path in paths:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for section in parser.sections():
            for key, value in parser.items(section):
                found[f"{section}.{key}"] = value
    return found


def _flatten(found: Mapping[str, str]) -> dict[str, str]:
    """One value for each key: that of the strongest section."""
    values = {}
    for section in _SECTIONS:
        for name, value in found.items():
            prefix, _, key = name.partition(".")
            key = key.lower().replace("_", "-").lstrip("-")
            if prefix == section and key in _KEYS and value:
                values[key] = value
    return values


def _seconds(text: str | None) -> float:
    try:
        return float(text) if text else 15.0
    except ValueError:
        return 15.0


def unpack(requirement: str, folder: Path, *options: str) -> str:
    """Lets pip put the wheel of a release that fits this Python into a folder, without what it depends on.

    What pip is told about environments does not concern a private folder: constraints and ``--user`` are left aside.

    Returns:
        What pip said against it, without the addresses in it, which may hold credentials; "" where it is done.

    Raises:
        InfrastructureError: pip takes too long.
    """
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--no-deps", "--only-binary=:all:", *options]
    environment = {**os.environ, "PIP_CONSTRAINT": os.devnull, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        answer = subprocess.run(
            [*command, "--target", str(folder), requirement],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UNPACK_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise InfrastructureError(f"pip did not fetch {requirement} within {UNPACK_TIMEOUT:.0f} s") from None
    if answer.returncode == 0:
        return ""
    return re.sub(r"\w+://\S+", "<address>", answer.stderr.strip()) or f"exit code {answer.returncode}"
