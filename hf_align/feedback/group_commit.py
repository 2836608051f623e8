"""One connection that threads write through in turn; those that wait for theirs share a commit.

A commit waits for the disk, and while it does others come. Each has its work in a savepoint of one
transaction, the last of them commits, and nobody goes on before that: what one is told is stored
is on the disk, and what one takes back leaves the others' work alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class _Batch:
    settled: threading.Event = field(default_factory=threading.Event)
    size: int = 0
    error: sqlite3.Error | None = None


class Writer:
    """Takes threads in, one at a time.

    Args:
        connection: The connection, opened at its first use, without automatic transactions.
        most: Threads that share a commit at most.
    """

    def __init__(self, connection: Callable[[], sqlite3.Connection], most: int = 64) -> None:
        self._connection, self._most = connection, most
        self._turn = threading.Lock()
        self._counting = threading.Lock()
        self._waiting = 0
        self._batch: _Batch | None = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that the block does is on the disk when it ends, or none of it.

        Raises:
            sqlite3.Error: Another process writes, the disk is full, the file is damaged.
        """
        connection, batch = self._enter()
        try:
            connection.execute("SAVEPOINT own")
            yield connection
            connection.execute("RELEASE own")
        except BaseException as error:
            _take_back(connection, batch, error)
            raise
        finally:
            self._leave(connection, batch)
        batch.settled.wait()
        if batch.error is not None:
            raise type(batch.error)(*batch.error.args) from batch.error

    def close(self) -> None:
        """Commits what others began and have not been told of; the connection stays open."""
        with self._turn:
            if self._batch is not None:
                self._settle(self._connection(), self._batch)

    def _enter(self) -> tuple[sqlite3.Connection, _Batch]:
        with self._counting:
            self._waiting += 1
        try:
            self._turn.acquire()
        except BaseException:  # Ctrl-C; somebody may have left the commit to this thread
            with self._counting:
                self._waiting -= 1
            self.close()
            raise
        with self._counting:
            self._waiting -= 1
        try:
            connection = self._connection()
            if self._batch is None:
                connection.execute("BEGIN IMMEDIATE")
                self._batch = _Batch()
            return connection, self._batch
        except BaseException:
            self._turn.release()
            raise

    def _leave(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        """Commits, unless one who waits will: whoever is counted is sure to come in and leave."""
        try:
            batch.size += 1
            if batch.error is not None or not self._waiting or batch.size >= self._most:
                self._settle(connection, batch)
        finally:
            self._turn.release()

    def _settle(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        try:
            if batch.error is None:
                connection.execute("COMMIT")
        except BaseException as error:
            batch.error = _told(error)
            if not isinstance(error, sqlite3.Error):  # Ctrl-C
                raise
        finally:
            self._batch = None
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            finally:
                batch.settled.set()


def _take_back(connection: sqlite3.Connection, batch: _Batch, error: BaseException) -> None:
    """Undoes one block; where SQLite gave the whole transaction up, all that share it failed."""
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK TO own")
            connection.execute("RELEASE own")
            return
        except sqlite3.Error as second:
            error = second
    batch.error = _told(error)


def _told(error: BaseException) -> sqlite3.Error:
    """What those are told whose work somebody else's error took along."""
    if isinstance(error, sqlite3.Error):
        return error
    return sqlite3.OperationalError(str(error) or type(error).__name__)
