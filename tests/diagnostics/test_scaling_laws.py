"""The two laws: noise-free recovery, peaks only inside the data, intervals, the area gap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.best_of_n import best_of_n_kl
from hf_align.diagnostics.scaling_laws import (
    ScalingLaw,
    area_gap,
    fit_clustered_scaling_law,
    fit_scaling_law,
)

D = np.linspace(0, 3, 13)


@pytest.mark.parametrize("form", ["best_of_n", "rl"])
@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.35), (0.5, -0.2), (0.9, 0.4)])
def test_both_forms_are_recovered_without_noise(form, alpha, beta):
    errors = np.linspace(0.1, 2, D.size)
    fit = fit_scaling_law(form, D, ScalingLaw(form, alpha, beta)(D), errors)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((alpha, beta), abs=1e-10)
    assert fit.r_squared == pytest.approx(1, abs=1e-10)


def test_peaks_are_where_the_formulas_say():
    best_of_n, rl = ScalingLaw("best_of_n", 1.2, 0.3), ScalingLaw("rl", 0.5, 0.4)
    assert best_of_n.peak == pytest.approx((2.0, 1.2))  # a/2b, a^2/4b
    d = math.exp(0.5 / 0.4 - 1)
    assert rl.peak == pytest.approx((d, 0.4 * d))
    assert rl(math.exp(0.5 / 0.4)) == pytest.approx(0, abs=1e-12)
    for law in (best_of_n, rl):
        at, height = law.peak
        assert law(at) == pytest.approx(height)
        assert law(at) > max(law(at - 0.01), law(at + 0.01))
        assert law(0) == 0


def test_a_peak_beyond_the_data_is_not_reported():
    law = ScalingLaw("best_of_n", 1.2, 0.3)  # peaks at 2
    assert fit_scaling_law("best_of_n", D, law(D)).peak == pytest.approx((2.0, 1.2))
    near = D[D <= 1.5]
    assert fit_scaling_law("best_of_n", near, law(near)).peak is None
    rising = ScalingLaw("rl", 0.5, -0.1)
    assert fit_scaling_law("rl", D, rising(D)).peak is None
    assert ScalingLaw("rl", 1.0, 1e-4).peak is None  # e^9999


def test_weights_follow_the_standard_errors():
    """A point that breaks the law counts for nothing at a huge standard error."""
    gains, errors = ScalingLaw("best_of_n", 1.0, 0.2)(D), np.full(D.size, 0.1)
    gains[5] += 3
    errors[5] = 1e6
    fit = fit_scaling_law("best_of_n", D, gains, errors)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((1.0, 0.2), abs=1e-9)
    assert fit.r_squared == pytest.approx(1, abs=1e-9)


def test_rl_leaves_out_what_is_near_zero():
    gains = ScalingLaw("rl", 1.0, 0.3)(D)
    crowd = np.append(D, [0.05, 0.1])
    fit = fit_scaling_law("rl", crowd, np.append(gains, [9.0, -9.0]))
    assert fit.law.alpha == pytest.approx(1.0, abs=1e-10)
    assert fit.nearest == 0.25


def test_the_wrong_law_moves_the_peak_of_the_quantile_world():
    """E_n = n/(n+1) - n/(n+100) peaks at n = 10, d = 1.184; the best-of-n law puts it nearer."""
    n = 2.0 ** np.arange(9)
    gains = n / (n + 1) - n / (n + 100) - (1 / 2 - 1 / 101)
    d = np.sqrt(best_of_n_kl(n))
    fit = fit_scaling_law("best_of_n", d, gains)
    assert math.sqrt(best_of_n_kl(10)) == pytest.approx(1.184, abs=5e-4)
    assert fit.peak is not None and fit.peak[0] < 1.184 - 0.1
    assert fit.r_squared < 1


def noisy_curves(num_prompts, seed, law, noise=0.6):
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(D.size, num_prompts)) * noise
    return law(D)[:, None] + rng.normal(size=num_prompts) + own


def test_intervals_cover_the_true_coefficients_and_peak():
    law, runs = ScalingLaw("best_of_n", 1.2, 0.3), 200
    hits = np.zeros(3)
    for seed in range(runs):
        fit = fit_clustered_scaling_law(
            "best_of_n", D, noisy_curves(80, seed, law), num_resamples=400, seed=seed
        )
        truth = ((fit.alpha, 1.2), (fit.beta, 0.3), (fit.peak_distance, 2.0))
        hits += [e.low <= value <= e.high for e, value in truth]
    assert (hits / runs >= 0.89).all() and (hits[:2] / runs <= 0.99).all()


def test_a_rising_gold_has_no_peak_to_report():
    fit = fit_clustered_scaling_law(
        "best_of_n", D, noisy_curves(200, 0, ScalingLaw("best_of_n", 1.0, 0.05))
    )
    assert fit.peak_distance is None and fit.fit.peak is None
    assert fit.alpha.n == 200


def test_adding_a_constant_changes_nothing_and_doubling_doubles():
    values = noisy_curves(60, 1, ScalingLaw("rl", 0.8, 0.5))
    plain = fit_clustered_scaling_law("rl", D, values)
    shifted = fit_clustered_scaling_law("rl", D, values + 7)
    doubled = fit_clustered_scaling_law("rl", D, 2 * values)
    assert shifted.alpha.value == pytest.approx(plain.alpha.value)
    assert doubled.alpha.low == pytest.approx(2 * plain.alpha.low)
    assert doubled.fit.peak[0] == pytest.approx(plain.fit.peak[0])


def test_area_gap():
    gold = ScalingLaw("best_of_n", 1.0, 0.2)
    assert area_gap(gold, gold, 2.0) == 0
    assert area_gap(gold, ScalingLaw("best_of_n", 2.0, 0.4), 2.0) == pytest.approx(1)
    # integral of .2 d^2 over integral of d - .2 d^2, both to 2
    beyond = area_gap(gold, ScalingLaw("best_of_n", 1.0, 0.0), 2.0)
    assert beyond == pytest.approx((1.6 / 3) / (2 - 1.6 / 3), rel=1e-6)
    # The RL law: integral of d log d is d^2/2 (log d - 1/2).
    rl = area_gap(ScalingLaw("rl", 1.0, 0.0), ScalingLaw("rl", 1.0, -1.0), 1.0)
    assert rl == pytest.approx(0.25 / 0.5, rel=1e-5)
    # Gold that comes back to nothing: integral of d - .75 d^2 to 2 is 0.
    assert area_gap(ScalingLaw("best_of_n", 1.0, 0.75), gold, 2.0) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_scaling_law("best_of_n", [0, 1, 2], [0, 1, 2]), "at least 3"),
        (lambda: fit_scaling_law("rl", [0.05, 1, 2], [0, 1, 2]), "got 2 usable"),
        (lambda: fit_scaling_law("best_of_n", [1, 1, 1], [0, 1, 2]), "not all alike"),
        (lambda: fit_scaling_law("power", D, D), "expected 'best_of_n' or 'rl'"),
        (lambda: fit_scaling_law("rl", D, D, 0 * D), "positive"),
        (lambda: fit_scaling_law("rl", -D, D), "got 0 usable"),
        (lambda: fit_clustered_scaling_law("rl", D + 1, np.ones((13, 5))), "distance 0 first"),
        (lambda: area_gap(ScalingLaw("rl", 1, 1), ScalingLaw("rl", 1, 1), 0), "positive distance"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
