"""BLEU against reference translations: of one sentence as a reward, of a corpus as a measurement.

BLEU = BP · exp(mean_n log p_n) over n = 1…4: p_n is the share of a completion's n-grams that a
reference has, BP = min(1, exp(1 − reference length / completion length)). Papineni et al. 2002,
https://aclanthology.org/P02-1040. All counting is sacrebleu's, imported on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_align.statistics import clustered_statistics
from hf_align.types import Estimate, InputError, Text, content_of

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

MAX_ORDER = 4


class SentenceBLEU:
    """Smoothed BLEU of each completion against its own references, in [0, 1].

    A reward function in TRL's signature. An order with no match counts as 1 / (2^k total) at its
    k-th occurrence (sacrebleu's "exp"), and a completion of fewer than four words is scored on the
    orders it has (`effective_order`); without either, most sentences would have BLEU 0. A
    completion that shares no word with a reference still has 0, and an empty one too.

    TRL's online trainers give reward functions every column but `prompt` and `completion`, so the
    references need a column of their own.

    Args:
        column: Column with the references of each row: a text, or a list of texts.

    Raises:
        InputError: sacrebleu is not installed.
    """

    def __init__(self, column: str = "references"):
        self.column = column
        self.__name__ = "bleu"  # what TRL calls the reward in its logs
        self._bleu = _sacrebleu(effective_order=True)

    def __call__(
        self, prompts: list[Text], completions: list[Text], **columns: object
    ) -> list[float]:
        """BLEU of each completion, (B,).

        Args:
            prompts: Not read.
            completions: Texts, or lists of messages, (B,).
            columns: One of them is the references'; the others are not read.

        Raises:
            InputError: There is no such column, it has another length, or a row has no reference.
        """
        if self.column not in columns:
            others = f"; there are: {', '.join(columns)}" if columns else ""
            raise InputError(
                f"bleu needs a column {self.column!r} with the references of each prompt{others}"
            )
        references = _checked(columns[self.column], len(completions), f"column {self.column!r}")
        return [
            # Rounding can carry a perfect match past 100.
            min(1.0, self._bleu.sentence_score(content_of(completion), texts).score / 100)
            for completion, texts in zip(completions, references, strict=True)
        ]


def corpus_bleu(
    completions: Sequence[Text], references: Sequence[str | Sequence[str]], *, seed: int = 0
) -> Estimate:
    """BLEU of a whole corpus in points, 0 to 100, with an interval over sentences.

    The counts are added up before the precisions are taken, so it is no mean of sentence BLEU. The
    value is `sacrebleu.corpus_bleu(...).score`; the interval resamples sentences (Koehn 2004,
    https://aclanthology.org/W04-3250).

    Args:
        completions: Texts, or lists of messages, (N,).
        references: Of each completion: a text, or a list of texts, (N,). Their numbers may differ.
        seed: Seed of the bootstrap.

    Raises:
        InputError: sacrebleu is not installed, the lengths differ, nothing was given or a row has
            no reference.
    """
    if not len(completions):
        raise InputError("corpus_bleu got no completions; give at least one")
    rows = _checked(references, len(completions), "references")
    bleu = _sacrebleu(effective_order=False)
    counts = np.array(
        [
            _sentence_counts(bleu, content_of(completion), texts)
            for completion, texts in zip(completions, rows, strict=True)
        ]
    )

    def scores(sums: np.ndarray) -> np.ndarray:
        return np.array([[_score(bleu, row)] for row in sums])

    (estimate,) = clustered_statistics(counts, scores, seed=seed)
    if estimate.low is None or estimate.high is None:
        return estimate
    low, high = max(0.0, estimate.low), min(100.0, estimate.high)
    return Estimate(estimate.value, low, high, estimate.n)


def _sentence_counts(bleu: BLEU, completion: str, references: Sequence[str]) -> list[int]:
    """(2 + 2 · 4,) lengths of completion and reference, matches and n-grams by order."""
    score = bleu.corpus_score([completion], [[text] for text in references])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def _score(bleu: BLEU, counts: np.ndarray) -> float:
    # Sums over resampled sentences are whole numbers kept as floats.
    lengths, matches, totals = np.split(np.rint(counts).astype(int), [2, 2 + MAX_ORDER])
    score = bleu.compute_bleu(
        matches.tolist(),
        totals.tolist(),
        sys_len=int(lengths[0]),
        ref_len=int(lengths[1]),
        smooth_method=bleu.smooth_method,
    ).score
    return min(100.0, score)  # rounding can carry a perfect match past 100


def _checked(references: object, num_completions: int, name: str) -> list[list[str]]:
    """The references as lists of texts, at least one of them per completion."""
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise InputError(f"{name} is {references!r}; give a list with a row per completion")
    rows = [[row] if isinstance(row, str) else row for row in references]
    if len(rows) != num_completions:
        raise InputError(
            f"{name} has {len(rows)} rows for {num_completions} completions; give the references "
            "of each completion"
        )
    for index, row in enumerate(rows):
        if not (isinstance(row, Sequence) and row and all(map(_has_words, row))):
            raise InputError(
                f"{name} row {index} is {row!r}; give a text with words, or a list of such texts"
            )
    return [list(row) for row in rows]


def _has_words(text: object) -> bool:
    return isinstance(text, str) and bool(text.strip())


def _sacrebleu(effective_order: bool) -> BLEU:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise InputError('bleu needs sacrebleu; run `pip install "hf_align[eval]"`') from error
    # `force` only silences a warning about sentences that end in " .".
    return BLEU(effective_order=effective_order, force=True)
