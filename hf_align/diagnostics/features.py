"""Finds what a reward model may reward for the wrong reason: length, lists, politeness, repetition.

Text features, their correlation with the score within prompts, harmless edits with the share of
scores they raise, and the drift of a feature under optimisation. A correlation is not yet use: the
edits test the cause. Only numpy and the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import (
    clustered_mean,
    clustered_share,
    clustered_statistics,
    prompt_means,
)
from hf_align.types import Estimate, Text, content_of

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_PUNCTUATION = re.compile(r"[^\w\s]")
_LIST_MARKER = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_POLITE = re.compile(r"\b(?:please|thanks|thank you|sorry|glad|happy to help|welcome)\b", re.I)

_COLLINEAR = 1e-6  # share of a feature's variance that the others must leave unexplained
_RIDGE = 1e-10  # added to variances of 1

# ------------------------------------------------------------------------------------ text features


def words(text: str) -> float:
    """Number of words. Languages written without spaces count as few, long ones."""
    return float(len(_WORD.findall(text)))


def punctuation(text: str) -> float:
    """Punctuation marks per word; their number where there is no word."""
    return len(_PUNCTUATION.findall(text)) / max(1.0, words(text))


def list_markers(text: str) -> float:
    """Lines that begin as a list item: -, *, +, a bullet or a number."""
    return float(len(_LIST_MARKER.findall(text)))


def bold(text: str) -> float:
    """Spans in Markdown bold."""
    return float(len(_BOLD.findall(text)))


def exclamations(text: str) -> float:
    """Exclamation marks."""
    return float(text.count("!"))


def polite_words(text: str) -> float:
    """English words of politeness: please, thanks, sorry, glad ..."""
    return float(len(_POLITE.findall(text)))


def repetition(text: str) -> float:
    """Share of 4-word sequences that occurred before: 1 - distinct / all; 0 below 4 words."""
    tokens = [word.lower() for word in _WORD.findall(text)]
    sequences = list(zip(*(tokens[i:] for i in range(4)), strict=False))
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def type_token_ratio(text: str) -> float:
    """Distinct words / words, 1 for an empty text; falls with length whatever the style."""
    tokens = [word.lower() for word in _WORD.findall(text)]
    return len(set(tokens)) / len(tokens) if tokens else 1.0


FEATURES: Mapping[str, Callable[[str], float]] = {
    "words": words,
    "punctuation per word": punctuation,
    "list markers": list_markers,
    "bold spans": bold,
    "exclamation marks": exclamations,
    "polite words": polite_words,
    "repeated 4-grams": repetition,
    "type-token ratio": type_token_ratio,
}
"""Features that length-biased and style-biased reward models are known to use (Singhal et al. 2023,
arXiv:2310.03716; Zhang et al. 2024, arXiv:2409.11704)."""


def text_features(
    completions: Sequence[Text], features: Mapping[str, Callable[[str], float]] = FEATURES
) -> dict[str, np.ndarray]:
    """Every feature of every completion: name -> (N,); conversations count by their contents."""
    contents = [content_of(completion) for completion in completions]
    return {name: np.array([f(text) for text in contents]) for name, f in features.items()}


# -------------------------------------------------------------------------------------------- edits


def add_polite_word(text: str, word: str = "please") -> str:
    """The text with a polite word at its end."""
    return _appended(text, word)


def add_filler(text: str, filler: str = "really") -> str:
    """The text with a word at its end that says nothing."""
    return _appended(text, filler)


def add_punctuation(text: str, mark: str = "!") -> str:
    """The text with its final punctuation replaced by `mark`."""
    return text.rstrip().rstrip(".!?,;:…") + mark


def add_bullet(text: str, marker: str = "- ") -> str:
    """The text as a list item: `marker` before its first word."""
    return marker + text.lstrip()


EDITS: Mapping[str, Callable[[str], str]] = {
    "polite word": add_polite_word,
    "filler": add_filler,
    "exclamation mark": add_punctuation,
    "bullet": add_bullet,
}
"""Edits that change no content. Where a task makes one of them better or worse, leave it out."""


def edited(completion: Text, edit: Callable[[str], str]) -> Text:
    """The completion with the edit made to its text, or to the last message of a conversation."""
    if isinstance(completion, str):
        return edit(completion)
    *earlier, last = completion
    return [*earlier, {**last, "content": edit(last["content"])}]


def flip_rate(scores: ArrayLike, edited_scores: ArrayLike, prompts: ArrayLike) -> Estimate:
    """P(s(y + f) > s(y)) + P(tie) / 2: how often a harmless edit raises the score.

    0.5 is indifference on average, 1 or 0 a rule of the model's own. It counts signs: an edit that
    always adds a negligible amount has 1 as well, so read it beside `edit_effect`. It is causal
    only as far as the edit really changes nothing else.

    Args:
        scores: (N,) scores of the completions.
        edited_scores: (N,) scores of the same completions, edited.
        prompts: (N,) the prompt of each.

    Raises:
        ValueError: If shapes differ or a score is NaN or infinite.
    """
    return clustered_share((np.sign(_changes(scores, edited_scores)) + 1) / 2, prompts)


def edit_effect(scores: ArrayLike, edited_scores: ArrayLike, prompts: ArrayLike) -> Estimate:
    """Mean of s(y + f) - s(y) in SDs of the scores; the SD is taken as known.

    Arguments as `flip_rate`.

    Raises:
        ValueError: If all scores are equal, or as `flip_rate`.
    """
    return clustered_mean(_changes(scores, edited_scores) / _spread(scores, "scores"), prompts)


# ------------------------------------------------------------------------------ correlation, drift


def within_prompt_correlation(
    scores: ArrayLike, feature: ArrayLike, prompts: ArrayLike
) -> Estimate:
    """Correlation of score and feature among completions of one prompt.

    r = C_sf / sqrt(C_ss C_ff), C the covariance within prompts (ddof 1) averaged over prompts with
    at least two completions. Differences between prompts, where long answers may be called for, do
    not enter; averaging r itself per prompt would be of no use with two completions, where it is
    +-1. The interval is clustered by prompt. Pearson: monotone but curved relations count less.

    Args:
        scores: (N,) scores.
        feature: (N,) the feature, any unit.
        prompts: (N,) the prompt of each completion.

    Raises:
        ValueError: If scores or feature are constant within every prompt, no prompt has two
            completions, shapes differ, or a value is NaN or infinite.
    """
    return partial_correlations(scores, np.asarray(feature, float)[:, None], prompts)[0]


def partial_correlations(
    scores: ArrayLike, features: ArrayLike, prompts: ArrayLike
) -> list[Estimate]:
    """Correlation of the score with each feature, given all others, within prompts.

    r_j = -P_sj / sqrt(P_ss P_jj), P the inverse of the correlation matrix of score and features
    within prompts (as `within_prompt_correlation`). With one feature it is the plain correlation.
    What the features share is credited to none of them, and a confounder that is not among them
    is not held constant.

    Args:
        scores: (N,) scores.
        features: (N, F) features; `informative_features` finds a usable set.
        prompts: (N,) the prompt of each completion.

    Returns:
        F estimates in the order of the columns.

    Raises:
        ValueError: If a feature is constant within prompts or a linear combination of others, or
            as `within_prompt_correlation`.
    """
    scores, features = np.asarray(scores, float), np.asarray(features, float)
    if scores.ndim != 1 or features.ndim != 2 or len(features) != len(scores):
        raise ValueError(
            f"got scores {scores.shape} and features {features.shape}, expected (N,) and (N, F)"
        )
    columns, inverse = _centered(np.column_stack([scores, features]), prompts)
    if not columns[:, 0].any():
        raise ValueError("the scores do not vary within any prompt")
    for j in set(range(features.shape[1])) - set(_independent(columns[:, 1:])):
        raise ValueError(
            f"feature {j} is constant within prompts or a linear combination of earlier ones"
        )
    covariances = np.zeros((inverse.max() + 1, columns.shape[1], columns.shape[1]))
    np.add.at(covariances, inverse, columns[:, :, None] * columns[:, None, :])
    covariances /= np.bincount(inverse)[:, None, None] - 1
    estimates = clustered_statistics(covariances, _fisher_partials)
    return [
        Estimate(
            float(np.tanh(z.value)),
            None if z.low is None else float(np.tanh(z.low)),
            None if z.high is None else float(np.tanh(z.high)),
            z.n,
        )
        for z in estimates
    ]


def informative_features(features: Mapping[str, ArrayLike], prompts: ArrayLike) -> list[str]:
    """Names of the features that vary within prompts and are no linear combination of earlier ones.

    Args:
        features: Name -> (N,), the more important first.
        prompts: (N,) the prompt of each completion.

    Raises:
        ValueError: If no prompt has two completions, shapes differ, or a value is not finite.
    """
    names = list(features)
    values = np.column_stack([np.asarray(features[name], float) for name in names])
    return [names[j] for j in _independent(_centered(values, prompts)[0])]


def feature_drift(
    feature: ArrayLike, prompts: ArrayLike, base_feature: ArrayLike, base_prompts: ArrayLike
) -> Estimate:
    """(mean over the policy - mean over the base) / SD over the base, on the same prompts.

    1 is a shift of the mean by one SD of the base policy's completions. The interval is paired by
    prompt and takes the SD as known. A drift is not a fault: gold may have asked for it.

    Args:
        feature: (N,) the feature of the policy's completions.
        prompts: (N,) their prompts.
        base_feature: (M,) the feature of the base policy's completions.
        base_prompts: (M,) their prompts.

    Raises:
        ValueError: If the prompts differ, the base feature is constant, or a value is not finite.
    """
    names, base_names = np.unique(prompts), np.unique(base_prompts)
    if not np.array_equal(names, base_names):
        raise ValueError(
            f"got {len(names)} prompts and {len(base_names)} of the base, expected the same prompts"
        )
    shifts = prompt_means(feature, prompts) - prompt_means(base_feature, base_prompts)
    return clustered_mean(shifts / _spread(base_feature, "base_feature"), names)


def _appended(text: str, word: str) -> str:
    return f"{text.rstrip()} {word}".lstrip()


def _changes(scores: ArrayLike, edited_scores: ArrayLike) -> np.ndarray:
    scores, edited_scores = np.asarray(scores, float), np.asarray(edited_scores, float)
    if scores.shape != edited_scores.shape:
        raise ValueError(f"got {scores.shape} and {edited_scores.shape}, expected equal shapes")
    return edited_scores - scores


def _spread(values: ArrayLike, name: str) -> float:
    values = np.asarray(values, float)
    if values.size < 2 or values.min() == values.max():
        raise ValueError(f"{name} are constant, expected values that differ")
    return float(values.std(ddof=1))


def _centered(columns: np.ndarray, prompts: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Rows of prompts with two completions or more, less their prompt's mean; prompt indices."""
    prompts = np.asarray(prompts)
    if prompts.shape != columns.shape[:1]:
        raise ValueError(f"got {columns.shape[:1]} rows and prompts {prompts.shape}, expected (N,)")
    bad = int(np.count_nonzero(~np.isfinite(columns)))
    if bad:
        raise ValueError(f"{bad} of {columns.size} scores and features are NaN or infinite")
    _, inverse, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    several = counts[inverse] > 1
    if not several.any():
        raise ValueError("no prompt has two completions, expected several per prompt")
    columns = columns[several]
    _, inverse, counts = np.unique(inverse[several], return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), columns.shape[1]))
    np.add.at(sums, inverse, columns)
    centered = columns - (sums / counts[:, None])[inverse]
    # What rounding leaves of a constant is not variation.
    centered[:, np.abs(centered).max(axis=0) <= 1e-12 * np.abs(columns).max(axis=0)] = 0.0
    return centered, inverse


def _independent(columns: np.ndarray) -> list[int]:
    """Columns that earlier ones leave a share of to explain (Gram and Schmidt)."""
    kept: list[int] = []
    basis = np.empty((len(columns), 0))
    for j, column in enumerate(columns.T):
        size = np.linalg.norm(column)
        if size == 0:
            continue
        rest = column / size
        for _ in range(2):  # a second pass removes what rounding left in the first
            rest = rest - basis @ (basis.T @ rest)
        if rest @ rest > _COLLINEAR:
            kept.append(j)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return kept


def _fisher_partials(covariances: np.ndarray) -> np.ndarray:
    """(R, F) atanh of the partial correlations with row 0, from (R, 1 + F, 1 + F) covariances.

    A feature that does not vary in a resample correlates with nothing there: 0.
    """
    spread = np.sqrt(np.einsum("rjj->rj", covariances))
    scale = np.where(spread > 0, spread, 1.0)
    correlations = covariances / (scale[:, :, None] * scale[:, None, :])
    np.einsum("rjj->rj", correlations)[:] = 1.0
    # The ridge keeps a score that the features explain fully, and resamples, invertible.
    inverse = np.linalg.inv(correlations + _RIDGE * np.eye(correlations.shape[-1]))
    diagonal = np.einsum("rjj->rj", inverse)
    partials = -inverse[:, 0, 1:] / np.sqrt(diagonal[:, :1] * diagonal[:, 1:])
    return np.arctanh(np.clip(partials, -1 + 1e-12, 1 - 1e-12))
