"""Erases a person on request, although the log is append-only.

Their events are deleted from the store, from the free pages of its file and from every segment of
the backup; what stays is a tombstone, an event with their pseudonym and the time, so that an old
copy of a segment cannot bring anything back. Exports made before are files of their own: make them
again, and publish the new revision in place of the old.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from hf_align.feedback.backups import Backup
from hf_align.feedback.outbox import Outbox
from hf_align.feedback.replay import drop_forgotten, rebuild
from hf_align.feedback.store import Store


@dataclass(frozen=True)
class Erased:
    """What an erasure removed.

    Attributes:
        events: Events deleted from the store.
        segments: Segments of the backup that were replaced.
    """

    events: int
    segments: int


def erase(store: Store, project: str, annotator: str, outbox: Outbox | None = None) -> Erased:
    """Deletes all that an annotator did in a project, here and in the backup.

    Items whose votes are gone are handed out again; what they wrote in a chat goes with its items.
    Asking twice is harmless, and finishes what a crash or an unreachable backup interrupted.

    Raises:
        OSError: The backup cannot be reached; the store is erased already.
    """
    with store.write() as transaction:
        connection = transaction.connection
        body = {"annotator": annotator}
        transaction.append(str(uuid.uuid4()), "forget", project, body)
        connection.execute("DELETE FROM leases WHERE annotator = ?", (annotator,))
        connection.execute("DELETE FROM people WHERE annotator = ?", (annotator,))
        events = drop_forgotten(connection)
        rebuild(connection)
    store.scrub()
    if outbox is None:
        return Erased(events, 0)
    return Erased(events, _rewrite(store, annotator, outbox))


def _rewrite(store: Store, annotator: str, outbox: Outbox) -> int:
    """Uploads what must stay under new names, the tombstone too, then deletes the old segments."""
    if outbox.flush():
        raise OSError(f"backup {outbox.backup.name}: cannot be reached; erase again later")
    backup: Backup = outbox.backup
    replaced = []
    for path, content in backup.download(backup.list()):
        lines = content.splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line).get("annotator") != annotator]
        if len(kept) == len(lines):
            continue
        if kept:
            new = outbox.new_path()
            backup.upload({new: b"".join(kept)})
            with store.write() as transaction:
                transaction.connection.execute("INSERT INTO segments VALUES (?)", (new,))
        replaced.append(path)
    if replaced:
        backup.delete(replaced)
    return len(replaced)
