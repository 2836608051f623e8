"""Shaped scores: limits, order, symmetry and invariance of every step, and the order of steps."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from hf_align.rewards import (
    RunningMoments,
    Scored,
    Shaping,
    centre_on_reference,
    clip_scores,
    counted_completions,
    length_penalty,
    log_sigmoid_centred,
    missing_eos_penalty,
    preference_as_reward,
    scale,
    shape_scores,
    sigmoid_shaped,
    transformed_scores,
    whiten,
)
from hf_align.types import InputError

N = 200
RELATIVE = {
    "centre": centre_on_reference,
    "par": preference_as_reward,
    "log_sigmoid": log_sigmoid_centred,
}


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(1.5, 2.0, N)


@pytest.fixture
def references():
    return np.random.default_rng(1).normal(0.5, 1.0, (N, 4))


@pytest.fixture
def lengths():
    return np.random.default_rng(2).integers(1, 40, N)


@pytest.fixture
def ended():
    return np.random.default_rng(3).random(N) < 0.7


def moments_of(scores):
    moments = RunningMoments()
    moments.update(scores)
    return moments


ORDER_KEEPING = {
    "whiten": whiten,
    "whiten without shift": partial(whiten, shift_mean=False),
    "scale": lambda scores: scale(scores, moments_of(scores), shift_mean=True),
    "sigmoid": partial(sigmoid_shaped, centre=0.5, scale=2.0),
    "centre": lambda scores: centre_on_reference(scores, np.full(N, 0.3)),
    "par": lambda scores: preference_as_reward(scores, np.tile([-1.0, 0.0, 2.0], (N, 1))),
    "log sigmoid": lambda scores: log_sigmoid_centred(scores, np.full(N, 0.3)),
}


@pytest.mark.parametrize("shape", ORDER_KEEPING.values(), ids=ORDER_KEEPING)
def test_a_higher_score_stays_higher_on_the_same_reference(scores, shape):
    assert (np.diff(shape(np.sort(scores))) > 0).all()


def test_clips_keep_what_is_inside_and_stop_at_the_bounds(scores):
    clipped = clip_scores(scores, -1.0, 2.0)
    inside = (scores > -1) & (scores < 2)
    np.testing.assert_array_equal(clipped[inside], scores[inside])
    assert set(clipped[~inside]) == {-1.0, 2.0}
    np.testing.assert_array_equal(clip_scores(scores, -math.inf, math.inf), scores)


def test_whitened_scores_have_mean_zero_and_deviation_one(scores):
    whitened = whiten(scores)
    assert whitened.mean() == pytest.approx(0, abs=1e-12)
    assert whitened.std() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(whiten(7 * scores - 100), whitened, atol=1e-12)
    kept = whiten(scores, shift_mean=False)
    assert kept.mean() == pytest.approx(scores.mean()) and kept.std() == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e8])
def test_equal_scores_whiten_to_zero_or_stay(value):
    equal = np.full(7, value)
    np.testing.assert_allclose(whiten(equal), 0, atol=1e-12 * max(1, abs(value)))
    np.testing.assert_allclose(whiten(equal, shift_mean=False), equal)
    np.testing.assert_allclose(scale(equal, moments_of(equal), shift_mean=False), equal)
    assert len(whiten(np.array([]))) == 0


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_over_batches_equal_moments_over_their_concatenation(offset):
    rng = np.random.default_rng(4)
    batches = [rng.normal(offset + i, 1 + i, size) for i, size in enumerate((1, 64, 0, 3, 500))]
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    everything = np.concatenate(batches)
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(everything.mean(), rel=1e-12, abs=1e-12)
    assert moments.sd == pytest.approx(everything.std(), rel=1e-12)


def test_moments_resumed_from_json_continue_exactly(scores):
    whole, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    whole.update(scores[:50])
    first.update(scores[:50])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for moments in (whole, second):
        moments.update(scores[50:])
    assert second.state_dict() == whole.state_dict()


def test_scaling_by_moments_shifts_only_when_told(scores):
    moments = moments_of(scores)
    np.testing.assert_allclose(scale(scores, moments, True), whiten(scores), atol=1e-12)
    np.testing.assert_allclose(scale(scores, moments, False) * scores.std(), scores, atol=1e-12)


@pytest.mark.parametrize("shape", RELATIVE.values(), ids=RELATIVE)
def test_relative_shapes_ignore_a_common_shift_and_the_order_of_references(
    shape, scores, references
):
    shaped = shape(scores, references)
    offset = np.linspace(-5, 5, N)  # one per prompt, as a Bradley–Terry score leaves free
    np.testing.assert_allclose(
        shape(scores + offset, references + offset[:, None]), shaped, atol=1e-12
    )
    np.testing.assert_allclose(shape(scores, references[:, ::-1]), shaped, atol=1e-12)
    np.testing.assert_array_equal(shape(scores, references[:, 0]), shape(scores, references[:, :1]))


def test_relative_shapes_worked_by_hand():
    scores, references = np.array([math.log(3), 0.0]), np.array([[0.0, math.log(9)], [0.0, 0.0]])
    # σ(log 3) = 3/4 and σ(log 3 − log 9) = σ(−log 3) = 1/4; the mean reference is log 3.
    np.testing.assert_allclose(preference_as_reward(scores, references), [0.5, 0.5])
    np.testing.assert_allclose(preference_as_reward(scores, references[:, 0]), [0.75, 0.5])
    np.testing.assert_allclose(centre_on_reference(scores, references), [0, 0], atol=1e-15)
    np.testing.assert_allclose(log_sigmoid_centred(scores, references), [-math.log(2)] * 2)
    np.testing.assert_allclose(
        log_sigmoid_centred(scores, references[:, 0]), [math.log(0.75), -math.log(2)]
    )


def test_par_is_a_probability_and_swaps_to_its_complement(scores, references):
    shaped = preference_as_reward(scores, references)
    assert ((shaped > 0) & (shaped < 1)).all()
    one = references[:, 0]
    np.testing.assert_allclose(
        preference_as_reward(scores, one) + preference_as_reward(one, scores), 1, atol=1e-15
    )


def test_the_sigmoid_is_one_half_at_its_centre_and_symmetric_about_it(scores):
    assert sigmoid_shaped(np.array([0.0]), 0.0, 1.0)[0] == 0.5
    assert sigmoid_shaped(np.array([3.0]), 3.0, 0.1)[0] == 0.5
    np.testing.assert_allclose(
        sigmoid_shaped(2 + scores, 2.0, 1.5) + sigmoid_shaped(2 - scores, 2.0, 1.5), 1, atol=1e-15
    )
    np.testing.assert_allclose(
        sigmoid_shaped(scores, 0.4, 2.0), sigmoid_shaped((scores - 0.4) / 2, 0.0, 1.0)
    )


@pytest.mark.filterwarnings("error")
def test_extreme_scores_neither_overflow_nor_lose_their_limits():
    extreme, zero = np.array([-1e3, -40.0, 40.0, 1e3]), np.zeros(4)
    sigmoid = sigmoid_shaped(extreme, 0.0, 1.0)
    np.testing.assert_allclose(sigmoid, [0, math.exp(-40), 1, 1], rtol=1e-15)
    np.testing.assert_array_equal(preference_as_reward(extreme, zero), sigmoid)
    # log σ(x) → x far below, −e^−x far above.
    np.testing.assert_allclose(
        log_sigmoid_centred(extreme, zero), [-1e3, -40, -math.exp(-40), 0], rtol=1e-15
    )


def test_log_sigmoid_is_at_most_zero_and_the_log_of_par(scores, references):
    shaped = log_sigmoid_centred(scores, references[:, 0])
    assert (shaped <= 0).all()
    np.testing.assert_allclose(np.exp(shaped), preference_as_reward(scores, references[:, 0]))


def test_length_costs_only_beyond_what_is_free(scores, lengths):
    shaped = length_penalty(scores, lengths, 0.2, 10)
    np.testing.assert_array_equal(shaped[lengths <= 10], scores[lengths <= 10])
    longer = length_penalty(scores, lengths + 1, 0.2, 10)
    np.testing.assert_allclose((shaped - longer)[lengths >= 10], 0.2)
    np.testing.assert_array_equal(length_penalty(scores, lengths, 0.0, 0), scores)
    np.testing.assert_allclose(length_penalty([1.0], [14], 0.25, 10), [0.0])


def test_a_missing_eos_subtracts_or_replaces_and_leaves_the_others(scores, ended):
    for mode, expected in (("subtract", scores - 1.5), ("replace", np.full(N, -1.5))):
        shaped = missing_eos_penalty(scores, ended, 1.5, mode)
        np.testing.assert_array_equal(shaped[ended], scores[ended])
        np.testing.assert_array_equal(shaped[~ended], expected[~ended])


def test_masking_counts_exactly_the_completions_that_ended(ended):
    np.testing.assert_array_equal(counted_completions(ended, mask_truncated=True), ended)
    assert counted_completions(ended, mask_truncated=False).all()
    assert not counted_completions(np.zeros(3, bool), mask_truncated=True).any()


def test_shaping_as_it_stands_changes_nothing(scores, lengths, ended):
    shaped = shape_scores(Shaping(), scores, lengths, ended)
    np.testing.assert_array_equal(shaped, scores)
    assert not np.shares_memory(shaped, scores)


@pytest.mark.parametrize("name", RELATIVE)
def test_each_transform_is_the_function_of_its_name(name, scores, lengths, ended, references):
    shaping = Shaping(transform=name)
    assert shaping.needs_reference
    shaped = shape_scores(shaping, scores, lengths, ended, references)
    np.testing.assert_array_equal(shaped, RELATIVE[name](scores, references))
    shaping = Shaping(transform="sigmoid", sigmoid_centre=0.5, sigmoid_scale=2.0)
    assert not shaping.needs_reference
    shaped = shape_scores(shaping, scores, lengths, ended)
    np.testing.assert_array_equal(shaped, sigmoid_shaped(scores, 0.5, 2.0))


def test_penalties_come_after_normalising_and_clipping_and_a_missing_eos_last():
    # Deviation 10 and mean 10: normalised −1 and 1, clipped to ±0.5, then 3 tokens at 0.1.
    batch = (np.array([0.0, 20.0]), np.array([13, 13]), np.array([True, False]))
    shaping = Shaping(
        normalise="batch",
        clip=0.5,
        length_coefficient=0.1,
        free_length=10,
        missing_eos_penalty=2.0,
    )
    np.testing.assert_allclose(shape_scores(shaping, *batch), [-0.8, 0.5 - 0.3 - 2.0])
    replaced = replace(shaping, missing_eos_mode="replace")
    np.testing.assert_allclose(shape_scores(replaced, *batch), [-0.8, -2.0])
    unshifted = replace(shaping, normalise_mean=False, clip=None)
    np.testing.assert_allclose(shape_scores(unshifted, *batch), [-0.3, 2.0 - 0.3 - 2.0])


def test_running_normalisation_is_of_transformed_scores_and_leaves_moments_alone(
    scores, lengths, ended, references
):
    shaping, moments = Shaping(transform="par", normalise="running"), RunningMoments()
    for part in (slice(0, 50), slice(50, N)):
        batch = (scores[part], lengths[part], ended[part], references[part])
        moments.update(transformed_scores(shaping, *batch))
        before = moments.state_dict()
        shaped = shape_scores(shaping, *batch, moments=moments)
        assert moments.state_dict() == before
    everything = preference_as_reward(scores, references)
    expected = (everything - everything.mean()) / everything.std()
    np.testing.assert_allclose(shaped, expected[50:], atol=1e-12)


def test_user_shapers_run_in_turn_before_the_transform(scores, lengths, ended, references):
    seen = []

    def double(current, batch):
        seen.append(batch)
        return 2 * current

    def plus_raw(current, batch):
        return current + batch.scores

    shaping = Shaping(transform="centre")
    shaped = shape_scores(shaping, scores, lengths, ended, references, shapers=[double, plus_raw])
    np.testing.assert_allclose(shaped, 3 * scores - references.mean(axis=1))
    assert isinstance(seen[0], Scored)
    np.testing.assert_array_equal(seen[0].lengths, lengths)
    np.testing.assert_array_equal(seen[0].ended, ended)
    np.testing.assert_array_equal(seen[0].reference_scores, references)


def test_a_shaper_that_writes_into_its_input_leaves_the_callers_scores(scores, lengths, ended):
    def in_place(current, batch):
        current[:] = 0
        return current

    before = scores.copy()
    assert not shape_scores(Shaping(), scores, lengths, ended, shapers=[in_place]).any()
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": "tanh"}, "transform is 'tanh'; choose one of none, centre, sigmoid"),
        ({"normalise": "epoch"}, "normalise is 'epoch'"),
        ({"missing_eos_mode": "drop"}, "missing_eos_mode is 'drop'"),
        ({"clip": 0.0}, "clip is 0.0; give a positive"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"length_coefficient": -0.1}, "length_coefficient is -0.1; give a number of at least 0"),
        ({"free_length": -1}, "free_length is -1"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty is -1.0"),
        ({"missing_eos_penalty": math.nan}, "missing_eos_penalty is nan"),
        ({"sigmoid_scale": 0.0}, "sigmoid_scale is 0.0"),
        ({"sigmoid_centre": math.inf}, "sigmoid_centre is inf"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        Shaping(**settings)


GOOD = {"scores": [1.0, 2.0], "lengths": [3, 4], "ended": [True, False]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1.0, math.nan]}, "scores: number 1 is nan"),
        ({"scores": [[1.0, 2.0]]}, r"scores have shape \(1, 2\)"),
        ({"lengths": [3]}, r"lengths have shape \(1,\), expected \(2,\)"),
        ({"lengths": [3, -4]}, "the smallest is -4"),
        ({"ended": [True]}, r"ended has shape \(1,\)"),
        ({"ended": [0.3, 1.0]}, "type float64, expected"),
        ({"reference_scores": [1.0]}, r"reference_scores have shape .* expected \(2,\) or \(2, M"),
        ({"reference_scores": [1.0, math.inf]}, "reference_scores: number 1 is inf"),
        ({"reference_scores": np.zeros((2, 0))}, "reference_scores have shape"),
        ({"shaping": Shaping(transform="par")}, "'par' without reference scores"),
        ({"shaping": Shaping(normalise="running")}, "'running' without moments"),
        (
            {"shaping": Shaping(normalise="running"), "moments": RunningMoments()},
            "moments have seen no scores",
        ),
        ({"shapers": [lambda s, b: s[:1]]}, "scores of shaper 1 have shape"),
        ({"shapers": [lambda s, b: s, lambda s, b: s * math.nan]}, "shaper 2: number 0 is nan"),
    ],
)
def test_bad_batches_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        shape_scores(**{"shaping": Shaping(), **GOOD, **change})


@pytest.mark.parametrize(
    "call",
    [
        partial(clip_scores, [1.0], 1.0, -1.0),
        partial(clip_scores, [1.0], math.nan, 1.0),
        partial(sigmoid_shaped, [1.0], 0.0, 0.0),
        partial(length_penalty, [1.0], [3], -0.1, 0),
        partial(missing_eos_penalty, [1.0], [True], -1.0),
        partial(missing_eos_penalty, [1.0], [True], 1.0, "drop"),
        partial(preference_as_reward, [1.0, 2.0], [1.0]),
        partial(whiten, [1.0, math.nan]),
        partial(counted_completions, [1, 0], True),
    ],
)
def test_bad_arguments_of_single_steps_are_refused(call):
    with pytest.raises(InputError):
        call()
