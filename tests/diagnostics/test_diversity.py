"""Diversity: hand-computed sets, parity with sacreBLEU, equal set sizes per and across inputs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from hf_align.diagnostics.diversity import (
    adjusted_distinct_n,
    cosine_diversity,
    distinct_n,
    diversity,
    self_bleu,
    vendi_score,
)


def test_distinct_n_by_hand():
    assert distinct_n(["abab", "abc"], 1) == pytest.approx(3 / 7)
    assert distinct_n(["abab", "abc"], 2) == pytest.approx(3 / 5)  # ab, ba, bc of 5
    assert distinct_n([[1, 2], [3]], 3) == 0  # no trigram
    assert distinct_n(["aaaa"], 1) == 0.25


@pytest.mark.parametrize(("count", "plain"), [(10, 0.92), (100, 0.43), (1000, 0.05)])
def test_uniform_tokens_are_fully_diverse_once_adjusted(count, plain):
    """50 types: E[distinct] = 50 (1 - .98^C) by construction of the adjustment."""
    tokens = np.random.default_rng(count).integers(50, size=(400, count))
    assert np.mean([distinct_n([row]) for row in tokens]) == pytest.approx(plain, abs=0.01)
    adjusted = np.mean([adjusted_distinct_n([row], 50) for row in tokens])
    assert adjusted == pytest.approx(1, abs=0.02)


def test_adjusted_distinct_of_single_and_huge_spaces():
    assert adjusted_distinct_n(["aaaa"], 1) == 1
    assert adjusted_distinct_n(["abcd"], 1e15) == pytest.approx(1)
    assert adjusted_distinct_n([""], 5) == 0


def test_self_bleu_of_equal_and_of_disjoint_completions():
    assert self_bleu(["abcdef"] * 4) == pytest.approx(1)
    assert self_bleu(["abcdef", "ghijkl", "mnopqr"]) == 0


def test_self_bleu_equals_sacrebleu():
    bleu = pytest.importorskip("sacrebleu").BLEU(effective_order=True, tokenize="none")
    rng = np.random.default_rng(0)
    for _ in range(20):
        texts = [
            [f"w{i}" for i in rng.integers(8, size=rng.integers(1, 14))]
            for _ in range(rng.integers(2, 7))
        ]
        joined = [" ".join(words) for words in texts]
        expected = np.mean(
            [
                bleu.sentence_score(text, joined[:i] + joined[i + 1 :]).score / 100
                for i, text in enumerate(joined)
            ]
        )
        assert self_bleu(texts) == pytest.approx(expected, abs=1e-10)


def test_cosine_diversity_and_vendi_score_of_equal_and_orthogonal_embeddings():
    same, apart = np.ones((5, 3)) * [[1], [2], [3], [4], [5]], 7 * np.eye(6)
    assert cosine_diversity(same) == pytest.approx(0, abs=1e-12)
    assert cosine_diversity(apart) == pytest.approx(1)
    assert vendi_score(same) == pytest.approx(1)
    assert vendi_score(apart) == pytest.approx(6)
    assert vendi_score(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)
    assert cosine_diversity([[1, 0], [-1, 0]]) == pytest.approx(2)


def test_prompts_that_fix_the_completion_are_diverse_across_inputs_only():
    completions = [[[10 * g + i for i in range(5)]] * 4 for g in range(80)]
    found = diversity(completions, distinct_n)
    assert found.per_input.value == 0.25 and found.across_inputs.value == 1
    assert (found.per_input.n, found.across_inputs.n) == (80, 20)


def test_prompts_that_do_not_matter_give_both_the_same():
    rng = np.random.default_rng(1)
    completions = rng.integers(30, size=(400, 4, 12))
    found = diversity(completions, partial(distinct_n, n=1))
    assert found.per_input.low < found.across_inputs.value < found.per_input.high
    vectors = rng.normal(size=(400, 4, 6))
    by_angle = diversity(vectors, cosine_diversity)
    assert by_angle.per_input.low < 1 < by_angle.per_input.high
    assert by_angle.across_inputs.low < 1 < by_angle.across_inputs.high


def test_only_as_many_prompts_as_asked_are_measured():
    completions = np.random.default_rng(2).integers(9, size=(100, 3, 5))
    found = diversity(completions, distinct_n, max_prompts=30)
    assert (found.per_input.n, found.across_inputs.n) == (30, 10)
    assert found == diversity(completions, distinct_n, max_prompts=30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distinct_n(["ab"], 0), "got n 0"),
        (lambda: adjusted_distinct_n(["ab"], 0.5), "num_types"),
        (lambda: self_bleu(["ab"]), "at least 2"),
        (lambda: cosine_diversity([[1.0, 0.0]]), "at least 2"),
        (lambda: vendi_score([[1.0, 0.0], [0.0, 0.0]]), "embedding 1 is zero"),
        (lambda: diversity([["a", "b"], ["a"]], distinct_n), "same number"),
        (lambda: diversity([["a", "b"]], distinct_n), "at least 2 for one block"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
