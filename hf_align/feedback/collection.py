"""A running collection: store, keys, backup and shutdown put together, for apps and recipes.

An app calls `sign_in` with the account that its server session vouches for, and passes the
pseudonym it returns to everything else. Nothing here trusts what a page sends but the signed token.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection as Accounts
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_align.feedback import assignment, quiz, submission
from hf_align.feedback.answers import Answer
from hf_align.feedback.assignment import Assignment
from hf_align.feedback.backups import Backup
from hf_align.feedback.erasure import Erased, erase
from hf_align.feedback.identity import Keys, Refused
from hf_align.feedback.items import Output
from hf_align.feedback.lead import Leads
from hf_align.feedback.outbox import Lag, Limits, Outbox, restore
from hf_align.feedback.projects import Project
from hf_align.feedback.quiz import Question, QuizResult
from hf_align.feedback.shutdown import Gate
from hf_align.feedback.store import DamagedStore, Store
from hf_align.feedback.submission import Receipt
from hf_align.types import Text

Level = Literal["local", "safe"]


@dataclass(frozen=True)
class Briefing:
    """What stands beside the task.

    Attributes:
        project: The project's settings.
        guidelines: Text of the current version.
        guideline_version: Its number.
        paused: Whether the project hands nothing out.
    """

    project: Project
    guidelines: str
    guideline_version: int
    paused: bool


@dataclass(frozen=True)
class Done:
    """An own answer in the history.

    Attributes:
        event_id: Names the answer for `edit`.
        item_id: Id of the item.
        kind: "pair", "ranking", "demonstration" or "skip".
        ts: When it was given.
        prompt: Text or messages.
        completions: In the order shown.
        said: What was answered: `choice`, `text`, `notes`, `skip_reason`, `recognized`; and
            `ranks`, `ratings`, `flags` as lists in the order shown.
    """

    event_id: str
    item_id: str
    kind: str
    ts: float
    prompt: object
    completions: tuple[str, ...]
    said: Mapping[str, object]


class Collection:
    """What an app needs, each method safe to call from any thread.

    Args:
        store: The store.
        keys: Pseudonyms and tokens.
        leads: Accounts that lead, such as `hf:name`.
        allowed: Accounts that may annotate; None for everyone who is signed in.
        backup: Where segments go; None keeps everything on this disk only.
        level: "local": an answer is acknowledged once it is on this disk. "safe": once its segment
            has been accepted by the backup.
        limits: When segments are uploaded, and when too much waits.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        leads: Accounts[str] = (),
        allowed: Accounts[str] | None = None,
        backup: Backup | None = None,
        level: Level = "local",
        limits: Limits | None = None,
    ) -> None:
        self.store, self.keys, self.level = store, keys, level
        self.lead = Leads(store, keys, frozenset(leads))
        self._allowed = None if allowed is None else frozenset(allowed)
        self.outbox = None if backup is None else Outbox(store, backup, limits)
        self.gate = Gate(self._flush)
        self._known: set[tuple[str, str, str]] = set()  # whose names the store has
        if self.outbox is not None:
            self.outbox.start()

    def sign_in(self, project: str, account: str) -> str:
        """The pseudonym of an account that the server's session vouches for.

        Raises:
            Refused: The account is not on the list (`role`).
        """
        listed = self._allowed is None or account in self._allowed
        if not listed and not self.is_lead(account):
            raise Refused("role", "your account is not on the list of this project")
        pseudonym = self.keys.pseudonym(project, account)
        person = (project, pseudonym, account)
        if person in self._known:
            return pseudonym
        with self.store.read() as connection:
            known = connection.execute(
                "SELECT 1 FROM people WHERE project = ? AND annotator = ? AND account = ?", person
            ).fetchone()
        if known is None:
            with self.store.write() as transaction:
                assignment.project_row(transaction.connection, project)
                transaction.connection.execute(
                    "INSERT OR REPLACE INTO people VALUES (?, ?, ?)", person
                )
        self._known.add(person)
        return pseudonym

    def is_lead(self, account: str) -> bool:
        """Whether an account leads; every lead action checks it again."""
        return account in self.lead.accounts

    def briefing(self, project: str) -> Briefing:
        """Guidelines and settings to show."""
        with self.store.read() as connection:
            row = assignment.project_row(connection, project)
            settings = assignment.settings_of(connection, project)
        return Briefing(settings, row["guidelines"], row["guideline_version"], bool(row["paused"]))

    def next(self, project: str, annotator: str) -> Assignment:
        """The annotator's open item or the next one.

        Raises:
            Refused: `paused`, `quiz`, `quota`, `done`, `backlog` or `closing`.
        """
        with self.gate.entered():
            if self.outbox is not None:
                self.outbox.check_backlog()
            return assignment.next_assignment(self.store, self.keys, project, annotator)

    def open_turn(
        self,
        project: str,
        annotator: str,
        prompt: Text,
        outputs: Sequence[Output],
        *,
        source: str = "chat",
        shown: bool = False,
    ) -> Assignment:
        """A chat turn: two live answers to the annotator's own prompt, as their assignment."""
        with self.gate.entered():
            turn = (self.store, self.keys, project, annotator, prompt, outputs)
            return quiz.open_turn(*turn, source=source, shown=shown)

    def submit(self, annotator: str, token: str, answer: Answer) -> Receipt:
        """Stores an answer; when it returns, the answer is acknowledged at the chosen level.

        Raises:
            Refused: `token`, `unleased`, `expired`, `answered` or `closing`.
            InputError: The answer does not fit the item.
            OSError: It could not be stored, or not yet be backed up; sending it again is right.
        """
        with self._storing():
            receipt = submission.submit(self.store, self.keys, annotator, token, answer)
            return self._acknowledged(receipt)

    def skip(self, annotator: str, token: str, reason: str, notes: str = "") -> Receipt:
        """Leaves the item to someone else."""
        with self._storing():
            receipt = submission.skip(self.store, self.keys, annotator, token, reason, notes)
            return self._acknowledged(receipt)

    def undo(self, project: str, annotator: str) -> Assignment:
        """Takes the latest answer or skip back, and hands its item out again."""
        with self._storing():
            return submission.undo(self.store, self.keys, project, annotator)

    def edit(self, project: str, annotator: str, event_id: str, answer: Answer) -> Receipt:
        """Replaces an own answer of the history."""
        with self._storing():
            receipt = submission.edit(self.store, project, annotator, event_id, answer)
            return self._acknowledged(receipt)

    def quiz(self, project: str) -> list[Question]:
        """The quiz's questions."""
        return quiz.quiz_questions(self.store, project)

    def take_quiz(self, project: str, annotator: str, choices: Mapping[str, str]) -> QuizResult:
        """Grades a quiz."""
        with self._storing():
            return quiz.take_quiz(self.store, project, annotator, choices)

    def history(self, project: str, annotator: str, limit: int = 50) -> list[Done]:
        """The annotator's own latest answers, the newest first."""
        with self.store.read() as connection:
            rows = connection.execute(
                "SELECT answers.*, body FROM answers JOIN events USING (event_id) WHERE "
                "answers.project = ? AND answers.annotator = ? ORDER BY nth DESC LIMIT ?",
                (project, annotator, limit),
            ).fetchall()
            return [_done(connection, row) for row in rows]

    def lag(self) -> Lag:
        """What is not backed up; nothing where there is no backup."""
        return Lag(0, 0.0, None) if self.outbox is None else self.outbox.lag()

    def erase(self, actor: str, project: str, account: str) -> Erased:
        """Deletes all that an account did in a project, on its request: see `erasure`."""
        if actor != account:
            self.lead.check(actor)
        pseudonym = self.keys.pseudonym(project, account)
        self._known.discard((project, pseudonym, account))
        return erase(self.store, project, pseudonym, self.outbox)

    def close(self, timeout: float = 25.0) -> int:
        """Stops accepting, drains, flushes; returns how many events are not backed up."""
        return self.gate.close(timeout)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        with self.gate.entered():
            yield
            if self.outbox is not None:
                self.outbox.note()

    def _acknowledged(self, receipt: Receipt) -> Receipt:
        if self.level == "safe" and self.outbox is not None:
            self.outbox.confirm(receipt.event_id)
        return receipt

    def _flush(self, timeout: float) -> int:
        if self.outbox is None:
            return 0
        left = self.outbox.flush(timeout)
        self.outbox.stop()
        return left


def _done(connection: sqlite3.Connection, row: sqlite3.Row) -> Done:
    body = json.loads(row["body"])
    item = assignment.item_body(connection, row["item_id"])
    texts = dict(zip("abcdefghi", (out["completion"] for out in item["outputs"]), strict=False))
    shown = body["shown_order"]
    said = {
        name: body[name]
        for name in ("choice", "text", "notes", "skip_reason", "recognized")
        if body.get(name)
    }
    for name in ("ranks", "ratings", "flags"):
        if body.get(name):  # in the order shown: a letter would tell which output is the first
            said[name] = [body[name].get(letter) for letter in shown]
    return Done(
        *(row["event_id"], row["item_id"], row["kind"], row["ts"], item["prompt"]),
        completions=tuple(texts[letter] for letter in shown),
        said=said,
    )


def open_collection(
    path: str | Path,
    secret: str,
    *,
    leads: Accounts[str] = (),
    allowed: Accounts[str] | None = None,
    backup: Backup | None = None,
    level: Level = "local",
    limits: Limits | None = None,
    allow_empty: bool = False,
) -> Collection:
    """Opens a store, takes in what its backup has beyond it, and starts to back it up.

    A damaged file is put aside and its content taken from the backup.

    Args:
        path: The SQLite file, on a local disk.
        secret: At least 16 characters, the same at every start.
        leads: Accounts that lead.
        allowed: Accounts that may annotate; None for everyone.
        backup: Where segments go and come from.
        level: When an answer is acknowledged.
        limits: When segments are uploaded.
        allow_empty: Serve although the backup could not be read. Items may then get more votes
            than wanted.

    Raises:
        InputError: The secret is another one than before, or as `Store`.
        OSError: The backup cannot be read, or a damaged store has none.
    """
    keys = Keys(secret)
    path = Path(path)
    try:
        store = Store(path)
    except DamagedStore:
        if backup is None:
            raise
        backup.list()  # before anything is moved: is there something to restore from?
        _put_aside(path)
        store = Store(path)
    if backup is not None:
        try:
            restore(store, backup)
        except OSError:
            if not allow_empty:
                store.close()
                raise
    _check_secret(store, keys)
    return Collection(
        store, keys, leads=leads, allowed=allowed, backup=backup, level=level, limits=limits
    )


def _put_aside(path: Path) -> None:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(path.with_name(f"{path.name}.damaged-{stamp}{suffix}"))


def _check_secret(store: Store, keys: Keys) -> None:
    with store.write() as transaction:
        # An event, so that the backup knows it too; its id makes it the only one.
        transaction.append("secret", "secret", "", {"fingerprint": keys.fingerprint})
        known = transaction.connection.execute(
            "SELECT json_extract(body, '$.fingerprint') FROM events WHERE event_id = 'secret'"
        ).fetchone()[0]
    if known != keys.fingerprint:
        store.close()
        raise Refused(
            "secret",
            f"{store.path} was made with another secret: with this one every annotator would be "
            "a new person; set the secret of before",
        )
