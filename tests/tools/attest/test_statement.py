"""What a statement says of a run, and of which runs there is none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpucheck.model.errors import GpucheckError, UsageError
from gpucheck.model.record import Outcome
from gpucheck.model.screened import Screened
from gpucheck.tools.attest.statement import PROOF, REPORT, attested, subject, text
from gpucheck.tools.attest.statement_file import PAYLOAD_TYPE, read_statement
from gpucheck.tools.attest.statement_schema import problems, statement_schema
from tests.tools.attest.conftest import Stored


def test_a_run_that_passed_on_gpus_is_a_proof_with_all_that_it_rests_on(stored: Stored) -> None:
    folder = stored()
    statement = attested(folder, [])
    assert problems(statement, statement_schema()) == []
    said = statement["predicate"]
    assert statement["predicateType"] == PROOF and said["result"]["verdict"] == "PASS"
    assert said["result"]["cases"] == {"pass": 6} and said["result"]["gpusChecked"] == 2
    assert [(gpu["gpu"], gpu["name"]) for gpu in said["gpus"]] == [("GPU-0", "NVIDIA H200"), ("GPU-1", "NVIDIA H200")]
    assert said["software"]["driver"] == "570.1" and said["software"]["library"]["content"] == "f" * 64
    assert said["power"]["calls"]["fewestOfARank"] == 24
    assert said["power"]["chances"][0] == {"rate": 0.01, "chance": pytest.approx(1 - 0.99**24)}
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*.json*")}
    assert said["files"] == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())
    }
    assert len(said["outputs"]) == 3 and said["outputs"][0]["ended"][0]["ranks"] == [0, 1]


def test_the_digest_of_the_run_is_what_sha256sum_gives(stored: Stored) -> None:
    folder = stored()
    statement = attested(folder, [])
    printed = subprocess.run(["sha256sum", *statement["predicate"]["files"]], cwd=folder, capture_output=True).stdout
    assert statement["subject"] == [
        {"name": "run", "digest": {"sha256": hashlib.sha256(printed).hexdigest()}},
        {"name": "triton_kernels", "digest": {"sha256": "f" * 64}},
    ]


def test_one_run_gives_one_text_wherever_it_lies(stored: Stored, tmp_path: Path) -> None:
    folder = stored()
    first = text(attested(folder, []))
    os.rename(folder, tmp_path / "elsewhere")
    assert text(attested(tmp_path / "elsewhere", [])) == first
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert text(attested(tmp_path / "link", [])) == first, "the folder itself may be reached through a link"


@pytest.mark.parametrize(
    ("ends", "changes", "code", "words"),
    [
        ({(0, 1): Outcome.MISMATCH}, {}, 1, "its verdict is FAIL"),
        ({(0, 1): Outcome.LOST}, {}, 3, "its verdict is INCONCLUSIVE"),
        ({(step, rank): Outcome.INAPPLICABLE for step in range(3) for rank in range(2)}, {}, 5, "NOTHING RAN"),
        (
            {(step, rank): {"device": "cpu"} for step in range(3) for rank in range(2)},
            {"device": "cpu"},
            3,
            "no GPU was checked",
        ),
    ],
)
def test_what_is_no_proof_never_looks_like_one(
    stored: Stored, ends: dict[Any, Any], changes: dict[str, Any], code: int, words: str
) -> None:
    folder = stored(ends, **changes)
    with pytest.raises(GpucheckError, match=words) as error:
        attested(folder, [])
    assert error.value.exit_code == code
    statement = attested(folder, [], any_verdict=True)
    assert statement["predicateType"] == REPORT and problems(statement, statement_schema()) == []


def test_a_gpu_without_a_name_of_its_own_proves_nothing(stored: Stored) -> None:
    folder = stored()
    for path in folder.glob("records/*"):
        path.write_text(path.read_text().replace('"GPU-1"', '""'))
    with pytest.raises(GpucheckError, match="the UUID of the GPU of rank 1 is not known"):
        attested(folder, [])


def test_a_run_that_is_under_way_is_not_attested(stored: Stored) -> None:
    folder = stored()
    (folder / "outcome.json").unlink()
    for any_verdict in (False, True):
        with pytest.raises(GpucheckError, match="still under way"):
            attested(folder, [], any_verdict=any_verdict)


def test_a_run_that_changes_while_it_is_read_is_not_attested(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpucheck.tools.attest import statement

    folder, whole = stored(), statement.conclude

    def meanwhile(run: Any) -> Any:
        with open(folder / "records/rank-00000.jsonl", "a") as file:
            file.write("{}\n")
        return whole(run)

    monkeypatch.setattr(statement, "conclude", meanwhile)
    with pytest.raises(GpucheckError, match="changed while it was read"):
        attested(folder, [])


@pytest.mark.parametrize("name", ["plan.json", "outcome.json", "records/rank-00001.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_files_that_could_change_behind_its_back_are_refused(stored: Stored, name: str, kind: str) -> None:
    folder = stored()
    path = folder / name
    path.rename(folder / "kept")
    {
        "link": lambda: path.symlink_to(folder / "kept"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(UsageError):
        attested(folder, [])


def test_a_screen_tells_the_rate_that_it_would_have_seen(stored: Stored) -> None:
    part = {
        "datapath": "tensor cores bf16",
        "tile": "t",
        "tiles_a_digest": 1,
        "numbers": [0, 1],
        "tiles": [460515, 600000],
    }
    part |= {"multiprocessors": 2, "seconds": 1.0, "share": 1.0, "rate": 1.0, "unit": "TFLOP", "ceiling": 0.0}
    folder = stored({(2, 1): {"screened": Screened(**part, source="the CPU")}})
    power = attested(folder, [])["predicate"]["power"]
    (screened,) = power["screen"]
    assert (screened["rank"], screened["datapath"]) == (1, "tensor cores bf16")
    assert (screened["multiprocessors"], screened["fewestTiles"]) == (2, 460515)
    assert screened["rateSeen"] == pytest.approx(1e-5, rel=1e-4)
    assert power["calls"]["fewestOfARank"] == 16, "a screen is no call of a kernel"


def test_the_screen_of_a_run_is_part_of_what_its_statement_rests_on(stored: Stored) -> None:
    folder = stored()
    shutil.copytree(folder, folder / "screen")
    files = attested(folder, [])["predicate"]["files"]
    assert {f"screen/{name}" for name in files if "screen" not in name} < {*files}
    (folder / "screen").rename(folder / "elsewhere")
    (folder / "screen").symlink_to(folder / "elsewhere")
    with pytest.raises(UsageError, match="under a link"):
        attested(folder, [])


def test_records_that_lie_under_a_link_are_refused(stored: Stored) -> None:
    folder = stored()
    (folder / "records").rename(folder / "elsewhere")
    (folder / "records").symlink_to(folder / "elsewhere")
    with pytest.raises(UsageError, match="under a link"):
        attested(folder, [])


def test_what_it_is_also_about() -> None:
    digest = "0" * 63 + "a"
    assert subject(f"registry/image@sha256:{digest}") == {"name": "registry/image", "digest": {"sha256": digest}}
    for wrong in ("image", "image@sha256:abc", f"@sha256:{digest}", f"image@sha512:{digest}", f"i@sha256:{digest}\n"):
        with pytest.raises(UsageError, match="expected NAME@sha256"):
            subject(wrong)


def test_our_reading_of_the_schema_is_that_of_json_schema(stored: Stored) -> None:
    """Each part of a statement is taken out, and made something else: both say the same of it."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = statement_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    good = attested(stored(), [])

    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield (*path, key)
            yield from places(inner, (*path, key))

    def changed(path: tuple[Any, ...], new: Any) -> Any:
        copy = json.loads(json.dumps(good))
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        if new is None:
            del holder[path[-1]]
        else:
            holder[path[-1]] = new
        return copy

    tried = refused = 0
    for path in places(good):
        for new in (None, "", -1, 1.5, True, [], {}, ["x"], "0" * 65):
            item = changed(path, new)
            tried += 1
            refused += not validator.is_valid(item)
            assert (problems(item, schema) == []) is validator.is_valid(item), (path, new)
    assert tried > 500 and refused > tried / 2


def test_openssl_signs_the_text_and_the_envelope_that_cosign_makes_is_read(stored: Stored, tmp_path: Path) -> None:
    """The signature covers what DSSE calls the pre-authentication encoding."""
    payload = text(attested(stored(), [])).encode()
    file, key, public, signature = (tmp_path / name for name in ("s.json", "key.pem", "public.pem", "s.sig"))
    file.write_bytes(payload)
    signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode() + payload

    def openssl(*arguments: str, given: bytes = b"") -> int:
        return subprocess.run(["openssl", *arguments], input=given, capture_output=True).returncode

    made = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    if made:
        pytest.skip("needs openssl")
    assert openssl("pkey", "-in", str(key), "-pubout", "-out", str(public)) == 0
    assert openssl("dgst", "-sha256", "-sign", str(key), "-out", str(signature), given=signed) == 0
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature.read_bytes()).decode()}],
    }
    for number, item in enumerate((envelope, {"mediaType": "bundle", "dsseEnvelope": envelope})):
        enclosed = tmp_path / f"{number}.json"
        enclosed.write_text(json.dumps(item))
        statement = read_statement(enclosed)
        assert statement.signed and text(statement.item).encode() == payload
    check = ["dgst", "-sha256", "-verify", str(public), "-signature", str(signature)]
    assert openssl(*check, given=signed) == 0
    assert openssl(*check, given=signed.replace(b'"PASS"', b'"FAIL"')) == 1
