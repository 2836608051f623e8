"""What one rollout holds, and how its rows become forward passes.

Sequences lie flush left: prompt and completion without a gap, padding on the right only. So causal
attention needs no mask, and no architecture has to be told where a sequence begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from hf_align.trainers.microbatches import partition


@dataclass
class Rollout:
    """One process's completions and what was measured on them before the first update.

    Attributes:
        prompt_ids: Token ids of the B prompts.
        completion_ids: Token ids of the B completions, the end token included where reached.
        mask: (B, T) completion mask: 1 on tokens that count in the loss.
        logps: (B, T) log-probabilities under the policy that wrote them, nats.
        ref_logps: (B, T) under the reference model.
        advantages: (B, T), or (B,) where a completion has one.
        values: (B, T) of a value model before each token; None without one.
        returns: (B, T) that the value model is fitted to.
        rewards: (B,) shaped score minus penalty.
        answer_ids: Reference answers to the prompts, where the loss has their likelihood in it.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    mask: torch.Tensor
    logps: torch.Tensor
    ref_logps: torch.Tensor
    advantages: torch.Tensor | None = None
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    answer_ids: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and completion together."""
        pairs = zip(self.prompt_ids, self.completion_ids, strict=True)
        return [len(prompt) + len(completion) for prompt, completion in pairs]

    def flat(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """A (B, T) tensor's entries on the completion tokens of some rows, (M,), row by row."""
        tensor = getattr(self, name)
        # Places counted here: a mask on a GPU would have to be waited for.
        starts = np.asarray(rows) * tensor.shape[1]
        lengths = [len(self.completion_ids[row]) for row in rows]
        places = [np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
        return tensor.reshape(-1)[torch.from_numpy(np.concatenate(places)).to(tensor.device)]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as lists and CPU tensors."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in state.items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> Rollout:
        """The rollout that `state_dict` described, on a device."""
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in state.items()}
        return cls(**moved)


def padded(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` (B, T), padded on the right, and the boolean mask (B, T) of completion tokens."""
    starts = torch.tensor([len(prompt) for prompt in prompts])
    stops = starts + torch.tensor([len(completion) for completion in completions])
    width = int(stops.max())
    rows = [
        [*prompt, *completion] + [pad_token_id] * (width - len(prompt) - len(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    columns = torch.arange(width)
    mask = (columns >= starts.unsqueeze(1)) & (columns < stops.unsqueeze(1))
    return torch.tensor(rows).to(device), mask.to(device)


def rows_of(values: Sequence[Sequence[float]], width: int, device: Any) -> torch.Tensor:
    """Ragged rows as one (B, width) float tensor, padded with 0."""
    rows = [torch.as_tensor(row, dtype=torch.float32, device=device) for row in values]
    table = pad_sequence(rows, batch_first=True)
    return F.pad(table, (0, width - table.shape[1]))


def completion_mask(completions: Sequence[Sequence[int]], device: Any) -> torch.Tensor:
    """(B, T) with 1 on the tokens of each completion."""
    lengths = torch.tensor([len(completion) for completion in completions], device=device)
    columns = torch.arange(max(1, int(lengths.max())), device=device)
    return (columns < lengths.unsqueeze(1)).float()


def passes(
    lengths: Sequence[int],
    rows: Sequence[int],
    overhead: int,
    max_tokens: int | None,
    num_parts: int | None = None,
) -> Iterator[list[int]]:
    """The given rows in forward passes of similar length (`microbatches.partition`)."""
    parts = partition([lengths[row] for row in rows], overhead, max_tokens, num_parts)
    for part in parts:
        yield [rows[index] for index in part]
