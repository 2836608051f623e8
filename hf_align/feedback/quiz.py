"""The quiz that may stand before the first task: gold pairs with explanations, and a pass mark.

Also the chat: an annotator writes prompts and picks between two live answers, turn by turn; each
turn becomes an item of its own that only its author votes on.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_align.feedback.answers import CHOICES
from hf_align.feedback.assignment import (
    Assignment,
    Pick,
    admit,
    assignment_of,
    grant_lease,
    project_row,
    release,
    settings_of,
)
from hf_align.feedback.identity import Keys
from hf_align.feedback.items import Item, Output, item_id
from hf_align.feedback.store import Store
from hf_align.feedback.submission import is_correct
from hf_align.types import InputError, Text


@dataclass(frozen=True)
class Question:
    """A quiz pair, the first output on the left."""

    item_id: str
    prompt: Text
    completions: tuple[str, ...]


@dataclass(frozen=True)
class QuizResult:
    """How a quiz went.

    Attributes:
        passed: Whether the share of right answers reaches the project's pass mark.
        right: Right answers.
        of: Questions.
        explanations: Item id -> (right or not, the researcher's explanation).
    """

    passed: bool
    right: int
    of: int
    explanations: Mapping[str, tuple[bool, str]]


def quiz_questions(store: Store, project: str) -> list[Question]:
    """The quiz's questions, always in the same order."""
    with store.read() as connection:
        return [
            Question(
                item, body["prompt"], tuple(output["completion"] for output in body["outputs"])
            )
            for item, body in _quiz_items(connection, project)
        ]


def take_quiz(store: Store, project: str, annotator: str, choices: Mapping[str, str]) -> QuizResult:
    """Grades and stores a quiz; `choices` maps item ids to choices between left and right.

    Raises:
        InputError: A question is unanswered, or the project has no quiz.
    """
    with store.write() as transaction:
        connection = transaction.connection
        settings = settings_of(connection, project)
        items = _quiz_items(connection, project)
        if settings.quiz_pass is None or not items:
            raise InputError(f"project {project} has no quiz")
        if set(choices) != {item for item, _ in items} or not set(choices.values()) <= {*CHOICES}:
            raise InputError("quiz: answer every question first")
        graded = {
            item: (bool(is_correct(body["gold"], CHOICES[choices[item]])), body["gold"])
            for item, body in items
        }
        right = sum(correct for correct, _ in graded.values())
        passed = right >= settings.quiz_pass * len(graded)
        body = {
            **{"passed": passed, "right": right, "of": len(graded), "choices": dict(choices)},
            "guideline_version": project_row(connection, project)["guideline_version"],
        }
        transaction.append(str(uuid.uuid4()), "quiz", project, body, annotator=annotator)
    explained = {item: (correct, gold["explanation"]) for item, (correct, gold) in graded.items()}
    return QuizResult(passed, right, len(graded), explained)


def _quiz_items(connection: sqlite3.Connection, project: str) -> list[tuple[str, dict]]:
    rows = connection.execute(
        "SELECT items.item_id, body FROM items JOIN events USING (event_id) "
        "WHERE items.project = ? AND quiz AND gold IS NOT NULL AND NOT withdrawn "
        "ORDER BY items.item_id",
        (project,),
    ).fetchall()
    return [(row[0], json.loads(row[1])) for row in rows]


def open_turn(
    store: Store,
    keys: Keys,
    project: str,
    annotator: str,
    prompt: Text,
    outputs: Sequence[Output],
    *,
    source: str = "chat",
    shown: bool = False,
) -> Assignment:
    """Makes the annotator's own prompt and its two live answers their current assignment.

    Args:
        store: The store.
        keys: Signs the token.
        project: The project.
        annotator: Pseudonym of the author.
        prompt: Text, or the conversation so far, the annotator's message last.
        outputs: The two candidate answers.
        source: Where it comes from, kept with the item.
        shown: They have been shown already, the first on the left; without it the sides are drawn.

    Raises:
        Refused: As `next_assignment`.
        InputError: No two outputs, or text that cannot be stored.
    """
    by_user = isinstance(prompt, str) or (prompt and prompt[-1].get("role") == "user")
    if len(outputs) != 2 or not by_user:
        raise InputError("chat: expected a conversation that ends with the user, and two answers")
    item_of_chat = Item(prompt, tuple(outputs), overlap=1, facts={"source": source})
    body = item_of_chat.to_dict() | {"withdrawn": True}  # handed to nobody else
    # Another annotator, or another day, may get the same two answers: an item all the same.
    item = f"{item_id(project, body)[:12]}{uuid.uuid4().hex[:8]}"
    with store.write() as transaction:
        connection = transaction.connection
        settings = admit(transaction, project, annotator)
        transaction.append(f"item:{item}", "item", project, body, item_id=item, annotator=annotator)
        release(connection, project, annotator)
        side = 0 if shown else int(keys.fraction(item, annotator) * 2)
        lease = grant_lease(transaction, settings, annotator, Pick(item, side, False))
        return assignment_of(connection, keys, lease)
