"""Measures answers as the diagnostics do: log-ratios, shifted tokens, implicit and learnt rewards.

Everything is of the models' own distributions, at temperature 1, whatever an answer was drawn at.
Torch is imported on use.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_align.arena.members import Member
from hf_align.arena.turns import Answer, Kind, Measures, Token
from hf_align.diagnostics.logps import token_log_ratios
from hf_align.diagnostics.token_shift import MARGINAL_RANK, reference_ranks
from hf_align.types import Text, content_of


@dataclass(frozen=True)
class Judge:
    """A reward model, and how it is shown prompts and answers.

    Attributes:
        model: A `RewardModel`.
        chat: Whether it was trained on conversations.
        lock: One thread scores at a time: cutting what is too long changes the tokenizer.
    """

    model: Any
    chat: bool
    lock: threading.Lock = field(default_factory=threading.Lock)

    def score(self, prompt: Text, texts: list[str]) -> np.ndarray:
        """The score of each text, (N,).

        Raises:
            InputError: A score is not finite.
        """
        if self.chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not self.chat:
            prompt = content_of(prompt)
        with self.lock:
            return self.model.score([prompt] * len(texts), texts)


@dataclass(frozen=True)
class _Sample:
    """One answer in the form that the diagnostics take."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    prompt_index: np.ndarray


def measure(
    prompt_ids: list[int],
    answer: Answer,
    member: Member,
    reference: Member | None,
    score: float | None,
) -> Measures:
    """What can be said of one answer.

    Args:
        prompt_ids: Tokens that it follows, as its model saw them; the reference is shown the same.
        answer: At least one token.
        member: Who wrote it.
        reference: What it is held against; None where it is the reference's own, or there is none
            with the same vocabulary.
        score: What the reward model gives.
    """
    length = len(answer.token_ids)
    if reference is None:
        return Measures(length=length, score=score)
    sample = _Sample([prompt_ids], [list(answer.token_ids)], np.zeros(1, dtype=np.int64))
    (ratios,) = token_log_ratios(member.voice, reference.voice, sample)
    ranks, _ = reference_ranks(reference.voice, sample)
    names = member.tokenizer.convert_ids_to_tokens(list(answer.token_ids))
    special = set(member.tokenizer.all_special_ids)
    shift = tuple(
        Token(
            text=str(name) if token in special and not text else text,
            kind=kind_of(int(rank)),
            rank=int(rank),
            log_ratio=float(ratio),
        )
        for token, name, text, rank, ratio in zip(
            answer.token_ids, names, answer.tokens, ranks[0], ratios, strict=True
        )
    )
    log_ratio = float(ratios.sum()) if member.best_of == 1 else None
    beta = member.beta if log_ratio is not None else None
    return Measures(
        length=length,
        log_ratio=log_ratio,
        implicit_reward=None if beta is None else beta * log_ratio,
        beta=beta,
        score=score,
        shift=shift,
    )


def kind_of(rank: int) -> Kind:
    """How far a token is from what the reference would have written, by its rank there."""
    if rank == 1:
        return "unshifted"
    return "marginal" if rank <= MARGINAL_RANK else "shifted"
