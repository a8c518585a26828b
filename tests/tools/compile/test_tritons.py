"""Tritons side by side, with a pip that finds small wheels of that name in a folder."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gpucheck.model.errors import InfrastructureError, UsageError
from gpucheck.tools.compile import tritons
from gpucheck.tools.compile.tritons import Triton, resolve, triton_folder

pytestmark = pytest.mark.skipif(
    subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0, reason="needs pip"
)


def wheel(folder: Path, version: str) -> None:
    """Writes a wheel of a package called triton that requires what no index has."""
    info = f"triton-{version}.dist-info"
    files = {
        "triton/__init__.py": f"__version__ = '{version}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\nRequires-Dist: no-such\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"triton-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks, with settings that must not matter for a private folder."""
    folder = tmp_path / "wheels"
    wheel(folder, "9.8.7")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("triton==1.0\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    monkeypatch.setenv("PIP_USER", "1")
    return folder


def test_a_release_is_fetched_once_into_a_folder_of_its_own(
    cache: Path, index: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = resolve("9.8.7")
    assert found == Triton("9.8.7", triton_folder("9.8.7"), triton_folder("9.8.7") / "triton")
    assert found.folder is not None and cache in found.folder.parents
    assert "__version__ = '9.8.7'" in (found.package / "__init__.py").read_text()
    assert "fetching Triton 9.8.7" in capfd.readouterr().err
    assert {path.name for path in found.folder.parent.iterdir()} == {found.folder.name, ".lock"}  # nothing left behind
    for path in index.iterdir():
        path.unlink()
    assert resolve("9.8.7") == found and capfd.readouterr().err == ""


def test_an_incomplete_folder_is_fetched_again(cache: Path, index: Path) -> None:
    triton_folder("9.8.7").mkdir(parents=True)
    (triton_folder("9.8.7") / "leftover").write_text("")
    found = resolve("9.8.7")
    assert (found.package / "__init__.py").is_file() and not (triton_folder("9.8.7") / "leftover").exists()


def test_a_release_that_does_not_exist_names_those_that_do(cache: Path, index: Path) -> None:
    with pytest.raises(UsageError, match=r"no wheel of Triton 9\.9\.9 for this Python\.\n  they have  9\.8\.7"):
        resolve("9.9.9")
    assert not triton_folder("9.9.9").exists()


def test_no_index_at_all_is_no_usage_error(cache: Path, index: Path) -> None:
    (index / "triton-9.8.7-py3-none-any.whl").unlink()
    with pytest.raises(InfrastructureError, match="cannot fetch Triton 9.8.7") as failed:
        resolve("9.8.7")
    assert "network" in str(failed.value) and "--triton path:DIR" in str(failed.value)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("/usr/bin/python3: No module named pip", InfrastructureError, "no pip to fetch it with"),
        ("ERROR: HTTP error 403 for <address>", InfrastructureError, "HTTP error 403"),
        ("", InfrastructureError, "it gave no reason"),
        ("ERROR: x (from versions: none)\nERROR: No matching distribution", InfrastructureError, "check  the network"),
        ("ERROR: x (from versions: 3.0.0, 3.1.0)\nERROR: No matching", UsageError, "3.0.0, 3.1.0"),
    ],
)
def test_the_words_of_pip_are_understood(said: str, kind: type[Exception], words: str) -> None:
    failure = tritons._failure("3.6.0", said)
    assert isinstance(failure, kind) and words in str(failure)


def test_a_cache_that_cannot_be_written_says_so(cache: Path, index: Path) -> None:
    cache.mkdir()
    (cache / "tritons").write_text("in the way")
    with pytest.raises(InfrastructureError, match="cannot write the cache"):
        resolve("9.8.7")


def test_a_folder_can_be_given(tmp_path: Path) -> None:
    package = tmp_path / "mine" / "triton"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""x"""\n__version__ = "3.11.0+mine"\n')
    assert resolve(f"path:{tmp_path / 'mine'}") == Triton("3.11.0+mine", tmp_path / "mine", package)
    with pytest.raises(UsageError, match="no Triton there"):
        resolve(f"path:{tmp_path}")


@pytest.mark.parametrize("text", ["", "newest", "3", ">=3.6", "3.6.0; rm", "triton==3.6.0"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--triton {text!r} is not understood; expected installed")):
        resolve(text)


def test_the_installed_one_is_taken_where_it_is_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Triton("3.7.1", None, Path("/site/triton"))
    monkeypatch.setattr(tritons, "find_installed", lambda: here)
    assert resolve("installed") == here and resolve("3.7.1") == here
    monkeypatch.setattr(tritons, "find_installed", lambda: None)
    with pytest.raises(InfrastructureError, match="no Triton is installed"):
        resolve("installed")


def test_the_installed_one_is_found_without_importing_it() -> None:
    found = tritons.find_installed()
    if found is None:
        pytest.skip("needs triton")
    assert found.folder is None and (found.package / "__init__.py").is_file()
    assert re.match(r"\d+\.\d+", found.version)
