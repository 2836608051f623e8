"""How good the votes are, of all and of each annotator: agreement, gold, consistency, sides, time.

Suspicious annotators are flagged with reasons for a person to look at. Nothing here deletes a vote
or pauses anyone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from hf_align.agreement import (
    agreement_rate,
    binomial_p_value,
    category_counts,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from hf_align.feedback.store import Store
from hf_align.statistics import wilson_interval
from hf_align.types import Estimate

SCORES = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Votes:
    """A project's votes on pairs as columns, in the order each annotator gave them.

    Attributes:
        item: (N,) number of the item.
        annotator: (N,) number of the annotator, a place in `names`.
        score: (N,) -2 to 2 in favour of output a.
        left: (N,) 1 where the left side won, -1 the right, 0 neither.
        gold: (N,) 1 right, 0 wrong, -1 for an item without a known answer.
        repeat: (N,) whether it is a second vote.
        active_ms: (N,) NaN where the page did not tell.
        wall_ms: (N,) as above.
        names: Pseudonyms.
    """

    item: np.ndarray
    annotator: np.ndarray
    score: np.ndarray
    left: np.ndarray
    gold: np.ndarray
    repeat: np.ndarray
    active_ms: np.ndarray
    wall_ms: np.ndarray
    names: tuple[str, ...]

    def where(self, keep: np.ndarray) -> Votes:
        """The votes of a mask."""
        columns = {
            field.name: getattr(self, field.name)[keep]
            for field in fields(self)
            if field.name != "names"
        }
        return Votes(**columns, names=self.names)

    @property
    def ordinary(self) -> Votes:
        """First votes on items without a known answer."""
        return self.where((self.gold < 0) & ~self.repeat)


@dataclass(frozen=True)
class Thresholds:
    """When an annotator is flagged; each needs the whole interval on the wrong side.

    Attributes:
        gold: Share of right gold answers.
        agreement: Share of votes that agree with the majority of the others.
        consistency: Share of own repeats answered the same.
        p_value: Of the share of left picks, divided by the number of annotators.
        wall_ms: Median time per item.
        same_choice: Share of votes that are one and the same answer on the screen.
        min_votes: Votes before time and same choice are looked at.
    """

    gold: float = 0.6
    agreement: float = 0.5
    consistency: float = 0.5
    p_value: float = 0.01
    wall_ms: float = 2000.0
    same_choice: float = 0.95
    min_votes: int = 20


@dataclass(frozen=True)
class Quality:
    """Of one annotator, or of all together (`annotator` is then "all").

    Attributes:
        annotator: Pseudonym.
        votes: Votes on pairs, all kinds.
        gold: Share of right gold answers, Wilson interval.
        consistency: Share of repeats with the same winner, Wilson interval.
        agreement: Share of votes with the same winner as the majority of the others.
        left: Share of left among the decided, Wilson interval.
        left_p: Exact two-sided p-value of that share against one half.
        active_ms: Median active time per item.
        wall_ms: Median time per item.
        reasons: Why a lead should look; empty for most.
    """

    annotator: str
    votes: int
    gold: Estimate | None
    consistency: Estimate | None
    agreement: Estimate | None
    left: Estimate | None
    left_p: float | None
    active_ms: float | None
    wall_ms: float | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """Of all annotators on the items that several voted on; None where undefined.

    Attributes:
        same_winner: Share of pairs of votes with the same winner (a, b or tie).
        alpha_winner: Krippendorff's α of the winner, nominal.
        alpha_strength: Krippendorff's α of the five steps, ordinal.
        kappa_winner: Fleiss' κ of the winner; None unless every item has as many votes.
    """

    same_winner: Estimate | None
    alpha_winner: Estimate | None
    alpha_strength: Estimate | None
    kappa_winner: Estimate | None


def load_votes(store: Store, project: str) -> Votes:
    """The votes on a project's pairs."""
    with store.read() as connection:
        rows = connection.execute(
            "SELECT item_id, annotator, score, rotation, coalesce(correct, -1), is_repeat, "
            "active_ms, wall_ms FROM answers WHERE +project = ? AND kind = 'pair' "
            "ORDER BY annotator, nth",
            (project,),
        ).fetchall()
    columns = list(zip(*rows, strict=True)) or [()] * 8
    names, annotator = np.unique(np.array(columns[1], dtype=str), return_inverse=True)
    score = np.array(columns[2], dtype=int)
    first_left = np.array(columns[3], dtype=int) == 0
    return Votes(
        item=np.unique(np.array(columns[0], dtype=str), return_inverse=True)[1],
        annotator=annotator,
        score=score,
        left=np.sign(score) * np.where(first_left, 1, -1),
        gold=np.array(columns[4], dtype=int),
        repeat=np.array(columns[5], dtype=bool),
        active_ms=np.array(columns[6], dtype=float),
        wall_ms=np.array(columns[7], dtype=float),
        names=tuple(names.tolist()),
    )


def agreement(votes: Votes, *, seed: int = 0) -> Agreement:
    """Agreement of a project's annotators, with intervals over items."""
    ordinary = votes.ordinary
    if not ordinary.item.size:
        return Agreement(None, None, None, None)
    strengths = category_counts(ordinary.item, ordinary.score, SCORES)
    winners = np.column_stack(
        [strengths[:, :2].sum(axis=1), strengths[:, 2], strengths[:, 3:].sum(axis=1)]
    )
    return Agreement(
        agreement_rate(winners, seed=seed),
        krippendorff_alpha(winners, "nominal", seed=seed),
        krippendorff_alpha(strengths, "ordinal", seed=seed),
        fleiss_kappa(winners, seed=seed) if np.ptp(winners.sum(axis=1)) == 0 else None,
    )


def kappas(
    votes: Votes, *, min_items: int = 20, seed: int = 0
) -> dict[tuple[str, str], Estimate | None]:
    """Cohen's κ of the winner, for every two annotators who share at least `min_items` items.

    Returns:
        Pair of pseudonyms -> estimate; None where both always chose one and the same.
    """
    ordinary = votes.ordinary
    own = []
    for number in range(len(votes.names)):
        mask = ordinary.annotator == number
        order = np.argsort(ordinary.item[mask])
        own.append((ordinary.item[mask][order], np.sign(ordinary.score[mask][order])))
    found = {}
    for first, second in itertools.combinations(range(len(votes.names)), 2):
        shared, a, b = np.intersect1d(own[first][0], own[second][0], return_indices=True)
        if shared.size >= min_items:
            names = (votes.names[first], votes.names[second])
            found[names] = cohen_kappa(own[first][1][a], own[second][1][b], seed=seed)
    return found


def quality(votes: Votes, thresholds: Thresholds | None = None) -> list[Quality]:
    """The quality of all votes together, and of each annotator's, flagged ones with reasons."""
    limits = thresholds or Thresholds()
    agrees = _agrees_with_others(votes)
    consistent = _consistent(votes)
    everyone = np.ones(votes.item.size, dtype=bool)
    measured = [_quality("all", votes, everyone, agrees, consistent)]
    for number, name in enumerate(votes.names):
        own = _quality(name, votes, votes.annotator == number, agrees, consistent)
        reasons = _reasons(own, votes.where(votes.annotator == number), limits, len(votes.names))
        measured.append(Quality(**{**vars(own), "reasons": reasons}))
    return measured


def _quality(
    name: str, votes: Votes, mask: np.ndarray, agrees: np.ndarray, consistent: np.ndarray
) -> Quality:
    left = votes.left[mask]
    decided = int(np.count_nonzero(left))
    lefts = int(np.count_nonzero(left > 0))
    return Quality(
        annotator=name,
        votes=int(mask.sum()),
        gold=_share(votes.gold[mask & (votes.gold >= 0)]),
        consistency=_share(consistent[mask & (consistent >= 0)]),
        agreement=_share(agrees[mask & (agrees >= 0)]),
        left=wilson_interval(lefts, decided) if decided else None,
        left_p=binomial_p_value(lefts, decided) if decided else None,
        active_ms=_median(votes.active_ms[mask]),
        wall_ms=_median(votes.wall_ms[mask]),
    )


def _share(outcomes: np.ndarray) -> Estimate | None:
    return wilson_interval(int(outcomes.sum()), outcomes.size) if outcomes.size else None


def _median(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else None


def _agrees_with_others(votes: Votes) -> np.ndarray:
    """(N,) 1 where a vote's winner is that of the others' majority, 0 where not, -1 where unknown.

    Unknown is a vote that stands alone, or whose others are split evenly.
    """
    counted = (votes.gold < 0) & ~votes.repeat
    signs = np.sign(votes.score)
    sums = np.bincount(votes.item[counted], weights=signs[counted], minlength=_num(votes.item))
    others = sums[votes.item] - signs
    return np.where(counted & (others != 0), np.sign(others) == signs, -1).astype(int)


def _consistent(votes: Votes) -> np.ndarray:
    """(N,) for second votes: 1 where the winner is that of the first one, else 0; -1 for others."""
    result = np.full(votes.item.size, -1)
    key = votes.item.astype(np.int64) * max(1, len(votes.names)) + votes.annotator
    first = np.flatnonzero(~votes.repeat)
    order = first[np.argsort(key[first])]
    again = np.flatnonzero(votes.repeat)
    place = np.searchsorted(key[order], key[again])
    found = order[np.minimum(place, max(0, order.size - 1))] if order.size else again
    matched = key[found] == key[again]
    same = np.sign(votes.score[found]) == np.sign(votes.score[again])
    result[again] = np.where(matched & ~votes.repeat[found], same, -1)
    return result


def _num(codes: np.ndarray) -> int:
    return int(codes.max()) + 1 if codes.size else 0


def _reasons(own: Quality, votes: Votes, limits: Thresholds, annotators: int) -> tuple[str, ...]:
    reasons = []
    shares = (
        (own.gold, limits.gold, "gold answers right"),
        (own.agreement, limits.agreement, "votes that agree with the others"),
        (own.consistency, limits.consistency, "repeats answered the same"),
    )
    for share, floor, what in shares:
        if share is not None and share.high is not None and share.high < floor:
            reasons.append(f"{what}: {share.value:.0%} of {share.n}, expected {floor:.0%}")
    if own.left is not None and own.left_p is not None and own.left_p < limits.p_value / annotators:
        reasons.append(f"left side: {own.left.value:.0%} of {own.left.n}, p = {own.left_p:.1g}")
    if own.votes >= limits.min_votes:
        if own.wall_ms is not None and own.wall_ms < limits.wall_ms:
            reasons.append(f"time: {own.wall_ms / 1000:.1f} s per item in the median")
        # The same side with the same strength every time, or always a tie.
        on_screen = votes.left * np.abs(votes.score)
        top = np.unique(on_screen, return_counts=True)[1].max() / on_screen.size
        if top >= limits.same_choice:
            reasons.append(f"same choice: {top:.0%} of all")
    return tuple(reasons)


def drift(votes: Votes, annotator: str | None = None, windows: int = 4) -> list[Quality]:
    """The same measures over equal stretches of each annotator's work, first to last.

    Args:
        votes: The project's votes.
        annotator: Pseudonym; None for all.
        windows: Number of stretches.

    Returns:
        One entry per stretch, named "1/4", "2/4", ...
    """
    agrees, consistent = _agrees_with_others(votes), _consistent(votes)
    window = np.zeros(votes.item.size, dtype=int)
    for number in range(len(votes.names)):
        own = np.flatnonzero(votes.annotator == number)
        window[own] = np.arange(own.size) * windows // max(1, own.size)
    wanted = np.ones(votes.item.size, dtype=bool)
    if annotator is not None:
        wanted = np.array(votes.names)[votes.annotator] == annotator
    return [
        _quality(f"{i + 1}/{windows}", votes, wanted & (window == i), agrees, consistent)
        for i in range(windows)
    ]


def drifted(stretches: Sequence[Quality]) -> list[str]:
    """What differs between the first and the last stretch beyond both their intervals."""
    first, last = stretches[0], stretches[-1]
    names = {"gold": "gold answers right", "agreement": "agreement", "left": "left side"}
    found = []
    for name, what in names.items():
        a, b = getattr(first, name), getattr(last, name)
        if a is not None and b is not None and (a.high < b.low or b.high < a.low):
            found.append(f"{what}: {a.value:.0%} at first, {b.value:.0%} at last")
    return found


def feedback_text(own: Quality) -> str:
    """What an annotator is told about their own work: facts, no blame, no gold item named."""
    pairs = "1 pair" if own.votes == 1 else f"{own.votes} pairs"
    lines = [f"You have compared {pairs}. Thank you."]
    if own.gold is not None and own.gold.n >= 5:
        lines.append(f"On pairs with a known answer you agreed in {own.gold.value:.0%}.")
    if own.agreement is not None and own.agreement.n >= 10:
        lines.append(f"You chose as most others did in {own.agreement.value:.0%} of your votes.")
    if own.consistency is not None and own.consistency.n >= 5:
        lines.append(f"Pairs shown twice you judged the same in {own.consistency.value:.0%}.")
    if any(reason.startswith("left side") for reason in own.reasons):
        lines.append("One side of the screen won unusually often: please read both each time.")
    if any(reason.startswith("time") for reason in own.reasons):
        lines.append("You were very fast: please take the time to read both answers.")
    return "\n".join(lines)
