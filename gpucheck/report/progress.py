"""What is shown while a run is under way: rank rows on a terminal, one line per finished case elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gpucheck.diagnose.wording import rank_list
from gpucheck.model import canary
from gpucheck.records.live import Follower, RankState

if TYPE_CHECKING:
    from gpucheck.model.plan import Plan
    from gpucheck.model.record import Record


class Progress:
    """Shows a run while its ranks write records; use it as a context manager and call it often."""

    def __init__(self, plan: Plan, follower: Follower, console: Console, *, quiet: bool = False) -> None:
        self.plan, self.follower, self.console, self.quiet = plan, follower, console, quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._begin = time.monotonic()
        self._by_step: dict[tuple[int, int], list[Record]] = {}  # (pass, step)

    def __enter__(self) -> Progress:
        if self._live and not self.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self) -> bool:
        """Shows what is new; says whether every rank has ended."""
        records = self.follower.poll()
        self._building()
        for record in records:
            finished = self._by_step.setdefault((record.round, record.step), [])
            finished.append(record)
            if len(finished) == self.plan.world_size:
                del self._by_step[(record.round, record.step)]
                self._case(finished)
        if self._live and not self.quiet:
            self._live.update(self._table(), refresh=True)
        return all(state.ended for state in self.follower.ranks.values())

    def _building(self) -> None:
        """Shows what a compiler is at, once for each candidate."""
        while self.follower.built:
            name = self.plan.steps[self.follower.built.pop(0)].case.check
            if not self.quiet and not self._live:
                self.console.file.write(f"building {name}: its compiler may take a minute or two, this once\n")
                self.console.file.flush()

    def _case(self, records: list[Record]) -> None:
        """Shows a case that every rank has been through; of later passes only what fails."""
        news = not records[0].round or any(record.outcome.failed for record in records)
        news &= self.plan.steps[records[0].step].case.check != canary.CHECK
        if news and not self.quiet and not self._live:
            self.console.file.write(self._case_line(records) + "\n")
            self.console.file.flush()

    def _case_line(self, records: list[Record]) -> str:
        """``ok  matmul/... 1.23 s`` with the ranks that differ."""
        from gpucheck.report.formats.text import MARKS  # with all that a report needs, while ranks are at work

        outcomes: dict[str, list[int]] = {}
        for record in records:
            outcomes.setdefault(MARKS[record.outcome][0], []).append(record.rank)
        seconds = max(sum(record.seconds.get(stage, 0.0) for stage in ("compile", "launch")) for record in records)
        if len(outcomes) == 1:
            state = next(iter(outcomes))
        else:
            state = "; ".join(f"{mark} {rank_list(ranks)}" for mark, ranks in outcomes.items() if mark != "ok")
        again = f"  pass {records[0].round + 1}" if records[0].round else ""
        return f"{state}  {self.plan.steps[records[0].step].label}  {seconds:.2f} s{again}"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        elapsed = time.monotonic() - self._begin
        table.add_row(f"{elapsed:5.1f} s", "", "", "")
        for rank, state in sorted(self.follower.ranks.items()):
            failed = f"[bold red]{state.failed} failing[/]" if state.failed else ""
            done = f"{state.done}/{len(self.plan.steps)}" if not state.round else f"pass {state.round + 1}"
            table.add_row(f"rank {rank}", done, self._doing(state), failed)
        return table

    def _doing(self, state: RankState) -> str:
        if state.ended:
            return "done"
        if not state.started:
            return "[dim]starting[/]"
        if state.step is None:
            return "[dim]waiting[/]"
        doing = state.experiment or ("building" if state.building else "")
        return self.plan.steps[state.step].label + (f" [dim]{doing}[/]" if doing else "")
