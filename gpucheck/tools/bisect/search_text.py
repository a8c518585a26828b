"""The outcome of a search in words: what was found, the evidence on both sides, and the path taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpucheck.diagnose.wording import counted
from gpucheck.tools.bisect.engine import Outcome
from gpucheck.tools.bisect.observation import Observation
from gpucheck.tools.bisect.observation import State as CaseState
from gpucheck.tools.bisect.repeats import Rate
from gpucheck.tools.bisect.saved_search import Find, State
from gpucheck.tools.bisect.signature import Answer, Seen, Signature
from gpucheck.tools.bisect.sources.base import Candidate, Source
from gpucheck.tools.bisect.sources.patch_series import Patches

MARKS = {Answer.GOOD: "good", Answer.BAD: "bad", Answer.SKIP: "skip", None: "-"}
LABEL = 10  # columns


def report(state: State, outcome: Outcome) -> list[str]:
    """Everything there is to say at the end of a search, as plain lines."""
    signature, source = outcome.verified.signature, state.source
    lines = [_headline(source, outcome)]
    if outcome.exact:
        for candidate in outcome.answer:
            lines += [_field("", detail) for detail in source.details(candidate)]
    lines += [_field("note", note) for note in outcome.notes]
    lines.append("")
    sides = {Answer.GOOD: outcome.good, Answer.BAD: outcome.bad}
    for answer in (Answer.BAD, Answer.GOOD):
        lines += _evidence(state, sides[answer], answer, signature)
    folders = [_telling(state, candidate, answer, signature)[0].folder for answer, candidate in sides.items()]
    if all(folders):
        runs = " ".join(str(state.work / "runs" / folder) for folder in folders)
        lines.append(_field("compare", f"gpucheck diff {runs}"))
    lines += [
        _field("searched", f"{signature.words}: {signature.case}"),
        _field("repeats", rate_words(outcome.verified.rate)),
    ]
    return [*lines, "", *_path(state, outcome)]


def rate_words(rate: Rate) -> str:
    """How often the bad end fails, and what follows from it."""
    runs = f"{rate.failed} of {counted(rate.runs, 'run')} of the bad end"
    passes = f"{rate.passes} passes in a row make" if rate.passes > 1 else "1 pass makes"
    return f"seen in {runs}; {passes} a candidate good (chance to miss it {rate.missed:.1%})"


def _headline(source: Source, outcome: Outcome) -> str:
    if isinstance(source, Patches):
        does = "turn the case green" if outcome.find is Find.FIX else "break the case"
        if len(outcome.answer) == 1:
            does = does.replace("turn ", "turns ").replace("break ", "breaks ")
        names = " and ".join(candidate.name for candidate in outcome.answer)
        together = ", only together" if len(outcome.answer) > 1 else ""
        return f"{names} {does}{together} ({len(outcome.answer)} of {len(source.files)} patches)"
    first = _first(outcome)
    if outcome.exact:
        return f"{first} {source.unit}: {_named(outcome.answer[0])}"
    names = f"{outcome.answer[0].name} to {outcome.answer[-1].name}"
    return (
        f"not decidable: the {first} {source.unit} is one of {len(outcome.answer)}, {names}; only the last can be tried"
    )


def _evidence(state: State, candidate: Candidate, answer: Answer, signature: Signature) -> Iterator[str]:
    """What the runs of one side showed, the most telling run in full."""
    count, telling = len(state.of(candidate)), _telling(state, candidate, answer, signature)
    observation, times = telling[0], f"{len(telling)} of {counted(count, 'run')}"
    yield _field(MARKS[answer], f"{_named(candidate)}: {signature.words_of(observation)}, {times}")
    for failure in observation.failures:
        yield from (_field("", line) for line in failure.lines)
    if observation.folder:
        yield _field("", f"gpucheck report {state.work / 'runs' / observation.folder}")
    for option in state.source.details(candidate):
        if option.startswith("--"):  # a release: also where the folder of the search is gone
            yield _field("", state.target.by_hand(*option.split()))


def _telling(state: State, candidate: Candidate, answer: Answer, signature: Signature) -> list[Observation]:
    """The runs that make a candidate what it is."""
    wanted = Seen.BAD if answer is Answer.BAD else Seen.GOOD
    return [observation for observation in state.of(candidate) if signature.seen(observation) is wanted]


def _path(state: State, outcome: Outcome) -> Iterator[str]:
    """One line a candidate."""
    tried = sum(answer is not None for _, answer in outcome.path)
    seconds = sum(observation.seconds for observations in state.observations.values() for observation in observations)
    yield f"path  {tried} of {len(outcome.path)} tried, {state.runs} runs, {seconds:.0f} s"
    names = [candidate.name for candidate, _ in outcome.path]
    width = max(map(len, names)) if max(map(len, names)) <= 40 else 0
    for candidate, answer in outcome.path:
        reason = _why_skipped(state.of(candidate)) if answer is Answer.SKIP else ""
        line = f"  {MARKS[answer]:<5} {candidate.name:<{width}}  {candidate.title}".rstrip()
        yield line + (f"  ({reason})" if reason else "") + _pointer(state.source, outcome, candidate)


def _pointer(source: Source, outcome: Outcome, candidate: Candidate) -> str:
    if isinstance(source, Patches) or not outcome.exact or candidate != outcome.answer[0]:
        return ""
    return f"  <- {_first(outcome)}"


def _first(outcome: Outcome) -> str:
    if outcome.verified.signature.bits:
        return "first changed"
    return "first bad" if outcome.find is Find.BAD else "first fixed"


def _why_skipped(observations: Sequence[Observation]) -> str:
    telling = [observation for observation in observations if observation.state is not CaseState.PASSED]
    return telling[-1].words if telling else ""


def _named(candidate: Candidate) -> str:
    return f"{candidate.name}  {candidate.title}".rstrip()


def _field(name: str, text: str) -> str:
    return f"{name:<{LABEL}}{text}"
