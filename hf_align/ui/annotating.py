"""What an annotator's page may ask of the server, and what it gets back.

One request is one JSON text with an `action`; the reply is HTML to show and a few words about it.
Who asks is told by the session alone, what may be answered by the signed token. Every action can be
sent again: a page that got no reply does so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hf_align.feedback import (
    Answer,
    Assignment,
    Collection,
    Output,
    Refused,
    feedback_text,
    load_votes,
    quality,
)
from hf_align.feedback.collection import Done
from hf_align.feedback.progress import num_items, standing
from hf_align.types import InputError, Message, content_of
from hf_align.ui import task_views as views
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.safe_text import safe_html, safe_turns
from hf_align.ui.sign_in import SignIn

Respond = Callable[[list[Message]], Sequence[Output]]
"""Two answers to a conversation that ends with the annotator's message."""

Reply = dict[str, Any]
MAX_PAYLOAD = 1_000_000
APP_VERSION = "1"
_TITLES = {
    "paused": "Paused",
    "quota": "All done",
    "done": "All done",
    "backlog": "One moment",
    "closing": "One moment",
    "rate": "One moment",
}
_CLOSED = ("token", "unleased", "expired", "answered")
_FRESH = 30.0  # seconds for which counts that need a walk through the store are kept
_ANSWER = {field.name for field in fields(Answer)} - {"app_version"}


class Annotating:
    """The annotator's side of an app.

    Args:
        collection: The collection.
        project: Name of the project.
        sign_in: How accounts are known.
        respond: Writes the two answers of a chat turn; None for no chat.
        limit: How often one account may ask.
    """

    def __init__(
        self,
        collection: Collection,
        project: str,
        sign_in: SignIn,
        respond: Respond | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        self.collection, self.project, self.sign_in = collection, project, sign_in
        self.respond = respond
        self._limit = limit or RateLimit(4.0, 60)
        self._kept: dict[str, tuple[float, Any]] = {}
        self._actions: dict[str, Callable[[str, Mapping[str, Any]], Reply]] = {
            "next": lambda person, _: self._next(person),
            "vote": self._vote,
            "skip": self._skip,
            "undo": self._undo,
            "quiz": self._quiz,
            "history": lambda person, _: self._history(person),
            "change": self._change,
            "edit": self._edit,
            "chat-open": lambda person, _: self._chat_page(person, ""),
            "chat": self._chat,
        }

    def act(self, account: str | None, payload: str) -> Reply:
        """Answers one request of an account's session."""
        if account is None:
            invited = bool(getattr(self.sign_in, "invite", ""))
            return {
                "html": views.sign_in_view(self.sign_in.on_space, invited),
                "code": "signed_out",
            }
        try:
            self._limit.take(account)
            person = self.collection.sign_in(self.project, account)
            body = parsed(payload)
            action = self._actions.get(str(body.get("action")))
            if action is None:
                raise InputError("this page is of another version; reload it")
            reply = action(person, body)
        except Refused as refusal:
            return self._refused(refusal)
        except InputError as error:
            return {"error": str(error), "code": "input"}
        except OSError as error:
            return {"error": f"not saved yet: {error}", "code": "retry"}
        return {**reply, "status": self._status(account, person, body.get("version"))}

    def _refused(self, refusal: Refused) -> Reply:
        if refusal.code in ("rate", "closing", "backlog"):
            return {"error": str(refusal), "code": "retry"}
        if refusal.code == "role":
            return {"html": views.message_view("No access", str(refusal), ""), "code": "role"}
        return {"error": str(refusal), "code": refusal.code}

    def _next(self, person: str, notice: str = "") -> Reply:
        """The next task, the quiz, or why there is none."""
        try:
            task = self.collection.next(self.project, person)
        except Refused as refusal:
            if refusal.code == "quiz":
                questions = [
                    (question.item_id, question.prompt, question.completions)
                    for question in self.collection.quiz(self.project)
                ]
                return {"html": views.quiz_view(questions), "code": "quiz", "notice": notice}
            if refusal.code in ("closing", "backlog"):
                raise
            title = _TITLES.get(refusal.code, "Nothing to do")
            html = views.message_view(title, str(refusal))
            return {"html": html, "code": refusal.code, "notice": notice}
        return self._task(person, task, notice)

    def _task(self, person: str, task: Assignment, notice: str = "") -> Reply:
        grant = self.collection.keys.grant(task.token)
        card = views.Card(
            *(task.kind, task.prompt, task.completions, task.token),
            draft=grant.lease_id,
            chat=task.item_id in self._chat_items(person, task),
        )
        project = self.collection.briefing(self.project).project
        html = views.card_view(card, project, task.served > 0)
        return {"html": html, "code": "task", "notice": notice}

    def _chat_items(self, person: str, task: Assignment) -> set[str]:
        """The task's item, where it is a turn of the annotator's own conversation."""
        if self.respond is None or not isinstance(task.prompt, list):
            return set()
        with self.collection.store.read() as connection:
            row = connection.execute(
                "SELECT 1 FROM events WHERE event_id = ? AND annotator = ?",
                (f"item:{task.item_id}", person),
            ).fetchone()
        return set() if row is None else {task.item_id}

    def _vote(self, person: str, body: Mapping[str, Any]) -> Reply:
        answer = answer_of(body.get("answer"))
        try:
            receipt = self.collection.submit(person, body.get("token"), answer)
        except Refused as refusal:
            if refusal.code not in _CLOSED:
                raise
            return self._next(person, f"Not stored: {refusal}.")
        if receipt.paused:
            return self._next(person)
        if body.get("mode") == "chat":
            return self._chat_page(person, receipt.event_id)
        return self._next(person, "Saved." if not receipt.duplicate else "Saved already.")

    def _skip(self, person: str, body: Mapping[str, Any]) -> Reply:
        reason, notes = text_of(body, "reason"), text_of(body, "notes")
        try:
            self.collection.skip(person, body.get("token"), reason, notes)
        except Refused as refusal:
            if refusal.code not in _CLOSED:
                raise
            return self._next(person, f"Not stored: {refusal}.")
        return self._next(person, "Skipped.")

    def _undo(self, person: str, body: Mapping[str, Any]) -> Reply:
        last = self.collection.history(self.project, person, 1)
        if not last or last[0].event_id != body.get("last"):
            # Sent twice, or from a page that was left behind: the latest is another one now.
            return self._next(person)
        try:
            task = self.collection.undo(self.project, person)
        except Refused as refusal:
            if refusal.code != "nothing_to_undo":
                raise
            return self._next(person, f"Not taken back: {refusal}.")
        return self._task(person, task, "Taken back. Answer again.")

    def _quiz(self, person: str, body: Mapping[str, Any]) -> Reply:
        choices = body.get("choices")
        if not isinstance(choices, dict) or not all(isinstance(v, str) for v in choices.values()):
            raise InputError("quiz: answer every question first")
        result = self.collection.take_quiz(self.project, person, choices)
        explained = list(result.explanations.values())
        html = views.quiz_result_view(result.passed, result.right, result.of, explained)
        return {"html": html, "code": "quiz_result"}

    def _history(self, person: str) -> Reply:
        done = self.collection.history(self.project, person)
        rows = [
            (
                *(one.event_id, time.strftime("%d %b %H:%M", time.localtime(one.ts))),
                *(last_words(one.prompt), _said(one), one.kind != "skip"),
            )
            for one in done
        ]
        own = [one for one in self._kept_for(self._quality, "quality") if one.annotator == person]
        text = feedback_text(own[0]) if own else ""
        return {"html": views.history_view(rows, text), "code": "history"}

    def _quality(self) -> list[Any]:
        return quality(load_votes(self.collection.store, self.project))

    def _change(self, person: str, body: Mapping[str, Any]) -> Reply:
        done = self._own(person, text_of(body, "event"))
        card = views.Card(
            *(done.kind, done.prompt, done.completions), event_id=done.event_id, said=done.said
        )
        project = self.collection.briefing(self.project).project
        return {"html": views.card_view(card, project, False), "code": "change"}

    def _edit(self, person: str, body: Mapping[str, Any]) -> Reply:
        answer = answer_of(body.get("answer"))
        self.collection.edit(self.project, person, text_of(body, "event"), answer)
        return {**self._history(person), "notice": "Changed."}

    def _own(self, person: str, event_id: str) -> Done:
        for done in self.collection.history(self.project, person, 1000):
            if done.event_id == event_id:
                return done
        raise InputError("this answer has been changed since; look at your answers again")

    def _chat_page(self, person: str, after: str) -> Reply:
        if self.respond is None:
            raise InputError("this project has no chat")
        turns = safe_turns(
            [(turn["role"], turn["content"]) for turn in self._conversation(person, after)]
        )
        return {"html": views.chat_view(turns, after), "code": "chat"}

    def _conversation(self, person: str, after: str) -> list[Message]:
        """The conversation up to and with the answer that an own vote chose."""
        if not after:
            return []
        done = self._own(person, after)
        if done.kind != "pair" or not isinstance(done.prompt, list):
            raise InputError("this conversation cannot go on; begin a new one")
        right = done.said.get("choice") in ("right", "slightly_right")
        return [*done.prompt, {"role": "assistant", "content": done.completions[int(right)]}]

    def _chat(self, person: str, body: Mapping[str, Any]) -> Reply:
        if self.respond is None:
            raise InputError("this project has no chat")
        text = text_of(body, "text").strip()
        if not 0 < len(text) <= 20_000:
            raise InputError("chat: write 1 to 20000 characters")
        messages = self._conversation(person, text_of(body, "after"))
        messages.append({"role": "user", "content": text})
        outputs = self.respond(messages)
        task = self.collection.open_turn(self.project, person, messages, outputs)
        return self._task(person, task)

    def _status(self, account: str, person: str, known: object) -> Reply:
        """What the header says, and what `undo` would take back."""
        own = standing(self.collection.store, self.project, person)
        items = self._kept_for(lambda: num_items(self.collection.store, self.project), "items")
        status = {
            "name": account.partition(":")[2],
            "leads": self.collection.is_lead(account),
            "served": own.served,
            "wanted": max(own.served, items if own.quota is None else own.quota),
            "last": own.last,
            "version": own.guideline_version,
        }
        if known != own.guideline_version:
            briefing = self.collection.briefing(self.project)
            status["guidelines"] = safe_html(briefing.guidelines)
        return status

    def _kept_for(self, compute: Callable[[], Any], name: str) -> Any:
        then, value = self._kept.get(name, (0.0, None))
        if time.monotonic() - then > _FRESH or value is None:
            value = compute()
            self._kept[name] = (time.monotonic(), value)
        return value


def parsed(payload: object) -> Mapping[str, Any]:
    """The JSON object that a page sent.

    Raises:
        InputError: It is none, or too long.
    """
    if not isinstance(payload, str) or len(payload) > MAX_PAYLOAD:
        raise InputError("the request is too long; shorten what you wrote")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InputError("this page is of another version; reload it") from error
    if not isinstance(body, dict):
        raise InputError("this page is of another version; reload it")
    return body


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A text of a request; empty where it is left out.

    Raises:
        InputError: It is no text.
    """
    value = body.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"{name}: expected text")
    return value


def answer_of(said: object) -> Answer:
    """An answer as the page sent it; its values are checked where it is stored.

    Raises:
        InputError: Its form is wrong.
    """
    if not isinstance(said, dict) or not set(said) <= _ANSWER:
        raise InputError("this page is of another version; reload it")
    lists = [said.get(name) for name in ("ranks", "ratings", "flags")]
    lists += [*said["flags"]] if isinstance(said.get("flags"), list) else []
    if not all(value is None or isinstance(value, list) for value in lists):
        raise InputError("ranks, ratings and flags: expected lists")
    kept = {name: value for name, value in said.items() if value is not None}
    return Answer(**kept, app_version=APP_VERSION)


def last_words(prompt: Any, limit: int = 80) -> str:
    """The end of a prompt that fits into a row of a table."""
    text = content_of(prompt if isinstance(prompt, str) else prompt[-1:])
    return text if len(text) <= limit else f"…{text[-limit:]}"


_CHOICES = {value: label for value, _, label in views.CHOICE_LABELS}


def _said(done: Done) -> str:
    said = done.said
    if done.kind == "skip":
        return f"skipped: {said.get('skip_reason', '')}"
    if done.kind == "ranking":
        ranks = zip(views.NAMES, said.get("ranks", ()), strict=False)  # type: ignore[call-overload]
        return ", ".join(f"{name} {rank}" for name, rank in ranks)
    if done.kind == "demonstration":
        return "written"
    return _CHOICES.get(str(said.get("choice")), "")
