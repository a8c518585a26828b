"""The queue on disk: tasks, their answers, and answers by content.

Every change is one transaction in SQLite's write-ahead log, made before anybody is told of it: what was answered
outlives the death of the server at any moment, and a task that was running then waits again.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpucheck.tools.serve.tasks import Answer, Evaluation, State, Task

SUSPECT = 3  # times that a task was running when the server died, from which on all others go before it
STARTS = 30  # times after which it is taken for the reason, and not tried again
TABLES = """
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL,
    evaluation TEXT NOT NULL, priority INTEGER NOT NULL, state TEXT NOT NULL, submitted REAL NOT NULL,
    started REAL, finished REAL, device INTEGER, starts INTEGER NOT NULL DEFAULT 0, answer TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON tasks (state, priority, number);
CREATE INDEX IF NOT EXISTS alike ON tasks (content, state);
CREATE TABLE IF NOT EXISTS answers (content TEXT PRIMARY KEY, answer TEXT NOT NULL, at REAL NOT NULL);
"""
_COLUMNS = "number, id, content, evaluation, priority, state, submitted, started, finished, device, starts, answer"
_ENDED = tuple(state.value for state in State if state.ended)


class TaskStore:
    """The queue; threads may share it."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or makes the queue.

        Args:
            folder: of the service.
            keep: finished tasks, and answers by content, that stay.
        """
        self._lock = threading.RLock()
        self._keep = keep
        path = folder / "queue.sqlite3"
        path.touch(mode=0o600)
        self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")  # the log outlives the process without waiting for the disk
        self._base.executescript(TABLES)

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def add(self, id: str, evaluation: Evaluation, priority: int, *, refresh: bool = False) -> Task:
        """Puts a task into the queue; where its answer is known, it has ended at once.

        Args:
            refresh: an answer that is known does not count.
        """
        content, now = evaluation.content, time.time()
        with self._change():
            known = None if refresh else self._known(content)
            state = State.PENDING if known is None else known.state
            values = (id, content, evaluation.to_json(), priority, state.value, now)
            self._base.execute(
                "INSERT INTO tasks (id, content, evaluation, priority, state, submitted) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
            if known is not None:
                self._end("id = ?", (id,), known)
        return self.task(id)  # type: ignore[return-value]

    def forget(self, id: str) -> None:
        """Removes a task that has ended."""
        with self._change():
            self._base.execute(f"DELETE FROM tasks WHERE id = ? AND state IN {_ENDED}", (id,))

    def task(self, id: str) -> Task | None:
        """The task of an id."""
        rows = self._tasks("id = ?", (id,))
        return rows[0] if rows else None

    def waiting(self, most: int) -> list[Task]:
        """The tasks that wait, in the order in which they are taken."""
        return self._tasks("state = 'pending' ORDER BY starts >= ?, priority, number LIMIT ?", (SUSPECT, most))

    def position(self, task: Task) -> int:
        """How many tasks are taken before one that waits."""
        before = "state = 'pending' AND (priority < ? OR priority = ? AND number < ?)"
        return int(self._one(f"SELECT count(*) FROM tasks WHERE {before}", task.priority, task.priority, task.number))

    def counts(self) -> dict[str, int]:
        """How many tasks are in which state."""
        with self._lock:
            found = dict(self._base.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall())
        return {state.value: int(found.get(state.value, 0)) for state in State}

    def start(self, task: Task, device: int) -> bool:
        """Marks a task that waits as running on a device; False where it waits no longer."""
        with self._change():
            done = self._base.execute(
                "UPDATE tasks SET state = 'processing', started = ?, device = ?, starts = starts + 1 "
                "WHERE id = ? AND state = 'pending'",
                (time.time(), device, task.id),
            )
        return done.rowcount == 1

    def finish(self, task: Task, answer: Answer) -> list[str]:
        """Ends a task that was running; with it, where the answer tells of the candidate, all that wait for the same.

        Returns:
            The ids of all that have ended.
        """
        with self._change():
            ids = [task.id]
            self._end("id = ? AND state = 'processing'", (task.id,), answer)
            if answer.lasting:
                rows = self._base.execute(
                    "SELECT id FROM tasks WHERE content = ? AND state = 'pending'", (task.content,)
                )
                ids += [row[0] for row in rows.fetchall()]
                self._end("content = ? AND state = 'pending'", (task.content,), answer)
                self._base.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (task.content, answer.to_json(), time.time())
                )
            self._forget_oldest()
        return ids

    def cancel(self, id: str) -> bool:
        """Cancels a task that waits or runs; False where there is none."""
        with self._change():
            done = self._base.execute(
                f"UPDATE tasks SET state = 'cancelled', finished = ? WHERE id = ? AND state NOT IN {_ENDED}",
                (time.time(), id),
            )
        return done.rowcount == 1

    def hand_back(self, id: str) -> None:
        """Makes a task that was running wait again, as if it had not been started."""
        with self._change():
            self._base.execute(
                "UPDATE tasks SET state = 'pending', started = NULL, device = NULL, starts = starts - 1 "
                "WHERE id = ? AND state = 'processing'",
                (id,),
            )

    def recover(self) -> int:
        """Makes tasks wait again that ran when the last server died; says how many.

        One that was running again and again waits until there is no other, and is ended at last: the server would go on
        dying of it.
        """
        words = f"the server ended {STARTS} times while it ran, and does not try it again"
        with self._change():
            fatal = Answer(status=500, detail=words, lasting=False)
            self._end("state = 'processing' AND starts >= ?", (STARTS,), fatal)
            again = "UPDATE tasks SET state = 'pending', started = NULL, device = NULL WHERE state = 'processing'"
            return self._base.execute(again).rowcount

    def close(self) -> None:
        """Ends the use of the file."""
        with self._lock:
            self._base.close()

    def _known(self, content: str) -> Answer | None:
        row = self._base.execute("SELECT answer FROM answers WHERE content = ?", (content,)).fetchone()
        if row is None:
            return None
        answer = Answer.from_json(row[0])
        return Answer(**{**vars(answer), "metadata": {**answer.metadata, "cached": True}})

    def _end(self, which: str, values: tuple[Any, ...], answer: Answer) -> None:
        self._base.execute(
            f"UPDATE tasks SET state = ?, finished = ?, answer = ? WHERE {which}",
            (answer.state.value, time.time(), answer.to_json(), *values),
        )

    def _forget_oldest(self) -> None:
        ended = f"SELECT number FROM tasks WHERE state IN {_ENDED} ORDER BY number DESC LIMIT -1 OFFSET ?"
        self._base.execute(f"DELETE FROM tasks WHERE number IN ({ended})", (self._keep,))
        old = "SELECT rowid FROM answers ORDER BY at DESC LIMIT -1 OFFSET ?"
        self._base.execute(f"DELETE FROM answers WHERE rowid IN ({old})", (self._keep,))

    def _tasks(self, which: str, values: tuple[Any, ...]) -> list[Task]:
        with self._lock:
            rows = self._base.execute(f"SELECT {_COLUMNS} FROM tasks WHERE {which}", values).fetchall()
        return [_task(row) for row in rows]

    def _one(self, question: str, *values: Any) -> Any:
        with self._lock:
            return self._base.execute(question, values).fetchone()[0]


def _task(row: tuple[Any, ...]) -> Task:
    number, id, content, evaluation, priority, state, submitted, started, finished, device, starts, answer = row
    return Task(
        number,
        id,
        content,
        Evaluation.from_json(evaluation),
        priority,
        State(state),
        submitted,
        started,
        finished,
        device,
        starts,
        Answer.from_json(answer) if answer else None,
    )
