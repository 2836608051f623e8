"""Fixes the scale and the offset of a reward model inside its own head: E[score] = 0 and SD = 1 on
completions of one's choice.

A Bradley–Terry score is determined up to a constant, and its scale by the label noise; thresholds,
clipping, KL coefficients and ensembles all need both fixed. Torch is imported on use.
"""

from __future__ import annotations

import math
from typing import Any

from hf_align.types import InputError

OFFSET = "reward_offset"
"""Key of `config.json` with the constant that a head without a bias cannot hold."""


def normalise(model: Any, mean: float, sd: float) -> None:
    """Folds score ↦ (score − mean) / sd into the model's head, in place.

    The scale goes into the head's weight. The offset goes into its bias where it has one (BERT,
    RoBERTa). The heads of Llama, Qwen, Mistral and their like have none in transformers; there it
    is kept in `config.json` as `reward_offset`, which `RewardModel` subtracts. What reads such a
    folder with plain `AutoModelForSequenceClassification` gets scores that differ by that constant
    alone, which cancels in Bradley–Terry differences and in the group-relative advantages of RLOO
    and GRPO.

    Both survive `save_pretrained` and a Hub round trip. To hold exactly the weights must be
    float32: in bfloat16 the scaled weight is rounded to three digits.

    Args:
        model: Sequence-classification model with one output; merge an adapter first.
        mean: Of the scores that `RewardModel` gives to the reference completions.
        sd: Their standard deviation (ddof = 0).

    Raises:
        InputError: The deviation is not positive, a number is not finite, or the model has no
            single linear head.
    """
    import torch

    if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
        raise InputError(
            f"scores with mean {mean} and standard deviation {sd} cannot be normalised; the reward "
            "model scores every reference completion alike"
        )
    head = _head(model)
    with torch.no_grad():
        head.weight.div_(sd)
        if head.bias is not None:
            head.bias.sub_(mean).div_(sd)
    if head.bias is None:
        setattr(model.config, OFFSET, (offset_of(model) + mean) / sd)


def offset_of(model: Any) -> float:
    """The constant that `RewardModel` subtracts from the model's output; 0 where none is kept."""
    return float(getattr(model.config, OFFSET, 0.0))


def _head(model: Any) -> Any:
    from torch.nn import Linear

    heads = [
        module
        for module in model.modules()
        if isinstance(module, Linear) and module.out_features == 1
    ]
    if len(heads) != 1:
        raise InputError(
            f"{type(model).__name__} has {len(heads)} linear layers with one output, expected one "
            "head; merge an adapter before normalising"
        )
    return heads[0]
