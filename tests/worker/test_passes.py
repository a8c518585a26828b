from __future__ import annotations

import pytest

from gpucheck.worker.passes import depends_on_fill, fill_of, wants_another_pass


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
    assert wants_another_pass(repeat, len(digests), list(digests)) is another


@pytest.mark.parametrize(
    ("digests", "depends"),
    [("aa", False), ("ab", False), ("aba", True), ("abab", True), ("abb", False), ("abac", False)],
)
def test_what_the_fill_decides(digests: str, depends: bool) -> None:
    assert depends_on_fill(list(digests), [fill_of(number) for number in range(len(digests))]) is depends


def test_launches_at_once_share_a_fill() -> None:
    fills = [0xFF, 0xFF, 0x00, 0x00, 0xFF, 0xFF]
    assert depends_on_fill(list("aabbaa"), fills)
    assert not depends_on_fill(list("abbbaa"), fills), "launches in equal memory differ"
    assert wants_another_pass(1, 2, list("aabb")) and not wants_another_pass(1, 2, list("aaaa"))
