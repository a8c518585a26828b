"""A further node takes part only where its ranks are like those of node 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpucheck.launch import join_run
from gpucheck.launch.gpus import Choice
from gpucheck.launch.torchrun import Rendezvous
from gpucheck.library.library_option import parse_source, resolve
from gpucheck.model.errors import InfrastructureError
from gpucheck.model.plan import NO_LIBRARY
from tests.conftest import Synthetic


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (None, {"package": "/lib", "content": "abc"}, "this node takes no library, node 0 that with content abc: give"),
        ("library", NO_LIBRARY, "this node has the library with content .*, node 0 none: give the same scenario"),
    ],
)
def test_a_node_with_another_library_or_none_is_refused(
    synthetic: Synthetic,
    library: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    here: str | None,
    there: dict[str, str],
    words: str,
) -> None:
    met = SimpleNamespace(plan=replace(synthetic.plan(nproc=2, device="cuda"), library=there).to_json())
    monkeypatch.setattr("gpucheck.launch.node_channel.RecordClient.connect", lambda *_: met)
    copy = resolve(parse_source(library)) if here else None
    with pytest.raises(InfrastructureError, match=words):
        join_run.join(Rendezvous(2, 1, "h:1"), copy, [], Choice("cuda", 2), None, lambda _: tmp_path)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("cpu", 2), "node 0 runs on cuda, this node on cpu: give the same --device"),
        (Choice("cuda", 1), "node 0 has 2 rank"),
    ],
)
def test_a_node_on_other_devices_or_with_other_ranks_is_refused(
    synthetic: Synthetic, library: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: Choice, words: str
) -> None:
    met = SimpleNamespace(plan=synthetic.plan(nproc=2, device="cuda").to_json())
    monkeypatch.setattr("gpucheck.launch.node_channel.RecordClient.connect", lambda *_: met)
    monkeypatch.setattr("gpucheck.host.software.software", lambda _: {})
    with pytest.raises(InfrastructureError, match=words):
        join_run.join(Rendezvous(2, 1, "h:1"), resolve(parse_source(library)), [], choice, None, lambda _: tmp_path)


@pytest.mark.parametrize("version", ["0.9", "1.0", None])
def test_a_node_tests_its_own_copy_of_the_engine_or_is_refused(
    synthetic: Synthetic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None
) -> None:
    there = {"name": "vllm", "root": "/there", "packages": "", "origin": "installed", "installed": True}
    plan = replace(synthetic.plan(nproc=2, device="cuda"), library=NO_LIBRARY, engines=({**there, "version": "1.0"},))
    met = SimpleNamespace(plan=plan.to_json(), follow=lambda folder: None)
    monkeypatch.setattr("gpucheck.launch.node_channel.RecordClient.connect", lambda *_: met)
    here = [{**there, "root": "/here", "version": version}] if version else []
    options = (Rendezvous(2, 1, "h:1"), None, [], Choice("cuda", 2), None, lambda _: tmp_path, here)
    if version == "1.0":
        assert [engine["root"] for engine in join_run.join(*options).plan.engines] == ["/here"]
        return
    found = f"vllm {version}" if version else "none"
    with pytest.raises(InfrastructureError, match=f"node 0 tests vllm 1.0, this node has {found}: give the same --eng"):
        join_run.join(*options)
