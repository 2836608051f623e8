"""Where a KL coefficient would have left a run: against closed forms, and when nothing is said."""

import math

import numpy as np
import pytest

from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.scaling_laws import ScalingLaw
from hf_align.diagnostics.what_if import fit_curve, stationary_distance, what_if

DISTANCES = np.array([0, 0.3, 0.7, 1.2, 1.8, 2.5, 3.3, 4.2])


def run_on(proxy, gold, prompts=64, noise=0.0, distances=DISTANCES):
    """A run whose prompts all follow these laws, around which they scatter."""
    rng = np.random.default_rng(0)
    curves = []
    for law in (gold, proxy):
        if law is None:
            curves.append(None)
            continue
        spread = 1 + 0.1 * rng.normal(size=prompts)
        spread -= spread.mean() - 1
        values = law(distances)[:, None] * spread
        if noise:
            values[1:] += noise * rng.normal(size=values[1:].shape)
        curves.append(values)
    return Curve(np.arange(len(distances)), distances, *curves)


PROXY = ScalingLaw("best_of_n", 1.2, 0.08)
GOLD = ScalingLaw("best_of_n", 1.0, 0.3)


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.7])
def test_the_stationary_point_of_the_quadratic_law_is_its_closed_form(beta):
    assert stationary_distance(PROXY, beta) == pytest.approx(1.2 / (2 * (0.08 + beta)))


@pytest.mark.parametrize("law", [ScalingLaw("rl", 0.5, 0.12), ScalingLaw("rl", 0.9, -0.1)])
@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
def test_the_other_law_is_flat_there_and_nowhere_higher(law, beta):
    found = stationary_distance(law, beta)
    slope = law.alpha - law.beta * (math.log(found) + 1) - 2 * beta * found
    assert slope == pytest.approx(0, abs=1e-6)
    grid = np.geomspace(1e-3, 1e2, 20_000)
    objective = law(grid) - beta * grid**2
    assert law(np.array(found)) - beta * found**2 >= objective.max() - 1e-9


@pytest.mark.parametrize(
    ("law", "beta"),
    [
        (ScalingLaw("best_of_n", 1.0, -0.2), 0.1),  # bends upward faster than the penalty
        (ScalingLaw("best_of_n", -1.0, 0.1), 0.1),  # falls from the start
        (ScalingLaw("rl", -2.0, -0.1), 1.0),  # its only maximum is worse than staying
        (ScalingLaw("rl", 1.0, 0.0), 0.0),
    ],
)
def test_some_objectives_have_no_maximum_away_from_the_reference(law, beta):
    assert stationary_distance(law, beta) is None


@pytest.mark.parametrize("beta", [0.1, 0.2, 0.5])
def test_a_run_on_the_laws_is_read_off_exactly(beta):
    found = what_if(run_on(PROXY, GOLD), beta)
    d = 1.2 / (2 * (0.08 + beta))
    assert found.kl.value == pytest.approx(d**2, rel=1e-6)
    assert found.gold.value == pytest.approx(float(GOLD(d)), rel=1e-6)
    assert found.proxy.value == pytest.approx(float(PROXY(d)), rel=1e-6)
    assert found.kl.low < found.kl.value < found.kl.high and found.kl.n == 64
    assert not found.why and not found.is_open


def test_the_rl_law_is_read_off_too():
    proxy, gold = ScalingLaw("rl", 0.8, 0.2), ScalingLaw("rl", 0.7, 0.4)
    curve = run_on(proxy, gold)
    fits = fit_curve(curve)
    assert fits.proxy.fit.law.form == fits.gold.fit.law.form == "rl"
    d = stationary_distance(proxy, 0.1)
    found = what_if(curve, 0.1)
    assert found.kl.value == pytest.approx(d**2, rel=1e-6)
    assert found.gold.value == pytest.approx(float(gold(d)), rel=1e-6)


def test_more_penalty_never_goes_farther():
    curve = run_on(PROXY, GOLD, noise=0.2)
    kls = [what_if(curve, beta).kl.value for beta in (0.1, 0.2, 0.4, 0.8)]
    assert kls == sorted(kls, reverse=True)


def test_the_interval_covers_the_truth_and_shrinks_with_prompts():
    widths, hits = [], 0
    d = 1.2 / (2 * (0.08 + 0.2))
    for prompts in (64, 1024):
        found = what_if(run_on(PROXY, GOLD, prompts, noise=0.5), 0.2, num_resamples=500)
        hits += found.kl.low <= d**2 <= found.kl.high
        widths.append(found.kl.high - found.kl.low)
    assert hits == 2 and widths[1] < widths[0] / 2


@pytest.mark.parametrize(
    ("curve", "beta", "words"),
    [
        (run_on(PROXY, GOLD), 0.01, "beyond the audited range, which ends at KL 17.6"),
        (run_on(PROXY, GOLD), 30.0, "before the first audit"),
        (run_on(None, GOLD), 0.1, "recorded no proxy"),
        (run_on(PROXY, GOLD, distances=np.array([0, 0.01, 0.02, 3])), 0.1, "Too few audits"),
        (run_on(lambda d: np.sin(9 * d), GOLD), 0.1, "Neither of Gao's laws describes"),
    ],
)
def test_where_it_cannot_be_said_the_reason_is(curve, beta, words):
    found = what_if(curve, beta)
    assert found.kl is None and found.gold is None and words in found.why


def test_without_usable_gold_the_kl_is_said_and_gold_is_not():
    for gold, words in ((None, "recorded no gold"), (lambda d: np.sin(9 * d), "read gold at that")):
        found = what_if(run_on(PROXY, gold), 0.2)
        assert found.kl is not None and found.gold is None and words in found.why


def test_an_interval_at_the_end_of_the_audits_says_so():
    curve = run_on(PROXY, GOLD, noise=1.0)
    near = 1.2 / (2 * 4.15) - 0.08  # stationary just inside the last audit, at 4.2
    found = what_if(curve, near)
    assert found.kl is None or found.is_open


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_none_is_refused(beta):
    with pytest.raises(ValueError, match="beta"):
        what_if(run_on(PROXY, GOLD), beta)
