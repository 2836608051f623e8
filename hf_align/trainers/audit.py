"""One audit: a policy's completions of fixed prompts, drawn, scored, held against the reference.

Everything is afterwards as it was before: the modules' modes, the generation settings, and the
random states of Python, numpy and torch. So a run takes the same steps with audits and without.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_align.diagnostics.kl import check_consistency
from hf_align.diagnostics.logps import score_samples
from hf_align.diagnostics.sample_files import MOST_AUDITED, ScoredCompletions
from hf_align.rewards import checked_scores
from hf_align.sampling import Samples, sample_completions
from hf_align.types import InputError, RewardFn, Text


@dataclass(frozen=True)
class Audit:
    """What one audit found.

    Attributes:
        metrics: Values by the names of `METRICS`.
        record: Step, sequence KL, and gold and proxy per prompt, ready for JSON.
        consistent: Whether both estimates of the KL agree (`check_consistency`).
        samples: The completions of the first prompts, 512 at most, with gold, proxy and
            log-ratio of each.
    """

    metrics: dict[str, float]
    record: dict[str, Any]
    consistent: bool
    samples: ScoredCompletions


@dataclass
class Auditor:
    """Audits policies on the same prompts, with the same seed.

    Attributes:
        prompts: G texts or conversations, two at least.
        tokenizer: The policy's tokenizer.
        gold: What counts as the truth, if anything does.
        proxy: What training optimises, where that is a reward.
        columns: What the rewards read beside, G values each.
        num_samples: Completions per prompt.
        max_new_tokens: Longest completion in tokens.
        batch_size: Completions drawn or scored at a time.
        seed: Seed of every audit's draw.
    """

    prompts: list[Text]
    tokenizer: Any
    gold: RewardFn | None = None
    proxy: RewardFn | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    num_samples: int = 1
    max_new_tokens: int = 256
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.prompts) < 2:
            raise InputError(f"got {len(self.prompts)} audit prompts, and an interval needs two")
        for name, values in self.columns.items():
            if len(values) != len(self.prompts):
                raise InputError(
                    f"column {name!r} has {len(values)} values for {len(self.prompts)} prompts"
                )

    def audit(self, policy: Any, reference: Any, step: int) -> Audit:
        """Draws the policy's completions and measures them.

        Args:
            policy: A causal language model, or a PEFT model around one.
            reference: The reference model; None for a PEFT policy without its adapter.
            step: The training step, for the record.

        Raises:
            InputError: A reward returned something else than one finite number per completion.
        """
        with unchanged_random_state(policy.device):
            samples = sample_completions(
                policy,
                self.tokenizer,
                self.prompts,
                num_samples=self.num_samples,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            scores = score_samples(policy, reference, samples, batch_size=self.batch_size)
            rewards = {
                name: scored(reward, samples, self.columns)
                for name, reward in (("gold", self.gold), ("proxy", self.proxy))
                if reward is not None
            }
        check = check_consistency(scores.k1, scores.rao_blackwell, samples.prompt_index)
        metrics = {
            "kl/sequence": float(scores.rao_blackwell.mean()),
            "kl/sequence_k1": float(scores.k1.mean()),
            "kl/per_token": float((scores.rao_blackwell / scores.length).mean()),
            "length/mean": float(samples.lengths.mean()),
            "length/ended": float(samples.ended.mean()),
            "policy/entropy": float(scores.entropy.mean()),
            "policy/reference_nll": float(scores.reference_nll.mean()),
        }
        record: dict[str, Any] = {"step": step, "kl": metrics["kl/sequence"]}
        for name, values in rewards.items():
            metrics[f"{name}/mean"] = float(values.mean())
            record[name] = values.mean(axis=1).round(6).tolist()
        flat = {name: values.ravel() for name, values in rewards.items()}
        kept = ScoredCompletions(
            samples.completion_prompts,
            samples.texts,
            samples.lengths,
            samples.ended,
            **flat,
            log_ratio=scores.k1,
        ).first(MOST_AUDITED, self.num_samples)
        return Audit(metrics, record, check.consistent, kept)


def scored(
    reward: RewardFn,
    samples: Samples,
    columns: Mapping[str, Sequence[Any]],
    name: str | None = None,
) -> np.ndarray:
    """(G, m) what a reward says of m completions of each of G prompts.

    Args:
        reward: The reward.
        samples: The completions.
        columns: What it reads beside, one value per prompt.
        name: How messages call it; its own name if left out.

    Raises:
        InputError: It returned something else than one finite number per completion.
    """
    further = {key: [values[i] for i in samples.prompt_index] for key, values in columns.items()}
    scores = reward(prompts=samples.completion_prompts, completions=samples.completions, **further)
    name = name or getattr(reward, "__name__", type(reward).__name__)
    checked = checked_scores(scores, len(samples), name)
    return np.array(checked).reshape(len(samples.prompts), -1)


@contextmanager
def unchanged_random_state(device: Any) -> Iterator[None]:
    """Puts back the global random states of Python, numpy and torch: rewards may draw from them."""
    import torch

    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
