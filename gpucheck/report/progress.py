"""What is shown while a run is under way: rank rows on a terminal, one line per finished case elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gpucheck.diagnose.words import rank_list
from gpucheck.model import canary
from gpucheck.records.follow import Follower, RankState
from gpucheck.report.text import MARKS

if TYPE_CHECKING:
    from gpucheck.model.plan import Plan
    from gpucheck.model.record import Record


class Progress:
    """Shows a run while its ranks write records; use it as a context manager and call it often."""

    def __init__(self, plan: Plan, follower: Follower, console: Console, *, quiet: bool = False) -> None:
        self.plan, self.follower, self.console, self.quiet = plan, follower, console, quiet
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._begin = time.monotonic()
        self._by_step: dict[int, list[Record]] = {}

    def __enter__(self) -> Progress:
        if self._live and not self.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def __call__(self) -> None:
        for record in self.follower.poll():
            finished = self._by_step.setdefault(record.step, [])
            finished.append(record)
            hidden = self.plan.steps[record.step].case.check == canary.CHECK
            if len(finished) == self.plan.world_size and not self.quiet and not self._live and not hidden:
                self.console.file.write(self._case_line(finished) + "\n")
                self.console.file.flush()
        if self._live and not self.quiet:
            self._live.update(self._table(), refresh=True)

    def _case_line(self, records: list[Record]) -> str:
        """``ok  matmul/... 1.23 s`` with the ranks that differ."""
        outcomes: dict[str, list[int]] = {}
        for record in records:
            outcomes.setdefault(MARKS[record.outcome][0], []).append(record.rank)
        seconds = max(sum(record.seconds.get(stage, 0.0) for stage in ("compile", "launch")) for record in records)
        if len(outcomes) == 1:
            state = next(iter(outcomes))
        else:
            state = "; ".join(f"{mark} {rank_list(ranks)}" for mark, ranks in outcomes.items() if mark != "ok")
        return f"{state}  {self.plan.steps[records[0].step].label}  {seconds:.2f} s"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        elapsed = time.monotonic() - self._begin
        table.add_row(f"{elapsed:5.1f} s", "", "", "")
        for rank, state in sorted(self.follower.ranks.items()):
            failed = f"[bold red]{state.failed} failing[/]" if state.failed else ""
            table.add_row(f"rank {rank}", f"{state.done}/{len(self.plan.steps)}", self._doing(state), failed)
        return table

    def _doing(self, state: RankState) -> str:
        if state.ended:
            return "done"
        if not state.started:
            return "[dim]starting[/]"
        if state.step is None:
            return "[dim]waiting[/]"
        return self.plan.steps[state.step].label + (f" [dim]{state.experiment}[/]" if state.experiment else "")
