"""Combining members' scores: bounds, limits and invariances, and cases worked by hand."""

import json
import math
from functools import partial

import numpy as np
import pytest

from hf_align.rewards import (
    COMBINATIONS,
    Ensemble,
    combined,
    lower_confidence_bound,
    mean,
    standardised,
    uncertainty_weighted,
    worst_case,
    write_ensemble,
)
from hf_align.types import InputError

PESSIMISTIC = {
    "worst_case": worst_case,
    "uncertainty_weighted": partial(uncertainty_weighted, coefficient=0.5),
    "lower_confidence_bound": partial(lower_confidence_bound, z=1.0),
}


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(5, 200)) * [[1], [2], [0.5], [3], [1]]


@pytest.mark.parametrize("combine", PESSIMISTIC.values(), ids=PESSIMISTIC)
def test_pessimism_never_exceeds_the_mean_and_equals_it_where_members_agree(scores, combine):
    assert (combine(scores) < mean(scores)).all()
    agreed = np.tile(scores[:1], (4, 1))
    np.testing.assert_allclose(combine(agreed), mean(agreed), atol=1e-12)
    np.testing.assert_allclose(combine(scores[:1]), scores[0], atol=1e-12)


@pytest.mark.parametrize("combine", [mean, *PESSIMISTIC.values()], ids=["mean", *PESSIMISTIC])
def test_the_order_of_members_does_not_matter_and_a_common_shift_passes_through(scores, combine):
    np.testing.assert_allclose(combine(scores[[3, 0, 4, 1, 2]]), combine(scores), atol=1e-12)
    np.testing.assert_allclose(combine(scores + 7.5), combine(scores) + 7.5, atol=1e-12)


def test_without_weight_uncertainty_costs_nothing(scores):
    np.testing.assert_array_equal(uncertainty_weighted(scores, 0.0), mean(scores))
    np.testing.assert_array_equal(lower_confidence_bound(scores, 0.0), mean(scores))


def test_combinations_worked_by_hand():
    scores = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
    # Means 3 and 2; variances (4 + 0 + 4)/3 and (4 + 4 + 16)/3, over k and not k − 1.
    np.testing.assert_allclose(worst_case(scores), [1, 0])
    np.testing.assert_allclose(uncertainty_weighted(scores, 0.75), [3 - 2, 2 - 6])
    np.testing.assert_allclose(
        lower_confidence_bound(scores, 3.0), [3 - 3 * math.sqrt(8 / 3), 2 - 3 * math.sqrt(8)]
    )


def test_one_deviation_below_the_mean_of_two_members_is_the_worse_of_them(scores):
    two = scores[:2]
    np.testing.assert_allclose(lower_confidence_bound(two, 1.0), worst_case(two), atol=1e-12)


def test_rescaling_commutes_with_the_confidence_bound_but_not_with_the_variance(scores):
    for_lcb, for_uwo = lower_confidence_bound(2 * scores, 1.0), uncertainty_weighted(2 * scores, 1)
    np.testing.assert_allclose(for_lcb, 2 * lower_confidence_bound(scores, 1.0))
    np.testing.assert_allclose(for_uwo, 2 * uncertainty_weighted(scores, 2.0))


def test_standardised_members_do_not_remember_their_scale_or_offset(scores):
    def own(scores):
        return standardised(scores, scores.mean(axis=1), scores.std(axis=1))

    np.testing.assert_allclose(own(scores).mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(own(scores).std(axis=1), 1)
    moved = scores * [[2], [5], [0.1], [1], [9]] + [[1], [-4], [0], [2], [3]]
    np.testing.assert_allclose(own(moved), own(scores), atol=1e-9)


def test_a_name_picks_its_combination(scores):
    assert set(COMBINATIONS) == {"mean", *PESSIMISTIC}
    for name, combine in {"mean": mean, **PESSIMISTIC}.items():
        np.testing.assert_array_equal(combined(scores, name, 0.5, 1.0), combine(scores))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: combined(s, "median"), "combine is 'median'; choose one of mean, worst_case"),
        (lambda s: uncertainty_weighted(s, -1.0), "coefficient is -1.0"),
        (lambda s: lower_confidence_bound(s, math.nan), "z is nan"),
        (lambda s: mean(s[0]), r"shape \(200,\), expected \(members, completions\)"),
        (lambda s: worst_case(s[:0]), r"shape \(0, 200\)"),
        (lambda s: standardised(s, np.zeros(4), np.ones(4)), "for 5 members"),
        (lambda s: standardised(s, np.zeros(5), np.array([1, 1, 0, 1, 1])), "everything alike"),
    ],
)
def test_what_cannot_be_combined_is_refused(scores, call, words):
    with pytest.raises(InputError, match=words):
        call(scores)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"members": ()}, "at least one member"),
        ({"members": ("../other",)}, "name of a subfolder"),
        ({"members": ("..",)}, "name of a subfolder"),
        ({"members": (3,)}, "has 3"),
        ({"members": ("a", "a")}, "twice"),
        ({"combine": "median"}, "combine is 'median'"),
        ({"coefficient": -1}, "coefficient is -1"),
        ({"mean": math.inf}, "mean is inf"),
        ({"sd": 0}, "sd is 0"),
        ({"z": "1"}, "z is '1'"),
    ],
)
def test_an_impossible_ensemble_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Ensemble(**{"members": ("member-0",), **fields})


def test_an_ensemble_is_not_written_around_a_missing_member(tmp_path):
    (tmp_path / "member-0").mkdir()
    (tmp_path / "member-0" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="member member-1 is missing"):
        write_ensemble(tmp_path, Ensemble(("member-0", "member-1")))
    assert not (tmp_path / "ensemble.json").exists()
    write_ensemble(tmp_path, Ensemble(("member-0",), "worst_case"))
    written = json.loads((tmp_path / "ensemble.json").read_text())
    assert written["schema"] == 1
    assert written["members"] == ["member-0"]
    assert written["combine"] == "worst_case"
