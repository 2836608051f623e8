"""Carries events off the machine: immutable segments of JSON lines, uploaded by one thread.

    events/<utc>-<boot id>/<number>.jsonl

A name belongs to one start of one server, so two that overlap cannot overwrite each other. A
segment whose upload failed is sent again as it was; an event that two segments hold is taken in
once.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hf_align.feedback.backups import Backup, DatasetBackup
from hf_align.feedback.identity import Refused
from hf_align.feedback.store import Store
from hf_align.feedback.views import Event, event_of

MAX_SEGMENT_EVENTS = 2_000
MAX_SEGMENT_BYTES = 8_000_000
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try
_SEGMENT = re.compile(r"events/[0-9TZ]+-[0-9a-f]+/\d{8}\.jsonl")


@dataclass(frozen=True)
class Limits:
    """When events are uploaded, and when too many are waiting.

    Attributes:
        every_seconds: Upload at least this often while there is something to upload.
        every_events: Upload as soon as so many wait.
        max_events: With more waiting, no further tasks are handed out.
        max_seconds: Nor with one that has waited longer.
        safe_timeout: How long an answer waits for its segment at the level `safe`.
    """

    every_seconds: float = 5.0
    every_events: int = 20
    max_events: int = 200
    max_seconds: float = 600.0
    safe_timeout: float = 60.0


DATASET_LIMITS = Limits(every_seconds=300.0, every_events=200, max_events=2000, max_seconds=1800.0)
"""For a dataset repo, where every upload is a commit and a few thousand commits are too many."""


@dataclass(frozen=True)
class Lag:
    """What is not yet backed up.

    Attributes:
        events: How many events wait.
        seconds: How long the oldest has waited.
        error: Why the last upload failed; None if it did not.
    """

    events: int
    seconds: float
    error: str | None


class Outbox:
    """Uploads what a store has that its backup has not.

    Args:
        store: The store.
        backup: Where segments go.
        limits: When; `DATASET_LIMITS` for a dataset repo and `Limits()` elsewhere if left out.
    """

    def __init__(self, store: Store, backup: Backup, limits: Limits | None = None) -> None:
        self.store, self.backup = store, backup
        repo = isinstance(backup, DatasetBackup)
        self.limits = limits or (DATASET_LIMITS if repo else Limits())
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._folder = f"events/{stamp}-{uuid.uuid4().hex[:12]}"
        self._number = 0
        self._unsent: tuple[str, bytes, int] | None = None
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._fresh = 0  # events noted since the last upload began
        self._wanted = False  # an answer waits for its segment
        self._stopping = False
        self._error: str | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the uploading thread."""
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; what waits stays in the store and goes out at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def note(self) -> None:
        """Says that an event was stored."""
        with self._changed:
            self._fresh += 1
            if self._fresh >= self.limits.every_events:
                self._changed.notify_all()

    def confirm(self, event_id: str) -> None:
        """Waits until the segment with an event has been accepted: many answers share one upload.

        Raises:
            OSError: It was not in time. The event is stored here and will be uploaded, but its
                answer must not be acknowledged.
        """
        deadline = time.monotonic() + self.limits.safe_timeout
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
        while self._is_pending(event_id):
            left = deadline - time.monotonic()
            if left <= 0:
                raise OSError(
                    f"your answer is not backed up yet ({self._error or 'the upload is slow'}); "
                    "send it again"
                )
            with self._changed:
                # Looked at again now and then: the upload may have ended just before the wait.
                self._changed.wait(min(left, 0.05))

    def _is_pending(self, event_id: str) -> bool:
        with self.store.read() as connection:
            return (
                connection.execute(
                    "SELECT 1 FROM pending JOIN events USING (seq) WHERE event_id = ?", (event_id,)
                ).fetchone()
                is not None
            )

    def lag(self) -> Lag:
        """What is not backed up at the moment."""
        with self.store.read() as connection:
            count, first = connection.execute("SELECT count(*), min(seq) FROM pending").fetchone()
            if not count:
                return Lag(0, 0.0, None)
            clock, oldest = connection.execute(
                "SELECT (SELECT value FROM meta WHERE key = 'clock'), ts FROM events WHERE seq = ?",
                (first,),
            ).fetchone()
        return Lag(count, max(0.0, max(clock, self.store.now()) - oldest), self._error)

    def check_backlog(self) -> None:
        """Makes sure that another task may be handed out.

        Raises:
            Refused: Too much waits to be backed up (`backlog`).
        """
        lag = self.lag()
        if lag.events > self.limits.max_events or lag.seconds > self.limits.max_seconds:
            raise Refused(
                "backlog",
                f"{lag.events} answers are not backed up yet; new tasks come when they are",
            )

    def flush(self, timeout: float = 30.0) -> int:
        """Uploads all that waits, trying again until the time is over.

        Returns:
            How many events are still not backed up.
        """
        deadline, failures = time.monotonic() + timeout, 0
        while self.lag().events:
            try:
                self._push()
            except Exception as error:  # as in `_work`
                self._error = _first_line(error)
                wait = _WAITS[min(failures, len(_WAITS) - 1)]
                failures += 1
                if time.monotonic() + wait > deadline:
                    break
                time.sleep(wait)
        return self.lag().events

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                wait = _WAITS[min(failures, len(_WAITS)) - 1] if failures else None
                self._changed.wait_for(
                    lambda failed=failures: (
                        self._stopping
                        or (
                            not failed and (self._wanted or self._fresh >= self.limits.every_events)
                        )
                    ),
                    wait or self.limits.every_seconds,
                )
                if self._stopping:
                    return
                self._fresh, self._wanted = 0, False
            try:
                while self._push():
                    pass
                failures, self._error = 0, None
            except Exception as error:
                # Whatever the Hub or its client comes up with, the thread must live: the error is
                # said in `lag`, where the lead sees it, and the segment is sent again.
                failures, self._error = failures + 1, _first_line(error)

    def _push(self) -> bool:
        """Uploads one segment; False where nothing waits."""
        with self._sending:
            if self._unsent is None:
                self._unsent = self._segment()
            if self._unsent is None:
                return False
            path, content, last = self._unsent
            self.backup.upload({path: content})
            with self.store.write() as transaction:
                # Events are stored in the order of seq, so none up to the last was left out.
                transaction.connection.execute("DELETE FROM pending WHERE seq <= ?", (last,))
                transaction.connection.execute("INSERT OR IGNORE INTO segments VALUES (?)", (path,))
            self._unsent = None
        with self._changed:
            self._changed.notify_all()
        return True

    def _segment(self) -> tuple[str, bytes, int] | None:
        lines, size, last = [], 0, 0
        with self.store.read() as connection:
            rows = connection.execute(
                "SELECT events.* FROM pending JOIN events USING (seq) ORDER BY seq LIMIT ?",
                (MAX_SEGMENT_EVENTS,),
            )
            for row in rows:
                line = event_line(event_of(row))
                if lines and size + len(line) > MAX_SEGMENT_BYTES:
                    break
                lines.append(line)
                size, last = size + len(line), row["seq"]
        if not lines:
            return None
        return self.new_path(), b"".join(lines), last

    def new_path(self) -> str:
        """A name for a segment that no other has."""
        with self._changed:
            self._number += 1
            return f"{self._folder}/{self._number:08d}.jsonl"


def event_line(event: Event) -> bytes:
    """An event as a line of a segment."""
    return json.dumps(event, ensure_ascii=False).encode() + b"\n"


def restore(store: Store, backup: Backup) -> int:
    """Takes in every segment of a backup that the store does not know.

    Returns:
        How many events were new.

    Raises:
        OSError: The backup cannot be reached, or one of its segments is damaged; nothing was taken
            in.
    """
    with store.read() as connection:
        known = {row[0] for row in connection.execute("SELECT path FROM segments")}
    found = [path for path in backup.list() if _SEGMENT.fullmatch(path) and path not in known]
    if not found:
        return 0
    return store.replay(_events(backup.download(found)), found)


def _events(segments: Iterable[tuple[str, bytes]]) -> Iterator[Event]:
    for path, content in segments:
        if not content.endswith(b"\n"):
            raise OSError(f"segment {path} of the backup is cut short")
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                event = json.loads(line)
                missing = {"event_id", "type", "ts_server", "project", "body"} - set(event)
            except (ValueError, TypeError) as error:
                raise OSError(f"segment {path} of the backup is damaged, line {number}") from error
            if missing:
                raise OSError(f"segment {path} of the backup is damaged, line {number}")
            yield {"annotator": None, "item_id": None, "supersedes": None, **event}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
