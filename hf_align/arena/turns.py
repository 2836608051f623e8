"""The nouns of a turn: who answers, how tokens are drawn, what comes back, and what is measured.

Plain data without torch: all of it pickles, so a turn may run in another process than its page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hf_align.types import Estimate, InputError

MOST_NEW_TOKENS = 4096
"""Longest answer that may be asked for, in tokens."""

Role = Literal["reference", "aligned", "best_of_n"]
Kind = Literal["unshifted", "marginal", "shifted"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: by all contestants of a turn in the same way.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token at each step.
        top_p: Tokens are drawn from the fewest that have this much probability together, at that
            temperature (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751); 1 for all.
        max_new_tokens: Longest answer in tokens, the end token included. A model whose positions
            end before answers until there.
        seed: Of the random numbers, which are the same for every contestant.

    Raises:
        InputError: A number is out of range.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise InputError(f"{name} is {value!r}; give a number")
        for name in ("max_new_tokens", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise InputError(f"{name} is {value!r}; give a whole number")
        if self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a share above 0, at most 1")
        if not 1 <= self.max_new_tokens <= MOST_NEW_TOKENS:
            raise InputError(
                f"max_new_tokens is {self.max_new_tokens}; give 1 to {MOST_NEW_TOKENS}"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; give 0 or more, below 2**63")


@dataclass(frozen=True)
class Facts:
    """What a model's own run says of it; None where it says nothing. Nothing is measured again.

    Attributes:
        recipe: The recipe that made it.
        verdict: Label of its report's verdict, such as "NOT DETECTED".
        verdict_text: The verdict in a sentence.
        kl: Sequence KL from its reference, nats.
        win_rate: Against its reference, by gold or, without it, by a judge.
        gold_gain: Gold score over its reference's.
        link: Its page on the Hub, at the commit that was loaded.
        base: What it was trained from.
    """

    recipe: str | None = None
    verdict: str | None = None
    verdict_text: str | None = None
    kl: Estimate | None = None
    win_rate: Estimate | None = None
    gold_gain: Estimate | None = None
    link: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Contestant:
    """Who answers.

    Attributes:
        key: Stable and unique in its arena: small letters, digits and hyphens.
        name: As people see it: Hub id or folder name; "best of 16: ORG/MODEL".
        role: What the others are held against, one of those, or the best of several answers of one.
        revision: Commit of its Hub repo; None of a folder.
        problem: Why it cannot answer, in one line; None where it can.
        facts: What its own run says.
        sha256: Hash of a folder's content, which tells it from what had its name before.
    """

    key: str
    name: str
    role: Role
    revision: str | None = None
    problem: str | None = None
    facts: Facts = Facts()
    sha256: str | None = None


@dataclass(frozen=True)
class Progress:
    """One step of a turn, which all contestants take together; in their order.

    Attributes:
        texts: Each text so far, whole characters only; "" of those with a problem, and of a
            best-of-n until its answer is chosen.
        done: Whether the contestant's text is final.
        tokens: Tokens per contestant so far, at most.
        drawn: Completions finished so far; a best-of-n chooses when it has all of its n.
    """

    texts: tuple[str, ...]
    done: tuple[bool, ...]
    tokens: int
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a contestant answered.

    Attributes:
        text: Without special tokens.
        token_ids: The end token included where it was reached.
        tokens: What each token adds to the text; joined they are the text. "" for special tokens,
            and for those that hold but a part of a character: the one that ends it has all of it.
        ended: Whether the end token was reached.
        cancelled: Whether the turn was stopped before this answer was complete.
        problem: Why there is no answer, in one line; None where there is, or none was asked for.
        draws: Completions that it was chosen from; 0 where there is no answer.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    ended: bool = False
    cancelled: bool = False
    problem: str | None = None
    draws: int = 1


@dataclass(frozen=True)
class Token:
    """How far one token of an answer lies from what the reference would have written there.

    Attributes:
        text: What it adds to the text; a special token's own name.
        kind: Unshifted where the reference ranks it first, marginal at rank 2 or 3, shifted beyond
            (after Lin et al. 2023, https://arxiv.org/abs/2312.01552).
        rank: The reference's rank of it, 1 the likeliest.
        log_ratio: log pi(token) - log pi_ref(token) after the same tokens, nats, where pi is the
            model that wrote it.
    """

    text: str
    kind: Kind
    rank: int
    log_ratio: float


@dataclass(frozen=True)
class Measures:
    """What is measured of an answer; None where it cannot be said. At temperature 1, whatever the
    answer was drawn at.

    Attributes:
        length: Tokens, the end token included.
        log_ratio: log pi(y|x) - log pi_ref(y|x), nats: the sum of the tokens'. None for the
            reference itself, for a best-of-n, whose own distribution nobody has, and where the
            vocabularies differ.
        implicit_reward: beta * log_ratio, where its run optimised such a reward (Rafailov et al.
            2023, https://arxiv.org/abs/2305.18290) and names no other reference.
        beta: Of that run.
        score: What the reward model gives.
        shift: Per token; () for the reference itself and where the vocabularies differ.
    """

    length: int
    log_ratio: float | None = None
    implicit_reward: float | None = None
    beta: float | None = None
    score: float | None = None
    shift: tuple[Token, ...] = ()
