"""Answers one prompt with several policies at the same pace, and measures what they answered.

    >>> arena = Arena.open(["ORG/SFT", "ORG/DPO"], reward_model="ORG/RM", best_of=4)
    >>> for step in arena.stream("Why is the sky blue?", Sampling(temperature=0.7)):
    ...     print(step)

Torch is imported on use.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hf_align.arena.answering import Part, Turn, plan_part
from hf_align.arena.facts import read_facts
from hf_align.arena.measuring import Judge, measure
from hf_align.arena.members import Member, load_members
from hf_align.arena.memory import check_fits
from hf_align.arena.opening import Candidate, find_candidates, told
from hf_align.arena.turns import Answer, Contestant, Measures, Progress, Sampling
from hf_align.arena.wording import check_prompt, prompt_ids
from hf_align.hub.loading import find_home
from hf_align.loading import load_reward_model
from hf_align.types import InputError, Text

MOST_TURNS = 8
"""Turns at a time, on one machine."""

# What a token takes on a data centre's GPU, before any is timed: launching a model's kernels, and
# reading its weights.
_LAUNCH_SECONDS, _BYTES_PER_SECOND = 0.03, 1e12
_FIXED_SECONDS = 3.0

Step = Progress | tuple[Answer, ...] | tuple[Measures, ...]


class Arena:
    """Policies that answer side by side; made by `Arena.open`, and used by many threads at once.

    Turns of several visitors run at the same time, `MOST_TURNS` of them; the next waits. Weights
    are never changed after they are read, nor are adapters switched: each row of a forward pass
    names its own.

    What a turn yields pickles, so on ZeroGPU a function of a module that yields from
    `stream(..., measures=True)` can be decorated: one call of the GPU per turn, for all models,
    with `seconds` as its duration.

    Attributes:
        contestants: Who takes part, also those with a problem; answers are in their order.
        reward_problem: Why answers have no score, in one line; None where they have one, or no
            reward model was named.
    """

    def __init__(
        self,
        contestants: Sequence[Contestant],
        members: Mapping[str, Member],
        judge: Judge | None = None,
        reward_problem: str | None = None,
    ) -> None:
        self.contestants = tuple(contestants)
        self.reward_problem = reward_problem
        self._members, self._judge = dict(members), judge
        role = {c.role: members.get(c.key) for c in self.contestants if c.role == "reference"}
        self._reference = role.get("reference")
        # Vocabularies have a hundred thousand words: compared once.
        self._comparable = {
            key
            for key, member in members.items()
            if self._reference is not None and member.shares_vocabulary(self._reference)
        }
        self._slots = threading.Semaphore(MOST_TURNS)
        self._step_seconds: float | None = None

    @classmethod
    def open(
        cls,
        names: Sequence[str],
        *,
        reward_model: str | None = None,
        reference: str | None = None,
        best_of: int = 0,
        revisions: Mapping[str, str] | None = None,
        device: str | None = None,
        prompt_format: str = "auto",
    ) -> Arena:
        """Loads what is named, each set of weights once; adapters share their base.

        A model that cannot answer is a contestant whose `problem` says why, and the others answer
        without it.

        Args:
            names: Models and LoRA adapters, by Hub id or folder; `best_of_n:16:ORG/MODEL` is the
                best of 16 answers of one, by the reward model.
            reward_model: What scores answers, by Hub id or folder.
            reference: What the others are held against; the first of the names that is no adapter
                and was not trained from another of them, where None.
            best_of: From 2 on, the best of so many answers of the reference takes part too.
            revisions: Commit, branch or tag by name, the reward model's included; main where none.
            device: Where it runs; a GPU where there is one.
            prompt_format: "chat" shows text as a user's message to all who have a chat template,
                "text" to none. "auto" goes by what the runs say their prompts were, and by the
                template where none says.

        Raises:
            InputError: Nobody can answer, or an argument is none that can be.
        """
        import torch

        if prompt_format not in ("auto", "chat", "text"):
            raise InputError(f"prompt_format is {prompt_format!r}; choose auto, chat or text")
        if device is None and torch.accelerator.is_available():
            device = str(torch.accelerator.current_accelerator())
        device, own = device or "cpu", dict(revisions or {})
        reward_revision = own.pop(reward_model, None) if reward_model not in names else None
        candidates = find_candidates(names, reference, best_of, own)
        members = load_members(candidates, device, prompt_format)
        chat = [members[c.key].chat for c in candidates if c.key in members]
        judge, problem = None, None
        if reward_model is not None:
            try:
                judge = _open_judge(reward_model, reward_revision, device, prompt_format, chat)
            except (InputError, OSError) as error:
                problem = told(error)
        for candidate in candidates:
            if candidate.best_of > 1 and judge is None:
                members.pop(candidate.key, None)
                why = problem or "name one"
                candidate.problem = candidate.problem or f"no reward model chooses: {why}"
        if not members:
            raise InputError(f"nobody can answer: {candidates[0].problem}")
        return cls(list(map(_contestant, candidates)), members, judge, problem)

    def stream(
        self,
        prompt: Text,
        sampling: Sampling,
        stop: threading.Event | None = None,
        *,
        measures: bool = False,
        keys: Collection[str] = (),
    ) -> Iterator[Step]:
        """One turn: every step of it, then the answers.

        All contestants draw with the same random numbers, each a token per step. An answer depends
        on the prompt, the sampling and its own model; who else is there changes no more than the
        last bits of sums. A best-of-n draws its completions at once, the first of them with the
        random numbers of everybody else's, and shows the one that the reward model scores highest.

        Args:
            prompt: Text, or a conversation that ends with the user.
            sampling: How tokens are drawn.
            stop: Once it is set, the turn ends within a step; the text so far is kept.
            measures: Whether the answers are measured too, before the turn ends.
            keys: Of those who are asked; all where empty. The others have an empty answer in their
                place, of 0 draws.

        Yields:
            `Progress` per step, then the tuple of `Answer`, then, if wanted, that of `Measures`.
            Closing the generator frees all that the turn holds.

        Raises:
            InputError: The prompt is empty or too long for all, or a key is nobody's; before
                anything is drawn.
        """
        check_prompt(prompt)
        nobody = sorted(set(keys) - {contestant.key for contestant in self.contestants})
        if nobody:
            raise InputError(f"keys names {nobody[0]}, who is not here")
        asked = [c.key for c in self.contestants if not keys or c.key in keys]
        parts = [
            plan_part(c, self._members.get(c.key), prompt, sampling) if c.key in asked else Part()
            for c in self.contestants
        ]
        turn = Turn(parts, self._judge, prompt, sampling)
        return self._run(turn, prompt, stop or threading.Event(), measures)

    def _run(
        self, turn: Turn, prompt: Text, stop: threading.Event, measures: bool
    ) -> Iterator[Step]:
        waiting = True
        while waiting and not stop.is_set():
            waiting = not self._slots.acquire(timeout=0.05)
        try:
            while not waiting and turn.is_going() and not stop.is_set():
                start = time.monotonic()
                turn.step()
                self._note(time.monotonic() - start, turn.tokens)
                yield turn.progress()
            answers = turn.finish()
            yield answers
            if measures:
                yield self.measure(prompt, answers)
        finally:
            turn.free()
            if not waiting:
                self._slots.release()

    def measure(self, prompt: Text, answers: Sequence[Answer]) -> tuple[Measures, ...]:
        """What can be said of each answer, as the diagnostics say it.

        At temperature 1 whatever they were drawn at: of the models' own distributions.

        Args:
            prompt: That of the turn.
            answers: In the order of the contestants.

        Raises:
            InputError: There are not as many answers as contestants, or the prompt is none.
        """
        if len(answers) != len(self.contestants):
            raise InputError(
                f"got {len(answers)} answers, and there are {len(self.contestants)} contestants"
            )
        check_prompt(prompt)
        return tuple(
            self._measured(prompt, contestant, answer)
            for contestant, answer in zip(self.contestants, answers, strict=True)
        )

    def _measured(self, prompt: Text, contestant: Contestant, answer: Answer) -> Measures:
        member = self._members.get(contestant.key)
        if member is None or answer.problem is not None or not answer.token_ids:
            return Measures(length=len(answer.token_ids))
        score = None if self._judge is None else float(self._judge.score(prompt, [answer.text])[0])
        compared = contestant.key in self._comparable and contestant.role != "reference"
        reference = self._reference if compared else None
        ids = prompt_ids(member.tokenizer, prompt, member.chat)
        return measure(ids, answer, member, reference, score)

    def seconds(self, sampling: Sampling) -> float:
        """Seconds that a turn may take: by turns so far, or what a GPU needs where there are none.

        Of a process that only plans and never runs a turn, such as a ZeroGPU Space's, the latter.

        Args:
            sampling: Of the turn.
        """
        step = self._step_seconds
        if step is None:
            bodies = {id(m.voice.body): m.voice.body for m in self._members.values()}
            step = sum(_LAUNCH_SECONDS + b.num_bytes / _BYTES_PER_SECOND for b in bodies.values())
        return _FIXED_SECONDS + step * sampling.max_new_tokens

    def _note(self, seconds: float, tokens: int) -> None:
        """Remembers what a step takes; the first of a turn reads the prompt and is no measure."""
        if tokens > 1:
            known = self._step_seconds
            self._step_seconds = seconds if known is None else 0.95 * known + 0.05 * seconds


def _open_judge(
    name: str, revision: str | None, device: str, prompt_format: str, chat: Sequence[bool]
) -> Judge:
    """The reward model, and whether it is shown conversations: as its run says, or as most here."""
    home = find_home(name, revision, "reward model")
    check_fits(home, device)
    model: Any = load_reward_model(home.name, home.revision, device=device)
    own = read_facts(home).chat
    if prompt_format != "auto":
        own = prompt_format == "chat"
    elif own is None:
        own = any(chat) or not chat
    able = all(tokenizer.chat_template is not None for _, tokenizer in model.members)
    return Judge(model, able and own)


def _contestant(candidate: Candidate) -> Contestant:
    revision = candidate.found.home.revision if candidate.found else None
    return Contestant(
        key=candidate.key,
        name=candidate.name,
        role=candidate.role,
        revision=revision,
        problem=candidate.problem,
        facts=candidate.run.facts,
        sha256=candidate.source.get("sha256") if candidate.problem is None else None,
    )
