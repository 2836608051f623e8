"""Measures how much completions differ: of one prompt, and of different prompts at equal set size.

Measures map a set of completions to a number: over tokens (`distinct_n`, `adjusted_distinct_n`,
`self_bleu`) or over embeddings (`cosine_diversity`, `vendi_score`). `diversity` applies one per
input and across inputs (Kirk et al. 2023, arXiv:2310.06452). Only numpy and the standard library.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_mean
from hf_align.types import Estimate

Tokens = Sequence[Hashable]
"""One completion: token ids, words or characters."""


def distinct_n(completions: Sequence[Tokens], n: int = 1) -> float:
    """Distinct n-grams / n-grams of a set of completions; 1 if none repeats, 0 if there is none.

    It falls as the set grows, whatever the policy (0.92, 0.43 and 0.05 for 10, 100 and 1000 uniform
    tokens out of 50): compare sets of one size, or use `adjusted_distinct_n`. Li et al. 2016,
    arXiv:1510.03055.

    Args:
        completions: Token sequences.
        n: Length of the n-grams.

    Raises:
        ValueError: If n is below 1.
    """
    counts = _all_ngrams(completions, n)
    total = counts.total()
    return len(counts) / total if total else 0.0


def adjusted_distinct_n(completions: Sequence[Tokens], num_types: float, n: int = 1) -> float:
    """Distinct n-grams / the number expected of uniform draws: D / (V (1 - (1 - 1/V)^C)).

    Expectation-adjusted distinct (Liu et al. 2022, arXiv:2202.13587), C n-grams out of V possible
    ones; about 1 for uniform tokens at any size, and it can exceed 1. V is the size of the space
    that n-grams are drawn from: V^n for a vocabulary of V tokens, unless fewer are possible; the
    number depends on it, so state it.

    Args:
        completions: Token sequences.
        num_types: Possible n-grams, at least 1.
        n: Length of the n-grams.

    Raises:
        ValueError: If `num_types` or n is below 1.
    """
    if not num_types >= 1:
        raise ValueError(f"got num_types {num_types}, expected at least 1")
    counts = _all_ngrams(completions, n)
    total = counts.total()
    if not total:
        return 0.0
    missing = math.log1p(-1 / num_types) if num_types > 1 else -math.inf
    return len(counts) / (num_types * -math.expm1(total * missing))


def self_bleu(completions: Sequence[Tokens], max_n: int = 4) -> float:
    """Mean BLEU of each completion against the others of the set, in [0, 1]; 1 if all are the same.

    Higher is less diverse. BLEU with effective order, exponential smoothing of zero counts and the
    closest reference length, as sacreBLEU's for sentences (Post 2018, arXiv:1804.08771); the idea
    is of Zhu et al. 2018, arXiv:1802.01886. It grows with the number of references: compare sets of
    one size.

    Args:
        completions: At least two token sequences.
        max_n: Longest n-gram.

    Raises:
        ValueError: With fewer than two completions.
    """
    if len(completions) < 2:
        raise ValueError(f"self-BLEU needs at least 2 completions, got {len(completions)}")
    lengths = np.array([len(tokens) for tokens in completions])
    matches = np.zeros((len(completions), max_n))
    totals = np.maximum(lengths[:, None] - np.arange(max_n), 0)
    for n in range(1, max_n + 1):
        counted = [Counter(_ngrams(tokens, n)) for tokens in completions]
        best = _two_largest(counted)
        for i, counts in enumerate(counted):
            for ngram, count in counts.items():
                owner, first, second = best[ngram]
                matches[i, n - 1] += min(count, second if owner == i else first)
    scores = [
        _bleu(matches[i], totals[i], lengths[i], np.delete(lengths, i)) for i in range(len(lengths))
    ]
    return float(np.mean(scores))


def cosine_diversity(embeddings: ArrayLike) -> float:
    """1 - mean cosine over pairs of a set: 0 if all point the same way, 1 if all are orthogonal.

    An embedder sees length and topic too, and a different one gives another scale.

    Args:
        embeddings: (m, D), m >= 2, none zero.

    Raises:
        ValueError: With fewer than two embeddings, or a zero or non-finite one.
    """
    unit = _unit(embeddings)
    if len(unit) < 2:
        raise ValueError(f"pairs need at least 2 embeddings, got {len(unit)}")
    total = unit.sum(axis=0)
    return float(1 - (total @ total - len(unit)) / (len(unit) * (len(unit) - 1)))


def vendi_score(embeddings: ArrayLike) -> float:
    """exp of the entropy of the eigenvalues of K/m, K the cosines: the number of different ones.

    1 for m equal embeddings, m for m orthogonal ones. Friedman & Dieng 2022, arXiv:2210.02410.

    Args:
        embeddings: (m, D), none zero.

    Raises:
        ValueError: If an embedding is zero or not finite.
    """
    unit = _unit(embeddings)
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    eigenvalues = np.linalg.eigvalsh(gram / len(unit))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


@dataclass(frozen=True)
class Diversity:
    """One measure on sets of m completions.

    Attributes:
        per_input: m completions of one prompt; the metric `diversity/per_input`.
        across_inputs: One completion of each of m prompts; the metric `diversity/across_inputs`.
    """

    per_input: Estimate
    across_inputs: Estimate


def diversity(
    completions: Sequence[Sequence[Any]],
    measure: Callable[[Sequence[Any]], float],
    *,
    max_prompts: int = 512,
    seed: int = 0,
) -> Diversity:
    """A measure of diversity per input and across inputs, at the same set size.

    Per input: the measure of each prompt's m completions. Across inputs: prompts are shuffled into
    blocks of m, and each block gives m sets of one completion per prompt, each completion used
    once; blocks share no prompt, so they are the clusters of the interval, and a rest of fewer than
    m prompts is left out. With equal set sizes the two can be compared, and
    measures that depend on the size do so alike. Optimisation is known to cut the first more than
    the second (Kirk et al. 2023, arXiv:2310.06452).

    Args:
        completions: G prompts with m completions each, m >= 2: token sequences, or embeddings as an
            array (G, m, D).
        measure: Maps m completions to a number; `functools.partial` sets its options.
        max_prompts: Prompts measured, drawn at random: pure Python takes its time.
        seed: Seed of the draw and of the blocks.

    Returns:
        The two estimates; their `n` is the number of prompts, and of blocks.

    Raises:
        ValueError: If the prompts have fewer than two or different numbers of completions, or there
            are fewer than m prompts.
    """
    sizes = {len(samples) for samples in completions}
    if len(sizes) != 1 or (size := sizes.pop()) < 2:
        raise ValueError("expected the same number of completions for every prompt, at least 2")
    order = np.random.default_rng(seed).permutation(len(completions))[:max_prompts]
    if len(order) < size:
        raise ValueError(f"got {len(order)} prompts, expected at least {size} for one block")
    chosen = [completions[i] for i in order]
    per_input = [measure(samples) for samples in chosen]
    across = [
        np.mean(
            [
                measure([chosen[start + i][(i + shift) % size] for i in range(size)])
                for shift in range(size)
            ]
        )
        for start in range(0, len(chosen) - size + 1, size)
    ]
    return Diversity(
        clustered_mean(per_input, np.arange(len(per_input)), seed=seed),
        clustered_mean(across, np.arange(len(across)), seed=seed),
    )


def _ngrams(tokens: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _all_ngrams(completions: Sequence[Tokens], n: int) -> Counter:
    if n < 1:
        raise ValueError(f"got n {n}, expected at least 1")
    counts: Counter = Counter()
    for tokens in completions:
        counts.update(_ngrams(tokens, n))
    return counts


def _two_largest(counted: list[Counter]) -> dict[Hashable, tuple[int, int, int]]:
    """n-gram -> the sequence that has it most often, how often, and how often the next one does.

    So the largest count among all others is known for every sequence without comparing pairs.
    """
    best: dict[Hashable, tuple[int, int, int]] = {}
    for i, counts in enumerate(counted):
        for ngram, count in counts.items():
            owner, first, second = best.get(ngram, (-1, 0, 0))
            if count > first:
                best[ngram] = (i, count, first)
            elif count > second:
                best[ngram] = (owner, first, count)
    return best


def _bleu(matches: np.ndarray, totals: np.ndarray, length: int, references: np.ndarray) -> float:
    """BLEU from clipped matches and totals per order."""
    if matches[0] == 0:
        return 0.0
    order, smoothing, log_precision = int((totals > 0).sum()), 1.0, 0.0
    for matched, total in zip(matches[:order], totals[:order], strict=True):
        if matched == 0:  # the k-th order without a match counts as 2^-k matches
            smoothing *= 2
        log_precision += math.log((matched or 1 / smoothing) / total) / order
    closest = min(references, key=lambda reference: (abs(reference - length), reference))
    return math.exp(log_precision + min(0.0, 1 - closest / length))


def _unit(embeddings: ArrayLike) -> np.ndarray:
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or not np.isfinite(embeddings).all():
        raise ValueError(f"got embeddings {embeddings.shape}, expected finite (m, D)")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"embedding {int(np.argmin(norms))} is zero and has no direction")
    return embeddings / norms
