"""Alpha-spending: levels add up to alpha, runs without a drop go on, drops are found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.sequential import (
    obrien_fleming_spending,
    pocock_spending,
    sequential_test,
)

SPENDINGS = [obrien_fleming_spending, pocock_spending]
SD = 1.2


def run(means, num_prompts, seed, correlation=0.4):
    """(C, G) gold around the means; `correlation` of the variance belongs to the prompt."""
    rng = np.random.default_rng(seed)
    shared = math.sqrt(correlation) * rng.normal(size=num_prompts)
    own = math.sqrt(1 - correlation) * rng.normal(size=(len(means), num_prompts))
    return np.asarray(means, float)[:, None] + SD * (shared + own)


def stop_rate(means, num_prompts, num_runs, spending):
    stopped = [
        sequential_test(
            run(means, num_prompts, seed), num_looks=len(means) - 1, spending=spending
        ).stopped_at
        for seed in range(num_runs)
    ]
    return np.mean([stop is not None for stop in stopped])


@pytest.mark.parametrize("spending", SPENDINGS)
def test_spending_starts_at_nothing_rises_and_ends_at_alpha(spending):
    spent = [spending(share, 0.05) for share in np.linspace(0, 1, 21)]
    assert spent[0] == 0 and spent[-1] == pytest.approx(0.05, abs=1e-12)
    assert (np.diff(spent) >= 0).all()


def test_spending_at_half_time():
    """2 - 2 Phi(1.95996 / sqrt(.5)) = .00557; .05 log(1.85914) = .03101."""
    assert obrien_fleming_spending(0.5, 0.05) == pytest.approx(0.00557, abs=5e-6)
    assert pocock_spending(0.5, 0.05) == pytest.approx(0.03101, abs=5e-6)


@pytest.mark.parametrize("spending", SPENDINGS)
@pytest.mark.parametrize(
    ("means", "num_prompts"),
    [
        ([0] * 25, 64),
        ([0] * 25, 256),
        ([0, 0.4, *[0.8] * 23], 64),  # rises, then stays
    ],
)
def test_over_24_looks_at_most_five_percent_of_runs_without_a_drop_are_stopped(
    spending, means, num_prompts
):
    assert stop_rate(means, num_prompts, 400, spending) <= 0.05


def test_a_fresh_five_percent_test_at_every_look_stops_most_such_runs():
    stops = 0
    for seed in range(200):
        gold = run([0] * 25, 64, seed)
        for k in range(2, 25):
            drop = gold[gold[:k].mean(axis=1).argmax()] - gold[k]
            if drop.mean() > 1.645 * drop.std(ddof=1) / 8:
                stops += 1
                break
    assert stops / 200 > 0.5


@pytest.mark.parametrize("spending", SPENDINGS)
def test_a_lasting_drop_is_found(spending):
    """Peak .6 above the base, then a drop of .5 for the last half: SE of one look about .08."""
    means = [0, 0.3, 0.6, 0.6, 0.6, *[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]]
    assert stop_rate(means, 256, 100, spending) >= 0.95


def test_it_stops_at_the_first_crossing_and_names_the_best_before():
    gold = run([0, 0.5, 1.0, 1.5, 0.5, 0.0], 400, 0)
    found = sequential_test(gold, num_looks=10, spending=pocock_spending)
    assert (found.stopped_at, found.best_index) == (4, 3)
    look = found.looks[3]
    assert look.drop == pytest.approx(1.0, abs=0.3)
    assert look.statistic == pytest.approx(look.drop / look.standard_error)
    assert look.lower > 0
    rising = sequential_test(run([0, 0.5, 1.0], 400, 0), num_looks=2)
    assert (rising.stopped_at, rising.best_index) == (None, 2)


def test_looks_do_not_change_as_audits_are_added():
    gold = run([0, 0.5, 1.0, 1.0, 0.4, 0.2], 100, 3)
    whole = sequential_test(gold, num_looks=8).looks
    for rows in range(2, 7):
        assert sequential_test(gold[:rows], num_looks=8).looks == whole[: rows - 1]


def test_levels_of_the_comparisons_add_up():
    gold = run([0] * 6, 5000, 0)  # enough prompts for the normal
    looks = sequential_test(gold, num_looks=5, spending=pocock_spending).looks
    levels = [
        k * math.erfc(look.threshold / math.sqrt(2)) / 2 for k, look in enumerate(looks, start=1)
    ]
    assert sum(levels) == pytest.approx(0.05, rel=1e-6)
    assert [look.spent for look in looks] == pytest.approx(np.cumsum(levels), rel=1e-6)


def test_identical_checkpoints_go_on():
    gold = np.tile(np.random.default_rng(0).normal(size=50), (4, 1))
    found = sequential_test(gold, num_looks=3)
    assert found.stopped_at is None
    assert [look.statistic for look in found.looks] == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequential_test(np.zeros((1, 50)), num_looks=3), "C >= 2"),
        (lambda: sequential_test(np.zeros((5, 50)), num_looks=3), "at most num_looks 3"),
        (lambda: sequential_test(np.zeros((3, 5)), num_looks=3), "at least 8"),
        (lambda: pocock_spending(1.5, 0.05), "share 1.5"),
        (lambda: obrien_fleming_spending(0.5, 0), "alpha 0"),
    ],
)
def test_unusable_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
