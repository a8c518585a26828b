"""Rank 0 speaks, and the others babble where peer access hides launches on the wrong device."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tests.gpu.conftest import NEEDS_TWO, RANKS, Done

pytestmark = NEEDS_TWO

SCENARIO = """
[[cases]]
check = "generation"
placement = {placement}
batch = 1
tokens = {tokens}
guard = true
"""


def scenario(folder: Path, placement: str, tokens: int) -> str:
    path = folder / f"{placement}.toml"
    path.write_text(SCENARIO.format(placement=f'"{placement}"', tokens=tokens))
    return str(path)


def test_all_ranks_decode_the_same_64_tokens_as_the_reference(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run(scenario(tmp_path, "pinned", 64))
    assert done.code == 0 and len(done.records) == RANKS
    assert len({record["digests"]["tokens"] for record in done.records}) == 1


def test_under_peer_the_first_wrong_operation_is_named(run: Callable[..., Done], tmp_path: Path) -> None:
    done = run(scenario(tmp_path, "peer", 8), "--experiments", "0")
    (finding,) = done.report["findings"]
    assert done.code == 1 and finding["title"] == "wrong device context: corrupted"
    assert finding["ranks"] == list(range(1, RANKS))
    assert re.search(r"first wrong at step \d+(, layer \d+)?, \w+", "\n".join(finding["cases"][0]["lines"]))
