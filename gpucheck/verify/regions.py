"""Where an output is wrong, in the words of the case: rows, columns, tiles, experts, heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpucheck.verify.expected import Axes

MOST_LISTED = 6  # numbers spelled out before a list is cut
MOST_TILES = 16


def plural(word: str) -> str:
    """The plural of an axis name."""
    if " on " in word:  # a place on an axis without a name
        first, _, rest = word.partition(" ")
        return f"{plural(first)} {rest}"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("ch", "sh", "s", "x")) else "s")


def spans(touched: Tensor, word: str) -> str:
    """A one-axis mask in words: ``all 64 rows``, ``row 3 of 64``, ``rows 8-15 of 64``, ``2 of 64 rows (1, 5)``."""
    total, places = touched.numel(), touched.nonzero().flatten().tolist()
    if len(places) == total:
        return f"all {total} {plural(word)}" if total > 1 else f"the only {word}"
    if len(places) == 1:
        return f"{word} {places[0]} of {total}"
    if places[-1] - places[0] + 1 == len(places):
        return f"{plural(word)} {places[0]}-{places[-1]} of {total}"
    return f"{len(places)} of {total} {plural(word)} ({listed(places)})"


def listed(numbers: Sequence[int]) -> str:
    """``1, 2, 3`` cut after a few."""
    shown = ", ".join(str(number) for number in numbers[:MOST_LISTED])
    return shown + (", ..." if len(numbers) > MOST_LISTED else "")


def box(wrong: Tensor) -> list[list[int]]:
    """First and last wrong index along each axis."""
    return [[int(span[0]), int(span[-1])] for span in (_along(wrong, axis).nonzero() for axis in range(wrong.ndim))]


def index_of(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of an element that is the ``place``-th of a tensor laid out row by row."""
    index = []
    for extent in reversed(shape):
        place, along = divmod(place, extent)
        index.append(along)
    return tuple(reversed(index))


def wrong_tiles(wrong: Tensor, axes: Axes) -> tuple[list[list[int]], int, int]:
    """Coordinates of the first wrong tiles over the tiled axes, how many are wrong, how many there are."""
    tiled = [axis for axis, size in enumerate(axes.tile) if size]
    if not tiled:
        return [], 0, 0
    grid = [-(-wrong.shape[axis] // axes.tile[axis]) for axis in tiled]
    hit = torch.zeros(grid, dtype=torch.bool)
    places = wrong.nonzero(as_tuple=True)
    hit[tuple(places[axis] // axes.tile[axis] for axis in tiled)] = True
    coordinates = hit.nonzero()
    return coordinates[:MOST_TILES].tolist(), len(coordinates), hit.numel()


@dataclass(frozen=True)
class Share:
    """What part the groups of one grouping of axis 0 have in the wrong rows."""

    word: str
    every: bool  # all rows of all groups are wrong
    exact: bool  # the wrong rows are just those of some whole groups
    groups: list[int]  # those groups; where nothing is exact, the ones with a wrong row


def shares(wrong: Tensor, axes: Axes) -> list[Share]:
    """How each grouping of axis 0 explains the wrong rows."""
    rows = _along(wrong, 0)
    found = []
    for word, membership in axes.owners.items():
        total = int(membership.max()) + 1 if membership.numel() else 0
        if not total:
            continue
        bad, every = (
            torch.zeros(total, dtype=torch.long).index_add(0, ids, torch.ones_like(ids))
            for ids in (members[members >= 0] for members in (membership[rows].flatten(), membership.flatten()))
        )
        whole = (bad == every) & (every > 0)
        explained = torch.isin(membership, whole.nonzero().flatten()).any(1)
        exact = bool((explained == rows).all())
        groups = (whole if exact else bad).nonzero().flatten().tolist()
        found.append(Share(word, bool(((every > 0) == whole).all()), exact, groups))
    return found


def owners(wrong: Tensor, axes: Axes) -> list[str]:
    """Groupings in words: ``every expert``, ``exactly experts 2, 5``, ``touching expert 3``, ``touching no expert``."""
    return [_in_words(share) for share in shares(wrong, axes)]


def _in_words(share: Share) -> str:
    if share.every:
        return f"every {share.word}"
    if not share.groups:  # their experts are those of another rank
        return f"touching no {share.word}"
    word = share.word if len(share.groups) == 1 else plural(share.word)
    return f"{'exactly' if share.exact else 'touching'} {word} {listed(share.groups)}"


def exactly(wrong: Tensor, axes: Axes) -> dict[str, list[int]]:
    """Grouping -> groups whose rows are just the wrong ones, where they are not all there are."""
    return {share.word: share.groups for share in shares(wrong, axes) if share.exact and not share.every}


def describe(wrong: Tensor, axes: Axes) -> str:
    """The wrong elements of an output in one line."""
    parts = [spans(_along(wrong, axis), word) for axis, word in enumerate(axes.names)]
    tiles, bad, total = wrong_tiles(wrong, axes)
    if total > 1:
        parts.append(f"tile {tuple(tiles[0])} of {total}" if bad == 1 else f"{bad} of {total} tiles")
    return ", ".join([*parts, *owners(wrong, axes)])


def _along(wrong: Tensor, axis: int) -> Tensor:
    """Which indices of one axis hold a wrong element."""
    others = [other for other in range(wrong.ndim) if other != axis]
    return wrong.any(dim=others) if others else wrong
