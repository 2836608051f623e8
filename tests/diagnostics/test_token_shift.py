"""Token shift: shares by hand, greedy completions of the reference, ranks of a tiny model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_align.diagnostics.token_shift import (
    most_shifted_tokens,
    reference_ranks,
    token_ranks,
    token_shift,
)
from hf_align.sampling import sample_completions

RANKS = np.array([[1, 2, 3, 4], [1, 1, 9, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])


def test_shares_and_positions_by_hand():
    found = token_shift(RANKS, MASK, [0, 1])
    shares = [found.unshifted.value, found.marginal.value, found.shifted.value]
    assert shares == pytest.approx([3 / 7, 2 / 7, 2 / 7])
    assert found.shifted_by_position.tolist() == [0, 0, 0.5, 1]
    assert found.shifted.n == 2


def test_positions_nobody_reaches_are_nan():
    found = token_shift([[1, 0], [5, 0]], [[1, 0], [1, 0]], [0, 1])
    assert found.shifted_by_position[0] == 0.5 and math.isnan(found.shifted_by_position[1])


def test_most_shifted_tokens_are_counted():
    tokens = np.array([[7, 8, 9, 8], [7, 8, 8, 5]])
    assert most_shifted_tokens(RANKS, tokens, MASK) == [(8, 2, 0.5)]
    assert most_shifted_tokens(RANKS, tokens, MASK, count=0) == []


def test_ranks_count_larger_logits_whatever_the_chunk():
    logits = torch.tensor([[[0.0, 3.0, 1.0, 3.0], [2.0, 1.0, 0.0, -1.0]]])
    tokens = torch.tensor([[1, 3]])
    for time_chunk in (1, 64):
        assert token_ranks(logits, tokens, time_chunk=time_chunk).tolist() == [[1, 4]]
    assert token_ranks(logits, torch.tensor([[2, 0]])).tolist() == [[3, 1]]


def test_greedy_completions_of_the_reference_are_unshifted(make_model, tokenizer):
    model = make_model(0)
    prompts = ["w1 w2 w3 w4 w5", "w7", "w9 w3"]
    samples = sample_completions(model, tokenizer, prompts, num_samples=2, max_new_tokens=8)
    ranks, mask = reference_ranks(model, samples, batch_size=2, time_chunk=3)
    greedy = [list(ids) for ids in samples.completion_ids]
    with torch.no_grad():
        for i, ids in enumerate(greedy):
            prompt = samples.prompt_ids[samples.prompt_index[i]]
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            expected = [
                int((row > row[token]).sum()) + 1 for row, token in zip(logits, ids, strict=True)
            ]
            assert ranks[i, mask[i]].tolist() == expected
            assert mask[i].sum() == len(ids)
            # The same prompt continued greedily, token by token.
            for t in range(len(ids)):
                step = model(torch.tensor([prompt + ids[:t]])).logits[0, -1]
                ids[t] = int(step.argmax())
    samples.completion_ids[:] = greedy
    ranks, mask = reference_ranks(model, samples, batch_size=4)
    found = token_shift(ranks, mask, samples.prompt_index)
    assert found.unshifted.value == 1 and found.shifted.value == 0


@pytest.mark.parametrize(
    ("ranks", "mask", "message"),
    [
        ([[1, 2]], [[1]], "expected"),
        ([[1, 2]], [[0, 0]], "with 1s"),
        ([[1, 0]], [[1, 1]], "rank 1"),
    ],
)
def test_unusable_input_is_refused(ranks, mask, message):
    with pytest.raises(ValueError, match=message):
        token_shift(ranks, mask, [0])
