"""Splits sequences of different lengths into forward passes that waste little on padding.

A padded batch of b sequences costs b times its longest. Sorting by length and cutting in the right
places makes the padding small; cutting too often pays a fixed cost per pass.
"""

from __future__ import annotations

from collections.abc import Sequence


def partition(
    lengths: Sequence[int],
    overhead: int,
    max_tokens: int | None = None,
    num_parts: int | None = None,
) -> list[list[int]]:
    """The cheapest split of sequences into padded batches.

    Minimises Σ over parts of (overhead + size·longest) exactly, by dynamic programming over the
    order of length (an optimal split is contiguous in it), in O(n²), or O(n²·parts) for a fixed
    number of parts.

    Args:
        lengths: Tokens of each of n sequences.
        overhead: Fixed cost of a pass, in tokens.
        max_tokens: Most padded tokens of one part; a longer sequence has a part of its own.
        num_parts: Exactly so many parts, where several processes must make as many passes each.

    Returns:
        Indices of each part, shortest sequences first; parts are never empty.

    Raises:
        ValueError: `num_parts` is more than there are sequences.
    """
    n = len(lengths)
    order = sorted(range(n), key=lambda index: lengths[index])
    ordered = [lengths[index] for index in order]
    if num_parts is not None and not 1 <= num_parts <= n:
        raise ValueError(f"{n} sequences cannot make {num_parts} parts")
    cuts = _cuts(ordered, overhead, max_tokens, num_parts)
    return [order[start:stop] for start, stop in cuts]


def _cuts(
    lengths: list[int], overhead: int, max_tokens: int | None, num_parts: int | None
) -> list[tuple[int, int]]:
    """Start and stop of each part of an ascending list."""
    n, infinity = len(lengths), float("inf")
    if n == 0:
        return []
    layers = 1 if num_parts is None else num_parts
    # best[k][j]: least cost of the first j sequences, in k parts where their number is fixed.
    best = [[infinity] * (n + 1) for _ in range(layers + 1)]
    start_of = [[0] * (n + 1) for _ in range(layers + 1)]
    best[0][0] = 0.0
    for layer in range(1, layers + 1):
        source = best[layer - 1] if num_parts is not None else best[layer]
        if num_parts is None:
            source[0] = 0.0
        for stop in range(1, n + 1):
            longest = lengths[stop - 1]
            for start in range(stop - 1, -1, -1):
                tokens = (stop - start) * longest
                if max_tokens is not None and tokens > max_tokens and stop - start > 1:
                    # A fixed number of parts must exist even where the limit cannot be kept.
                    if num_parts is None:
                        break
                    tokens *= n
                cost = source[start] + overhead + tokens
                if cost < best[layer][stop]:
                    best[layer][stop], start_of[layer][stop] = cost, start
    cuts: list[tuple[int, int]] = []
    stop, layer = n, layers
    while stop > 0:
        start = start_of[layer][stop]
        cuts.append((start, stop))
        stop, layer = start, layer - 1 if num_parts is not None else layer
    return cuts[::-1]
