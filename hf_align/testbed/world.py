"""The exact gold reward of "Brief", a world small enough to read, and what people do in it.

A prompt names 4 topics of 16 (`mention tea rain books music :`); a good completion mentions each
of them once, politely, and stops. Here are the words, the prompt splits, gold, the distribution of
demonstrations and the simulated annotators. Everything is numpy: nothing here loads a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from hf_align.types import InputError, Text, content_of

TOPICS = (
    *("tea", "coffee", "bread", "cheese", "rain", "snow", "sea", "stars"),
    *("music", "books", "poems", "films", "cats", "dogs", "trains", "gardens"),
)
FILLERS = ("really", "also", "very", "just", "quite", "so", "well", "maybe")
POLITE = "please"
PROMPT_WORDS = ("mention", ":")
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
ROLE_MARKERS = ("<system>", "<user>", "<assistant>")

TOPICS_PER_PROMPT = 4
MAX_NEW_TOKENS = 26
"""Tokens a completion may have, EOS included: 26 words mean that it was cut off before EOS."""

FREE_LENGTH = 10
GOLD_WEIGHTS = {
    "named": 1.0,
    "unnamed": -0.5,
    "repeats": -0.25,
    "length": -0.15,
    "polite": 0.4,
    "overly_polite": -0.3,
    "cut_off": -1.5,
}
MAX_DEMONSTRATION_WORDS = 20

SPLITS = {"sft": 400, "preferences": 220, "rl": 160, "audit": 520, "report": 520}
"""Topic sets per split. Splits share no set, so no prompt returns in another word order."""

HELD_OUT_SETS = {"sft": 20, "preferences": 30}
"""Of a split's sets, how many (the last ones) are kept for its test file."""

WORD_PATTERN = r"\w+|[^\w\s]"
"""A word or one sign of punctuation; the tokenizer splits by it too."""

_WORDS = re.compile("|".join((*ROLE_MARKERS, PAD, UNK, WORD_PATTERN)))
_TOPIC_SET = frozenset(TOPICS)


@dataclass(frozen=True)
class WorldSpec:
    """How large a testbed to build and how to train its policy; the default is the one to use.

    Attributes:
        seed: Seeds everything: splits, texts, initial weights, training order, annotators.
        num_demonstrations: Rows of `demonstrations/train.parquet`.
        num_test_demonstrations: Rows of `demonstrations/test.parquet`.
        num_preferences: Rows of `preferences/train.parquet`.
        num_test_preferences: Rows of `preferences/test.parquet`.
        num_rl_prompts: Rows of `prompts/rl.parquet`.
        model_size: Size of the policy, a key of `models.SIZES`.
        train_steps: SFT updates of the policy.
        batch_size: Demonstrations per update.
        learning_rate: Peak of the cosine schedule.
        chat_every: One demonstration in this many is trained on in chat format, so that the
            policy answers conversations as well as plain prompts.

    Raises:
        InputError: A size, a rate or a count is not positive, or the seed is negative.
    """

    seed: int = 0
    num_demonstrations: int = 20_000
    num_test_demonstrations: int = 1_000
    num_preferences: int = 4_096
    num_test_preferences: int = 512
    num_rl_prompts: int = 2_048
    model_size: str = "small"
    train_steps: int = 600
    batch_size: int = 128
    learning_rate: float = 5e-3
    chat_every: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("seed", "model_size") and value <= 0:
                raise InputError(f"WorldSpec.{name} is {value}; it must be positive")
        if self.seed < 0:
            raise InputError(f"WorldSpec.seed is {self.seed}; it must not be negative")


DEFAULT = WorldSpec()


# ---------------------------------------------------------------------------------------- prompts


def prompt_of(topics: Sequence[str]) -> str:
    """The prompt that names `topics`, in that order: `mention tea rain books music :`."""
    return " ".join((PROMPT_WORDS[0], *topics, PROMPT_WORDS[1]))


def named_topics(prompt: Text) -> frozenset[str]:
    """The topics a prompt names; of a conversation, those in its last user turn.

    Raises:
        InputError: The prompt names no topic, so nothing could be scored against it.
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        text = next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")
    named = _TOPIC_SET.intersection(_WORDS.findall(text))
    if not named:
        raise InputError(
            f"prompt {text!r} names none of the testbed's topics; write one like "
            f"{prompt_of(TOPICS[:TOPICS_PER_PROMPT])!r}"
        )
    return named


def topic_sets(seed: int) -> dict[str, list[tuple[str, ...]]]:
    """The 1820 sets of 4 topics, shuffled and dealt to the splits of `SPLITS`."""
    sets = list(combinations(TOPICS, TOPICS_PER_PROMPT))
    order = np.random.default_rng(seed).permutation(len(sets))
    dealt, start = {}, 0
    for split, count in SPLITS.items():
        dealt[split] = [sets[i] for i in order[start : start + count]]
        start += count
    return dealt


def sample_prompts(
    sets: Sequence[tuple[str, ...]], num_prompts: int, rng: np.random.Generator
) -> list[str]:
    """Draw `num_prompts` prompts: a random set each time (with replacement), in random order."""
    chosen = rng.integers(len(sets), size=num_prompts)
    return [prompt_of(rng.permutation(sets[i])) for i in chosen]


def one_prompt_per_set(sets: Iterable[tuple[str, ...]], rng: np.random.Generator) -> list[str]:
    """One prompt for every set, its topics in random order; all are distinct."""
    return [prompt_of(rng.permutation(topics)) for topics in sets]


# ------------------------------------------------------------------------------------------- gold


@dataclass(frozen=True)
class Breakdown:
    """Why a completion has its gold reward; `str()` says it in one sentence.

    Attributes:
        named: Distinct named topics mentioned.
        unnamed: Occurrences of topics that the prompt did not name.
        repeats: Occurrences of named topics after their first.
        length: Words before EOS, of any kind.
        polite: Occurrences of the polite word.
        cut_off: Whether the completion ran into `MAX_NEW_TOKENS` without EOS.
        gold: The gold reward, the sum of `terms`.
        mentioned: The named topics mentioned, in order of appearance.
        missed: The named topics not mentioned, in alphabetical order.
        unasked: The unnamed topics, one entry per occurrence.
    """

    named: int
    unnamed: int
    repeats: int
    length: int
    polite: int
    cut_off: bool
    gold: float
    mentioned: tuple[str, ...]
    missed: tuple[str, ...]
    unasked: tuple[str, ...]

    @property
    def terms(self) -> dict[str, float]:
        """What each part of the formula contributes; they add up to `gold`."""
        return _terms(self.named, self.unnamed, self.repeats, self.length, self.polite)

    def __str__(self) -> str:
        terms = self.terms
        parts = [f"names {_join(self.mentioned)} ({_signed(terms['named'])})"]
        if not self.named:
            parts = ["names none of the topics (0)"]
        if self.missed and self.named:
            parts.append(f"misses {_join(self.missed)}")
        if self.unnamed:
            parts.append(f"mentions {_join(self.unasked)} unasked ({_signed(terms['unnamed'])})")
        if self.repeats:
            times = "once" if self.repeats == 1 else f"{self.repeats} times"
            parts.append(f"repeats itself {times} ({_signed(terms['repeats'])})")
        if terms["length"]:
            parts.append(f"is {self.length} words long ({_signed(terms['length'])})")
        if self.polite:
            manners = "is polite" if self.polite == 1 else f"says {POLITE} {self.polite} times"
            value = terms["polite"] + terms["overly_polite"]
            parts.append(f"{manners} ({_signed(value)})")
        if self.cut_off:
            parts.append(f"never ends ({_signed(terms['cut_off'])})")
        return f"gold {self.gold:.2f}: " + ", ".join(parts)


def gold_reward(prompts: list[Text], completions: list[Text], **columns: object) -> list[float]:
    """The exact gold reward of each completion, from its text alone.

    gold = named − 0.5·unnamed − 0.25·repeats − 0.15·max(0, length − 10)
    + 0.4·min(polite, 1) − 0.3·max(0, polite − 1) − 1.5·cut_off

    with the counts of `Breakdown`. Words are what the tokenizer makes of the text; those it does
    not know, role markers and prompt words count as length only. The text ends at its first
    `<eos>`, if it shows one. It was cut off when it has 26 words or more (`MAX_NEW_TOKENS`): a
    completion that ended has at most 25 words and EOS. Further columns are ignored.

    Args:
        prompts: Strings or conversations, (B,). Each names at least one topic.
        completions: Strings or lists of messages, (B,).

    Raises:
        InputError: The lists differ in length, a row is neither text nor messages, or a prompt
            names no topic.
    """
    if len(prompts) != len(completions):
        raise InputError(
            f"gold_reward got {len(prompts)} prompts and {len(completions)} completions; "
            "give one prompt per completion"
        )
    named: dict[str, frozenset[str]] = {}
    golds = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        _check_text("prompts", row, prompt)
        _check_text("completions", row, completion)
        key = prompt if isinstance(prompt, str) else repr(prompt)
        if key not in named:
            named[key] = named_topics(prompt)
        golds.append(sum(_terms(*_counts(named[key], _words(completion))).values()))
    return golds


def explain(prompt: Text, completion: Text) -> Breakdown:
    """Gold of one completion and where it comes from; see `gold_reward` for the formula.

    Raises:
        InputError: The prompt names no topic.
    """
    named, words = named_topics(prompt), _words(completion)
    counts = _counts(named, words)
    mentioned = tuple(dict.fromkeys(word for word in words if word in named))
    return Breakdown(
        *counts,
        cut_off=len(words) >= MAX_NEW_TOKENS,
        gold=sum(_terms(*counts).values()),
        mentioned=mentioned,
        missed=tuple(sorted(named.difference(mentioned))),
        unasked=tuple(word for word in words if word in _TOPIC_SET and word not in named),
    )


def _check_text(column: str, row: int, text: Text) -> None:
    if isinstance(text, str):
        return
    if not isinstance(text, list) or not all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in text
    ):
        raise InputError(f"{column} row {row} is {text!r}; give a string or a list of messages")


def _words(completion: Text) -> list[str]:
    return _WORDS.findall(content_of(completion).split(EOS, 1)[0])


def _counts(named: frozenset[str], words: list[str]) -> tuple[int, int, int, int, int]:
    """(named, unnamed, repeats, length, polite) of a completion's words."""
    topics = [word for word in words if word in _TOPIC_SET]
    hits = [word for word in topics if word in named]
    distinct = len(set(hits))
    unnamed = len(topics) - len(hits)
    return distinct, unnamed, len(hits) - distinct, len(words), words.count(POLITE)


def _terms(named: int, unnamed: int, repeats: int, length: int, polite: int) -> dict[str, float]:
    weights = GOLD_WEIGHTS
    return {
        "named": weights["named"] * named,
        "unnamed": weights["unnamed"] * unnamed,
        "repeats": weights["repeats"] * repeats,
        "length": weights["length"] * max(0, length - FREE_LENGTH),
        "polite": weights["polite"] * min(polite, 1),
        "overly_polite": weights["overly_polite"] * max(0, polite - 1),
        "cut_off": weights["cut_off"] * (length >= MAX_NEW_TOKENS),
    }


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _signed(value: float) -> str:
    return f"{value:+.2f}".rstrip("0").rstrip(".").replace("-", "−")


# --------------------------------------------------------------------------------- demonstrations


def sample_demonstrations(prompts: Sequence[str], rng: np.random.Generator) -> list[str]:
    """What people of mixed quality write: one completion per prompt, without EOS.

    Quality q ~ Beta(2, 2). Each named topic is kept with probability 0.25 + 0.6 q; unnamed topics
    ~ Poisson(1.2 (1 − q)), each uniform over the unnamed ones; fillers ~ Poisson(1 + 4 q); the
    polite word ~ Binomial(2, 0.1 + 0.6 q). The words are shuffled and cut at 20. Length and
    politeness thus rise with quality, which is the confound a reward model can learn instead.
    """
    quality = rng.beta(2, 2, size=len(prompts))
    unnamed = rng.poisson(1.2 * (1 - quality))
    fillers = rng.poisson(1 + 4 * quality)
    polite = rng.binomial(2, 0.1 + 0.6 * quality)
    completions = []
    for row, prompt in enumerate(prompts):
        named = named_topics(prompt)
        asked = [topic for topic in TOPICS if topic in named]
        others = [topic for topic in TOPICS if topic not in named]
        kept = rng.random(len(asked)) < 0.25 + 0.6 * quality[row]
        words = [topic for topic, keep in zip(asked, kept, strict=True) if keep]
        words += [others[i] for i in rng.integers(len(others), size=unnamed[row])]
        words += [FILLERS[i] for i in rng.integers(len(FILLERS), size=fillers[row])]
        words += [POLITE] * int(polite[row])
        order = rng.permutation(len(words))[:MAX_DEMONSTRATION_WORDS]
        completions.append(" ".join(words[i] for i in order))
    return completions


# ------------------------------------------------------------------------------------- annotators


@dataclass(frozen=True)
class Annotator:
    """A simulated annotator.

    Attributes:
        name: The id recorded with every comparison.
        temperature: τ in P(a ≻ b) = σ((gold_a − gold_b) / τ), in gold units.
        flip_rate: Probability that the answer is then recorded the wrong way round.
    """

    name: str
    temperature: float
    flip_rate: float

    def preference_probability(self, gold_a: np.ndarray, gold_b: np.ndarray) -> np.ndarray:
        """P(a is recorded as preferred): (1 − f) σ(Δ/τ) + f σ(−Δ/τ), Δ = gold_a − gold_b."""
        difference = np.asarray(gold_a, dtype=float) - np.asarray(gold_b, dtype=float)
        # σ(x) = (1 + tanh(x / 2)) / 2 does not overflow, whatever the difference.
        clean = 0.5 * (1 + np.tanh(difference / (2 * self.temperature)))
        return clean + self.flip_rate * (1 - 2 * clean)


ANNOTATORS = (
    Annotator("ada", temperature=0.5, flip_rate=0.04),
    Annotator("ben", temperature=0.6, flip_rate=0.08),
    Annotator("cho", temperature=0.8, flip_rate=0.12),
    Annotator("dev", temperature=0.9, flip_rate=0.16),
)
"""Four annotators of decreasing care; on average τ = 0.7 and 10 % flips."""


def annotate(
    gold_a: np.ndarray, gold_b: np.ndarray, annotator: Annotator, rng: np.random.Generator
) -> np.ndarray:
    """Which comparisons the annotator decides for a: booleans, (num_pairs,)."""
    probability = annotator.preference_probability(gold_a, gold_b)
    return rng.random(probability.shape) < probability
