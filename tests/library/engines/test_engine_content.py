"""An engine is known by its files, or only by its version, and a report says which."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpucheck.diagnose.engine_parts import engine_parts
from gpucheck.library.engines import MODULES, engine_content
from gpucheck.library.engines.engine_content import KNOWN, ON_THE_WAY, RELEASE, content_of, identity
from gpucheck.library.engines.engine_copy import EngineCopy
from gpucheck.model.record import EnginePart
from tests.conftest import Synthetic


def engine(folder: Path, text: str = "x = 1") -> Path:
    """A folder with a package that looks like an engine."""
    for name in ON_THE_WAY["vllm"]:
        (folder / "vllm" / name).mkdir(parents=True)
        (folder / "vllm" / name / "one.py").write_text(text)
    return folder


def test_a_content_is_of_the_files_on_the_way_of_a_checkpoint_and_of_no_others(tmp_path: Path) -> None:
    first, second = engine(tmp_path / "a"), engine(tmp_path / "b")
    (second / "vllm" / "version.py").write_text("built = 'elsewhere'")
    assert content_of(first, "vllm") == content_of(second, "vllm")
    moved = second / "vllm" / ON_THE_WAY["vllm"][0]
    (moved / "one.py").rename(moved / "two.py")
    assert content_of(first, "vllm") != content_of(second, "vllm")


def test_a_release_a_changed_one_and_one_known_only_by_its_version_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synthetic: Synthetic
) -> None:
    right, changed = engine(tmp_path / "a"), engine(tmp_path / "b", "x = 2")
    monkeypatch.setattr(engine_content, "KNOWN", {"vllm": {"1.0": content_of(right, "vllm")}})
    words = [identity(right, "vllm", "1.0"), identity(changed, "vllm", "1.0"), identity(right, "vllm", "1.1")]
    assert words[0] == RELEASE and words[1].startswith("changed: ") and words[2].startswith("known only by its version")
    assert EngineCopy("vllm", "1.1", right, "path").planned()["identity"] == words[2]
    for told in words:
        part = EnginePart("vllm", "1.0", "module", identity=told)
        plan = synthetic.plan()
        run = synthetic.run(plan, {(0, 0): synthetic.record(plan, 0, 0, engine=part)})
        assert told in engine_parts(run)[0]


def test_every_engine_has_contents_of_releases() -> None:
    assert set(KNOWN) == set(ON_THE_WAY) == set(MODULES)
    for releases in KNOWN.values():
        assert releases and len(set(releases.values())) == len(releases)


def test_a_released_engine_is_known_by_its_files_until_one_is_edited(tmp_path: Path) -> None:
    from tests.end_to_end.test_engines import fetched

    pytest.importorskip("torch")  # without it an engine asks for many more packages of others, which take a minute
    copy = fetched("sglang", "0.5.19")
    assert identity(copy.root, "sglang", "0.5.19") == RELEASE
    for name in ON_THE_WAY["sglang"]:
        shutil.copytree(copy.root / "sglang" / name, tmp_path / "sglang" / name)
    assert identity(tmp_path, "sglang", "0.5.19") == RELEASE
    (tmp_path / "sglang" / "srt/models/gpt_oss.py").write_text("edited = True")
    assert identity(tmp_path, "sglang", "0.5.19").startswith("changed: ")
