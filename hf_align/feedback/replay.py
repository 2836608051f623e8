"""Takes events of a backup into a store, and makes the views again from the log.

Events that come in the order of time change the views as they come, so that a wiped disk is filled
in one pass. Where one is older than what is there, the views are made again from all of them.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hf_align.feedback.schema import VIEW_NAMES
from hf_align.feedback.views import Event, apply_event, event_of

_BATCH = 500  # SQLite takes so many parameters in one statement everywhere


def take_in(connection: sqlite3.Connection, events: Iterable[Event]) -> int:
    """Adds the events that are new, inside a transaction, and brings the views up to date.

    Returns:
        How many were new.
    """
    connection.execute("PRAGMA defer_foreign_keys = ON")  # a vote may come before its item
    # What an erased person did before is left out, whichever segment it comes from.
    in_order = connection.execute("SELECT 1 FROM forgotten LIMIT 1").fetchone() is None
    added = 0
    latest = connection.execute(
        "SELECT ts, event_id FROM events ORDER BY ts DESC, event_id DESC LIMIT 1"
    ).fetchone()
    last = (float("-inf"), "") if latest is None else tuple(latest)
    stream = iter(events)
    while batch := list(itertools.islice(stream, _BATCH)):
        new = _insert(connection, batch)
        added += len(new)
        for event in new if in_order else ():
            place = (event["ts_server"], event["event_id"])
            in_order = place > last and event["type"] != "forget"
            if not in_order:
                break
            apply_event(connection, event)
            last = place
    if not in_order:
        drop_forgotten(connection)
        rebuild(connection)
    return added


def _insert(connection: sqlite3.Connection, batch: list[Event]) -> list[Event]:
    """Those of the events that the log did not hold, in their order, now in it."""
    marks = ", ".join("?" * len(batch))
    known = {
        row[0]
        for row in connection.execute(
            f"SELECT event_id FROM events WHERE event_id IN ({marks})",
            [event["event_id"] for event in batch],
        )
    }
    fresh = []
    for event in batch:
        if event["event_id"] not in known:
            known.add(event["event_id"])  # two segments may hold the same one
            fresh.append(event)
    connection.executemany(
        "INSERT INTO events (event_id, type, ts, project, annotator, item_id, supersedes, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(event["event_id"], event["type"], event["ts_server"], event["project"]),
                *(event["annotator"], event["item_id"], event["supersedes"]),
                json.dumps(event["body"], ensure_ascii=False),
            )
            for event in fresh
        ),
    )
    return fresh


@contextmanager
def erasing(connection: sqlite3.Connection) -> Iterator[None]:
    """Lifts the log's protection inside a transaction."""
    connection.execute("INSERT INTO erasing VALUES ('')")
    yield
    connection.execute("DELETE FROM erasing")


def drop_forgotten(connection: sqlite3.Connection) -> int:
    """Deletes what erased people did before they were erased; returns how many events that were."""
    with erasing(connection):
        gone = connection.execute(
            "DELETE FROM events WHERE seq IN (SELECT e.seq FROM events AS e JOIN events AS f "
            "ON f.type = 'forget' AND e.annotator = json_extract(f.body, '$.annotator') "
            "AND e.ts < f.ts WHERE e.annotator IS NOT NULL)"
        ).rowcount
    connection.execute("DELETE FROM pending WHERE seq NOT IN (SELECT seq FROM events)")
    return gone


def rebuild(connection: sqlite3.Connection) -> None:
    """Empties the views and applies every event again in the order of time."""
    connection.execute("PRAGMA defer_foreign_keys = ON")
    for name in VIEW_NAMES:
        connection.execute(f"DELETE FROM {name}")
    for event in _in_order(connection):
        apply_event(connection, event)
    connection.execute(
        "UPDATE items SET held = (SELECT count(*) FROM leases WHERE leases.item_id = items.item_id "
        "AND state = 'open' AND NOT is_repeat)"
    )


def _in_order(connection: sqlite3.Connection) -> Iterator[Event]:
    """All events in the order of time; only their numbers are sorted, not what they say."""
    sorted_ = connection.execute("SELECT seq FROM events ORDER BY ts, event_id").fetchall()
    for start in range(0, len(sorted_), _BATCH):
        numbers = [row[0] for row in sorted_[start : start + _BATCH]]
        marks = ", ".join("?" * len(numbers))
        rows = connection.execute(f"SELECT * FROM events WHERE seq IN ({marks})", numbers)
        found = {row["seq"]: event_of(row) for row in rows}
        yield from (found[number] for number in numbers)
