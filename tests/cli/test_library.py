from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpucheck.cli.library import app
from gpucheck.library import installed
from gpucheck.library.cache import Origin, library_folder, store
from gpucheck.library.content import KNOWN
from gpucheck.model.errors import InfrastructureError, UsageError

FILES = {
    "__init__.py": b"raise RuntimeError('imported')",
    **dict.fromkeys(("numerics.py", "specialize.py", "target_info.py", "testing.py", "matmul.py"), b""),
    "tensor.py": b"",
    "matmul.py": b"class PrecisionConfig:\n    b_mx_scale: object = None\n",
}
ROOMY = {"COLUMNS": "200"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a Python in which nothing is installed."""
    monkeypatch.setenv("GPUCHECK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(installed, "find_spec", lambda _: None)
    monkeypatch.setattr("gpucheck.library.identity.find_spec", lambda _: None)
    return tmp_path / "cache"


@pytest.fixture
def cached(cache: Path) -> Path:
    """A stored copy of v3.7 under the name of a release."""
    folder = library_folder("vllm", "0.33.0", cache)
    store(folder, FILES, Origin("vllm", "0.33.0", "vllm-0.33.0-py3-none-any.whl"))
    return folder


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env=ROOMY)
    if result.exception:
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_list_names_every_known_content_and_the_default() -> None:
    text = run("list")
    for entry in KNOWN:
        assert entry.content[:8] in text
        assert all(str(carrier) in text for carrier in entry.carriers)
    assert "installed  none" in text and "default    wheel:vllm==0.33.0" in text


def test_list_shows_the_cache_and_what_is_wrong_with_it(cached: Path) -> None:
    broken = cached.parent / "broken-1.0"
    broken.mkdir()
    text = run("list")
    assert "vllm 0.33.0" in text and "v3.7" in text
    assert "unusable" in text and "origin.json is missing" in text

    data = json.loads(run("list", "--json"))
    assert [entry["name"] for entry in data["known"]] == list("ABCDEF")
    assert {entry["root"]: entry.get("generation") for entry in data["cached"]} == {
        str(cached): "v3.7",
        str(broken): None,
    }
    assert data["installed"] is None and data["default"] == {"wheel": "vllm==0.33.0"}


def test_list_reports_an_unusable_installation_without_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InfrastructureError("an unrelated package")

    monkeypatch.setattr("gpucheck.library.identity.check_installed_library", refuse)
    assert json.loads(run("list", "--json"))["installed"] == {"problem": "an unrelated package"}
    assert "an unrelated package" in run("list")


def test_show_default_takes_the_cached_copy(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpucheck.host.software.installed_version", lambda name: "3.6.0")
    text = run("show")
    assert str(cached) in text and "vllm 0.33.0" in text and "v3.7" in text and "3.6.0, fits" in text

    monkeypatch.setattr("gpucheck.host.software.installed_version", lambda name: "3.4.0")
    data = json.loads(run("show", "--json"))
    assert data["files"] == len(FILES) and data["triton"] == "3.5 or later" and len(data["content"]) == 64
    assert data["name"] == "unknown" and "found Triton 3.4.0" in data["triton_problem"]


def test_show_path(cached: Path) -> None:
    data = json.loads(run("show", "--library", f"path:{cached}", "--json"))
    assert (data["origin"], data["root"]) == ("path", str(cached))


def test_fetch_prints_where_the_copy_lies(cached: Path) -> None:
    assert run("fetch", "vllm==0.33.0").splitlines()[1] == str(cached)


@pytest.mark.parametrize("arguments", [("fetch", "vllm"), ("show", "--library", "nonsense")])
def test_bad_arguments_reach_the_main_command_as_usage_errors(arguments: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="not understood"):
        run(*arguments)
