"""Losses of reward models against enumeration by hand, their limits and their invariances."""

import math
from itertools import combinations, permutations

import pytest
import torch

from hf_align.trainers.losses import (
    centering_loss,
    kwise_loss,
    pairwise_loss,
    plackett_luce_loss,
)

LISTWISE = [kwise_loss, plackett_luce_loss]
listwise = pytest.mark.parametrize("loss", LISTWISE, ids=["kwise", "plackett_luce"])


def batch(seed=0, sizes=(3, 6, 4, 5, 2), ties=True):
    """Ragged rankings: scores, ranks and mask padded to the longest, in float64."""
    generator = torch.Generator().manual_seed(seed)
    width = max(sizes)
    scores = torch.randn(len(sizes), width, generator=generator, dtype=torch.float64)
    ranks = torch.zeros(len(sizes), width, dtype=torch.long)
    mask = torch.zeros(len(sizes), width, dtype=torch.long)
    for row, size in enumerate(sizes):
        ranks[row, :size] = (
            torch.randint(1, 4, (size,), generator=generator)
            if ties
            else torch.randperm(size, generator=generator) + 1
        )
        mask[row, :size] = 1
    return scores, ranks, mask


def rankings(scores, ranks, mask):
    """The real part of each row as lists."""
    for s, r, m in zip(scores.tolist(), ranks.tolist(), mask.tolist(), strict=True):
        size = sum(m)
        yield s[:size], r[:size]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("ties", [True, False])
def test_kwise_is_the_sum_over_pairs_by_hand(ties):
    rows = batch(ties=ties)
    per_prompt = []
    for s, r in rankings(*rows):
        pairs = list(combinations(range(len(s)), 2))
        decided = [(i, j) if r[i] < r[j] else (j, i) for i, j in pairs if r[i] != r[j]]
        per_prompt.append(sum(-math.log(sigmoid(s[i] - s[j])) for i, j in decided) / len(pairs))
    expected = sum(per_prompt) / len(per_prompt)
    assert kwise_loss(*rows).item() == pytest.approx(expected, abs=1e-12)


def test_plackett_luce_is_the_log_probability_of_the_order_and_those_sum_to_one():
    scores, ranks, mask = batch(ties=False)
    per_prompt = []
    for s, r in rankings(scores, ranks, mask):
        order, log_probability = sorted(range(len(s)), key=lambda i: r[i]), 0.0
        while order:
            left = sum(math.exp(s[i]) for i in order)
            log_probability += math.log(math.exp(s[order.pop(0)]) / left)
        per_prompt.append(-log_probability / (len(s) - 1))
    expected = sum(per_prompt) / len(per_prompt)
    assert plackett_luce_loss(scores, ranks, mask).item() == pytest.approx(expected, abs=1e-12)

    four = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)[None]
    every = [torch.tensor([order]) for order in permutations(range(1, 5))]
    whole = torch.ones(1, 4)
    total = sum(math.exp(-3 * plackett_luce_loss(four, order, whole)) for order in every)
    assert total == pytest.approx(1.0)


def test_tied_completions_do_not_compete():
    scores = torch.tensor([[1.0, 0.0, -2.0]], dtype=torch.float64)
    ranks, mask = torch.tensor([[1, 1, 2]]), torch.ones(1, 3)
    # Each of the tied two is chosen against the third: over K − 1 = 2 choices.
    expected = (-math.log(sigmoid(3.0)) - math.log(sigmoid(2.0))) / 2
    assert plackett_luce_loss(scores, ranks, mask).item() == pytest.approx(expected)
    assert kwise_loss(scores, ranks, mask).item() == pytest.approx(expected * 2 / 3)


@listwise
def test_two_completions_are_a_pair(loss):
    scores = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ranks = torch.tensor([[1, 2], [2, 1], [1, 5], [3, 2], [1, 2], [2, 1], [1, 2]])
    first = ranks[:, 0] < ranks[:, 1]
    chosen = torch.where(first, scores[:, 0], scores[:, 1])
    rejected = torch.where(first, scores[:, 1], scores[:, 0])
    expected = pairwise_loss(chosen, rejected)
    torch.testing.assert_close(loss(scores, ranks, torch.ones(7, 2)), expected)


@listwise
def test_a_constant_per_prompt_and_the_order_of_completions_do_not_matter(loss):
    scores, ranks, mask = batch()
    expected = loss(scores, ranks, mask)
    shift = torch.arange(5)[:, None] * 3.0
    torch.testing.assert_close(loss(scores + shift, ranks, mask), expected)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    torch.testing.assert_close(loss(scores[:, order], ranks[:, order], mask[:, order]), expected)
    rows = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(loss(scores[rows], ranks[rows], mask[rows]), expected)
    # Only the order of ranks counts.
    torch.testing.assert_close(loss(scores, ranks * 10 - 7, mask), expected)


@pytest.mark.parametrize("loss", [*LISTWISE, lambda s, r, m: centering_loss(s, m)])
def test_padding_has_no_effect_whatever_stands_there(loss):
    scores, ranks, mask = batch()
    expected = loss(scores, ranks, mask)
    filled = scores.masked_fill(mask == 0, float("nan")).requires_grad_()
    value = loss(filled, ranks.masked_fill(mask == 0, 1), mask)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert (filled.grad[mask == 0] == 0).all()
    assert filled.grad.isfinite().all()


@listwise
def test_a_prompt_without_a_preference_costs_and_teaches_nothing(loss):
    scores = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    tied = loss(scores, torch.full((1, 4), 2), torch.ones(1, 4))
    tied.backward()
    assert tied.item() == 0.0
    assert (scores.grad == 0).all()
    lone = loss(scores, torch.ones(1, 4, dtype=torch.long), torch.tensor([[1, 0, 0, 0]]))
    assert lone.item() == 0.0


@listwise
def test_extreme_scores_give_finite_gradients(loss):
    for scale in (1e4, -1e4):
        scores = (torch.tensor([[3.0, 1.0, 2.0, -2.0]]) * scale).requires_grad_()
        value = loss(scores, torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4))
        value.backward()
        assert value.isfinite()
        assert scores.grad.isfinite().all()


@listwise
def test_gradients_are_those_of_finite_differences(loss):
    scores, ranks, mask = batch()
    assert torch.autograd.gradcheck(lambda s: loss(s, ranks, mask), scores.requires_grad_())


def test_a_margin_is_subtracted_before_the_sigmoid():
    chosen = torch.tensor([1.0, 0.0], dtype=torch.float64)
    rejected, margin = torch.tensor([0.0, 0.5]).double(), torch.tensor([0.25, 1.0]).double()
    expected = -(math.log(sigmoid(0.75)) + math.log(sigmoid(-1.5))) / 2
    assert pairwise_loss(chosen, rejected, margin).item() == pytest.approx(expected)
    none = pairwise_loss(chosen, rejected)
    assert none.item() == pytest.approx(-(math.log(sigmoid(1)) + math.log(sigmoid(-0.5))) / 2)


def test_centering_is_the_mean_square_of_sums_over_pairs():
    scores, _, mask = batch()
    per_prompt = []
    for s, _ in rankings(scores, mask, mask):
        sums = [(a + b) ** 2 for a, b in combinations(s, 2)]
        per_prompt.append(sum(sums) / len(sums))
    expected = sum(per_prompt) / len(per_prompt)
    assert centering_loss(scores, mask).item() == pytest.approx(expected)
