"""Curves read from records, gains, equal KL without extrapolation, and the order of reading."""

import math

import numpy as np
import pytest

from hf_align.diagnostics.explorer import (
    Shifts,
    at_distance,
    curve_of_audits,
    curve_of_selection,
    gains,
    reading_order,
    selected_points,
    shifts,
)
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.sample_files import ScoredCompletions
from hf_align.types import InputError

# Gold per prompt at sqrt(KL) 0, 1, 3: the mean gains 0, 2, 1.
GOLD = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [0.0, 2.0, 4.0]])
CURVE = Curve(np.array([0, 10, 20]), np.array([0.0, 1.0, 3.0]), GOLD, 2 * GOLD)


def entries(**changes):
    made = [
        {"step": 0, "kl": -1e-9, "gold": [1.0, 2.0], "proxy": [0.0, 0.0]},
        {"step": 5, "kl": 4.0, "gold": [2.0, 2.0], "proxy": [1.0, 3.0]},
    ]
    made[1] |= changes
    return made


def test_audits_are_a_curve_that_starts_at_the_reference():
    curve = curve_of_audits(entries(), "x")
    assert curve.steps.tolist() == [0, 5] and curve.sqrt_kl.tolist() == [0, 2]
    assert curve.gold.shape == curve.proxy.shape == (2, 2)
    bare = [{key: entry[key] for key in ("step", "kl")} for entry in entries()]
    assert curve_of_audits(bare, "x").gold is None


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 0},
        {"step": "5"},
        {"step": True},
        {"kl": "4"},
        {"kl": 1e300},
        {"kl": [4.0]},
        {"gold": [1.0]},
        {"gold": 3.0},
        {"gold": [None, 1.0]},
        {"gold": [[1.0], [2.0]]},
        {"gold": ["a", "b"]},
        {"gold": [10**400, 1]},
        {"proxy": []},
    ],
)
def test_what_no_run_records_is_refused(changes):
    with pytest.raises(InputError, match="x is damaged"):
        curve_of_audits(entries(**changes), "x")


@pytest.mark.parametrize("made", [{}, [], [1, 2], entries()[:1], entries()[1:] * 2])
def test_what_is_no_list_of_audits_is_refused(made):
    with pytest.raises(InputError, match="x is damaged"):
        curve_of_audits(made, "x")


def test_best_of_n_counts_from_one():
    made = [{"n": n, "kl": math.log(n), "proxy": [float(n), 0.0]} for n in (1, 2, 4)]
    assert curve_of_selection(made, "x").steps.tolist() == [1, 2, 4]
    with pytest.raises(InputError, match="n does not rise from 1"):
        curve_of_selection(made[1:], "x")


def test_gains_are_paired_and_start_at_nothing():
    found = gains(GOLD)
    assert [g.value for g in found] == [0, 2, 1] and all(g.n == 3 for g in found)
    assert (found[0].low, found[0].high) == (0, 0)
    assert (found[1].low, found[1].high) == (2, 2)  # every prompt gained the same
    t_975_2 = 4.302652729911275
    margin = t_975_2 * 1.0 / math.sqrt(3)  # gains 0, 1, 2
    assert found[2].low == pytest.approx(1 - margin) and found[2].high == pytest.approx(1 + margin)


@pytest.mark.parametrize(
    ("distance", "gold", "between"),
    [(0, 0, (0, 0)), (0.5, 1, (0, 10)), (1, 2, (10, 10)), (2, 1.5, (10, 20)), (3, 1, (20, 20))],
)
def test_between_two_checkpoints_each_prompt_is_interpolated(distance, gold, between):
    found = at_distance(CURVE, distance)
    assert found.gold.value == pytest.approx(gold) and found.proxy.value == pytest.approx(2 * gold)
    assert found.between == between


def test_nothing_is_said_beyond_the_last_checkpoint():
    assert at_distance(CURVE, 3.0000001) is None
    with pytest.raises(ValueError, match="sqrt_kl"):
        at_distance(CURVE, math.nan)


def test_a_run_that_comes_back_counts_where_it_first_arrived():
    there_and_back = Curve(
        np.array([0, 1, 2, 3]), np.array([0.0, 2.0, 1.0, 3.0]), np.arange(8.0).reshape(4, 2)
    )
    assert at_distance(there_and_back, 1.0).between == (0, 1)
    assert at_distance(there_and_back, 2.5).between == (2, 3)
    still = Curve(np.array([0, 1, 2]), np.array([0.0, 0.0, 1.0]), np.arange(6.0).reshape(3, 2))
    assert at_distance(still, 0.0).gold.value == 0


def sides(gold, proxy, prompts=None):
    num = len(gold)
    made = [
        ScoredCompletions(
            prompts or [str(i) for i in range(num)],
            ["y"] * num,
            np.ones(num),
            np.ones(num, bool),
            gold=np.array(g, float),
            proxy=np.array(p, float),
            log_ratio=np.array(r, float),
        )
        for g, p, r in ((gold, proxy, np.arange(num) - 1.5), ([0] * num, [0] * num, [0] * num))
    ]
    return made


def test_over_optimised_comes_first_and_the_worst_of_it_at_the_top():
    found = shifts(*sides(gold=[1, -1, -3, 2], proxy=[5, 1, 1, -9]))
    assert found.over_optimised.tolist() == [False, True, True, False]
    # Row 0 gained more proxy than rows 1 and 2, but no gold was lost there.
    assert reading_order(found, "over_optimised", 4).tolist() == [2, 1, 0, 3]
    assert reading_order(found, "farthest", 4).tolist() == [0, 3, 1, 2]
    assert reading_order(found, "prompts", 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_unit_of_the_proxy_does_not_decide_the_order(scale):
    rng = np.random.default_rng(0)
    gold, proxy = rng.normal(size=(2, 40))
    orders = [
        reading_order(shifts(*sides(gold, proxy * by)), "over_optimised", 40).tolist()
        for by in (1, scale)
    ]
    assert orders[0] == orders[1]


def test_without_gold_there_is_no_such_order():
    found = Shifts(None, np.array([1.0, 2.0]), None)
    assert found.over_optimised is None
    for order in ("over_optimised", "farthest"):
        assert reading_order(found, order, 2).tolist() == [0, 1]


def test_answers_to_other_prompts_are_not_compared():
    policy, reference = sides([1, 2], [1, 2])[0], sides([1, 2], [1, 2], ["a", "b"])[1]
    with pytest.raises(InputError, match="other prompts"):
        shifts(policy, reference)


def estimate(value):
    return {"value": value, "low": value - 1, "high": value + 1, "n": 9}


def test_every_n_of_a_report_is_read_with_its_bound():
    points = [
        {"n": n, "proxy": estimate(n), "gold": estimate(-n), "low_variance": n == 1} for n in (1, 2)
    ]
    found = selected_points({"best_of_n": {"curve": points}}, "x")
    assert [f.n for f in found] == [1, 2] and found[1].gold.value == -2
    assert found[0].kl_bound == 0 and found[1].kl_bound == pytest.approx(math.log(2) - 0.5)
    assert [f.low_variance for f in found] == [True, False]
    assert selected_points({}, "x") is None
    for broken in (
        {"curve": []},
        {"curve": [points[1]]},
        {"curve": [points[0] | {"proxy": estimate(1) | {"value": "1"}}]},
        {"curve": [points[0] | {"proxy": estimate(1) | {"low": None}}]},
        [],
    ):
        with pytest.raises(InputError, match="x is damaged"):
            selected_points({"best_of_n": broken}, "x")
