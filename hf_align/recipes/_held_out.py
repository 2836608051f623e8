"""The held-out comparisons of a reward model with all that is measured on them, and the parts that
its report is made of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hf_align.diagnostics.markdown import Table
from hf_align.recipes._comparisons import ANNOTATOR, Comparisons, comparisons
from hf_align.recipes._evaluation import prompt_numbers
from hf_align.recipes._inputs import Gold
from hf_align.rewards import RewardModel, checked_scores
from hf_align.statistics import clustered_share
from hf_align.testbed import ANNOTATORS, gold_reward
from hf_align.types import Estimate, InputError, Text, content_of


@dataclass
class Part:
    """A part of the report: metrics by name, tables, figures by file name, further settings."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Part) -> None:
        """Appends another part."""
        self.metrics |= other.metrics
        self.tables += other.tables
        self.figures |= other.figures
        self.settings |= other.settings


@dataclass(frozen=True)
class HeldOut:
    """M completions, the N pairs among them, and what the reward model and gold say of them.

    Attributes:
        pairs: Completions and pairs.
        clusters: (M,) the prompt of each completion, as a number.
        member_scores: (k, M) scores by member.
        scores: (M,) the reward model's scores.
        scale: Factor that takes score differences to Bradley-Terry logits.
        words: (M,) words of each completion.
        gold: (M,) gold rewards, where there is a gold reward.
        agreement: (N,) probability that a label agrees with the testbed's gold, where the
            annotators' noise is known.
        subsets: (N,) each pair's value in `subset_column`, where one was named.
    """

    pairs: Comparisons
    clusters: np.ndarray
    member_scores: np.ndarray
    scores: np.ndarray
    scale: float
    words: np.ndarray
    gold: np.ndarray | None = None
    agreement: np.ndarray | None = None
    subsets: np.ndarray | None = None

    @cached_property
    def prompts(self) -> np.ndarray:
        """(N,) the prompt of each pair, as a number."""
        return self.clusters[self.pairs.better]

    @cached_property
    def margins(self) -> np.ndarray:
        """(N,) Bradley-Terry logits: preferred minus other."""
        return self.scale * self.between_pairs(self.scores)

    @cached_property
    def longer(self) -> np.ndarray:
        """(N,) words by which the preferred completion is longer."""
        return self.between_pairs(self.words)

    @cached_property
    def gold_margins(self) -> np.ndarray | None:
        """(N,) gold of the preferred completion minus the other's."""
        return None if self.gold is None else self.between_pairs(self.gold)

    def between_pairs(self, values: np.ndarray) -> np.ndarray:
        """(N,) the value of each pair's preferred completion minus the other's."""
        return values[self.pairs.better] - values[self.pairs.worse]

    def gold_accuracy(self, margins: np.ndarray) -> Estimate | None:
        """How often margins order a pair as gold does, over the pairs that gold does not tie."""
        if self.gold_margins is None or not self.gold_margins.any():
            return None
        return accuracy_by_gold(margins, self.gold_margins, self.prompts)


def hold_out(
    reward: RewardModel,
    scale: float,
    rows: Any,
    gold: Gold | None,
    on_testbed: bool,
    subset_column: str | None,
) -> HeldOut:
    """Scores the held-out rows; rankings are judged by the pairs that they order.

    Raises:
        InputError: The gold reward cannot score, or the reward model gives all the same score.
    """
    pairs = comparisons(rows)
    members = reward.member_scores(pairs.prompts, pairs.completions)
    scores = reward.combine(members)
    if not (scores[pairs.better] - scores[pairs.worse]).any():
        raise InputError(
            "the reward model gives the completions of every held-out pair the same score; lower "
            "--learning_rate or train on more"
        )
    truth = None
    if gold is not None:
        truth = scored_by(gold, pairs.prompts, pairs.completions)
    subsets = None
    if subset_column is not None:
        names = ["(none)" if value is None else str(value) for value in rows[subset_column]]
        subsets = np.array(names)[pairs.rows]
    return HeldOut(
        pairs=pairs,
        clusters=prompt_numbers(pairs.prompts),
        member_scores=members,
        scores=scores,
        scale=scale,
        words=np.array([len(content_of(text).split()) for text in pairs.completions], float),
        gold=truth,
        agreement=label_agreement(pairs, rows[ANNOTATOR]) if on_testbed else None,
        subsets=subsets,
    )


def scored_by(gold: Gold, prompts: list[Text], completions: list[Text]) -> np.ndarray:
    """(M,) gold rewards, checked."""
    given = gold.reward(prompts=prompts, completions=completions)
    return np.array(checked_scores(given, len(completions), gold.name))


def label_agreement(pairs: Comparisons, annotators: list[str]) -> np.ndarray:
    """(N,) how probably each pair's annotator orders it as the testbed's exact reward does."""
    exact = np.array(gold_reward(pairs.prompts, pairs.completions))
    differences = np.abs(exact[pairs.better] - exact[pairs.worse])
    known = {annotator.name: annotator for annotator in ANNOTATORS}
    names = np.array(annotators)[pairs.rows]
    agreement = np.empty(len(names))
    for name in np.unique(names):
        own = names == name
        agreement[own] = known[str(name)].preference_probability(differences[own], 0.0)
    return agreement


def accuracy_by_gold(
    margins: np.ndarray, gold_margins: np.ndarray, prompts: np.ndarray
) -> Estimate:
    """Share of pairs that margins order as gold does, ties of gold left out.

    Args:
        margins: (N,) score of one completion minus the other's.
        gold_margins: (N,) gold of the same one minus the other's, not all 0.
        prompts: (N,) the prompt of each pair.
    """
    decided = gold_margins != 0
    agreement = np.sign(margins[decided]) * np.sign(gold_margins[decided])
    return clustered_share((agreement + 1) / 2, prompts[decided])


def right(margins: np.ndarray) -> np.ndarray:
    """(N,) 1 where the preferred completion has the higher score, 0.5 where neither has."""
    return (np.sign(margins) + 1) / 2
