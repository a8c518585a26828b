"""Whether statements hold that somebody changed, that are old, or that are about something else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.errors import UsageError
from gpucheck.model.record import Outcome
from gpucheck.tools.attest import verification
from gpucheck.tools.attest.statement import REPORT, attested, text
from gpucheck.tools.attest.statement_differences import differences, remarks
from gpucheck.tools.attest.statement_file import Statement, read_statement
from gpucheck.tools.attest.verification import Machine, against_run, age, agrees_with_itself, exit_code, on_machine
from tests.records.test_damage import put
from tests.tools.attest.conftest import Stored

Change = Callable[[dict[str, Any]], object]
HERE = Machine(
    gpus=["GPU-1"],
    driver="570.1",
    packages=dict.fromkeys(("torch", "triton"), {"version": "2.0", "fingerprint": "ab"}),
    library="f" * 64,
)


def statement(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda item: None, **options: Any
) -> Statement:
    item = json.loads(text(attested(folder, [], **options)))
    change(item)
    return Statement(Path("s.json"), item, signed=False)


def test_a_proof_holds_against_its_run_and_its_machine(stored: Stored) -> None:
    folder = stored()
    proof = statement(folder)
    points = [agrees_with_itself(proof), age(proof, time.time(), 7200.0), against_run(proof, folder)]
    points += on_machine(proof, HERE)
    assert all(point.holds for point in points), points
    assert exit_code(proof, points) == 0


RESULT = ("predicate", "result")


def passed_off(item: dict[str, Any]) -> None:
    """What a careful forger changes of the statement of a run that failed."""
    from gpucheck.tools.attest.statement import PROOF

    put(PROOF, "predicateType")(item)
    item["predicate"]["result"] |= {"proof": True, "verdict": "PASS", "findings": [], "cases": {"pass": 6}}
    for case in item["predicate"]["outputs"]:
        for group in case["ended"]:
            group["outcome"] = "pass"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("FAIL", *RESULT, "verdict"), "its type is that of a proof, but its verdict is FAIL"),
        (put(False, *RESULT, "proof"), "but it says that it is no proof"),
        (put(REPORT, "predicateType"), "but it says that it is a proof"),
        (put("", "predicate", "gpus", 0, "gpu"), "the UUID of the GPU of rank 0 is not known"),
        (put("cpu", "predicate", "gpus", 1, "name"), "no GPU was checked"),
        (put(8, *RESULT, "ranks"), "it tells of 8 ranks"),
        (put(1, *RESULT, "gpusChecked"), "and 1 GPUs, and names 2"),
        (put({"pass": 600}, *RESULT, "cases"), "its outputs are not those of each case on each rank"),
        (put([], "predicate", "outputs"), "its outputs are not those"),
        (put([1], "predicate", "outputs", 0, "ended", 0, "ranks"), "its outputs are not those"),
        (put("0" * 64, "predicate", "files", "plan.json"), "its subject 'run' is not the digest of its files"),
        (put("0" * 64, "subject", 0, "digest", "sha256"), "its subject 'run' is not the digest of its files"),
        (put("0" * 64, "predicate", "software", "library", "content"), "is not the library that it names"),
        (put("2020-01-01T00:00:00Z", "predicate", "run", "ended"), "it ended before it started"),
        (
            put([{"title": "kernel bug", "ranks": [0], "kind": "fails", "excuse": ""}], *RESULT, "findings"),
            "its verdict is PASS beside the finding 'kernel bug'",
        ),
    ],
)
def test_a_statement_that_was_edited_without_care_contradicts_itself(
    stored: Stored,
    change: Change,
    words: str,
) -> None:
    point = agrees_with_itself(statement(stored(), change))
    assert point.holds is False and words in point.words


def test_a_statement_that_another_tool_made_of_the_predicate_is_about_an_image(stored: Stored) -> None:
    folder = stored()
    proof = statement(folder, put([{"name": "image", "digest": {"sha256": "a" * 64}}], "subject"))
    assert agrees_with_itself(proof).holds and against_run(proof, folder).holds


def test_one_that_was_edited_with_care_contradicts_its_run(stored: Stored) -> None:
    folder = stored({(0, 1): Outcome.MISMATCH})
    forged = statement(folder, passed_off, any_verdict=True)
    assert agrees_with_itself(forged).holds, "only the run, or a signature, can tell"
    point = against_run(forged, folder)
    assert point.holds is False and "predicate.result.verdict is 'FAIL', the statement says 'PASS'" in point.words
    put("9.9", "predicate", "gpucheck", "version")(forged.item)
    assert against_run(forged, folder).holds is None, "said to be of another version it is no proof either"
    assert exit_code(forged, [against_run(forged, folder)]) == 3


@pytest.mark.parametrize(
    "change",
    [
        put(10**9, "predicate", "power", "calls", "fewestOfARank"),
        put("GPU-9", "predicate", "gpus", 0, "gpu"),
        put("555.0", "predicate", "software", "driver"),
        put("gate", "predicate", "run", "scenario"),
        put("0" * 64, "predicate", "outputs", 0, "ended", 0, "sha256"),
        put("2026-01-01T00:00:00Z", "predicate", "run", "started"),
        put(True, *RESULT, "canary"),
    ],
)
def test_every_word_of_a_statement_is_held_against_the_run(stored: Stored, change: Change) -> None:
    folder = stored()
    assert against_run(statement(folder, change), folder).holds is False


def test_a_run_folder_that_was_edited(stored: Stored) -> None:
    folder = stored({(0, 1): Outcome.MISMATCH})
    proof = statement(folder, any_verdict=True)
    rank = folder / "records/rank-00001.jsonl"
    before = rank.read_text()
    rank.write_text(before.replace('"mismatch"', '"pass"'))
    assert against_run(proof, folder).words.startswith("records/rank-00001.jsonl was changed (")
    rank.unlink()
    assert against_run(proof, folder).words.startswith("records/rank-00001.jsonl is gone (")
    rank.write_text(before)
    (folder / "records/rank-00002.jsonl").write_text("")
    assert against_run(proof, folder).words.startswith("records/rank-00002.jsonl was not attested (")
    (folder / "records/rank-00002.jsonl").unlink()
    assert against_run(proof, folder).holds
    (folder / "logs").mkdir()
    (folder / "logs/torchrun-0.log").write_text("no part of it")
    assert against_run(proof, folder).holds


def test_age(stored: Stored) -> None:
    proof = statement(stored(created=1764000000.0))
    ended = 1764000060.0
    for now, limit, holds in (
        (ended + 3600, 3601.0, True),
        (ended + 3600, 3599.0, False),
        (ended + 1e9, None, True),
        (ended - 299, 10.0, True),
        (ended - 301, None, False),
    ):
        assert age(proof, now, limit).holds is holds
    assert "5.0 min ahead of this machine's clock" in age(proof, ended - 301, None).words
    assert "more than 24.0 h" in age(proof, ended + 2e5, 86400.0).words
    put("2026-13-40T00:00:00Z", "predicate", "run", "ended")(proof.item)
    assert age(proof, ended, None).holds is False


@pytest.mark.parametrize(
    ("change", "point", "holds", "words"),
    [
        ({"gpus": ["GPU-1", "GPU-7"]}, "GPUs", False, "not attested: GPU-7"),
        ({"gpus": ["GPU-0", "GPU-1"]}, "GPUs", True, "all 2 GPUs here are attested"),
        ({"gpus": None}, "GPUs", None, "nvidia-smi does not tell"),
        ({"gpus": []}, "GPUs", None, "there is no GPU here"),
        ({"driver": "580.2"}, "driver", False, "580.2 here, 570.1 was attested"),
        ({"driver": ""}, "driver", False, "570.1 was attested, and there is none here"),
        ({"packages": {}}, "torch", False, "2.0 was attested, and there is none here"),
        (
            {"packages": dict.fromkeys(("torch", "triton"), {"version": "2.0", "fingerprint": "cd"})},
            "triton",
            False,
            "fingerprint cd here, fingerprint ab was attested",
        ),
    ],
)
def test_another_machine(
    stored: Stored,
    change: dict[str, Any],
    point: str,
    holds: bool | None,
    words: str,
) -> None:
    found = {each.name: each for each in on_machine(statement(stored()), Machine(**{**vars(HERE), **change}))}
    assert found[point].holds is holds and words in found[point].words
    assert all(each.holds for name, each in found.items() if name not in (point, "torch", "triton"))


def test_the_library_that_is_installed_must_be_the_one_that_was(stored: Stored) -> None:
    proof = statement(stored(), put("installed (vllm 0.33.0)", "predicate", "software", "library", "origin"))
    for content, holds in (("f" * 64, True), ("e" * 64, False), ("", False)):
        *_, library = on_machine(proof, Machine(**{**vars(HERE), "library": content}))
        assert (library.name, library.holds) == ("triton_kernels", holds)


def test_this_machine_is_told_by_nvidia_smi_and_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-a)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-b)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert verification.this_machine().gpus == ["GPU-b"]
    monkeypatch.setenv("PATH", "")
    assert verification.this_machine().gpus is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "it ends too early: the file was cut"),
        (lambda whole: whole[:-3], "it ends too early: the file was cut"),
        (lambda whole: b"", "it ends too early"),
        (lambda whole: b"\xff" + whole, "it is no text"),
        (lambda whole: b"hello", "it is no JSON"),
        (lambda whole: whole.replace(b'"verdict":', b'"verdict": "FAIL", "verdict":'), "'verdict' stands twice"),
        (lambda whole: whole.replace(b"0.99", b"NaN"), "the number NaN"),
        (lambda whole: b"[" * 100_000, "no JSON that all tools read alike"),
        (lambda whole: b"[]", "the statement is [], expected object"),
        (lambda whole: b'{"_type": "https://in-toto.io/Statement/v1"}', "the statement has no predicate"),
        (lambda whole: whole.replace(b'"schema": 1', b'"schema": 2'), "use a newer gpucheck"),
        (lambda whole: b'{"payload": "e30=", "payloadType": "text"}', "its payload is 'text'"),
        (
            lambda whole: b'{"payload": "?", "payloadType": "application/vnd.in-toto+json"}',
            "its payload is not base64",
        ),
    ],
)
def test_what_is_no_statement(
    stored: Stored,
    tmp_path: Path,
    content: Callable[[bytes], bytes],
    words: str,
) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(content(text(attested(stored(), [])).encode()))
    with pytest.raises(UsageError) as error:
        read_statement(file)
    assert words in str(error.value)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / "loop", Path("/dev/zero")):
        with pytest.raises(UsageError):
            read_statement(path)


def test_two_pods_that_are_alike_and_two_that_are_not(stored: Stored) -> None:
    a = statement(stored())
    moved = stored(name="b", id="another", created=time.time())
    for path in moved.glob("records/*"):
        path.write_text(path.read_text().replace("GPU-", "GPU-b"))
    b = statement(moved)
    assert list(differences(a, b)) == [] and list(remarks(a, b)) == []
    put("580.2", "predicate", "software", "driver")(b.item)
    put({"version": "2.0", "fingerprint": "cd"}, "predicate", "software", "triton")(b.item)
    put("NVIDIA H100", "predicate", "gpus", 0, "name")(b.item)
    put("e" * 64, "predicate", "outputs", 1, "ended", 0, "sha256")(b.item)
    put("mismatch", "predicate", "outputs", 2, "ended", 0, "outcome")(b.item)
    put("matmul/other/exact", "predicate", "outputs", 0, "case")(b.item)
    assert list(differences(a, b)) == [
        "driver: 570.1 against 580.2",
        "GPUs: 2 x NVIDIA H200 against 1 x NVIDIA H100, 1 x NVIDIA H200",
        "1 case only in A: matmul/0/exact",
        "1 case only in B: matmul/other/exact",
        "1 case ended otherwise: matmul/2/exact",
        "other inputs or output bits in 1 case: matmul/1/exact",
    ]
    assert list(remarks(a, b)) == ["triton 2.0 was installed apart on each: its files have other sizes or times"]
    assert list(remarks(a, a)) == ["both are about 2 GPUs of the same UUID", "both are about one run"]


def test_a_report_is_no_proof_however_well_it_holds(stored: Stored) -> None:
    for outcome, code in ((Outcome.MISMATCH, 1), (Outcome.LOST, 3)):
        folder = stored({(0, 0): outcome}, name=outcome.value)
        report = statement(folder, any_verdict=True)
        assert report.item["predicateType"] == REPORT and agrees_with_itself(report).holds
        assert exit_code(report, [agrees_with_itself(report), against_run(report, folder)]) == code
