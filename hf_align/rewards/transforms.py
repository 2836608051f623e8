"""Transforms of scores, in numpy: bounded, rescaled, clipped, with penalties subtracted.

Every function takes one score per completion, (N,), in the reward model's units, and returns (N,)
float64 without changing its input. None adds information: at equal KL bounded, clipped or rescaled
scores buy the same gold reward as raw ones; they change how fast a policy spends its KL.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from hf_align.types import InputError

MissingEos = Literal["subtract", "replace"]


class RunningMoments:
    """Mean and standard deviation over all scores ever seen, as if they were one array.

    Batches are merged exactly: with δ = mean_b − mean, mean ← mean + δ · n_b / n and
    M2 ← M2 + M2_b + δ² · n_a · n_b / n. Chan, Golub and LeVeque 1983, "Algorithms for Computing the
    Sample Variance", https://doi.org/10.1080/00031305.1983.10483115

    Nothing is forgotten, so in a long run the deviation lags behind a policy that has narrowed. On
    several processes update every one with the gathered scores, or their moments drift apart.

    Attributes:
        count: Scores seen.
        mean: Of them; 0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._m2 = 0.0

    @property
    def sd(self) -> float:
        """Standard deviation, ddof = 0; 0 before the first score."""
        return float(np.sqrt(self._m2 / self.count)) if self.count else 0.0

    def update(self, scores: np.ndarray) -> None:
        """Merges a batch, (N,); an empty one changes nothing.

        Raises:
            InputError: The scores are not (N,) finite numbers.
        """
        scores = score_vector("scores", scores)
        if not len(scores):
            return
        total, mean = self.count + len(scores), float(scores.mean())
        delta = mean - self.mean
        self._m2 += float(((scores - mean) ** 2).sum())
        self._m2 += delta**2 * self.count * len(scores) / total
        self.mean += delta * len(scores) / total
        self.count = total

    def state_dict(self) -> dict[str, float]:
        """`{"count", "mean", "m2"}`, plain numbers."""
        return {"count": self.count, "mean": self.mean, "m2": self._m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from a `state_dict`, exactly."""
        self.count = int(state["count"])
        self.mean, self._m2 = float(state["mean"]), float(state["m2"])


def clip_scores(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """min(max(s, low), high), (N,): no single score dominates a batch.

    Beyond the bounds all scores are alike, so a policy that lives there stops learning; within them
    nothing restrains it (Fu et al. 2025, https://arxiv.org/abs/2502.18770).

    Raises:
        InputError: low is above high, or the scores are not (N,) finite numbers.
    """
    if not low <= high:
        raise InputError(f"clip bounds are {low} and {high}; give low ≤ high")
    return np.clip(score_vector("scores", scores), low, high)


def whiten(scores: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    """(s − mean) / sd of the batch, (N,); with the mean added back unless it is to shift.

    As in lm-human-preferences (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593), ddof = 0.
    Equal scores become zeros, or stay as they are without the shift. A batch that hardly differs is
    blown up to unit size all the same, noise included.

    Raises:
        InputError: The scores are not (N,) finite numbers.
    """
    scores = score_vector("scores", scores)
    if not len(scores):
        return scores
    mean = scores.mean()
    return (scores - mean) / _divisor(scores.std(), mean) + (0.0 if shift_mean else mean)


def scale(scores: np.ndarray, moments: RunningMoments, shift_mean: bool) -> np.ndarray:
    """(s − mean) / sd of the moments, or s / sd without the shift, (N,).

    Unlike `whiten` it keeps zero and sign where it does not shift: a penalty stays one. Moments of
    equal scores divide by 1. It sets the optimiser's scale and stops no hacking; as moments move,
    the same completion's score does too.

    Raises:
        InputError: The moments have seen no scores, or the scores are not (N,) finite numbers.
    """
    scores = score_vector("scores", scores)
    if not moments.count:
        raise InputError("the moments have seen no scores; update them with this batch first")
    offset = moments.mean if shift_mean else 0.0
    return (scores - offset) / _divisor(moments.sd, moments.mean)


def centre_on_reference(scores: np.ndarray, reference_scores: np.ndarray) -> np.ndarray:
    """s − mean over M of s_ref, (N,): how much better than what the reference model says.

    Takes out how hard the prompt is. A constant per prompt, it cancels in the group-relative
    advantages of GRPO and RLOO, where it changes nothing.

    Args:
        scores: (N,).
        reference_scores: (N,) or (N, M), of reference completions for the same prompts.

    Raises:
        InputError: Not one finite score, or M of them, per completion.
    """
    scores = score_vector("scores", scores)
    return scores - reference_matrix(reference_scores, len(scores)).mean(axis=1)


def preference_as_reward(scores: np.ndarray, reference_scores: np.ndarray) -> np.ndarray:
    """PAR: mean over M of σ(s − s_ref), (N,) in (0, 1): how often it would beat the reference.

    That is the Bradley–Terry probability only for scores in nats, as the reward model was trained;
    normalised ones differ by a temperature. M = 1 is enough. Fu et al. 2025, "Reward Shaping to
    Mitigate Reward Hacking in RLHF", https://arxiv.org/abs/2502.18770. Saturates: scores far above
    the reference are all 1, which stops both hacking and learning.

    Args:
        scores: (N,).
        reference_scores: (N,) or (N, M), of reference completions for the same prompts.

    Raises:
        InputError: Not one finite score, or M of them, per completion.
    """
    scores = score_vector("scores", scores)
    return _sigmoid(scores[:, None] - reference_matrix(reference_scores, len(scores))).mean(axis=1)


def sigmoid_shaped(scores: np.ndarray, centre: float, scale: float) -> np.ndarray:
    """σ((s − centre) / scale), (N,) in (0, 1): bounded without reference completions.

    One centre for all prompts: on hard ones the policy is always low, on easy ones always high, and
    learns from neither.

    Raises:
        InputError: The centre is not finite, the scale not positive, or the scores are not (N,)
            finite numbers.
    """
    check_finite("centre", centre)
    check_positive("scale", scale)
    return _sigmoid((score_vector("scores", scores) - centre) / scale)


def log_sigmoid_centred(scores: np.ndarray, reference_scores: np.ndarray) -> np.ndarray:
    """LSC: log σ(s − s_ref), (N,), at most 0; s_ref is the mean over M.

    Sums over several rewards act as AND, since one bad score outweighs many good ones. Wang et al.
    2024, "Transforming and Combining Rewards for Aligning Large Language Models",
    https://arxiv.org/abs/2402.00742, whose s_ref is the 0.85 quantile: give that, (N,). Bounded
    above only: for low scores it is s − s_ref.

    Args:
        scores: (N,).
        reference_scores: (N,) or (N, M), of reference completions for the same prompts.

    Raises:
        InputError: Not one finite score, or M of them, per completion.
    """
    return -np.logaddexp(0.0, -centre_on_reference(scores, reference_scores))


def length_penalty(
    scores: np.ndarray, lengths: np.ndarray, coefficient: float, free_length: float
) -> np.ndarray:
    """s − coefficient · max(0, length − free_length), (N,).

    Counters one known cue, at the price of answers that need the length (Singhal et al. 2023,
    https://arxiv.org/abs/2310.03716: no strategy works everywhere).

    Args:
        scores: (N,).
        lengths: (N,) tokens.
        coefficient: Score per token, ≥ 0.
        free_length: Tokens that cost nothing, ≥ 0.

    Raises:
        InputError: A negative number, or not one score and one length per completion.
    """
    check_penalty("coefficient", coefficient)
    check_penalty("free_length", free_length)
    scores = score_vector("scores", scores)
    excess = np.maximum(0.0, length_vector(lengths, len(scores)) - free_length)
    return scores - coefficient * excess


def missing_eos_penalty(
    scores: np.ndarray, ended: np.ndarray, penalty: float, mode: MissingEos = "subtract"
) -> np.ndarray:
    """s where the completion ended; elsewhere s − penalty, or −penalty to replace, (N,).

    Without it policies learn never to stop. Subtracting (TRL's former PPO) keeps the order among
    truncated completions; replacing (Huang et al. 2024, https://arxiv.org/abs/2403.17031) does not
    trust scores of unfinished text, but rewards stopping short where scores fall below −penalty.

    Args:
        scores: (N,).
        ended: (N,) bool.
        penalty: In units of the score, ≥ 0.
        mode: "subtract" or "replace".

    Raises:
        InputError: A negative penalty, an unknown mode, or not one score and one bool each.
    """
    check_penalty("penalty", penalty)
    check_choice("mode", mode, MissingEos)
    scores = score_vector("scores", scores)
    truncated = scores - penalty if mode == "subtract" else -penalty
    return np.where(ended_vector(ended, len(scores)), scores, truncated)


def counted_completions(ended: np.ndarray, mask_truncated: bool) -> np.ndarray:
    """Which completions count in the loss, (N,) bool: all, or with masking those that ended.

    A truncated completion's score says little about its tokens (Yu et al. 2025, DAPO's overlong
    filtering, https://arxiv.org/abs/2503.14476). Masked, running on costs nothing, so penalties for
    a missing EOS no longer teach; and a batch without any that ended has no loss to average.

    Raises:
        InputError: `ended` is not (N,) bool.
    """
    ended = ended_vector(ended, len(ended))
    return ended if mask_truncated else np.ones_like(ended)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _divisor(sd: float, mean: float) -> float:
    # What rounding alone leaves of equal scores is no deviation.
    return float(sd) if sd > 1e-12 * abs(mean) else 1.0


def score_vector(name: str, values: np.ndarray, count: int | None = None) -> np.ndarray:
    """A float64 copy, (N,) or (count,), or an InputError that names shape or number."""
    values = np.array(values, dtype=np.float64)  # a copy: no result shares memory with its input
    if values.ndim != 1 or (count is not None and len(values) != count):
        expected = "(N,)" if count is None else f"({count},), one per completion"
        raise InputError(f"{name} have shape {values.shape}, expected {expected}")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"{name}: number {row} is {values[row]}; give finite numbers only")
    return values


def reference_matrix(values: np.ndarray, count: int) -> np.ndarray:
    """A float64 copy, (N, M), of (N,) or (N, M), or an InputError."""
    values = np.array(values, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or len(values) != count or not values.shape[1]:
        raise InputError(
            f"reference_scores have shape {values.shape}, expected ({count},) or ({count}, M)"
        )
    score_vector("reference_scores", values.ravel())
    return values


def length_vector(values: np.ndarray, count: int) -> np.ndarray:
    """A float64 copy, (N,), of numbers of at least 0, or an InputError."""
    values = score_vector("lengths", values, count)
    if (values < 0).any():
        raise InputError(f"lengths: the smallest is {values.min():g}; give token counts")
    return values


def ended_vector(values: np.ndarray, count: int) -> np.ndarray:
    """A bool copy, (N,), or an InputError; 0 and 1 might be scores given by mistake."""
    values = np.array(values)
    if values.shape != (count,) or (count and values.dtype != bool):
        raise InputError(
            f"ended has shape {values.shape} and type {values.dtype}, expected ({count},) bool"
        )
    return values.astype(bool)


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuses what is not one of a Literal's values."""
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")


def check_finite(name: str, value: float) -> None:
    """Refuses nan and inf."""
    if not np.isfinite(value):
        raise InputError(f"{name} is {value}; give a finite number")


def check_positive(name: str, value: float) -> None:
    """Refuses nan, inf, 0 and negative numbers."""
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; give a positive number")


def check_penalty(name: str, value: float) -> None:
    """Refuses nan, inf and negative numbers, which would be bonuses."""
    if not (np.isfinite(value) and value >= 0):
        raise InputError(f"{name} is {value}; give a number of at least 0 (it is subtracted)")
