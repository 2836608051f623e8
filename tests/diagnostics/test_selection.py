"""What one pool says of best-of-n: known worlds with and without a peak, exact KL, the sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.best_of_n import best_of_n_kl
from hf_align.diagnostics.kl import check_consistency
from hf_align.diagnostics.overoptimization import INVALID, NO_GAIN, NOT_DETECTED, OVER_OPTIMISED
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.selection import half_octaves, judge_selection, selection_verdict
from hf_align.diagnostics.selection_plots import selection_figure

G, N = 400, 64


def agreeing(num_prompts=G):
    values = np.random.default_rng(0).normal(5, 1, num_prompts)
    return check_consistency(values, values, np.arange(num_prompts))


@pytest.fixture(scope="module")
def quantile_world():
    """Proxy u, gold u - u^100: E_n = n/(n + 1) - n/(n + 100), which peaks at n = 10."""
    u = np.random.default_rng(1).random((4000, 256))
    return judge_selection(u, u - u**100)


def test_half_octaves_begin_at_the_base_policy_and_end_at_the_pool():
    assert half_octaves(16).tolist() == [1, 2, 3, 4, 6, 8, 11, 16]
    assert half_octaves(1).tolist() == [1]
    assert half_octaves(20, 5).tolist() == [1, 2, 3, 4, 5, 6, 8, 11, 16, 20]


def test_a_peak_that_is_known_is_found_and_named(quantile_world):
    n = quantile_world.ns
    expected = n / (n + 1) - n / (n + 100)
    assert np.abs(quantile_world.gold.mean(axis=1) - expected).max() < 0.03
    judged = selection_verdict(quantile_world, 256, agreeing(4000))
    assert judged.label == OVER_OPTIMISED
    assert n[judged.peak_index] in (8, 11)
    assert "best-of-256" in judged.text and f"n = {n[judged.peak_index]}" in judged.text
    assert "below that peak" in judged.text


def test_stopped_before_the_peak_nothing_is_detected(quantile_world):
    judged = selection_verdict(quantile_world, 8, agreeing(4000))
    assert judged.label == NOT_DETECTED and "best-of-8 at KL 1.2 nats" in judged.text


def test_gaussian_errors_have_no_peak():
    """X the gold, X + Z the proxy: E_n[X] = E[max of n] / sqrt(2), which never falls."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1500, N))
    found = judge_selection(x + rng.normal(size=x.shape), x)
    judged = selection_verdict(found, N, agreeing(1500))
    assert judged.label == NOT_DETECTED
    assert found.gold[-1].mean() == pytest.approx(2.385 / math.sqrt(2), abs=0.08)


def test_unlikely_completions_have_the_nominal_kl():
    rng = np.random.default_rng(3)
    found = judge_selection(rng.random((G, N)), None, np.full((G, N), -80.0))
    assert [kl.value for kl in found.kl] == pytest.approx(best_of_n_kl(found.ns), abs=1e-9)
    assert found.sqrt_kl[0] == 0 and found.num_covered == 0


def test_with_two_outcomes_the_kl_is_exact():
    """The better one has probability 0.1: best-of-n takes it with 1 - 0.9^n."""
    rng = np.random.default_rng(4)
    good = rng.random((G, N)) < 0.1
    good[:, 0], good[:, 1] = True, False  # each pool has seen both
    logps = np.where(good, math.log(0.1), math.log(0.9))
    answers = [["good" if cell else "bad" for cell in row] for row in good]
    found = judge_selection(good.astype(float), None, logps, answers)
    assert found.num_covered == G
    for n, kl in zip(found.ns.tolist(), found.exact_kl, strict=True):
        taken = 1 - 0.9**n
        expected = taken * math.log(taken / 0.1)
        expected += (1 - taken) * math.log((1 - taken) / 0.9)
        assert kl.value == pytest.approx(expected, abs=1e-6)
    assert found.sqrt_kl[-1] ** 2 == pytest.approx(found.exact_kl[-1].value)


def test_a_pool_that_misses_an_outcome_has_no_exact_kl():
    logps = np.full((G, N), math.log(0.9))
    found = judge_selection(np.ones((G, N)), None, logps, [["bad"] * N] * G)
    assert found.exact_kl is None and found.num_covered == 0


def test_small_n_are_averaged_over_many_subsets():
    found = judge_selection(np.random.default_rng(5).random((G, N)))
    assert found.ns[found.low_variance].max() == N // 4


def test_laws_are_fitted_where_something_can_be():
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(G, N))
    found = judge_selection(scores, np.zeros((G, N)))
    assert set(found.fits["proxy"]) == {"best_of_n", "rl"} and found.fits["gold"] == {}
    assert judge_selection(scores[:, :2]).fits["proxy"] == {}
    assert judge_selection(scores[:, :1]).ns.tolist() == [1]


def test_best_of_one_and_a_mismatched_sampler_say_so():
    scores = np.random.default_rng(7).normal(size=(G, N))
    found = judge_selection(scores, scores)
    judged = selection_verdict(found, 1, agreeing())
    assert judged.label == NO_GAIN and "best-of-1 is the base policy" in judged.text
    wrong = check_consistency(np.full(G, 9.0) + scores[:, 0], np.full(G, 3.0), np.arange(G))
    judged = selection_verdict(found, N, wrong)
    assert judged.label == INVALID and "not sampled from the distribution" in judged.text


@pytest.mark.parametrize("with_gold", [True, False])
def test_the_figure_marks_the_n_in_use_and_what_rests_on_few_subsets(with_gold, tmp_path):
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(60, 16))
    found = judge_selection(scores, scores if with_gold else None)
    figure = selection_figure(found, 8, peak_n=4)
    assert len(figure.axes) == 1 + with_gold
    labels = [text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()]
    assert sum("best-of-8" in label for label in labels) == 1 + with_gold
    assert sum("n > N/4" in label for label in labels) == 1 + with_gold
    assert sum("gold peak, n = 4" in label for label in labels) == with_gold
    assert save_figure(figure, tmp_path / "figure.png").stat().st_size > 10_000
