"""Settings that turn a batch of scores into shaped scores, in one fixed order.

shaped score = penalties(clip(normalise(transform(shapers(score))))). The reward is that minus the
KL penalty. The steps themselves are in `transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from hf_align.rewards.transforms import (
    MissingEos,
    RunningMoments,
    centre_on_reference,
    check_choice,
    check_finite,
    check_penalty,
    check_positive,
    clip_scores,
    ended_vector,
    length_penalty,
    length_vector,
    log_sigmoid_centred,
    missing_eos_penalty,
    preference_as_reward,
    reference_matrix,
    scale,
    score_vector,
    sigmoid_shaped,
)
from hf_align.types import InputError

Transform = Literal["none", "centre", "sigmoid", "par", "log_sigmoid"]
Normalise = Literal["none", "batch", "running"]

RELATIVE = ("centre", "par", "log_sigmoid")
"""Transforms that compare with scores of the reference model's completions."""


@dataclass(frozen=True)
class Scored:
    """A batch of completions as user shapers see it.

    Attributes:
        scores: (N,) as the reward model gave them.
        lengths: (N,) tokens, including EOS.
        ended: (N,) bool, whether the completion ends in EOS rather than at the length limit.
        reference_scores: (N, M) scores of M reference completions for the same prompts, or None.
    """

    scores: np.ndarray
    lengths: np.ndarray
    ended: np.ndarray
    reference_scores: np.ndarray | None


Shaper: TypeAlias = Callable[[np.ndarray, Scored], np.ndarray]
"""A user's shaping: the scores so far and the batch in, scores (N,) out. Pure: it may run twice."""


@dataclass(frozen=True)
class Shaping:
    """What `shape_scores` does to scores; as it stands, nothing.

    Attributes:
        transform: "centre", "par" and "log_sigmoid" compare with reference scores
            (`centre_on_reference`, `preference_as_reward`, `log_sigmoid_centred`); "sigmoid" is
            `sigmoid_shaped` with the two numbers below.
        sigmoid_centre: The score that "sigmoid" maps to ½.
        sigmoid_scale: Its unit, > 0; 1 suits a reward model normalised to SD 1.
        normalise: Divide by the deviation of this batch, or of all scores so far (`scale`).
        normalise_mean: Subtract their mean too.
        clip: Bound of the absolute value after normalising, > 0; in SDs where it normalises.
        length_coefficient: Shaped score per token beyond `free_length`, ≥ 0.
        free_length: Tokens that cost nothing, ≥ 0.
        missing_eos_penalty: Shaped score that a completion without EOS loses or, if it replaces,
            gets the negative of, ≥ 0; None leaves such completions alone.
        missing_eos_mode: "subtract" or "replace".

    Raises:
        InputError: An unknown choice, or a number outside its range.
    """

    transform: Transform = "none"
    sigmoid_centre: float = 0.0
    sigmoid_scale: float = 1.0
    normalise: Normalise = "none"
    normalise_mean: bool = True
    clip: float | None = None
    length_coefficient: float = 0.0
    free_length: int = 0
    missing_eos_penalty: float | None = None
    missing_eos_mode: MissingEos = "subtract"

    def __post_init__(self) -> None:
        check_choice("transform", self.transform, Transform)
        check_choice("normalise", self.normalise, Normalise)
        check_choice("missing_eos_mode", self.missing_eos_mode, MissingEos)
        check_finite("sigmoid_centre", self.sigmoid_centre)
        check_positive("sigmoid_scale", self.sigmoid_scale)
        if self.clip is not None:
            check_positive("clip", self.clip)
        check_penalty("length_coefficient", self.length_coefficient)
        check_penalty("free_length", self.free_length)
        if self.missing_eos_penalty is not None:
            check_penalty("missing_eos_penalty", self.missing_eos_penalty)

    @property
    def needs_reference(self) -> bool:
        """Whether the transform compares with reference scores."""
        return self.transform in RELATIVE


def shape_scores(
    shaping: Shaping,
    scores: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    reference_scores: np.ndarray | None = None,
    moments: RunningMoments | None = None,
    shapers: Sequence[Shaper] = (),
) -> np.ndarray:
    """Shaped scores, (N,): shapers → transform → normalise → clip → length → missing EOS.

    Normalising follows the transform, which needs the reward model's own units to compare with
    references. The clip follows normalising, so that it counts deviations. The penalties come last:
    they are in units of the shaped score, outliers cannot stretch them and no clip can hide them. A
    missing EOS comes after length, so that a replaced score is exactly the one asked for.

    Pure: running moments are read, not updated, so that evaluation leaves them alone. In training,
    before shaping a batch, `moments.update(transformed_scores(...))` with the same arguments.

    Args:
        shaping: What to do.
        scores: (N,) from the reward model.
        lengths: (N,) tokens, including EOS.
        ended: (N,) bool, whether the completion ends in EOS.
        reference_scores: (N,) or (N, M) for the same prompts, from the same reward model.
        moments: Of transformed scores; needed where shaping normalises by "running".
        shapers: The user's own, applied in turn.

    Raises:
        InputError: Arrays that are not one finite number per completion, reference scores or
            moments that the settings need and that are missing, or a shaper that breaks its word.
    """
    batch = _scored(scores, lengths, ended, reference_scores)
    shaped = _transformed(shaping, batch, shapers)
    if shaping.normalise == "running":
        if moments is None:
            raise InputError("normalise is 'running' without moments; give a RunningMoments")
        shaped = scale(shaped, moments, shaping.normalise_mean)
    elif shaping.normalise == "batch" and len(shaped):
        own = RunningMoments()
        own.update(shaped)
        shaped = scale(shaped, own, shaping.normalise_mean)
    if shaping.clip is not None:
        shaped = clip_scores(shaped, -shaping.clip, shaping.clip)
    shaped = length_penalty(shaped, batch.lengths, shaping.length_coefficient, shaping.free_length)
    if shaping.missing_eos_penalty is None:
        return shaped
    return missing_eos_penalty(
        shaped, batch.ended, shaping.missing_eos_penalty, shaping.missing_eos_mode
    )


def transformed_scores(
    shaping: Shaping,
    scores: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    reference_scores: np.ndarray | None = None,
    shapers: Sequence[Shaper] = (),
) -> np.ndarray:
    """Scores after shapers and transform, (N,): those that running moments are of.

    Arguments and errors are those of `shape_scores`.
    """
    return _transformed(shaping, _scored(scores, lengths, ended, reference_scores), shapers)


def _transformed(shaping: Shaping, batch: Scored, shapers: Sequence[Shaper]) -> np.ndarray:
    scores = batch.scores.copy()  # a shaper may write into it
    for number, shaper in enumerate(shapers, 1):
        scores = score_vector(f"scores of shaper {number}", shaper(scores, batch), len(scores))
    if shaping.transform == "none":
        return scores
    if shaping.transform == "sigmoid":
        return sigmoid_shaped(scores, shaping.sigmoid_centre, shaping.sigmoid_scale)
    if batch.reference_scores is None:
        raise InputError(
            f"transform is {shaping.transform!r} without reference scores; give reference_scores, "
            "or choose 'none' or 'sigmoid'"
        )
    if shaping.transform == "centre":
        return centre_on_reference(scores, batch.reference_scores)
    if shaping.transform == "par":
        return preference_as_reward(scores, batch.reference_scores)
    return log_sigmoid_centred(scores, batch.reference_scores)


def _scored(
    scores: np.ndarray,
    lengths: np.ndarray,
    ended: np.ndarray,
    reference_scores: np.ndarray | None,
) -> Scored:
    scores = score_vector("scores", scores)
    references = reference_scores
    if references is not None:
        references = reference_matrix(references, len(scores))
    return Scored(
        scores, length_vector(lengths, len(scores)), ended_vector(ended, len(scores)), references
    )
