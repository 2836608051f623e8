"""The event store: an append-only log in SQLite, checked when opened.

Every event has an id that makes a retry harmless. Each thread reads through a connection of its
own; all write through one, whose commits are on the disk (`synchronous=FULL`) before they return.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hf_align.feedback.group_commit import Writer
from hf_align.feedback.replay import take_in
from hf_align.feedback.schema import TABLES, VERSION, VIEWS
from hf_align.feedback.views import Event, apply_event, event_of
from hf_align.types import InputError

BUSY_SECONDS = 30.0
CACHE_KIB = 16_384
"""Page cache of a connection; SQLite's 2 MB are too few for a log of a million events."""

REMOTE = ("fuse", "nfs", "cifs", "smb", "virtiofs", "9p", "sshfs", "ceph")
"""File systems whose locks or shared memory SQLite's WAL cannot rely on."""

_TICK = 1e-6  # events of one store are strictly ordered in time


class DamagedStore(OSError):
    """The database file is truncated, overwritten or no database; only its backup helps."""


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly, so that a thread's connection ends with its thread."""


class Transaction:
    """A write in progress: appends events and reads what they changed.

    Attributes:
        connection: The connection; use it for leases and for reading.
        now: Server time of the transaction, seconds since 1970; never earlier than a stored one.
    """

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self.connection = connection
        stored = connection.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
        self.now = max(clock(), stored[0] + _TICK)

    def append(
        self,
        event_id: str,
        kind: str,
        project: str,
        body: dict[str, Any],
        *,
        annotator: str | None = None,
        item_id: str | None = None,
        supersedes: str | None = None,
    ) -> bool:
        """Stores an event and applies it; False where an event of this id is stored already."""
        event = {
            **{"event_id": event_id, "type": kind, "ts_server": self.now, "project": project},
            **{"annotator": annotator, "item_id": item_id, "supersedes": supersedes},
            "body": body,
        }
        added = insert_event(self.connection, event, pending=True)
        if added:
            apply_event(self.connection, event)
            self.now += _TICK
        return added

    def finish(self) -> None:
        """Remembers the time, so that a clock set back cannot bring it back."""
        self.connection.execute("UPDATE meta SET value = ? WHERE key = 'clock'", (self.now,))


def insert_event(connection: sqlite3.Connection, event: Event, pending: bool) -> bool:
    """Adds an event to the log; False where its id is there."""
    row = connection.execute(
        "INSERT OR IGNORE INTO events "
        "(event_id, type, ts, project, annotator, item_id, supersedes, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (
            *(event["event_id"], event["type"], event["ts_server"], event["project"]),
            *(event["annotator"], event["item_id"], event["supersedes"]),
            json.dumps(event["body"], ensure_ascii=False),
        ),
    ).fetchone()
    if row is not None and pending:
        connection.execute("INSERT INTO pending VALUES (?)", row)
    return row is not None


class Store:
    """One SQLite file.

    Args:
        path: The file, made if absent; on a local disk.
        wall: The wall clock, seconds since 1970, read once; for tests.
        monotonic: The clock that carries it on.
        network_disk: "refuse", or "exclusive" to use a disk on which WAL is unsafe with a rollback
            journal, a lock on the whole file and a single connection.

    Raises:
        InputError: The disk is remote and `network_disk` refuses, or a newer version made the file.
        DamagedStore: The file is damaged.
        OSError: It cannot be opened: locked, no space, no permission.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        network_disk: str = "refuse",
    ) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        system = file_system(self.path)
        self._exclusive = network_disk == "exclusive" and system.startswith(REMOTE)
        if system.startswith(REMOTE) and not self._exclusive:
            raise InputError(
                f"{self.path} is on {system}, where SQLite loses data: put it on a local disk and "
                "back it up with a bucket or a dataset repo"
            )
        self._lock = threading.RLock()
        self._local = threading.local()
        self._single: sqlite3.Connection | None = None
        self._writer = Writer(self._writing, most=1 if self._exclusive else 64)
        self._connections: weakref.WeakSet[sqlite3.Connection] = weakref.WeakSet()
        self._closed = False
        with self._said():
            self._set_up()
        # The wall clock may be set back, between two starts too; the monotonic one cannot.
        start = max(wall(), self._last_time()) - monotonic()
        self._clock = lambda: start + monotonic()

    def _set_up(self) -> None:
        connection = self._connection()
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {found}")
        connection.executescript(TABLES + VIEWS)
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (VERSION,))
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('clock', 0.0)")
        version = connection.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()[0]
        if version > VERSION:
            raise InputError(f"{self.path} is of version {version}, newer than this hf_align")

    def _last_time(self) -> float:
        with self.read() as connection:
            return connection.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()[0]

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise OSError(f"{self.path} is closed")
        if self._exclusive:
            return self._writing()
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        return connection

    def _writing(self) -> sqlite3.Connection:
        if self._closed:
            raise OSError(f"{self.path} is closed")
        if self._single is None:
            self._single = self._connect()
        return self._single

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        self._connections.add(connection)
        connection.row_factory = sqlite3.Row
        wanted = "DELETE" if self._exclusive else "WAL"
        if self._exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        mode = connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0]
        if mode.upper() != wanted:
            raise InputError(
                f"{self.path}: SQLite cannot use WAL there (journal_mode is {mode!r}); put it on a "
                "local disk"
            )
        settings = ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON")
        for pragma in (*settings, f"cache_size = -{CACHE_KIB}"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction: all of it is on the disk when the block ends, or none of it.

        Raises:
            OSError: Disk full, locked by another process, damaged; one line.
        """
        # Threads queue here, and not on SQLite's lock, which sleeps and lets anyone in.
        lock = self._lock if self._exclusive else nullcontext()
        with lock, self._said(), self._writer.transaction() as connection:
            transaction = Transaction(connection, self._clock)
            yield transaction
            transaction.finish()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the store throughout the block."""
        lock = self._lock if self._exclusive else nullcontext()
        with lock, self._said():
            connection = self._connection()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """As `read`, on a connection of its own: for reading while this thread goes on writing."""
        if self._exclusive:
            yield self._connection()
            return
        with self._said():
            connection = self._connect()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                connection.close()

    def now(self) -> float:
        """Server time, seconds since 1970; it never goes back while the process runs."""
        return self._clock()

    def events(self, project: str | None = None) -> Iterator[Event]:
        """All events in the order they were stored."""
        with self.snapshot() as connection:
            rows = connection.execute(
                "SELECT * FROM events WHERE ? IS NULL OR project = ? ORDER BY seq",
                (project, project),
            )
            yield from map(event_of, rows)

    def replay(self, events: Iterable[Event], segments: Iterable[str] = ()) -> int:
        """Takes in events of a backup; those that are stored already are left alone.

        Args:
            events: In any order; read once.
            segments: Names of the segments they came from, noted as known afterwards.

        Returns:
            How many were new.

        Raises:
            OSError: As `write`; or reading the events failed. Nothing was taken in then.
        """
        with self.write() as transaction:
            connection = transaction.connection
            # A million ids in random order touch every page of their index again and again.
            connection.execute(f"PRAGMA cache_size = -{16 * CACHE_KIB}")
            added = take_in(connection, events)
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.executemany(
                "INSERT OR IGNORE INTO segments VALUES (?)", ((path,) for path in segments)
            )
            if added:
                latest = connection.execute("SELECT max(ts) FROM events").fetchone()[0]
                transaction.now = max(transaction.now, latest + _TICK)
        return added

    def damage(self) -> str | None:
        """What a full check of the file finds; None where it is sound."""
        with self.read() as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        return None if found == "ok" else str(found)

    def scrub(self, patience: float = 60.0) -> None:
        """Moves the log into the main file, where deleted rows are overwritten, and empties it.

        Raises:
            OSError: Others keep reading the old state.
        """
        deadline = time.monotonic() + patience
        with self._said():
            while self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > deadline:
                    raise OSError(f"{self.path}: others keep reading it; try again later")
                time.sleep(0.05)

    def close(self) -> None:
        """Closes every connection; further use of the store is an error."""
        if self._closed:
            return
        self._writer.close()
        with self._lock:
            self._closed = True
            for connection in list(self._connections):
                connection.close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """SQLite's errors as one line that says what to do."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "full" in text:
                raise OSError(f"{self.path}: the disk is full; free some space") from error
            if "locked" in text or "busy" in text:
                raise OSError(
                    f"{self.path} is locked by another process; stop the other server"
                ) from error
            if any(sign in text for sign in ("malformed", "not a database", "disk I/O", "corrupt")):
                raise DamagedStore(
                    f"{self.path} is damaged ({text.splitlines()[0][:100]}); restore it from its "
                    "backup"
                ) from error
            if isinstance(error, sqlite3.OperationalError):
                raise OSError(f"{self.path}: {text}") from error
            raise


def file_system(path: Path) -> str:
    """Type of the file system that holds a path, from /proc/mounts; empty where there is none."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return ""
    folder = os.path.realpath(path.parent)
    best, kind = "", ""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, system = line.split()[:3]
        point = point.replace("\\040", " ")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, system
    return kind
