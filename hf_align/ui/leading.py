"""What the lead's page may ask of the server. Every action checks the role first: hiding a page
protects nothing."""

from __future__ import annotations

import base64
import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_align.feedback import (
    Collection,
    ExportOptions,
    Refused,
    agreement,
    drift,
    drifted,
    load_votes,
    progress,
    quality,
    write_export,
)
from hf_align.types import InputError
from hf_align.ui import lead_views as views
from hf_align.ui.annotating import Reply, parsed, text_of
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.sign_in import SignIn
from hf_align.ui.task_views import message_view, sign_in_view

_DOWNLOAD_BYTES = 64_000_000
_DRIFT_VOTES, _DRIFT_WORK = 40, 2_000_000
_WHOLE = ("overlap", "quota")
_SHARES = ("gold_rate", "repeat_rate")


class Leading:
    """The lead's side of an app.

    Args:
        collection: The collection.
        project: Name of the project.
        sign_in: How accounts are known.
        limit: How often one account may ask.
    """

    def __init__(
        self,
        collection: Collection,
        project: str,
        sign_in: SignIn,
        limit: RateLimit | None = None,
    ) -> None:
        self.collection, self.project, self.sign_in = collection, project, sign_in
        self._limit = limit or RateLimit(4.0, 60)
        self._actions: dict[str, Callable[[str, Mapping[str, Any]], Reply]] = {
            "next": lambda *_: {},
            "pause": self._pause,
            "settings": self._settings,
            "guidelines": self._guidelines,
            "pause-annotator": self._pause_annotator,
            "adjudicate": self._adjudicate,
            "requeue": self._requeue,
            "export": self._export,
            "push": self._push,
        }

    def act(self, account: str | None, payload: str) -> Reply:
        """Answers one request of an account's session."""
        if account is None:
            html = sign_in_view(self.sign_in.on_space, True, "lead")
            return {"html": html, "code": "signed_out"}
        try:
            self._limit.take(account)
            self.collection.lead.check(account)
            body = parsed(payload)
            action = self._actions.get(str(body.get("action")))
            if action is None:
                raise InputError("this page is of another version; reload it")
            reply = action(account, body)
            if "html" not in reply:
                reply = {"html": self._overview(account), "code": "lead", **reply}
        except Refused as refusal:
            if refusal.code == "role":
                return {"html": message_view("No access", str(refusal), ""), "code": "role"}
            code = "retry" if refusal.code == "rate" else refusal.code
            return {"error": str(refusal), "code": code}
        except InputError as error:
            return {"error": str(error), "code": "input"}
        except OSError as error:
            return {"error": f"not done: {error}", "code": "failed"}
        return reply

    def _overview(self, account: str) -> str:
        """Everything on the page, computed from the store as it is."""
        store, name, lead = self.collection.store, self.project, self.collection.lead
        votes = load_votes(store, name)
        measured = quality(votes)
        worked = [one.annotator for one in measured[1:] if one.votes >= _DRIFT_VOTES]
        # Each looks at all votes: with very many the page would take long to come.
        looked = worked if votes.item.size * len(worked) < _DRIFT_WORK else []
        drifting = {one: drifted(drift(votes, one)) for one in looked}
        return views.lead_view(
            views.Overview(
                progress=progress(store, name),
                agreement=agreement(votes),
                quality=measured,
                drifting=drifting,
                accounts=lead.accounts_of(account, name),
                paused=self._paused(),
                disagreements=lead.disagreements(account, name, 20),
                set_aside=self._set_aside(),
                lag=self.collection.lag(),
                backup=None
                if self.collection.outbox is None
                else self.collection.outbox.backup.name,
                level=self.collection.level,
                briefing=self.collection.briefing(name),
            )
        )

    def _paused(self) -> dict[str, str]:
        with self.collection.store.read() as connection:
            rows = connection.execute(
                "SELECT annotator, paused FROM annotators WHERE project = ? AND paused IS NOT NULL",
                (self.project,),
            ).fetchall()
        return dict(map(tuple, rows))

    def _set_aside(self) -> list[tuple[str, int]]:
        limit = self.collection.briefing(self.project).project.max_skips
        with self.collection.store.read() as connection:
            rows = connection.execute(
                "SELECT item_id, skips FROM items WHERE project = ? AND skips >= ? "
                "AND gold IS NULL AND withdrawn = 0 ORDER BY skips DESC, item_id LIMIT 20",
                (self.project, limit),
            ).fetchall()
        return [tuple(row) for row in rows]

    def _pause(self, account: str, body: Mapping[str, Any]) -> Reply:
        paused = text_of(body, "paused") == "yes"
        self.collection.lead.pause_project(account, self.project, paused)
        return {"notice": "Paused: nothing more is handed out." if paused else "Going on."}

    def _settings(self, account: str, body: Mapping[str, Any]) -> Reply:
        changes = {name: _number(body, name) for name in (*_WHOLE, *_SHARES) if name in body}
        for name in _WHOLE:
            if isinstance(changes.get(name), float):
                raise InputError(f"{name}: expected a whole number")
        self.collection.lead.change_project(account, self.project, **changes)
        return {"notice": "Settings changed; they hold from the next task on."}

    def _guidelines(self, account: str, body: Mapping[str, Any]) -> Reply:
        text, again = text_of(body, "text"), text_of(body, "quiz") == "yes"
        if text == self.collection.briefing(self.project).guidelines and not again:
            return {"notice": "The guidelines are unchanged."}
        lead = self.collection.lead
        version = lead.change_guidelines(account, self.project, text, quiz=again)
        return {"notice": f"Guidelines are now version {version}."}

    def _pause_annotator(self, account: str, body: Mapping[str, Any]) -> Reply:
        annotator, reason = text_of(body, "annotator"), text_of(body, "reason").strip()
        known = self.collection.lead.accounts_of(account, self.project)
        if annotator not in known and annotator not in self._paused():
            raise InputError("annotator: nobody of this pseudonym")
        lead = self.collection.lead
        lead.pause_annotator(account, self.project, annotator, reason or None)
        return {"notice": f"{annotator} is paused." if reason else f"{annotator} may go on."}

    def _adjudicate(self, account: str, body: Mapping[str, Any]) -> Reply:
        score = _number(body, "score")
        if not isinstance(score, int):
            raise InputError("score: choose one")
        item, notes = text_of(body, "item"), text_of(body, "notes")
        self.collection.lead.adjudicate(account, self.project, item, score, notes)
        return {"notice": "Settled; the votes stay as they are."}

    def _requeue(self, account: str, body: Mapping[str, Any]) -> Reply:
        self.collection.lead.requeue(account, self.project, text_of(body, "item"))
        return {"notice": "Back in the queue."}

    def _export(self, _: str, body: Mapping[str, Any]) -> Reply:
        with tempfile.TemporaryDirectory(prefix="hf_align-") as scratch:
            folder = Path(scratch) / self.project
            manifest = self._written(folder, body)
            content = _zipped(folder)
        if len(content) > _DOWNLOAD_BYTES:
            raise InputError(
                "the export is too large for the page: push it, or export it on the server"
            )
        return {
            "file": {
                "name": f"{self.project}-{manifest['kind']}.zip",
                "base64": base64.b64encode(content).decode(),
            },
            "notice": f"Exported {sum(manifest['rows'].values())} rows.",
        }

    def _push(self, _: str, body: Mapping[str, Any]) -> Reply:
        from hf_align.hub import check_destination, push_dataset

        repo, private = text_of(body, "repo").strip(), text_of(body, "public") != "yes"
        if not repo:
            raise InputError("repo: name one, as namespace/name")
        destination = check_destination(repo, self.project, private, kind="dataset")
        with tempfile.TemporaryDirectory(prefix="hf_align-") as scratch:
            folder = Path(scratch) / self.project
            self._written(folder, body, "parquet", described=True)
            published = push_dataset(folder, destination, "press Push again")
        return {"notice": f"Published at {published.url}, commit {published.commit[:10]}."}

    def _written(
        self,
        folder: Path,
        body: Mapping[str, Any],
        file_format: str = "",
        described: bool = False,
    ) -> dict[str, Any]:
        names = ("votes", "ties", "skips", "labels")
        said = {name: text_of(body, name) for name in names if body.get(name)}
        manifest = write_export(
            *(self.collection.store, self.project, folder),
            text_of(body, "kind") or "preference",  # type: ignore[arg-type]
            ExportOptions(**said),  # type: ignore[arg-type]
            file_format=file_format or text_of(body, "format") or "jsonl",  # type: ignore[arg-type]
            described=described,
        )
        if not manifest["rows"]:
            raise InputError("nothing to export yet: no vote of this kind counts")
        return manifest


def _number(body: Mapping[str, Any], name: str) -> int | float | None:
    text = text_of(body, name).strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError as error:
            raise InputError(f"{name} {text[:20]!r}: expected a number") from error


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{folder.name}{os.sep}{path.name}")
    return buffer.getvalue()
