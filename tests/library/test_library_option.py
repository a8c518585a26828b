from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpucheck.library.installed import locate_installed
from gpucheck.library.library_option import Source, SourceKind, parse_source, resolve
from gpucheck.model.errors import InfrastructureError, UsageError

MakeLibrary = Callable[..., Path]


def test_the_forms_are_read() -> None:
    assert parse_source(None) == Source(SourceKind.DEFAULT)
    assert parse_source("installed") == Source(SourceKind.INSTALLED)
    assert parse_source("path:/x/y") == Source(SourceKind.PATH, path=Path("/x/y"))
    assert parse_source("path:rel") == Source(SourceKind.PATH, path=Path.cwd() / "rel")
    wheel = parse_source("wheel:vllm==0.33.0")
    assert wheel == Source(SourceKind.WHEEL, distribution="vllm", version="0.33.0")
    assert str(wheel) == "wheel:vllm==0.33.0" and str(parse_source("path:/x/y")) == "path:/x/y"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vllm==0.33.0",
        "path:",
        "wheel:vllm",
        "wheel:==1",
        "wheel:vllm==",
        "wheel:../x==1",
        "wheel:x==1/2",
        "installed:x",
    ],
)
def test_bad_text_lists_the_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    message = str(caught.value)
    assert all(form in message for form in ("installed", "path:DIR", "wheel:NAME==VERSION", repr(text)))


@pytest.mark.parametrize(
    "inside",
    [
        "triton_kernels",
        "vllm/third_party/triton_kernels",
        "third_party/triton_kernels",
        "python/triton_kernels/triton_kernels",
    ],
)
def test_path_takes_the_package_or_a_folder_around_it(tmp_path: Path, make_library: MakeLibrary, inside: str) -> None:
    package = make_library(tmp_path / inside)
    for folder in (tmp_path, package, package.parent):
        copy = resolve(parse_source(f"path:{folder}"))
        assert (copy.package, copy.root) == (package, package.parent)
        assert (copy.origin, copy.name, copy.generation, copy.installed) == ("path", "unknown", "v3.5", False)
        assert len(copy.content) == 64


def test_a_link_keeps_the_name_the_import_needs(tmp_path: Path, make_library: MakeLibrary) -> None:
    make_library(tmp_path / "store/abc123")
    (tmp_path / "triton_kernels").symlink_to(tmp_path / "store/abc123")
    assert resolve(parse_source(f"path:{tmp_path}")).package == tmp_path / "triton_kernels"


def test_path_says_what_was_looked_for(tmp_path: Path, make_library: MakeLibrary) -> None:
    package = make_library(tmp_path / "triton_kernels")
    (package / "specialize.py").unlink()
    with pytest.raises(UsageError) as caught:
        resolve(parse_source(f"path:{tmp_path}"))
    assert f"{package}: lacks specialize.py\n" in str(caught.value)
    assert f"{tmp_path}/vllm/third_party/triton_kernels: no such folder" in str(caught.value)


def test_path_refuses_a_folder_that_cannot_be_imported(tmp_path: Path, make_library: MakeLibrary) -> None:
    make_library(tmp_path / "copy")
    with pytest.raises(UsageError, match="rename it"):
        resolve(parse_source(f"path:{tmp_path}/copy"))
    with pytest.raises(UsageError, match="no such folder"):
        resolve(parse_source(f"path:{tmp_path}/nowhere"))


def install_vllm(site: Path, make_library: MakeLibrary) -> Path:
    package = make_library(site / "vllm/third_party/triton_kernels")
    (site / "vllm/__init__.py").write_text("raise RuntimeError('vllm was imported')")
    (site / "vllm-0.33.0.dist-info").mkdir()
    (site / "vllm-0.33.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    return package


def test_installed_top_level_comes_first_and_nothing_is_imported(site: Path, make_library: MakeLibrary) -> None:
    install_vllm(site, make_library)
    package = make_library(site / "triton_kernels", "v3.7")
    for source in (None, parse_source(None), parse_source("installed")):
        copy = resolve(source)
        assert (copy.package, copy.root, copy.origin, copy.generation) == (package, site, "installed", "v3.7")
        assert copy.installed
    assert "triton_kernels" not in sys.modules and "vllm" not in sys.modules


def test_installed_inside_vllm(site: Path, make_library: MakeLibrary) -> None:
    package = install_vllm(site, make_library)
    copy = resolve(None)
    assert (copy.package, copy.origin, copy.installed) == (package, "installed (vllm 0.33.0)", True)
    assert "vllm" not in sys.modules


def test_nothing_installed(site: Path) -> None:
    assert locate_installed() is None
    with pytest.raises(InfrastructureError, match="--library wheel:vllm==0.33.0"):
        resolve(parse_source("installed"))


@pytest.mark.usefixtures("site")
def test_default_falls_back_to_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpucheck.library.fetch as fetching

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(fetching, "fetch", lambda name, version: asked.append((name, version)))
    resolve(None)
    resolve(parse_source("wheel:sgl-kernel==0.3.18"))
    assert asked == [("vllm", "0.33.0"), ("sgl-kernel", "0.3.18")]


def test_an_unrelated_package_is_in_the_way(site: Path) -> None:
    (site / "triton_kernels").mkdir()
    (site / "triton_kernels/__init__.py").write_text("")
    for source in (None, parse_source("installed")):
        with pytest.raises(InfrastructureError, match="not OpenAI's library"):
            resolve(source)


def test_importing_the_finder_is_light() -> None:
    code = (
        "import sys, gpucheck.cli.library, gpucheck.library.library_option\n"
        "import gpucheck.library.identity, gpucheck.library.fetch\n"
        "heavy = ('torch', 'triton', 'triton_kernels', 'requests', 'remotezip')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
