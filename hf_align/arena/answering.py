"""One turn: who draws what, the texts so far, and the answers.

Torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hf_align.arena.measuring import Judge
from hf_align.arena.members import Member
from hf_align.arena.turns import Answer, Contestant, Progress, Sampling
from hf_align.arena.wording import Wording, prompt_ids
from hf_align.sampling.policies import GREEDY
from hf_align.types import InputError, Text

if TYPE_CHECKING:
    from hf_align.arena.drawing import Drawing, Row

OUT_OF_MEMORY = "the memory of this machine does not suffice for this turn; ask for fewer tokens"


@dataclass
class Part:
    """What one contestant does in a turn.

    Attributes:
        member: Its model; None where it does not answer.
        problem: Why there is no answer; None too where it was not asked.
        rows: The completions that it draws.
        words: The text of the one that is shown; of a best-of-n, once it is chosen.
        chosen: Index of the row that is the answer; None until a best-of-n has chosen.
    """

    member: Member | None = None
    problem: str | None = None
    rows: list[Row] = field(default_factory=list)
    words: Wording | None = None
    chosen: int | None = None

    @property
    def done(self) -> bool:
        """Whether its text is final."""
        if not self.rows or self.problem is not None:
            return True
        return self.chosen is not None and self.rows[self.chosen].done


class Turn:
    """One prompt answered by all; `step` draws a token for each.

    Args:
        parts: What each contestant does, in their order.
        judge: What chooses of a best-of-n.
        prompt: What is asked.
        sampling: How tokens are drawn.

    Attributes:
        tokens: Steps so far.

    Raises:
        InputError: Nobody can answer this.
    """

    def __init__(
        self, parts: list[Part], judge: Judge | None, prompt: Text, sampling: Sampling
    ) -> None:
        self.parts, self.judge, self.prompt, self.sampling = parts, judge, prompt, sampling
        if not any(part.rows for part in parts):
            raise InputError(next(part.problem for part in parts if part.problem is not None))
        self.tokens = 0
        self.drawings: list[Drawing] | None = None

    def is_going(self) -> bool:
        """Whether anybody still draws."""
        rows = (row for part in self.parts if part.problem is None for row in part.rows)
        return not all(row.done for row in rows)

    def step(self) -> None:
        """One more token for everybody who has not ended."""
        if self.drawings is None:
            self.drawings = self._begin()
        for drawing in self.drawings:
            with _memory(drawing):
                drawing.launch()
        for drawing in self.drawings:
            with _memory(drawing):
                drawing.take()
        self.tokens += 1
        for part in self.parts:
            self._read(part)

    def _begin(self) -> list[Drawing]:
        from hf_align.arena.drawing import Drawing

        rows: dict[int, list[Row]] = {}
        bodies = {}
        for part in self.parts:
            if part.problem is None and part.member is not None:
                body = part.member.voice.body
                bodies[id(body)] = body
                rows.setdefault(id(body), []).extend(part.rows)
        return [Drawing(body, rows[key], self.sampling) for key, body in bodies.items()]

    def _read(self, part: Part) -> None:
        """Takes up what a contestant has drawn; a best-of-n chooses when all are drawn."""
        if part.problem is not None or part.member is None:
            return
        broken = next((row.problem for row in part.rows if row.problem), None)
        if broken is not None:
            part.problem = broken
        elif part.chosen is None and all(row.done for row in part.rows):
            self._choose(part, part.rows)
        elif part.words is not None and part.chosen is not None:
            for token in part.rows[part.chosen].ids[len(part.words.ids) :]:
                part.words.add(token)
            if part.rows[part.chosen].done:
                part.words.finish()

    def _choose(self, part: Part, rows: Sequence[Row]) -> None:
        """The row of these that the reward model scores highest, the first of equals."""
        assert part.member is not None and self.judge is not None
        words = [_worded(part.member, row) for row in rows]
        try:
            scores = self.judge.score(self.prompt, [own.text for own in words])
        except InputError as error:
            part.problem = str(error)
            return
        best = int(np.argmax(scores))
        part.chosen, part.words = part.rows.index(rows[best]), words[best]

    def progress(self) -> Progress:
        """Where everybody is."""
        return Progress(
            texts=tuple(
                part.words.text if part.words and not part.problem else "" for part in self.parts
            ),
            done=tuple(part.done for part in self.parts),
            tokens=self.tokens,
            drawn=tuple(sum(row.done for row in part.rows) for part in self.parts),
        )

    def finish(self) -> tuple[Answer, ...]:
        """The answers; of those that had not ended, what there is of them."""
        return tuple(self._answer(part) for part in self.parts)

    def _answer(self, part: Part) -> Answer:
        if part.problem is not None or part.member is None:
            return Answer(problem=part.problem, draws=0)
        cancelled = not part.done
        if part.chosen is None:
            complete = [row for row in part.rows if row.done]
            if complete:
                self._choose(part, complete)
            else:
                part.chosen, part.words = 0, _worded(part.member, part.rows[0])
            if part.problem is not None:
                return Answer(problem=part.problem, draws=0)
        assert part.words is not None and part.chosen is not None
        row = part.rows[part.chosen]
        text, tokens = part.words.finish()
        drawn = sum(other.done for other in part.rows)
        return Answer(
            text=text,
            token_ids=tuple(row.ids),
            tokens=tokens,
            ended=row.ended,
            cancelled=cancelled,
            draws=max(1, drawn),
        )

    def free(self) -> None:
        """Lets go of keys and values."""
        for drawing in self.drawings or []:
            drawing.stop()
        self.drawings = []


def plan_part(
    contestant: Contestant, member: Member | None, prompt: Text, sampling: Sampling
) -> Part:
    """What a contestant will do in a turn; what stands in the way is its part's problem.

    Args:
        contestant: Who is asked.
        member: Its model; None where it cannot answer.
        prompt: What is asked.
        sampling: How tokens are drawn.
    """
    from hf_align.arena.drawing import Row

    if member is None:
        return Part(problem=contestant.problem)
    try:
        ids = prompt_ids(member.tokenizer, prompt, member.chat)
    except InputError as error:
        return Part(problem=f"prompt: {error}")
    limit = sampling.max_new_tokens
    if member.positions is not None:
        limit = min(limit, member.positions - len(ids))
    if limit < 1:
        return Part(
            problem=f"prompt: it has {len(ids):,} tokens, and the model reads "
            f"{member.positions:,} with its answer; shorten it"
        )
    # Greedy completions are all the same.
    draws = 1 if sampling.temperature <= GREEDY else member.best_of
    rows = [Row(ids, member.voice.adapter, member.end_ids, limit, draw) for draw in range(draws)]
    if member.best_of > 1:
        return Part(member, rows=rows)
    return Part(member, rows=rows, words=Wording(member.tokenizer), chosen=0)


def _worded(member: Member, row: Row) -> Wording:
    words = Wording(member.tokenizer)
    for token in row.ids:
        words.add(token)
    words.finish()
    return words


@contextmanager
def _memory(drawing: Drawing) -> Iterator[None]:
    """What does not fit ends its rows, and nobody else's."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        drawing.stop(OUT_OF_MEMORY)
