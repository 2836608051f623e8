"""Draws the answers of all contestants that share a body, a token each at a time.

All rows go through one forward pass per token; a row leaves the batch when it ends. What a row
draws depends on its prompt, its weights and its random numbers, and on its neighbours only as far
as a batch's size changes the last bits of a sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, TemperatureLogitsWarper, TopPLogitsWarper

from hf_align.arena.bodies import Body
from hf_align.arena.turns import Sampling
from hf_align.sampling.decoding import can_draw
from hf_align.sampling.picking import pick
from hf_align.sampling.policies import GREEDY
from hf_align.sampling.reading import Reader, RowCache

BLOCK = 64
"""Steps whose random numbers are drawn at once."""


@dataclass
class Row:
    """One completion while it is drawn.

    Attributes:
        prompt: Token ids that it follows.
        adapter: The adapter that draws it; None for none.
        end_ids: Tokens that end it.
        limit: Most tokens it may have.
        draw: Which of a contestant's completions it is: 0 unless there are several.
        ids: Tokens so far.
        ended: Whether the last is an end token.
        problem: Why it cannot go on.
    """

    prompt: list[int]
    adapter: str | None
    end_ids: frozenset[int]
    limit: int
    draw: int = 0
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    problem: str | None = None

    @property
    def done(self) -> bool:
        """Whether it gets no more tokens."""
        return self.ended or self.problem is not None or len(self.ids) >= self.limit


class Drawing:
    """The rows of one body in one turn. `launch` starts a step, `take` ends it.

    In two parts, so that an accelerator computes for all bodies while one is waited for. Torch's
    modes hold for a thread and a page may ask for each step from another, so none lasts for longer
    than a call.

    Args:
        body: The weights.
        rows: What is drawn.
        sampling: How.
    """

    def __init__(self, body: Body, rows: list[Row], sampling: Sampling) -> None:
        self.body, self.sampling = body, sampling
        self.alive = sorted(rows, key=lambda row: (len(row.prompt), row.prompt, row.adapter or ""))
        longest = max(row.limit for row in rows)
        fast = can_draw(body.model, max(len(row.prompt) for row in rows) + longest)
        prompts = [row.prompt for row in self.alive]
        adapters = [row.adapter for row in self.alive]
        self.reader = (MixedReader if fast else Rereader)(body, prompts, adapters, longest)
        self.randoms = {row.draw: np.random.default_rng([sampling.seed, row.draw]) for row in rows}
        self.blocks: dict[int, np.ndarray] = {}
        self.steps = 0
        self.tokens: Tensor | None = None

    @torch.inference_mode()
    def launch(self) -> None:
        """Starts to compute one more token per row."""
        if not self.alive:
            return
        first = self.tokens is None
        logits = self.reader.read_prompts() if first else self.reader.read(self.tokens)
        self.tokens, self.finite = choose(logits, self._uniforms(logits.device), self.sampling)

    @torch.inference_mode()
    def take(self) -> None:
        """Gives every row its token; rows that are done leave."""
        if not self.alive:
            return
        tokens, finite = torch.stack([self.tokens[:, 0], self.finite.long()]).tolist()
        for row, token, fine in zip(self.alive, tokens, finite, strict=True):
            if not fine:
                row.problem = "its probabilities are no numbers here; its weights may be damaged"
                continue
            row.ids.append(token)
            row.ended = token in row.end_ids
        staying = [slot for slot, row in enumerate(self.alive) if not row.done]
        if staying and len(staying) < len(self.alive):
            slots = self.reader.keep(staying)
            self.alive = [self.alive[slot] for slot in slots]
            self.tokens = self.tokens[torch.tensor(slots, device=self.tokens.device)]
        elif not staying:
            self.stop()

    def stop(self, problem: str | None = None) -> None:
        """Ends all rows, and frees what they hold."""
        for row in self.alive:
            row.problem = row.problem or problem
        self.alive, self.reader, self.tokens = [], None, None

    def _uniforms(self, device: torch.device) -> Tensor:
        """(B, 2) random numbers of this step: equal for equal seeds, draws and steps."""
        place = self.steps % BLOCK
        if place == 0:
            self.blocks = {draw: own.random((BLOCK, 2)) for draw, own in self.randoms.items()}
        self.steps += 1
        return torch.from_numpy(np.stack([self.blocks[row.draw][place] for row in self.alive])).to(
            device
        )


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row.

    Args:
        logits: (B, V).
        uniforms: (B, 2) float64 in [0, 1).
        sampling: Temperature, and the share that is drawn from.

    Returns:
        Tokens (B, 1), and whether a row's probabilities are numbers, (B,).
    """
    logits = logits.float()
    if sampling.temperature <= GREEDY:
        tokens = logits.argmax(-1, keepdim=True)
        return tokens, logits.gather(1, tokens)[:, 0].isfinite()
    logits = TemperatureLogitsWarper(float(sampling.temperature))(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(float(sampling.top_p))(None, logits)
    tokens, logps = pick(logits, uniforms)
    return tokens, logps.isfinite()


class _Mixed:
    """A body as the model of a `Reader`, which says whose rows the next call has."""

    def __init__(self, body: Body) -> None:
        self.body, self.adapters = body, []
        self.config, self.device = body.core.config, body.core.device

    def __call__(self, **inputs):
        return self.body.forward(self.adapters, **inputs)


class MixedReader(Reader):
    """As `Reader`, for rows with different adapters, which read a prompt differently."""

    def __init__(
        self,
        body: Body,
        prompts: list[list[int]],
        adapters: list[str | None],
        max_new_tokens: int,
    ) -> None:
        super().__init__(_Mixed(body), prompts, max_new_tokens, None)
        self.adapters = adapters

    def read_prompts(self) -> Tensor:
        """Logits (B, V) after the prompts, each read once per adapter."""
        rows = list(zip(self.adapters, map(tuple, self.prompts), strict=True))
        unique = list(dict.fromkeys(rows))
        device, width = self.model.device, self.width
        padding = torch.tensor([[width - len(ids)] for _, ids in unique], device=device)
        columns = self.columns[:width]
        self.model.adapters = [adapter for adapter, _ in unique]
        output = self.model(
            input_ids=torch.tensor(
                [[0] * (width - len(ids)) + list(ids) for _, ids in unique], device=device
            ),
            attention_mask=(columns >= padding).long() if self.masked else None,
            position_ids=(columns - padding).clamp_(min=0),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        copies = torch.tensor([unique.index(row) for row in rows], device=device)
        layers = output.past_key_values.layers
        self.cache = RowCache(layers, len(rows), width, self.limit)
        self.cache.fill(layers, 0, copies)
        self.model.adapters = self.adapters
        return output.logits[copies, -1]

    def keep(self, alive: list[int]) -> list[int]:
        """Drops the other rows; returns which row each slot then holds."""
        slots = super().keep(alive)
        self.adapters = self.model.adapters = [self.adapters[slot] for slot in slots]
        return slots


class Rereader:
    """Reads all of a row again for every token: what any causal model can, recurrent ones too."""

    def __init__(
        self,
        body: Body,
        prompts: list[list[int]],
        adapters: list[str | None],
        max_new_tokens: int,
    ) -> None:
        self.body, self.adapters = body, adapters
        self.ids = [list(ids) for ids in prompts]

    def read_prompts(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        rows = [
            self.body.forward(
                [adapter],
                input_ids=torch.tensor([ids], device=self.body.core.device),
                use_cache=False,
            ).logits[:, -1]
            for ids, adapter in zip(self.ids, self.adapters, strict=True)
        ]
        return torch.cat(rows)

    def read(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token per row, (B, 1)."""
        for ids, token in zip(self.ids, tokens[:, 0].tolist(), strict=True):
            ids.append(token)
        return self.read_prompts()

    def keep(self, alive: list[int]) -> list[int]:
        """Drops the other rows; returns which row each slot then holds."""
        self.ids = [self.ids[slot] for slot in alive]
        self.adapters = [self.adapters[slot] for slot in alive]
        return alive
