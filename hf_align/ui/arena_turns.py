"""Turns of the arena: who asked what, in which order the answers stand, what came, who won.

A turn lives in this process's memory until many others have followed; what lasts is the vote, with
the prompt and both answers, in the store of `hf_align.feedback`. Nothing of a turn without a vote
is stored.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_align.arena import Answer, Contestant, Measures, Progress, Sampling
from hf_align.feedback import Answer as Vote
from hf_align.feedback import Backup, Collection, Output, Project, open_collection
from hf_align.types import InputError
from hf_align.ui.sign_in import on_space

Step = Progress | tuple[Answer, ...] | tuple[Measures, ...]

Steps = Generator[Step, None, None]
Keys = tuple[str, ...]
Play = Callable[[str, Sampling, Keys, threading.Event], Steps]
"""Answers a prompt with the contestants of some keys: progress, then the answers, then what is
measured of each; the last two of all contestants, in their order."""

CHOICES = (
    ("left", "1", "A is better"),
    ("right", "2", "B is better"),
    ("tie", "3", "Tie"),
    ("both_bad", "0", "Both bad"),
)
PROJECT = "arena"
LEAD = "local:lead"
KEPT = 256
"""Turns that can be looked at again; the oldest go first."""

_GUIDELINES = "Two models answer your own prompt, unnamed. Which answer would you rather have?"


@dataclass
class Turn:
    """One prompt and its answers.

    Attributes:
        account: Whose it is.
        prompt: What was asked.
        sampling: How tokens are drawn.
        places: Contestants by number, in the order they are shown.
        blind: Whether names are hidden until a vote.
        id: Names the turn to its visitor; nobody can guess it.
        stop: Set to end it.
        answers: In the contestants' order; empty until they are complete.
        measures: In the contestants' order; empty where nothing is measured.
        token: Of the assignment in the store, once a vote was sent.
        choice: The vote.
        revealed: Whether the names may be told.
        lock: Held while a vote is stored.
    """

    account: str
    prompt: str
    sampling: Sampling
    places: tuple[int, ...]
    blind: bool
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    stop: threading.Event = field(default_factory=threading.Event)
    answers: tuple[Answer, ...] = ()
    measures: tuple[Measures, ...] = ()
    token: str = ""
    choice: str | None = None
    revealed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shown(self) -> list[Answer]:
        """The answers in the order shown."""
        return [self.answers[place] for place in self.places] if self.answers else []

    @property
    def may_be_voted_on(self) -> bool:
        """Whether two whole answers are there, of models that are not known yet."""
        whole = [not answer.cancelled and answer.problem is None for answer in self.shown]
        return self.blind and not self.revealed and len(whole) == 2 and all(whole)


def until(stop: threading.Event, steps: Generator[Step, None, None]) -> Generator[Step, None, None]:
    """The steps of a turn that runs where `stop` does not reach, such as another process."""
    try:
        for step in steps:
            if stop.is_set() and isinstance(step, Progress):
                yield tuple(Answer(text, cancelled=True) for text in step.texts)
                return
            yield step
    finally:
        steps.close()


class Turns:
    """The turns of all visitors, the latest ones."""

    def __init__(self, most: int = KEPT) -> None:
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self._most, self._lock = most, threading.Lock()

    def add(self, turn: Turn) -> None:
        """Remembers a turn."""
        with self._lock:
            self._turns[turn.id] = turn
            while len(self._turns) > self._most:
                self._turns.popitem(last=False)

    def of(self, account: str, turn_id: object) -> Turn:
        """A visitor's own turn.

        Raises:
            InputError: It is another's, or gone.
        """
        with self._lock:
            turn = self._turns.get(turn_id) if isinstance(turn_id, str) else None
        if turn is None or turn.account != account:
            raise InputError("this turn is no longer here; ask again to get another one")
        return turn


def seat(contestants: Sequence[Contestant], chosen: Sequence[str], blind: bool) -> tuple[int, ...]:
    """Who is shown, and in which order: two in random order where the names are hidden.

    Args:
        contestants: All of the arena.
        chosen: Keys of those that the visitor wants; none for all.
        blind: Whether names are hidden.

    Raises:
        InputError: Fewer are left than are needed.
    """
    able = [i for i, one in enumerate(contestants) if one.problem is None]
    wanted = [i for i in able if not chosen or contestants[i].key in chosen]
    if not blind:
        if not wanted:
            raise InputError("choose at least one model that can answer")
        return tuple(wanted)
    if len(wanted) < 2:
        raise InputError("choose two models or more that can answer: a blind vote compares two")
    return tuple(secrets.SystemRandom().sample(wanted, 2))


@dataclass(frozen=True)
class Votes:
    """Where votes go.

    Attributes:
        collection: An open collection that holds the project.
        needs_name: Whether a vote needs an account.
        kept: What the page says about where votes are kept.
    """

    collection: Collection
    needs_name: bool = False
    kept: str = "Votes are kept on this machine."

    def cast(self, turn: Turn, contestants: Sequence[Contestant], choice: str) -> None:
        """Stores a vote with the prompt, both answers and where they came from; once per turn.

        Raises:
            InputError: There is nothing to vote on, or it was voted on differently.
            Refused: The account may not vote, or the app is closing.
            OSError: It could not be stored, or not yet be backed up; sending it again is right.
        """
        with turn.lock:
            if turn.choice is not None and turn.choice == choice:
                return
            if not turn.may_be_voted_on or choice not in {value for value, _, _ in CHOICES}:
                raise InputError("this turn takes no vote any more; ask again to get another one")
            person = self.collection.sign_in(PROJECT, turn.account)
            if not turn.token:  # sent again after an error, the same vote is stored once
                outputs = [output_of(turn, contestants, place) for place in turn.places]
                task = self.collection.open_turn(
                    PROJECT, person, turn.prompt, outputs, source="arena", shown=True
                )
                turn.token = task.token
            self.collection.submit(person, turn.token, Vote(choice, app_version="1"))
            turn.choice, turn.revealed = choice, True


def output_of(turn: Turn, contestants: Sequence[Contestant], place: int) -> Output:
    """A contestant's answer with its provenance, and what was measured of it."""
    contestant, answer = contestants[place], turn.answers[place]
    sampling = {
        **{"temperature": turn.sampling.temperature, "top_p": turn.sampling.top_p},
        **{"max_new_tokens": turn.sampling.max_new_tokens, "draws": answer.draws},
    }
    facts: dict[str, object] = {"ended": answer.ended}
    if turn.measures:
        measures = turn.measures[place]
        named = {
            **{"length": measures.length, "score": measures.score},
            **{"log_ratio": measures.log_ratio, "implicit_reward": measures.implicit_reward},
        }
        facts |= {name: value for name, value in named.items() if value is not None}
    commit = contestant.revision or contestant.sha256 or ""
    return Output(
        *(answer.text, contestant.name, commit, sampling, turn.sampling.seed),
        facts=facts,
    )


def open_votes(
    folder: Path, secret: str, backup: Backup | None = None, needs_name: bool = False
) -> Votes:
    """Opens the store of votes, made if there is none.

    Args:
        folder: Where it is, on a local disk.
        secret: As of `open_collection`: the same at every start.
        backup: Where every vote is carried to, too.
        needs_name: Whether a vote needs an account.

    Raises:
        InputError: The secret is another one than before.
        OSError: The folder cannot be written, or the backup not be read.
    """
    level = "local" if backup is None else "safe"
    collection = open_collection(
        folder / "collect.db", secret, leads={LEAD}, backup=backup, level=level
    )
    collection.lead.create_project(LEAD, Project(PROJECT, title="Arena", overlap=1), _GUIDELINES)
    kept = "Votes are kept on this machine."
    if backup is not None:
        kept = "A vote is acknowledged once it is backed up."
    elif on_space():
        kept = "Votes are kept on this Space's disk alone, which a restart empties."
    if needs_name:
        kept += " A vote needs an account of Hugging Face."
    return Votes(collection, needs_name, kept)
