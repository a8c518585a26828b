"""A whole search: both ends are verified, then the change between them is narrowed down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpucheck.model.errors import UsageError
from gpucheck.tools.bisect.minimise import Part, minimise
from gpucheck.tools.bisect.saved_search import Find
from gpucheck.tools.bisect.search import Found, Side, search
from gpucheck.tools.bisect.session import Session, Verified
from gpucheck.tools.bisect.signature import Answer
from gpucheck.tools.bisect.sources.base import Candidate
from gpucheck.tools.bisect.sources.engine_releases import EngineReleases
from gpucheck.tools.bisect.sources.patch_series import Patches


@dataclass(frozen=True)
class Outcome:
    """What a search ends with."""

    find: Find
    exact: bool  # False: candidates that cannot be tried hide which one it is
    answer: tuple[Candidate, ...]  # the one that was looked for; where it is not exact, those it may be
    good: Candidate  # the nearest good one
    bad: Candidate  # the nearest bad one
    verified: Verified
    path: tuple[tuple[Candidate, Answer | None], ...]  # every candidate in order; None: not tried
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plain form, for the state of a search."""
        return {
            "find": self.find.value,
            "exact": self.exact,
            "answer": [asdict(candidate) for candidate in self.answer],
            "good": self.good.name,
            "bad": self.bad.name,
            "searched_for": self.verified.signature.words,
            "rate": asdict(self.verified.rate),
            "path": [[candidate.name, answer.value if answer else None] for candidate, answer in self.path],
            "notes": list(self.notes),
        }


def run_search(session: Session) -> Outcome:
    """Searches to the end.

    Raises:
        UsageError: an end is not what it should be.
        InfrastructureError: runs of an end give no answer, or a candidate cannot be had.
    """
    state = session.state
    outcome = _parts(session, state.source) if isinstance(state.source, Patches) else _series(session)
    state.result = outcome.to_json()
    state.save()
    return outcome


def _series(session: Session) -> Outcome:
    """The first candidate of a history that is as the newer end."""
    find, candidates, source = session.state.find, session.state.candidates, session.state.source
    old, new = candidates[0], candidates[-1]
    bad, good = (new, old) if find is Find.BAD else (old, new)
    verified = session.verify_bad(bad)
    session.verify_good(good, verified)
    wanted = Answer.BAD if find is Find.BAD else Answer.GOOD
    answers = {bad.key: Answer.BAD, good.key: Answer.GOOD}

    def ask(place: int) -> Side:
        answer = answers[candidates[place].key] = session.ask(candidates[place], verified)
        return Side.UNKNOWN if answer is Answer.SKIP else Side.AFTER if answer is wanted else Side.BEFORE

    found = search([candidate.key for candidate in candidates], ask)
    before, after = candidates[found.before], candidates[found.after]
    return Outcome(
        find=find,
        exact=found.exact,
        answer=tuple(candidates[found.before + 1 : found.after + 1]),
        good=before if find is Find.BAD else after,
        bad=after if find is Find.BAD else before,
        verified=verified,
        path=tuple((candidate, answers.get(candidate.key)) for candidate in candidates),
        notes=(
            *_relapses(candidates, found, find),
            *_returns(candidates),
            *(source.notes(before, after) if isinstance(source, EngineReleases) else ()),
        ),
    )


def check_ends(candidates: Sequence[Candidate]) -> None:
    """Raises UsageError where the ends of a history do not differ, so that there is nothing to search for."""
    if len(candidates) > 1 and candidates[0].key != candidates[-1].key:
        return
    if len(candidates) < 2:
        raise UsageError(
            f"nothing changes between the ends: they and all between are equal to {candidates[0].name} "
            f"{candidates[0].title}".rstrip()
        )
    shown = "\n".join(f"  {candidate.name}  {candidate.title}" for candidate in candidates)
    raise UsageError(f"the ends are equal, so no run can tell them apart; choose ends among\n{shown}")


def _relapses(candidates: Sequence[Candidate], found: Found, find: Find) -> list[str]:
    after, before = (Answer.BAD, Answer.GOOD) if find is Find.BAD else (Answer.GOOD, Answer.BAD)
    return [
        f"there is more than one change: {after.value} at {candidates[first].name}, "
        f"{before.value} again at {candidates[second].name}; the first one is named"
        for first, second in found.relapses
    ]


def _returns(candidates: Sequence[Candidate]) -> list[str]:
    """Where a content comes back after another: a history that goes back and forth has more changes than one."""
    last: dict[str, int] = {}
    for place, candidate in enumerate(candidates):
        if candidate.key in last and last[candidate.key] < place - 1 and not candidate.lacks:
            earlier = candidates[last[candidate.key]].name
            return [f"{candidate.name} holds the content of {earlier} again; what lies between may differ from both"]
        last[candidate.key] = place
    return []


def _parts(session: Session, source: Patches) -> Outcome:
    """The fewest patches of a series that fix the case, or break it."""
    find = session.state.find
    whole = tuple(range(len(source.files)))
    nothing, everything = source.candidate(()), source.candidate(whole)
    bad, good = (nothing, everything) if find is Find.FIX else (everything, nothing)
    if everything.lacks:
        raise UsageError(f"the whole series cannot be applied: {everything.lacks}")
    answers: dict[Part, Answer] = {}
    verified = session.verify_bad(bad)
    session.verify_good(good, verified)
    wanted = Answer.GOOD if find is Find.FIX else Answer.BAD

    def works(part: Part) -> bool:
        answers[part] = session.ask(source.candidate(part), verified)
        return answers[part] is wanted

    left = minimise(len(whole), works)
    found = source.candidate(left)
    tried = {(): _end(find, False), whole: _end(find, True), **answers}
    beside = _without(source, find, left, tried)
    return Outcome(
        find=find,
        exact=True,
        answer=tuple(source.candidate((number,)) for number in left),
        good=found if find is Find.FIX else beside,
        bad=beside if find is Find.FIX else found,
        verified=verified,
        path=tuple((source.candidate(part), answer) for part, answer in tried.items()),
        notes=tuple(_why_needed(source, left, tried)),
    )


def _end(find: Find, everything: bool) -> Answer:
    """What an end of a series must show: where a fix is looked for, all patches make the case right."""
    return Answer.GOOD if (find is Find.FIX) == everything else Answer.BAD


def _without(source: Patches, find: Find, left: Part, tried: dict[Part, Answer]) -> Candidate:
    """The largest part of the found patches that was tried and does not do; the other side of the evidence."""
    other = Answer.BAD if find is Find.FIX else Answer.GOOD
    smaller = [part for part, answer in tried.items() if answer is other and set(part) < set(left)]
    return source.candidate(max(smaller, key=len))


def _why_needed(source: Patches, left: Part, tried: dict[Part, Answer]) -> list[str]:
    """What becomes of the found patches without each one of them."""
    lines = []
    for number in left if len(left) > 1 else ():
        rest = tuple(other for other in left if other != number)
        lacks = source.candidate(rest).lacks
        lines.append(f"without {source.candidate((number,)).name}: {tried[rest].value}" + f" ({lacks})" * bool(lacks))
    return lines
