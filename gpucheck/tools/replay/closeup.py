"""A replayed case in detail: what it shows now, whether that is what the run saw, and the worst elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gpucheck.diagnose.wording import lines_of, mismatch_lines, number, rank_list
from gpucheck.model.record import Launch, Mismatch, Outcome, Record
from gpucheck.records.replay_files import Element
from gpucheck.report.escape import one_line, visible
from gpucheck.report.formats.text import MARKS
from gpucheck.tools.replay import ascii_heatmap

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class Closeup:
    """A replay and what it repeats."""

    label: str  # of the case
    was: Record
    now: Record
    others: Mapping[int, Outcome]  # rank -> how the other ranks of the node ended now
    worst: Mapping[str, Sequence[Element]]  # output -> its worst elements
    facts: Sequence[str] = ()  # run, machine, software, library
    notes: Sequence[str] = field(default_factory=list)  # what is not as it was in the run

    @property
    def same_inputs(self) -> bool | None:
        """Whether the inputs are those of the run; None where one of the two is not known."""
        return self.was.inputs == self.now.inputs if self.was.inputs and self.now.inputs else None

    @property
    def same_outputs(self) -> dict[str, bool]:
        """Whether each output is that of the run, byte for byte, of those that both have."""
        was = self.was.digests
        return {name: was[name] == value for name, value in self.now.digests.items() if name in was}


def show(closeup: Closeup, console: Console) -> None:
    """Prints everything; ASCII and unstyled where the console is no UTF-8 terminal."""
    plain = not (console.is_terminal and console.encoding.lower().startswith("utf"))
    style = MARKS[closeup.now.outcome][1]
    _print(console, headline(closeup), style)
    for line in comparison(closeup):
        _print(console, line)
    for note in closeup.notes:
        _print(console, f"note      {note}", "yellow")
    for line in _message(closeup.now):
        _print(console, line)
    for mismatch in closeup.now.mismatches:
        console.print()
        for line in mismatch_lines(mismatch):
            _print(console, line)
        if worst := closeup.worst.get(mismatch.output, ()):
            console.print()
            console.print(table(mismatch, worst))
        if mismatch.heat:
            console.print()
            for line in ascii_heatmap.lines(mismatch.heat, plain=plain):
                _print(console, line)
    if closeup.now.launches:
        console.print()
    for launch in closeup.now.launches:
        _print(console, launch_line(launch), "dim")


def headline(closeup: Closeup) -> str:
    """How it ended, compared with the run."""
    was, now = closeup.was.outcome, closeup.now.outcome
    words = f"{now.value.upper()}  {closeup.label} on {rank_list([closeup.now.rank])}"
    if was is Outcome.LOST:
        return f"{words}; the run lost this case"
    return f"{words}; " + (f"as in the run: {was.value}" if was is now else f"the run had {was.value}")


def comparison(closeup: Closeup) -> Iterator[str]:
    """Inputs and outputs against those of the run, then how the other ranks ended."""
    yield from (f"{'of' if not number else '':<10}{fact}" for number, fact in enumerate(closeup.facts))
    same = closeup.same_inputs
    if same is None:
        missing = "the run" if not closeup.was.inputs else "the replay"
        yield f"inputs    not compared: {missing} has no digest of them"
    else:
        yield f"inputs    {'the bytes of the run' if same else 'NOT those of the run'}, digest {closeup.now.inputs}"
    known = closeup.same_outputs
    for name, digest in closeup.now.digests.items():
        if name in known:
            words = f"the bytes of the run, digest {digest}"
            if not known[name]:
                words = f"other bytes than in the run: digest {digest}, was {closeup.was.digests[name]}"
        else:
            words = f"digest {digest}; the run has none"
        yield f"output    {name}: {words}"
    if not closeup.now.digests and closeup.was.digests:
        yield "output    none to compare with the run's"
    by_outcome: dict[Outcome, list[int]] = {}
    for rank, outcome in closeup.others.items():
        by_outcome.setdefault(outcome, []).append(rank)
    if by_outcome:
        yield "others    " + "; ".join(f"{rank_list(ranks)} {outcome.value}" for outcome, ranks in by_outcome.items())


def _message(record: Record) -> Iterator[str]:
    """What the record says beside its mismatches."""
    if lines := lines_of(replace(record, mismatches=[])):
        yield ""
        yield from lines
    if record.traceback:
        yield ""
        yield from record.traceback.rstrip().splitlines()


def table(mismatch: Mismatch, worst: Sequence[Element]) -> Table:
    """The worst elements of an output, one a row."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="dim")
    columns = ["index", "expected", "got", "expected bits", "got bits", "flipped", "ulps", "bound", "tile", "program"]
    if not any(element.get("writer") for element in worst):  # nobody was asked, or nobody knew
        columns.remove("program")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("index", "tile", "program") else "right", no_wrap=True)
    for element in worst:
        shown.add_row(*cells(element)[: len(columns)])
    shown.title = f"worst {len(worst)} of {mismatch.wrong} wrong elements of {mismatch.output}"
    shown.title_justify, shown.title_style = "left", "bold"
    return shown


def cells(element: Element) -> list[str]:
    """One element as the columns of the table."""
    flipped = int(element["expected_bits"], 16) ^ int(element["got_bits"], 16)
    bits = [str(bit) for bit in range(flipped.bit_length()) if flipped >> bit & 1]
    return [
        _tuple(element["index"]),
        number(float(element["expected"])),
        "NaN" if element["got"] is None else number(float(element["got"])),
        element["expected_bits"],
        element["got_bits"],
        "bit " + bits[0] if len(bits) == 1 else f"{len(bits)} bits" if bits else "none",
        "-" if element["ulps"] is None else str(element["ulps"]),
        f"{float(element['bound']):.3g}",
        _tuple(element["tile"]) if element["tile"] else "-",
        element.get("writer") or "not known",
    ]


def launch_line(launch: Launch) -> str:
    """A kernel, how it was launched and from where."""
    where = f"on cuda:{launch.device}" if launch.device is not None else "in the interpreter"
    grid = f", grid {' x '.join(map(str, launch.grid))}" if launch.grid else ""
    warps = f", {launch.warps} warps, {launch.shared} bytes shared" if launch.warps else ""
    kernel = f", {launch.arch} {launch.hash}" if launch.hash else ""
    source = f"  {launch.source}" if launch.source else ""
    return f"launch    {launch.kernel} x{launch.count} {where}{grid}{warps}{kernel}{source}"


def _tuple(index: Sequence[int]) -> str:
    return f"({', '.join(map(str, index))})"


def _print(console: Console, line: str, style: str | None = None) -> None:
    text = visible(line) if "\n" in line else one_line(line)
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
