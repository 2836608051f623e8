"""How far a project is: counts that the database adds up itself, fast enough for a page."""

from __future__ import annotations

from dataclasses import dataclass

from hf_align.feedback.assignment import person_row, project_row, settings_of
from hf_align.feedback.store import Store


@dataclass(frozen=True)
class Progress:
    """Where a project stands.

    Attributes:
        items: Items to annotate, without gold ones.
        complete: Items with all their votes.
        votes: Votes that count for items.
        wanted: Votes wanted in all.
        held: Items being worked on.
        set_aside: Items that too many skipped.
        skips: Skips.
        gold_answers: Answers to gold items.
        gold_correct: Those that were the researcher's.
        repeats: Second votes on own items.
        left: Pairs decided for the left side.
        right: Pairs decided for the right side.
        ties: Pairs without a winner.
        disagreements: Pairs whose votes point both ways and that nobody has settled.
        annotators: Pseudonyms with an answer.
        paused_annotators: Those who are paused.
        events: Events in the log.
        paused: Whether the project hands nothing out.
        guideline_version: Of now.
    """

    items: int
    complete: int
    votes: int
    wanted: int
    held: int
    set_aside: int
    skips: int
    gold_answers: int
    gold_correct: int
    repeats: int
    left: int
    right: int
    ties: int
    disagreements: int
    annotators: int
    paused_annotators: int
    events: int
    paused: bool
    guideline_version: int


def progress(store: Store, project: str) -> Progress:
    """Counts of a project.

    Raises:
        InputError: No such project.
    """
    with store.read() as connection:
        row = project_row(connection, project)
        settings = settings_of(connection, project)
        items = connection.execute(
            "SELECT count(*) AS items, "
            "coalesce(sum(votes >= coalesce(overlap, :m)), 0) AS complete, "
            "coalesce(sum(votes), 0) AS votes, coalesce(sum(coalesce(overlap, :m)), 0) AS wanted, "
            "coalesce(sum(held), 0) AS held, coalesce(sum(skips >= :s), 0) AS set_aside "
            "FROM items WHERE +project = :p AND gold IS NULL AND (withdrawn = 0 OR votes > 0)",
            {"p": project, "m": settings.overlap, "s": settings.max_skips},
        ).fetchone()
        # The plus signs ask for one walk through the table: by the index every row is a jump.
        answers = connection.execute(
            "SELECT coalesce(sum(skips), 0) AS skips, coalesce(sum(known), 0) AS gold_answers, "
            "coalesce(sum(correct), 0) AS gold_correct, coalesce(sum(repeats), 0) AS repeats, "
            'coalesce(sum(lefts), 0) AS "left", coalesce(sum(rights), 0) AS "right", '
            "coalesce(sum(ties), 0) AS ties, coalesce(sum(low < 0 AND high > 0 AND item_id NOT IN "
            "(SELECT item_id FROM adjudications WHERE score IS NOT NULL)), 0) AS disagreements "
            "FROM (SELECT item_id, sum(kind = 'skip') AS skips, count(correct) AS known, "
            "sum(correct) AS correct, sum(is_repeat) AS repeats, "
            "sum(kind = 'pair' AND score != 0 AND (score > 0) = (rotation = 0)) AS lefts, "
            "sum(kind = 'pair' AND score != 0 AND (score > 0) != (rotation = 0)) AS rights, "
            "sum(kind = 'pair' AND score = 0) AS ties, "
            "min(CASE WHEN kind = 'pair' AND NOT is_repeat AND NOT is_gold THEN score END) AS low, "
            "max(CASE WHEN kind = 'pair' AND NOT is_repeat AND NOT is_gold THEN score END) AS high "
            "FROM answers WHERE +project = ? GROUP BY item_id)",
            (project,),
        ).fetchone()
        people = connection.execute(
            "SELECT coalesce(sum(served > 0), 0) AS annotators, "
            "count(paused) AS paused_annotators FROM annotators WHERE project = ?",
            (project,),
        ).fetchone()
        events = connection.execute("SELECT count(*) FROM events").fetchone()[0]
    return Progress(
        **dict(items),
        **dict(answers),
        **dict(people),
        events=events,
        paused=bool(row["paused"]),
        guideline_version=row["guideline_version"],
    )


@dataclass(frozen=True)
class Standing:
    """How far one annotator is.

    Attributes:
        served: Answers and skips given so far.
        last: Id of the latest one; empty for none.
        guideline_version: Of now.
        quota: Answers and skips that one annotator gives at most; None for no limit.
    """

    served: int
    last: str
    guideline_version: int
    quota: int | None


def standing(store: Store, project: str, annotator: str) -> Standing:
    """How far one annotator is, in three look-ups: it is asked with every answer.

    Raises:
        InputError: No such project.
    """
    with store.read() as connection:
        quota = settings_of(connection, project).quota
        version = project_row(connection, project)["guideline_version"]
        person = person_row(connection, project, annotator)
        last = connection.execute(
            "SELECT event_id FROM answers WHERE project = ? AND annotator = ? "
            "ORDER BY nth DESC LIMIT 1",
            (project, annotator),
        ).fetchone()
    served = 0 if person is None else person["served"]
    return Standing(served, "" if last is None else last[0], version, quota)


def num_items(store: Store, project: str) -> int:
    """Items that an annotator may get, without gold ones."""
    with store.read() as connection:
        return connection.execute(
            "SELECT count(*) FROM items WHERE project = ? AND gold IS NULL AND withdrawn = 0",
            (project,),
        ).fetchone()[0]


def missing_votes(store: Store, project: str) -> int:
    """Votes that items still want, those aside that too many skipped.

    Raises:
        InputError: No such project.
    """
    with store.read() as connection:
        settings = settings_of(connection, project)
        return connection.execute(
            "SELECT coalesce(sum(max(0, coalesce(overlap, ?) - votes)), 0) FROM items "
            "WHERE project = ? AND gold IS NULL AND withdrawn = 0 AND skips < ?",
            (settings.overlap, project, settings.max_skips),
        ).fetchone()[0]
