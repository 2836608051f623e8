"""Feeds a model prompts, then one token per row at a time, with finished rows dropped.

Keys and values of all layers lie in one tensor that is written in place: the cache of
`transformers` copies all it holds at every step, and drops rows layer by layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

ROOM = 16
"""Fewest columns added at a time: most completions end long before the longest may."""
PREFILL_TOKENS = 512
"""Prompt tokens read at a time on a CPU: less padding, and activations that stay in its cache."""


class InPlaceLayer(DynamicLayer):
    """One layer's keys and values, (B, heads, T, dim), as a window on tensors with more columns."""

    def show(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Takes the tensors to write to, of whose columns `length` are filled."""
        self.whole_keys, self.whole_values, self.length = keys, values, length
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Writes one more column, (B, heads, 1, dim); returns all that are filled."""
        place, self.length = self.length, self.length + 1
        self.whole_keys.narrow(2, place, 1).copy_(key_states)
        self.whole_values.narrow(2, place, 1).copy_(value_states)
        self.keys = self.whole_keys.narrow(2, 0, self.length)
        self.values = self.whole_values.narrow(2, 0, self.length)
        return self.keys, self.values


class RowCache:
    """Keys and values of B rows, (2 · layers, B, heads, T, dim), and their view by layers.

    Attributes:
        by_layer: What a model takes as `past_key_values`.
        length: Columns filled.
    """

    def __init__(self, layers: list[DynamicLayer], num_rows: int, length: int, limit: int) -> None:
        """Makes room for rows of `length` columns, at most `limit`, shaped as these layers are."""
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        self.length, self.limit = length, limit
        # Layers may differ (the keys of multi-head latent attention are wider than its values).
        self.shapes = [(tensor.shape[1], tensor.shape[3]) for tensor in tensors]
        heads, dim = (max(sizes) for sizes in zip(*self.shapes, strict=True))
        columns = min(limit, length + ROOM)
        self.store = tensors[0].new_empty(len(tensors), num_rows, heads, columns, dim)
        self.by_layer = DynamicCache()
        self.by_layer.layers = [InPlaceLayer() for _ in layers]
        self._bind()

    def fill(self, layers: list[DynamicLayer], start: int, copies: Tensor | None) -> int:
        """Puts what was read, padded on the left, at row `start` and after; returns the next row.

        Args:
            layers: Keys and values of U prompts.
            start: The first row.
            copies: Per row which of the U prompts it holds; each once where None.
        """
        tensors = (tensor for layer in layers for tensor in (layer.keys, layer.values))
        for part, tensor in zip(self.store, tensors, strict=True):
            tensor = tensor if copies is None else tensor[copies]
            rows, heads, columns, dim = tensor.shape
            place = part[start : start + rows, :heads, : self.length, :dim]
            place[:, :, self.length - columns :] = tensor
            # Never seen, but a weight of 0 times whatever memory holds may be no number.
            place[:, :, : self.length - columns] = 0.0
        return start + rows

    def keep(self, alive: list[int]) -> list[int]:
        """Drops the rows not in `alive` (ascending); returns which row each slot then holds.

        The last rows move to where rows went, so nothing else is copied.
        """
        count = len(alive)
        staying = bisect_left(alive, count)
        free, moved = sorted(set(range(count)).difference(alive[:staying])), alive[staying:]
        slots = list(range(count))
        for slot, row in zip(free, moved, strict=True):
            slots[slot] = row
        if free:
            held = self.store[:, :, :, : self.length]
            to, source = (torch.tensor(rows, device=held.device) for rows in (free, moved))
            held[:, to] = held[:, source]
        self.store = self.store[:, :count]
        self._bind()
        return slots

    def make_room(self) -> None:
        """Sees to it that one more column can be written."""
        *size, columns, dim = self.store.shape
        if self.length == columns:
            grown = min(self.limit, columns + max(ROOM, columns // 2))
            store = self.store.new_empty(*size, grown, dim)
            store[:, :, :, :columns] = self.store
            self.store = store
            self._bind()

    def _bind(self) -> None:
        for i, layer in enumerate(self.by_layer.layers):
            keys, values = (
                self.store[j, :, :heads, :, :dim]
                for j, (heads, dim) in enumerate(self.shapes[2 * i : 2 * i + 2], 2 * i)
            )
            layer.show(keys, values, self.length)


class Reader:
    """Feeds a model B prompts, then one token per row at a time.

    Attributes:
        states: (B, H) what the model's head turned into the last logits; None unless wanted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        max_new_tokens: int,
        seen: list[Tensor] | None,
    ) -> None:
        self.model, self.prompts, self.seen = model, prompts, seen
        self.width = len(prompts[-1])
        self.limit = self.width + max_new_tokens
        self.columns = torch.arange(self.limit, device=model.device)
        padding = [[self.width - len(ids)] for ids in prompts]
        self.padding = torch.tensor(padding, device=model.device)
        self.eager = model.config._attn_implementation == "eager"
        self.masked = self.eager or padding[0] != [0]

    def read_prompts(self) -> Tensor:
        """Logits (B, V) after the prompts, of which equal ones are read once."""
        device, logits, states, start = self.model.device, [], [], 0
        for unique, copies in _groups(self.prompts, device.type == "cpu"):
            width = len(unique[-1])
            ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in unique], device=device)
            padding = torch.tensor([[width - len(ids)] for ids in unique], device=device)
            columns = self.columns[:width]
            output = self.model(
                input_ids=ids,
                attention_mask=(columns >= padding).long() if len(unique[0]) < width else None,
                position_ids=(columns - padding).clamp_(min=0),
                past_key_values=DynamicCache(),
                use_cache=True,
                logits_to_keep=1,
            )
            layers = output.past_key_values.layers
            if start == 0:
                self.cache = RowCache(layers, len(self.prompts), self.width, self.limit)
            index = torch.tensor(copies, device=device) if len(copies) > len(unique) else None
            start = self.cache.fill(layers, start, index)
            chosen = slice(None) if index is None else index
            logits.append(output.logits[chosen, -1])
            if self.seen is not None:
                states.append(self.seen.pop()[chosen, -1])
        self.states = torch.cat(states) if states else None
        return torch.cat(logits)

    def read(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token per row, (B, 1)."""
        cache, mask = self.cache, None
        cache.make_room()
        if self.masked:
            # As attention takes it; `transformers` would make this of a flat one in every step.
            mask = (self.columns[: cache.length + 1] >= self.padding)[:, None, None]
            if self.eager:
                kind = cache.store.dtype
                mask = torch.where(mask, 0.0, torch.finfo(kind).min).to(kind)
        logits = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=cache.length - self.padding,
            past_key_values=cache.by_layer,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        cache.length += 1
        if self.seen is not None:
            self.states = self.seen.pop()[:, -1]
        return logits[:, -1]

    def keep(self, alive: list[int]) -> list[int]:
        """Drops the other rows; returns which row each slot then holds."""
        slots = self.cache.keep(alive)
        self.padding = self.padding[torch.tensor(slots, device=self.padding.device)]
        return slots


def _groups(prompts: list[list[int]], on_cpu: bool) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Distinct prompts to read together, and per row which of them it has."""
    unique: list[list[int]] = []
    copies: list[int] = []
    for ids in prompts:
        if not unique or ids != unique[-1]:
            if on_cpu and unique and (len(unique) + 1) * len(ids) > PREFILL_TOKENS:
                yield unique, copies
                unique, copies = [], []
            unique.append(ids)
        copies.append(len(unique) - 1)
    yield unique, copies
