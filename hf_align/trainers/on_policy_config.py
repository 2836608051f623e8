"""Options of the on-policy trainers, on top of TRL's `RLOOConfig`.

A rollout is `num_mini_batches` optimizer steps' worth of completions; each is used `num_iterations`
times. Scores are in the reward's own unit, KL in nats summed over a completion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trl import RLOOConfig

from hf_align.types import InputError


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class OnPolicyConfig(RLOOConfig):
    """What PPO and REINFORCE have in common: rollouts, reward shaping, KL control, stops.

    Every field is described in its own help text (`--help_all` of a recipe). Batches:
    `per_device_train_batch_size` completions are one slice; `gradient_accumulation_steps` slices
    one optimizer step; `num_mini_batches` steps one pass over a rollout; `num_iterations` passes.

    Raises:
        InputError: An option is out of range, two exclude each other, or TRL refuses one.
    """

    num_generations: int | None = _option(1, "Completions per prompt of a rollout.")
    num_mini_batches: int = _option(1, "Optimizer steps in one pass over a rollout.")
    disable_dropout: bool = _option(True, "Switch dropout off in policy, reference and value.")
    adam_epsilon: float = _option(1e-5, "Epsilon of Adam (1e-5 as in the first RLHF code).")

    kl_controller: Literal["fixed", "adaptive", "budget", "scheduled"] = _option(
        "fixed", "How beta moves: not, towards kl_target (Ziegler or dual ascent), on a schedule."
    )
    kl_target: float = _option(6.0, "Sequence KL in nats: the adaptive target, or the budget.")
    kl_horizon: int = _option(10_000, "Completions over which the adaptive controller reacts.")
    beta_end: float | None = _option(None, "Beta at the end of the schedule.")
    kl_estimator: Literal["k1", "k2", "k3"] = _option(
        "k1", "One-sample KL in the reward: k1 (unbiased), k2 or k3."
    )
    kl_limit: float | None = _option(
        None, "Stop the run when a rollout's sequence KL to the reference passes this (nats)."
    )
    update_kl_limit: float | None = _option(
        None, "Leave a rollout when a token's KL to the policy that wrote it passes this (nats)."
    )

    score_transform: Literal["none", "centre", "sigmoid", "par", "log_sigmoid"] = _option(
        "none", "Shape of the score; centre, par and log_sigmoid need reference completions."
    )
    normalise_scores: Literal["none", "batch", "running"] = _option(
        "none", "Divide scores by their standard deviation, of the rollout or of all so far."
    )
    centre_scores: bool = _option(False, "Subtract their mean as well.")
    score_clip: float | None = _option(10.0, "Shaped scores stay within plus or minus this.")
    length_coefficient: float = _option(0.0, "Penalty per token beyond free_length.")
    free_length: int = _option(0, "Tokens without a length penalty.")
    missing_eos_penalty: float = _option(1.0, "Penalty for a completion without an end token.")
    missing_eos_mode: Literal["subtract", "replace"] = _option(
        "subtract", "Subtract the penalty from the score, or put its negative in the score's place."
    )
    num_reference_samples: int = _option(
        1, "Completions drawn from the reference per prompt where a transform needs them."
    )

    ptx_coefficient: float = _option(
        0.0, "Weight of the language-modelling loss on the ptx data, in the same optimizer step."
    )
    ptx_batch_size: int | None = _option(
        None, "Texts per slice and device of that loss; as many as completions if left out."
    )
    ptx_max_length: int = _option(512, "Tokens that a text of the ptx data is cut to.")
    entropy_coefficient: float = _option(0.0, "Weight of the entropy bonus, per token.")
    max_tokens_per_forward: int | None = _option(
        None, "Most padded tokens of one forward pass; a slice is cut into passes by length."
    )

    def __post_init__(self):
        self._check_ranges()
        free = self.steps_per_generation is None and self.generation_batch_size is None
        if free:
            self.steps_per_generation = self.num_mini_batches * self.gradient_accumulation_steps
        elif self.num_mini_batches != 1:
            raise InputError(
                "num_mini_batches sets the size of a rollout; leave out steps_per_generation and "
                "generation_batch_size"
            )
        try:
            super().__post_init__()
        except ValueError as error:
            # The last statement of TRL's check, which is about its own leave-one-out baseline.
            if self.num_generations != 1 or "at least 2 generations" not in str(error):
                raise InputError(" ".join(str(error).split())) from error
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise InputError(
                f"a rollout of {self.steps_per_generation} slices does not divide into optimizer "
                f"steps of gradient_accumulation_steps {self.gradient_accumulation_steps}"
            )

    def _check_ranges(self) -> None:
        least: dict[str, float] = {
            **dict.fromkeys(("num_generations", "num_mini_batches", "num_iterations"), 1),
            **dict.fromkeys(("max_completion_length", "num_reference_samples"), 1),
            **dict.fromkeys(("beta", "ptx_coefficient", "entropy_coefficient"), 0),
            **dict.fromkeys(("length_coefficient", "free_length", "missing_eos_penalty"), 0),
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}; got {getattr(self, name)}")
        positive = ("kl_target", "kl_horizon", "kl_limit", "update_kl_limit", "score_clip")
        positive += ("temperature", "max_tokens_per_forward", "ptx_max_length", "ptx_batch_size")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0; got {value}")
        if self.kl_controller == "scheduled" and self.beta_end is None:
            raise InputError("kl_controller scheduled goes from beta to beta_end; give beta_end")
        if self.kl_controller in ("adaptive", "budget") and self.beta == 0:
            raise InputError(f"kl_controller {self.kl_controller} multiplies beta, which is 0")
        if self.sync_ref_model:
            raise InputError(
                "sync_ref_model would measure the KL to a moving reference; leave it out"
            )


@dataclass
class PPOConfig(OnPolicyConfig):
    """Options of `PPOTrainer`.

    Raises:
        InputError: As `OnPolicyConfig`.
    """

    num_iterations: int = _option(4, "PPO epochs: passes over each rollout.")
    value_model: Literal["auto", "reward", "policy", "shared"] = _option(
        "auto",
        "Starts from the reward model, from the policy, or is a head on the policy's trunk; auto "
        "takes the reward model where shapes allow, else the policy, and shared under LoRA.",
    )
    value_coefficient: float = _option(0.1, "Weight of the value loss.")
    value_clip: float | None = _option(0.2, "Clip of the value's change, in units of the return.")
    value_learning_rate: float | None = _option(
        None, "Learning rate of a separate value model or of the head; the policy's if left out."
    )
    value_warmup_steps: int = _option(0, "Optimizer steps in which only the value model learns.")
    gamma: float = _option(1.0, "Discount per token.")
    gae_lambda: float = _option(0.95, "Lambda of generalised advantage estimation.")
    whiten_advantages: bool = _option(True, "Give advantages mean 0 and SD 1 over the rollout.")

    def _check_ranges(self) -> None:
        super()._check_ranges()
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1; got {getattr(self, name)}")
        for name in ("value_coefficient", "value_warmup_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0; got {getattr(self, name)}")
        for name in ("value_clip", "value_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0; got {value}")


@dataclass
class ReinforceConfig(OnPolicyConfig):
    """Options of `ReinforceTrainer`.

    Raises:
        InputError: As `OnPolicyConfig`, or the baseline needs more completions per prompt.
    """

    num_generations: int | None = _option(4, "Completions per prompt of a rollout.")
    baseline: Literal["none", "constant", "mean", "leave_one_out"] = _option(
        "leave_one_out", "What is subtracted from a completion's reward."
    )
    baseline_constant: float = _option(0.0, "The constant baseline.")
    mle_coefficient: float = _option(
        0.0, "Weight of the likelihood of the prompts' own reference answers (column completion)."
    )

    def _check_ranges(self) -> None:
        super()._check_ranges()
        if self.mle_coefficient < 0:
            raise InputError(f"mle_coefficient must be at least 0; got {self.mle_coefficient}")
        if self.mle_coefficient and self.ptx_coefficient:
            raise InputError("mle_coefficient and ptx_coefficient exclude each other; choose one")
        if self.baseline in ("mean", "leave_one_out") and self.num_generations < 2:
            raise InputError(
                f"baseline {self.baseline} compares completions of one prompt; give "
                "num_generations of at least 2, or baseline none or constant"
            )
