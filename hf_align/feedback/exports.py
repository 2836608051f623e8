"""Votes as data: preferences, rankings, labelled completions, demonstrations, battles, raw events.

Rows are generated item by item, so that a million votes need no more memory than one item. What is
left out is counted by reason. Annotators appear by pseudonym only. No column is called `margin`,
which TRL's trainers would read.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hf_align.feedback.items import LETTERS
from hf_align.feedback.store import Store
from hf_align.feedback.views import event_of
from hf_align.types import InputError

Row = dict[str, Any]
Kind = Literal["preference", "ranking", "unpaired", "demonstration", "battle", "raw"]
KINDS = ("preference", "ranking", "unpaired", "demonstration", "battle", "raw")


@dataclass(frozen=True)
class ExportOptions:
    """What the rows are made of.

    Attributes:
        votes: "majority" for one row per item, "single" for one per vote, "soft" for one per item
            with the share of votes for the chosen one in `p_chosen` (ties count half).
        ties: "drop" leaves a tie out; "both" gives a row each way round.
        skips: "drop", or "tie" to count a skip as a tie.
        adjudicated: A lead's decision replaces an item's votes in "majority" and "soft".
        include_gold: Also items whose answer the researcher knows.
        include_repeats: Also the second votes that measure self-consistency.
        labels: Of unpaired rows: "ratings" from ratings, "choices" from the pairs' choices.
        good_rating: Ratings from here on are labelled true.
        bad_rating: Ratings up to here are labelled false; those between are left out.
    """

    votes: Literal["majority", "single", "soft"] = "majority"
    ties: Literal["drop", "both"] = "drop"
    skips: Literal["drop", "tie"] = "drop"
    adjudicated: bool = True
    include_gold: bool = False
    include_repeats: bool = False
    labels: Literal["ratings", "choices"] = "ratings"
    good_rating: int = 5
    bad_rating: int = 3

    def __post_init__(self) -> None:
        allowed = {
            **{"votes": ("majority", "single", "soft"), "ties": ("drop", "both")},
            **{"skips": ("drop", "tie"), "labels": ("ratings", "choices")},
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"export {name} {getattr(self, name)!r}: expected {' or '.join(values)}"
                )
        if self.bad_rating >= self.good_rating:
            raise InputError("export bad_rating: must be below good_rating")


@dataclass
class Counts:
    """What an export kept and left out, filled while its rows are read.

    Attributes:
        rows: Rows given.
        items: Items looked at.
        dropped: Reason -> how many votes or items were left out.
    """

    rows: int = 0
    items: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def export_rows(
    store: Store,
    project: str,
    kind: Kind,
    options: ExportOptions | None = None,
    counts: Counts | None = None,
) -> Iterator[Row]:
    """The rows of an export, as of the moment the first one is read.

    Args:
        store: The store.
        project: The project.
        kind: "preference": `prompt, chosen, rejected`; "ranking": `prompt, completions, ranks`
            (1 = best, ties equal); "unpaired": `prompt, completion, label`; "demonstration":
            `prompt, completion`; "battle": every vote on a pair as `prompt, model_a, model_b,
            winner`, a on the left, for `recipes.evaluate`; "raw": the events.
        options: What the rows are made of.
        counts: Is filled.

    Raises:
        InputError: An unknown kind.
    """
    options, counts = options or ExportOptions(), counts if counts is not None else Counts()
    if kind not in KINDS:
        raise InputError(f"export kind {kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "raw":
        rows = raw_rows(store, project)
    else:
        make = {
            **{"preference": _preferences, "ranking": _rankings},
            **{"unpaired": _unpaired, "demonstration": _demonstrations, "battle": _battles},
        }[kind]
        rows = itertools.chain.from_iterable(
            make(item, votes, options, counts)
            for item, votes in voted_items(store, project, options, counts)
        )
    for row in rows:
        counts.rows += 1
        yield row


def raw_rows(store: Store, project: str) -> Iterator[Row]:
    """The project's events, each body as JSON text; erased people are not among them."""
    with store.snapshot() as connection:
        rows = connection.execute("SELECT * FROM events WHERE project = ? ORDER BY seq", (project,))
        for row in rows:
            yield event_of(row) | {"body": row["body"]}


def voted_items(
    store: Store, project: str, options: ExportOptions, counts: Counts
) -> Iterator[tuple[Row, list[Row]]]:
    """Each item that has votes, with those that the options count."""
    with store.snapshot() as connection:
        rows = connection.execute(
            "SELECT answers.item_id, answers.annotator, answers.kind AS said_kind, answers.score, "
            "answers.is_gold, answers.is_repeat, events.body, items.event_id AS item_event "
            "FROM answers JOIN events USING (event_id) JOIN items USING (item_id) "
            "WHERE +answers.project = ? ORDER BY answers.item_id, answers.annotator",
            (project,),
        )
        for _, group in itertools.groupby(rows, key=lambda row: row["item_id"]):
            votes = list(group)
            counts.items += 1
            kept = [_vote(row) for row in votes if _counts(row, options, counts)]
            if kept:
                yield _item(connection, votes[0]), kept


def _counts(row: sqlite3.Row, options: ExportOptions, counts: Counts) -> bool:
    reason = None
    if row["is_gold"] and not options.include_gold:
        reason = "gold"
    elif row["is_repeat"] and not options.include_repeats:
        reason = "repeat"
    elif row["said_kind"] == "skip" and options.skips == "drop":
        reason = "skip"
    if reason:
        counts.dropped[reason] += 1
    return reason is None


def _item(connection: sqlite3.Connection, row: sqlite3.Row) -> Row:
    body = json.loads(
        connection.execute(
            "SELECT body FROM events WHERE event_id = ?", (row["item_event"],)
        ).fetchone()[0]
    )
    settled = connection.execute(
        "SELECT score FROM adjudications WHERE item_id = ?", (row["item_id"],)
    ).fetchone()
    return body | {"item_id": row["item_id"], "settled": None if settled is None else settled[0]}


def _vote(row: sqlite3.Row) -> Row:
    body = json.loads(row["body"])
    if row["said_kind"] == "skip":
        body = body | {"score": 0, "choice": "skip", "ranks": None, "text": None}
    return body | {"annotator": row["annotator"]}


def completion_of(item: Row, letter: str) -> object:
    """A completion in the form of its prompt: text, or one message of the assistant."""
    text = item["outputs"][LETTERS.index(letter)]["completion"]
    return as_turn(item, text)


def as_turn(item: Row, text: str) -> object:
    """A text as a completion of the item's prompt."""
    if isinstance(item["prompt"], str):
        return text
    return [{"role": "assistant", "content": text}]


def _provenance(item: Row, letters: str, names: tuple[str, ...]) -> Row:
    columns: Row = {}
    for letter, name in zip(letters, names, strict=True):
        output = item["outputs"][LETTERS.index(letter)]
        columns[f"{name}_model"] = output["model"]
        columns[f"{name}_revision"] = output["revision"]
        columns[f"{name}_sha256"] = output["sha256"]
    return columns


def _preferences(
    item: Row, votes: list[Row], options: ExportOptions, counts: Counts
) -> Iterator[Row]:
    if item["kind"] != "pair":
        return
    if options.votes == "single":
        for vote in votes:
            extra = {"annotator": vote["annotator"], "strength": abs(vote["score"])}
            yield from _pair(item, vote["score"], extra, options, counts)
        return
    scores = [vote["score"] for vote in votes]
    settled = options.adjudicated and item["settled"] is not None
    if settled:
        scores = [item["settled"]]
    for_a = sum((score > 0) + 0.5 * (score == 0) for score in scores) / len(scores)
    direction = (for_a > 0.5) - (for_a < 0.5)
    share = max(for_a, 1 - for_a)
    extra = {"n_votes": len(scores), "agreement": share, "adjudicated": settled}
    if options.votes == "soft":
        extra["p_chosen"] = share
    yield from _pair(item, direction, extra, options, counts)


def _pair(
    item: Row, direction: int, extra: Row, options: ExportOptions, counts: Counts
) -> Iterator[Row]:
    if direction == 0 and options.ties == "drop":
        counts.dropped["tie"] += 1
        return
    if not all(output["completion"].strip() for output in item["outputs"]):
        counts.dropped["empty output"] += 1
        return
    orders = ["ab"] if direction > 0 else ["ba"] if direction < 0 else ["ab", "ba"]
    for order in orders:
        yield {
            "prompt": item["prompt"],
            "chosen": completion_of(item, order[0]),
            "rejected": completion_of(item, order[1]),
            "item_id": item["item_id"],
            **extra,
            **_provenance(item, order, ("chosen", "rejected")),
        }


def _rankings(item: Row, votes: list[Row], options: ExportOptions, counts: Counts) -> Iterator[Row]:
    if item["kind"] != "ranking":
        return
    given = [vote for vote in votes if vote.get("ranks")]
    if not all(output["completion"].strip() for output in item["outputs"]):
        counts.dropped["empty output"] += len(given) if options.votes == "single" else bool(given)
        return
    letters = LETTERS[: len(item["outputs"])]
    row = {
        "prompt": item["prompt"],
        "completions": [completion_of(item, letter) for letter in letters],
        "item_id": item["item_id"],
        "models": [output["model"] for output in item["outputs"]],
    }
    if options.votes == "single":
        for vote in given:
            ranks = [vote["ranks"][letter] for letter in letters]
            yield from _ranking(row | {"annotator": vote["annotator"]}, ranks, counts)
    elif given:
        # Borda: completions ordered by their mean rank.
        means = [sum(vote["ranks"][letter] for vote in given) / len(given) for letter in letters]
        places = {mean: place for place, mean in enumerate(sorted(set(means)), start=1)}
        ranks = [places[mean] for mean in means]
        yield from _ranking(row | {"n_votes": len(given)}, ranks, counts)


def _ranking(row: Row, ranks: list[int], counts: Counts) -> Iterator[Row]:
    if len(set(ranks)) == 1:
        counts.dropped["tie"] += 1
    else:
        yield {"prompt": row["prompt"], "completions": row["completions"], "ranks": ranks, **row}


def _unpaired(item: Row, votes: list[Row], options: ExportOptions, counts: Counts) -> Iterator[Row]:
    if item["kind"] == "demonstration":
        return
    for index, letter in enumerate(LETTERS[: len(item["outputs"])]):
        good = bad = 0
        for vote in votes:
            label = _label(vote, index, letter, options)
            good, bad = good + (label is True), bad + (label is False)
        if good == bad:
            counts.dropped["no_label" if not good else "tie"] += 1
            continue
        if not item["outputs"][index]["completion"].strip():
            counts.dropped["empty output"] += 1
            continue
        yield {
            "prompt": item["prompt"],
            "completion": completion_of(item, letter),
            "label": good > bad,
            "item_id": item["item_id"],
            "n_votes": good + bad,
            "agreement": max(good, bad) / (good + bad),
            **_provenance(item, letter, ("completion",)),
        }


def _label(vote: Row, index: int, letter: str, options: ExportOptions) -> bool | None:
    """What one vote says of one output; a flagged output is not good, whatever its rating."""
    if options.labels == "choices":
        if vote.get("choice") == "both_bad":
            return False
        score = vote.get("score") or 0
        return None if score == 0 else (score > 0) == (index == 0)
    if vote.get("flags", {}).get(letter):
        return False
    rating = vote.get("ratings", {}).get(letter)
    if rating is None or options.bad_rating < rating < options.good_rating:
        return None
    return rating >= options.good_rating


def _demonstrations(
    item: Row, votes: list[Row], options: ExportOptions, counts: Counts
) -> Iterator[Row]:
    for vote in votes:
        if vote.get("text"):
            yield {
                "prompt": item["prompt"],
                "completion": as_turn(item, vote["text"]),
                "item_id": item["item_id"],
                "annotator": vote["annotator"],
            }


def _battles(item: Row, votes: list[Row], options: ExportOptions, counts: Counts) -> Iterator[Row]:
    if item["kind"] != "pair":
        return
    for vote in votes:
        shown = vote.get("shown_order") or LETTERS[:2]
        left, right = (item["outputs"][LETTERS.index(letter)] for letter in shown)
        for_left = vote["score"] if shown[0] == LETTERS[0] else -vote["score"]
        tie = "tie (bothbad)" if vote.get("choice") == "both_bad" else "tie"
        yield {
            "prompt": item["prompt"],
            "model_a": left["model"],
            "model_b": right["model"],
            "winner": "model_a" if for_left > 0 else "model_b" if for_left < 0 else tie,
            "strength": abs(for_left),
            "output_a": left["completion"],
            "output_b": right["completion"],
            "annotator": vote["annotator"],
            "item_id": item["item_id"],
        }
