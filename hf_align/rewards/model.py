"""A reward model, or an ensemble of them, that scores completions: by path, by Hub id, or as a
reward function in any TRL trainer.

    >>> score = RewardModel("outputs/reward")
    >>> score.score(["mention tea :"], ["tea please"])

Torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.rewards.encoding import encode
from hf_align.rewards.ensemble import combined
from hf_align.rewards.loading import Ensemble, check_member, load_member, read_ensemble
from hf_align.rewards.named import checked_scores
from hf_align.rewards.normalising import offset_of
from hf_align.rewards.parity import tokenization_differences
from hf_align.types import InputError, Text

# What tokenizers give as their longest length when they know none.
_NO_LIMIT = 10**9


class RewardModel:
    """Scores completions with plain `AutoModelForSequenceClassification` weights of one output.

    Sequences are the tokens that TRL's RewardTrainer trains on (`encode`), so text gets the EOS
    token whether or not the policy reached it: penalise completions that were cut off apart from
    the score. What is longer than the model can read is cut on the tokenizer's `truncation_side`
    and counted.

    Args:
        name: Folder or Hub id, of one model or of an ensemble (`ensemble.json`).
        revision: Branch, tag or commit of a Hub repo.
        device: Where it runs; a GPU where there is one.
        batch_size: Sequences scored at a time, of similar length.
        max_length: Longest sequence in tokens; None takes what model and tokenizer allow.
        dtype: Of the weights, for example "float32"; None keeps the saved one.
        option: How messages call what was named, for example "gold_reward".

    Attributes:
        members: The k `(model, tokenizer)` pairs.
        ensemble: How their scores become one; None for a single model.
        num_scored: Completions scored since it was made.
        num_truncated: How many of them were cut (by any member).

    Raises:
        InputError: It is no reward model, or an ensemble with a missing member; see `load_member`.
        OSError: The Hub cannot be reached, or refuses.
    """

    def __init__(
        self,
        name: str | Path,
        revision: str | None = None,
        *,
        device: str | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        dtype: str | None = None,
        option: str = "reward model",
    ):
        name = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else str(name)
        label = f"{option} {name}"
        ensemble = read_ensemble(name, revision, label)
        folders = ensemble.members if ensemble else ("",)
        members = [load_member(name, revision, folder, dtype, label) for folder in folders]
        self._keep(members, ensemble, name, device or _best_device(), batch_size, max_length)

    @classmethod
    def from_members(
        cls,
        members: Sequence[tuple[Any, Any]],
        *,
        ensemble: Ensemble | None = None,
        name: str = "reward",
        batch_size: int = 32,
        max_length: int | None = None,
    ) -> RewardModel:
        """One from models that are already loaded, where they are, such as a trainer's.

        Args:
            members: `(model, tokenizer)` pairs; more than one need `ensemble`.
            ensemble: How their scores become one.
            name: What reports and TRL's logs call it.
            batch_size: Sequences scored at a time.
            max_length: Longest sequence in tokens.

        Raises:
            InputError: A model has not one output or no pad token, or there are several models and
                nothing says how to combine them.
        """
        if not members or (ensemble is None and len(members) > 1):
            raise InputError(f"got {len(members)} models; several need an ensemble to combine them")
        if ensemble is not None and len(ensemble.members) != len(members):
            raise InputError(
                f"got {len(members)} models, and the ensemble names {len(ensemble.members)} members"
            )
        for model, tokenizer in members:
            check_member(model, tokenizer, name)
        made = cls.__new__(cls)
        made._keep(members, ensemble, name, None, batch_size, max_length)
        return made

    def _keep(self, members, ensemble, name, device, batch_size, max_length) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give at least 1")
        if device is not None:
            members = [(model.to(device), tokenizer) for model, tokenizer in members]
        self.members = tuple(members)
        self.ensemble = ensemble
        self.batch_size = batch_size
        self.max_lengths = [
            min(_longest(model, tokenizer), max_length or _NO_LIMIT)
            for model, tokenizer in self.members
        ]
        self.num_scored = self.num_truncated = 0
        self.name = name
        # TRL logs rewards under their function's name; slashes would make groups of it.
        self.__name__ = Path(name).name or "reward"

    def score(self, prompts: list[Text], completions: list[Text]) -> np.ndarray:
        """The score of each completion, (N,); of an ensemble the combined one.

        Raises:
            InputError: Unequal numbers of prompts and completions, a conversation without a chat
                template, or a score that is not finite.
        """
        return self.combine(self.member_scores(prompts, completions))

    def combine(self, member_scores: np.ndarray) -> np.ndarray:
        """One score per completion, (N,), from the members' scores, (k, N)."""
        if self.ensemble is None:
            return member_scores[0]
        own = self.ensemble
        scores = combined(member_scores, own.combine, own.coefficient, own.z)
        return (scores - own.mean) / own.sd

    def member_scores(self, prompts: list[Text], completions: list[Text]) -> np.ndarray:
        """The score that each member gives to each completion, (k, N); k = 1 for a single model.

        Raises:
            InputError: As `score`.
        """
        scores = np.empty((len(self.members), len(prompts)))
        cut = 0
        for index, (model, tokenizer) in enumerate(self.members):
            ids, num_cut = encode(tokenizer, prompts, completions, self.max_lengths[index])
            cut = max(cut, num_cut)
            scores[index] = _forward(model, tokenizer, ids, self.batch_size) - offset_of(model)
            checked_scores(scores[index], len(prompts), self.name)
        self.num_scored += len(prompts)
        self.num_truncated += cut
        return scores

    def __call__(
        self, prompts: list[Text], completions: list[Text], **columns: object
    ) -> list[float]:
        """TRL's reward function; further columns are ignored."""
        return self.score(prompts, completions).tolist()

    def parity(self, policy_tokenizer: Any) -> list[str]:
        """What differs in practice between the policy's tokens and the reward model's.

        One sentence per difference, most of them harmless as long as they are known: the reward
        model reads text, and reads it with its own tokenizer. Empty where nothing differs.
        """
        found = []
        for index, (_, tokenizer) in enumerate(self.members):
            found += tokenization_differences(
                policy_tokenizer, tokenizer, self.max_lengths[index], self.__name__
            )
        return list(dict.fromkeys(found))


def _forward(model: Any, tokenizer: Any, ids: list[list[int]], batch_size: int) -> np.ndarray:
    """The model's output for each sequence, (N,), in batches of similar length padded right."""
    import torch

    scores = np.empty(len(ids))
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    in_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                width = max(1, *(len(ids[row]) for row in rows))
                batch = torch.full((len(rows), width), tokenizer.pad_token_id)
                mask = torch.zeros_like(batch)
                for place, row in enumerate(rows):
                    batch[place, : len(ids[row])] = torch.tensor(ids[row], dtype=torch.long)
                    mask[place, : len(ids[row])] = 1
                output = model(
                    input_ids=batch.to(model.device), attention_mask=mask.to(model.device)
                )
                scores[rows] = output.logits[:, 0].float().cpu().numpy()
    finally:
        model.train(in_training)
    return scores


def _longest(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or _NO_LIMIT)


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
