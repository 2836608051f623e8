"""What one event changes in the views of the current state.

Applied in the transaction that stores the event, and again, in the order of time, when the views
are rebuilt after a restore; so an event may rely on nothing but the events before it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
"""`event_id, type, ts_server, project, annotator, item_id, supersedes, body` (a dict)."""


def event_of(row: sqlite3.Row) -> Event:
    """A row of `events` as an event."""
    return {
        **{"event_id": row["event_id"], "type": row["type"], "ts_server": row["ts"]},
        **{"project": row["project"], "annotator": row["annotator"], "item_id": row["item_id"]},
        **{"supersedes": row["supersedes"], "body": json.loads(row["body"])},
    }


def apply_event(connection: sqlite3.Connection, event: Event) -> None:
    """Brings the views up to date with one event; an unknown type changes nothing."""
    change = _CHANGES.get(event["type"])
    if change is not None:
        change(connection, event, event["body"])


def _project(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "INSERT INTO projects (name, settings) VALUES (?, ?) "
        "ON CONFLICT (name) DO UPDATE SET settings = excluded.settings",
        (event["project"], json.dumps(body)),
    )


def _pause(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "UPDATE projects SET paused = ? WHERE name = ?", (int(body["paused"]), event["project"])
    )


def _guidelines(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "UPDATE projects SET guideline_version = ?, guidelines = ?, "
        "quiz_version = CASE WHEN ? THEN ? ELSE quiz_version END WHERE name = ?",
        (body["version"], body["text"], body["quiz"], body["version"], event["project"]),
    )


def _item(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    gold = body.get("gold") or {}
    connection.execute(
        "INSERT OR IGNORE INTO items (item_id, project, event_id, kind, prompt_hash, num_outputs, "
        "gold, quiz, overlap, priority, withdrawn) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(event["item_id"], event["project"], event["event_id"], body["kind"]),
            *(body["prompt_hash"], len(body["outputs"]), gold.get("best")),
            *(int(gold.get("quiz", False)), body["overlap"], body["priority"]),
            int(body.get("withdrawn", False)),
        ),
    )


def _answer(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    key = (event["item_id"], event["annotator"], int(body["is_repeat"]))
    before = connection.execute(
        "SELECT nth, kind FROM answers WHERE item_id = ? AND annotator = ? AND is_repeat = ?", key
    ).fetchone()
    skipped = event["type"] == "skip"
    if before is None:
        nth = connection.execute(
            "INSERT INTO annotators (project, annotator, served) VALUES (?, ?, 1) "
            "ON CONFLICT (project, annotator) DO UPDATE SET served = served + 1 RETURNING served",
            (event["project"], event["annotator"]),
        ).fetchone()[0]
    else:
        nth = before[0]
        _count(connection, key, -1, before[1] == "skip")
    connection.execute(
        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(*key, event["project"], event["event_id"], event["ts_server"], nth),
            *("skip" if skipped else body["kind"], int(body["is_gold"]), body["rotation"]),
            *(body.get("score"), body.get("correct")),
            *(body.get("active_ms"), body.get("wall_ms")),
        ),
    )
    _count(connection, key, 1, skipped)


def _undo(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    key = (event["item_id"], event["annotator"], int(body["is_repeat"]))
    gone = connection.execute(
        "DELETE FROM answers WHERE item_id = ? AND annotator = ? AND is_repeat = ? "
        "AND event_id = ? RETURNING kind",
        (*key, event["supersedes"]),
    ).fetchone()
    if gone is not None:
        _count(connection, key, -1, gone[0] == "skip")
        connection.execute(
            "UPDATE annotators SET served = served - 1 WHERE project = ? AND annotator = ?",
            (event["project"], event["annotator"]),
        )


def _count(
    connection: sqlite3.Connection, key: tuple[str, str, int], by: int, skipped: bool
) -> None:
    """A repeat says something about the annotator; only a first vote counts for the item."""
    if not key[2]:
        column = "skips" if skipped else "votes"
        connection.execute(
            f"UPDATE items SET {column} = {column} + ? WHERE item_id = ?", (by, key[0])
        )


def _quiz(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    if body["passed"]:
        connection.execute(
            "INSERT INTO annotators (project, annotator, quiz_version) VALUES (?, ?, ?) "
            "ON CONFLICT (project, annotator) DO UPDATE SET quiz_version = excluded.quiz_version",
            (event["project"], event["annotator"], body["guideline_version"]),
        )


def _annotator(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    for column in ("paused", "role"):
        if column in body:
            connection.execute(
                f"INSERT INTO annotators (project, annotator, {column}) VALUES (?, ?, ?) "
                f"ON CONFLICT (project, annotator) DO UPDATE SET {column} = excluded.{column}",
                (event["project"], body["annotator"], body[column]),
            )


def _requeue(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "DELETE FROM answers WHERE item_id = ? AND kind = 'skip'", (event["item_id"],)
    )
    connection.execute("UPDATE items SET skips = 0 WHERE item_id = ?", (event["item_id"],))


def _withdraw(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "UPDATE items SET withdrawn = ? WHERE item_id = ?",
        (int(body["withdrawn"]), event["item_id"]),
    )


def _adjudication(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        # The item may be gone: that of an erased person's chat.
        "INSERT OR REPLACE INTO adjudications SELECT item_id, ?, ?, ? FROM items WHERE item_id = ?",
        (event["project"], event["event_id"], body.get("score"), event["item_id"]),
    )


def _forget(connection: sqlite3.Connection, event: Event, body: Event) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO forgotten VALUES (?, ?)", (body["annotator"], event["ts_server"])
    )


_CHANGES: dict[str, Callable[[sqlite3.Connection, Event, Event], None]] = {
    "project": _project,
    "pause": _pause,
    "guidelines": _guidelines,
    "item": _item,
    "answer": _answer,
    "skip": _answer,
    "undo": _undo,
    "quiz": _quiz,
    "annotator": _annotator,
    "requeue": _requeue,
    "withdraw": _withdraw,
    "adjudication": _adjudication,
    "forget": _forget,
}
