from __future__ import annotations

import pytest

from gpucheck.worker.passes import depends_on_fill, wants_another_pass


@pytest.mark.parametrize(
    ("repeat", "digests", "another"),
    [
        (1, "", True),
        (1, "a", True),
        (1, "aa", False),
        (1, "ab", True),
        (1, "aba", False),
        (2, "a", True),
        (2, "ab", False),
        (10, "ab", True),
        (10, "a" * 9, True),
        (10, "a" * 10, False),
        (10, "ab" * 5, False),
    ],
)
def test_passes(repeat: int, digests: str, another: bool) -> None:
    assert wants_another_pass(repeat, list(digests)) is another


@pytest.mark.parametrize(
    ("digests", "depends"),
    [("aa", False), ("ab", False), ("aba", True), ("abab", True), ("abb", False), ("abac", False)],
)
def test_what_the_fill_decides(digests: str, depends: bool) -> None:
    assert depends_on_fill(list(digests)) is depends
