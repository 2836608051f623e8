"""What scores a completion: reward functions by name, BLEU, reward models, ensembles of them.

All have TRL's signature `(prompts, completions, **columns) -> list[float]`. Importing this package
imports no torch.
"""

from hf_align.rewards.bleu import SentenceBLEU, corpus_bleu
from hf_align.rewards.encoding import encode
from hf_align.rewards.ensemble import (
    COMBINATIONS,
    combined,
    lower_confidence_bound,
    mean,
    standardised,
    uncertainty_weighted,
    worst_case,
)
from hf_align.rewards.kl_control import (
    CONTROLLERS,
    AdaptiveKL,
    BudgetKL,
    FixedKL,
    KLController,
    ScheduledKL,
    check_horizon,
    make_controller,
)
from hf_align.rewards.loading import Ensemble, write_ensemble
from hf_align.rewards.model import RewardModel
from hf_align.rewards.named import checked_scores, named_reward, reward_function, reward_source
from hf_align.rewards.normalising import normalise
from hf_align.rewards.shaping import Scored, Shaper, Shaping, shape_scores, transformed_scores
from hf_align.rewards.transforms import (
    RunningMoments,
    centre_on_reference,
    clip_scores,
    counted_completions,
    length_penalty,
    log_sigmoid_centred,
    missing_eos_penalty,
    preference_as_reward,
    scale,
    sigmoid_shaped,
    whiten,
)

__all__ = [
    # by name
    "reward_function",
    "named_reward",
    "reward_source",
    "checked_scores",
    # against references
    "SentenceBLEU",
    "corpus_bleu",
    # reward models
    "RewardModel",
    "normalise",
    "encode",
    # ensembles
    "Ensemble",
    "write_ensemble",
    "COMBINATIONS",
    "combined",
    "mean",
    "worst_case",
    "uncertainty_weighted",
    "lower_confidence_bound",
    "standardised",
    # shaping
    "Shaping",
    "Scored",
    "Shaper",
    "shape_scores",
    "transformed_scores",
    "RunningMoments",
    "clip_scores",
    "whiten",
    "scale",
    "centre_on_reference",
    "preference_as_reward",
    "sigmoid_shaped",
    "log_sigmoid_centred",
    "length_penalty",
    "missing_eos_penalty",
    "counted_completions",
    # KL penalty
    "KLController",
    "CONTROLLERS",
    "FixedKL",
    "AdaptiveKL",
    "BudgetKL",
    "ScheduledKL",
    "make_controller",
    "check_horizon",
]
