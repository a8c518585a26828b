from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpucheck.library import pip_settings
from gpucheck.library.pip_settings import Address, address, default_index, read_pip_settings, unpack

NO_FILES = {"PIP_CONFIG_FILE": "/dev/null"}


def urls(environ: dict[str, str]) -> list[str]:
    return [index.url for index in read_pip_settings(environ).indexes]


def test_default_index() -> None:
    assert urls(NO_FILES) == [default_index()]


def test_environment_names_several_indexes_once_each() -> None:
    environ = {"PIP_INDEX_URL": "https://a/simple", "PIP_EXTRA_INDEX_URL": "https://b/s\n  file:///c  https://a/simple"}
    assert urls({**NO_FILES, **environ}) == ["https://a/simple", "https://b/s", "file:///c"]
    assert urls({**NO_FILES, **environ, "PIP_NO_INDEX": "1"}) == []


def test_credentials_are_taken_out_and_hidden() -> None:
    settings = read_pip_settings({**NO_FILES, "PIP_INDEX_URL": "https://me:p%40ss@host:8443/simple"})
    (index,) = settings.indexes
    assert (index.url, index.auth, index.host) == ("https://host:8443/simple", ("me", "p@ss"), "https://host:8443")
    assert "p@ss" not in repr(settings) and "p%40ss" not in repr(settings)
    assert settings.request_options(index)["auth"] == ("me", "p@ss")
    assert address("https://token@host/x") == Address("https://host/x", ("token", ""))
    assert address("file:///srv/s").host == "file:///srv/s"


def test_request_options() -> None:
    environ = {"PIP_CERT": "/ca.pem", "PIP_TRUSTED_HOST": "a b:81", "PIP_TIMEOUT": "7", "PIP_PROXY": "http://p:1"}
    settings = read_pip_settings({**NO_FILES, **environ})
    plain = settings.request_options(Address("https://c/x"))
    assert plain == {"timeout": 7.0, "verify": "/ca.pem", "proxies": {"http": "http://p:1", "https": "http://p:1"}}
    assert settings.request_options(Address("https://a:99/x"))["verify"] is False
    assert settings.request_options(Address("https://b:81/x"))["verify"] is False
    assert settings.request_options(Address("https://b:82/x"))["verify"] == "/ca.pem"
    assert "verify" not in read_pip_settings(NO_FILES).request_options(Address("https://c/x"))


@pytest.mark.parametrize("with_pip", [True, False])
def test_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pip: bool) -> None:
    """Read through pip, and without it, with the same outcome."""
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://global/simple\nextra-index-url =\n    https://one/simple\n    https://two/simple\n"
        "timeout = 9\n[install]\nindex_url = https://install/simple\n[freeze]\ntimeout = 1\n"
    )
    if with_pip:
        pytest.importorskip("pip")
        monkeypatch.setattr(pip_settings, "_from_files", lambda _: pytest.fail("pip was not asked"))
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    environ = {"PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path), "PATH": ""}
    settings = read_pip_settings(environ)
    assert [index.url for index in settings.indexes] == [
        "https://install/simple",
        "https://one/simple",
        "https://two/simple",
    ]
    assert settings.timeout == 9
    assert urls({**environ, "PIP_INDEX_URL": "https://env/simple"})[0] == "https://env/simple"


def test_a_broken_file_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "pip.conf").write_text("index-url without a section")
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "none"), "PIP_INDEX_URL": "https://env/simple"}
    assert urls(environ)[0] == "https://env/simple"


def test_the_words_of_pip_at_work_hold_no_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: HTTP error 403 for https://user:secret@host/simple/x\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert unpack("x==1", tmp_path) == "ERROR: HTTP error 403 for <address>"
    failed.stderr = ""
    assert unpack("x==1", tmp_path) == "exit code 1"
    failed.returncode = 0
    assert unpack("x==1", tmp_path) == ""
