"""REINFORCE with a choice of baseline, and a likelihood term beside it.

The reward of a completion is its shaped score minus β times its KL; without a value model every
token of a completion has the same advantage (https://huggingface.co/papers/2402.14740). With
`mle_coefficient` the loss is RL + α·(negative log-likelihood of the reference answer), the mixture
that made BLEU worth optimising in translation (https://huggingface.co/papers/1609.08144).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from hf_align.trainers.language_loss import answer_tokens
from hf_align.trainers.on_policy import OnPolicyTrainer
from hf_align.trainers.on_policy_config import ReinforceConfig
from hf_align.trainers.policy_losses import clipped_policy_loss, group_advantages, is_clipped
from hf_align.trainers.rollout import Rollout
from hf_align.types import InputError


class ReinforceTrainer(OnPolicyTrainer):
    """REINFORCE (RLOO by default) on TRL's on-policy machinery. Arguments as `OnPolicyTrainer`.

    With `args.mle_coefficient` above 0 the training rows need a column `completion`, the reference
    answer.
    """

    _name = "REINFORCE"
    _paper: ClassVar = {
        "title": "Back to Basics: Revisiting REINFORCE-Style Optimization for Learning from Human "
        "Feedback in LLMs",
        "id": "2402.14740",
        "citation": "",
    }
    config_class: ClassVar[type] = ReinforceConfig

    def __init__(
        self, model, reward_funcs, args=None, train_dataset=None, *rest: Any, **named: Any
    ):
        if args is not None and args.mle_coefficient:
            columns = getattr(train_dataset, "column_names", None) or ["completion"]
            if "completion" not in columns:
                raise InputError(
                    f"mle_coefficient {args.mle_coefficient} needs reference answers; the training "
                    f"data have no column `completion`, only {', '.join(columns)}"
                )
        super().__init__(model, reward_funcs, args, train_dataset, *rest, **named)

    def _roll_out(self, inputs: list[dict[str, Any]], mode: str) -> Rollout:
        rollout = super()._roll_out(inputs, mode)
        if mode == "train" and self.args.mle_coefficient:
            rollout.answer_ids = [
                answer_tokens(row["prompt"], row["completion"], ids, self._tokenizer)
                for row, ids in zip(inputs, rollout.prompt_ids, strict=True)
            ]
        return rollout

    def _assign_advantages(self, rollout: Rollout, shaped: np.ndarray, kl, mode: str):
        """One advantage per completion: its reward over the baseline of its prompt's group."""
        args = self.args
        rewards = self.accelerator.gather(rollout.rewards)
        generations = self.num_generations if mode == "train" else self.num_generations_eval
        baseline = args.baseline
        if generations < 2 and baseline in ("mean", "leave_one_out"):
            baseline = "none"  # an evaluation with one completion per prompt
        advantages = group_advantages(rewards, generations, baseline, args.baseline_constant)
        spread = advantages.std(unbiased=False)
        if args.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (spread + 1e-4)
        start = self.accelerator.process_index * len(rollout)
        rollout.advantages = advantages[start : start + len(rollout)]
        return {"policy/advantage_sd": float(spread)}

    def _language_pairs(self, rows: list[int]) -> list[tuple[list[int], list[int]]]:
        if self.args.mle_coefficient:
            return [(self.rollout.prompt_ids[row], self.rollout.answer_ids[row]) for row in rows]
        return super()._language_pairs(rows)

    def _language_coefficient(self) -> float:
        return self.args.mle_coefficient or self.args.ptx_coefficient

    def _num_units(self, rollout: Rollout, rows: list[int]) -> float:
        return float((rollout.mask[rows].sum(dim=1) > 0).sum())

    def _loss(self, model: Any, rollout: Rollout, rows: list[int]) -> torch.Tensor:
        args = self.args
        ids, mask = self._tokens(rollout, rows)
        bonus = args.entropy_coefficient
        logps, entropy, _ = model(input_ids=ids, score_mask=mask, with_entropy=bonus > 0)
        kept = rollout.flat("mask", rows)
        difference = (logps - rollout.flat("logps", rows)) * kept
        owner = torch.repeat_interleave(mask.sum(dim=1))
        log_ratio = difference.new_zeros(len(rows)).index_add(0, owner, difference)
        self._check_first_ratio(log_ratio)
        counted = (rollout.mask[rows].sum(dim=1) > 0).float()
        advantages = rollout.advantages[rows]
        low, high = self.epsilon_low, self.epsilon_high
        losses = clipped_policy_loss(log_ratio, advantages, low, high) * counted
        with torch.no_grad():
            clipped = is_clipped(log_ratio, advantages, low, high)
            moved = (torch.expm1(difference) - difference).sum()
            self._update_kl += torch.stack([moved, kept.sum()])
            self._add("policy/clip_fraction", (clipped * counted).sum(), counted.sum())
            self._add("policy/update_kl", moved, kept.sum())
            self._add("policy/loss", losses.sum(), counted.sum())
        if not bonus:
            return losses.sum()
        lengths = kept.new_zeros(len(rows)).index_add(0, owner, kept).clamp(min=1)
        per_token = kept.new_zeros(len(rows)).index_add(0, owner, entropy * kept) / lengths
        return losses.sum() - bonus * per_token.sum()
