"""What scores a completion: reward functions by name, reward models, and ensembles of them.

All have TRL's signature `(prompts, completions, **columns) -> list[float]`. Importing this package
imports no torch.
"""

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
from hf_align.rewards.loading import Ensemble, write_ensemble
from hf_align.rewards.model import RewardModel
from hf_align.rewards.named import checked_scores, named_reward, reward_function, reward_source
from hf_align.rewards.normalising import normalise

__all__ = [
    # by name
    "reward_function",
    "named_reward",
    "reward_source",
    "checked_scores",
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
]
