"""Rollouts: the padded layout, the flat order of tokens, and what survives a checkpoint."""

import dataclasses
import itertools
import random

import pytest
import torch

from hf_align.trainers.rollout import Rollout, completion_mask, padded, passes, rows_of

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
COMPLETIONS = [[20, 1], [21, 22, 23, 1], [1], [24, 25, 26]]
WIDTH = 4


def rollout(**changes):
    """A rollout of four rows; entry (b, t) of the k-th tensor is 100 k + 10 b + t."""
    table = 10.0 * torch.arange(4).unsqueeze(1) + torch.arange(WIDTH)
    names = ("logps", "ref_logps", "advantages", "values", "returns")
    tensors = {name: 100.0 * k + table for k, name in enumerate(names)}
    made = Rollout(PROMPTS, COMPLETIONS, completion_mask(COMPLETIONS, "cpu"), **tensors)
    return dataclasses.replace(made, **changes)


def test_padded_rows_are_prompt_completion_padding_without_a_gap():
    ids, mask = padded(PROMPTS, COMPLETIONS, pad_token_id=0)
    expected = torch.tensor(
        [
            [5, 6, 7, 20, 1, 0, 0],
            [8, 21, 22, 23, 1, 0, 0],
            [9, 10, 1, 0, 0, 0, 0],
            [11, 12, 13, 14, 24, 25, 26],
        ]
    )
    assert torch.equal(ids, expected)
    assert ids.dtype == torch.long
    assert mask.dtype == torch.bool
    assert ids[mask].tolist() == list(itertools.chain(*COMPLETIONS))
    assert not mask[:, 0].any()
    # What counts is where tokens are, not what they are: a pad token may be drawn.
    ids, mask = padded([[0, 5]], [[0, 0]], pad_token_id=0)
    assert mask.tolist() == [[False, False, True, True]]


def test_a_completion_without_tokens_has_an_empty_mask():
    ids, mask = padded([[5], [6]], [[], [7]], pad_token_id=3)
    assert ids.tolist() == [[5, 3], [6, 7]]
    assert mask.tolist() == [[False, False], [False, True]]
    assert completion_mask([[], [7]], "cpu").tolist() == [[0.0], [1.0]]
    assert completion_mask([[]], "cpu").shape == (1, 1)


def test_ragged_rows_become_a_table():
    found = rows_of([[1, 2.5], [], torch.tensor([3.0, 4.0, 5.0])], 4, "cpu")
    assert found.tolist() == [[1, 2.5, 0, 0], [0, 0, 0, 0], [3, 4, 5, 0]]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 0], [2], [1, 3, 1]])
def test_flat_entries_follow_the_order_of_a_scored_batch(rows):
    made = rollout()
    expected = [10 * row + t for row in rows for t in range(len(COMPLETIONS[row]))]
    assert made.flat("logps", rows).tolist() == expected
    assert made.flat("values", rows).tolist() == [300 + entry for entry in expected]
    # The same order as boolean indexing of the padded batch, which the completion head returns.
    ids, mask = padded(
        [PROMPTS[row] for row in rows], [COMPLETIONS[row] for row in rows], pad_token_id=0
    )
    table = torch.zeros(4, WIDTH)
    for row, completion in enumerate(COMPLETIONS):
        table[row, : len(completion)] = torch.tensor(completion, dtype=torch.float)
    written = rollout(logps=table).flat("logps", rows)
    assert written.tolist() == ids[mask].tolist()


def test_a_completion_left_out_of_the_loss_stays_in_the_flat_order():
    made = rollout()
    made.mask[1] = 0.0
    assert made.flat("mask", [0, 1, 2]).tolist() == [1, 1, 0, 0, 0, 0, 1]
    assert len(made.flat("logps", [0, 1, 2])) == 7


def test_lengths_count_prompt_and_completion():
    made = rollout()
    assert len(made) == 4
    assert made.lengths == [5, 5, 3, 7]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"values": None, "returns": None, "advantages": torch.arange(4.0)},
        {"rewards": torch.tensor([0.1, -2.0, 3.0, 4.0]), "answer_ids": [[1], [2, 1], [], [3]]},
    ],
)
def test_a_rollout_survives_a_checkpoint(changes, tmp_path):
    made = rollout(**changes)
    torch.save({"rollout": made.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)["rollout"]
    again = Rollout.from_state_dict(state, torch.device("cpu"))
    for field in dataclasses.fields(Rollout):
        before, after = getattr(made, field.name), getattr(again, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after)
            assert before.dtype == after.dtype
        else:
            assert before == after
    assert torch.equal(again.flat("logps", [2, 0]), made.flat("logps", [2, 0]))


def test_passes_hold_each_given_row_once_and_no_other():
    rng = random.Random(0)
    lengths = [rng.randint(1, 80) for _ in range(40)]
    rows = rng.sample(range(40), 17)
    for limit, count in ((None, None), (120, None), (None, 5)):
        parts = list(passes(lengths, rows, 20, limit, count))
        assert sorted(itertools.chain(*parts)) == sorted(rows)
        if limit is not None:
            assert all(len(p) * max(lengths[row] for row in p) <= limit for p in parts)
        if count is not None:
            assert len(parts) == count
