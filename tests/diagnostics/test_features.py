"""Text features by hand; correlations and flip rates of scores whose cause is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_align.diagnostics.features import (
    EDITS,
    FEATURES,
    add_bullet,
    add_filler,
    add_polite_word,
    add_punctuation,
    bold,
    edit_effect,
    edited,
    exclamations,
    feature_drift,
    flip_rate,
    informative_features,
    list_markers,
    partial_correlations,
    polite_words,
    punctuation,
    repetition,
    text_features,
    type_token_ratio,
    within_prompt_correlation,
    words,
)

LIST = "Sure! Here **you go**:\n- tea\n* rain\n2) books\n\nThanks, and please ask - any time."

# ------------------------------------------------------------------------------------ text features


def test_features_by_hand():
    assert words(LIST) == 14
    assert list_markers(LIST) == 3
    assert bold(LIST) == 1
    assert exclamations(LIST) == 1
    assert polite_words(LIST) == 2
    assert punctuation("One, two. Three") == pytest.approx(2 / 3)
    assert words("It's a state’s affair") == 4
    assert type_token_ratio("a b A b") == 0.5


def test_repetition_by_hand():
    assert repetition("tea rain books music") == 0
    assert repetition("one two") == 0
    # 10 equal words have 7 sequences of four, all the same.
    assert repetition("tea " * 10) == pytest.approx(6 / 7)
    # a b c d a b c d: 5 sequences, the last repeats the first.
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)


def test_every_feature_of_an_empty_text_is_finite():
    for name, feature in FEATURES.items():
        assert math.isfinite(feature("")), name
        assert math.isfinite(feature("...")), name


def test_conversations_have_the_features_of_their_contents():
    chat = [{"role": "assistant", "content": LIST}]
    features = text_features([LIST, chat, ""])
    assert set(features) == set(FEATURES)
    for values in features.values():
        assert values.shape == (3,)
        assert values[0] == values[1]


# -------------------------------------------------------------------------------------------- edits


def test_edits_by_hand():
    assert add_polite_word("tea rain") == "tea rain please"
    assert add_polite_word("tea rain\n", "Thank you.") == "tea rain Thank you."
    assert add_filler("", "so") == "so"
    assert add_punctuation("Fine. ") == "Fine!"
    assert add_bullet(" tea") == "- tea"


def test_each_edit_moves_its_feature_and_leaves_its_input():
    moved = {
        "polite word": polite_words,
        "filler": words,
        "exclamation mark": exclamations,
        "bullet": list_markers,
    }
    assert set(moved) == set(EDITS)
    for name, edit in EDITS.items():
        assert moved[name](edit("Tea and rain.")) == moved[name]("Tea and rain.") + 1
        assert edit("Tea and rain.") == edit("Tea and rain.")


def test_conversations_are_edited_in_their_last_message():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    result = edited(chat, add_polite_word)
    assert result == [chat[0], {"role": "assistant", "content": "b please"}]
    assert chat[1]["content"] == "b"
    assert edited("b", add_polite_word) == "b please"


def test_flip_rate_is_one_zero_or_one_half_by_the_sign_of_the_weight():
    texts = [f"{'word ' * k}end." for k in range(1, 30)]
    for weight, rate in ((0.3, 1.0), (-0.3, 0.0), (0.0, 0.5)):
        before = [weight * words(text) for text in texts]
        after = [weight * words(add_filler(text)) for text in texts]
        assert flip_rate(before, after, np.arange(29)).value == rate
    # An edit that changes another feature leaves the score alone.
    after = [0.3 * words(add_punctuation(text)) for text in texts]
    assert flip_rate([0.3 * words(text) for text in texts], after, np.arange(29)).value == 0.5


def test_edit_effect_is_the_weight_in_score_sds():
    scores = np.random.default_rng(0).normal(0, 4, 300)
    effect = edit_effect(scores, scores + 2, np.arange(300))
    assert effect.value == pytest.approx(2 / scores.std(ddof=1))
    assert effect.low == pytest.approx(effect.high)
    with pytest.raises(ValueError, match="scores are constant"):
        edit_effect([1.0, 1.0], [2.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match="equal shapes"):
        flip_rate([1.0], [1.0, 2.0], [0])


# ------------------------------------------------------------------------------------ correlations


def clusters(num_prompts, per_prompt):
    return np.repeat(np.arange(num_prompts), per_prompt)


def test_a_score_that_is_the_feature_correlates_perfectly_within_prompts():
    rng = np.random.default_rng(0)
    prompts = clusters(60, 4)
    feature = rng.normal(size=240)
    offsets = rng.normal(0, 50, 60)[prompts]
    for weight in (2.0, -2.0):
        estimate = within_prompt_correlation(weight * feature + offsets, feature, prompts)
        assert estimate.value == pytest.approx(math.copysign(1, weight), abs=1e-6)
        assert estimate.n == 60


def test_differences_between_prompts_do_not_enter():
    # Between prompts score and length rise together; within them they are opposed.
    prompts = clusters(80, 3)
    within = np.tile([-1.0, 0.0, 1.0], 80)
    lengths = 10 * prompts + within
    scores = 10 * prompts - within + np.tile([0.1, -0.2, 0.1], 80)
    assert np.corrcoef(scores, lengths)[0, 1] > 0.99
    # within: cov = -1, var = 1 and 1 + .03 per prompt (ddof 1); the bumps are orthogonal to it.
    expected = -1 / math.sqrt(1.03)
    assert within_prompt_correlation(scores, lengths, prompts).value == pytest.approx(expected)


def test_two_completions_per_prompt_are_enough_and_one_is_not():
    rng = np.random.default_rng(1)
    prompts = clusters(2_000, 2)
    feature = rng.normal(size=4_000)
    scores = 0.6 * feature + 0.8 * rng.normal(size=4_000)
    estimate = within_prompt_correlation(scores, feature, prompts)
    assert estimate.value == pytest.approx(0.6, abs=0.06)
    lonely = np.concatenate([prompts, [99_999]])
    extended = within_prompt_correlation([*scores, 1e6], [*feature, -1e6], lonely)
    assert extended.value == pytest.approx(estimate.value)
    with pytest.raises(ValueError, match="no prompt has two completions"):
        within_prompt_correlation([1.0, 2.0], [1.0, 2.0], [0, 1])


@pytest.mark.parametrize(("num_prompts", "per_prompt"), [(120, 2), (25, 6)])
def test_correlation_interval_covers_the_truth(num_prompts, per_prompt):
    rng = np.random.default_rng(num_prompts)
    prompts = clusters(num_prompts, per_prompt)
    runs, hits = 100, 0
    for _ in range(runs):
        # Prompts of very different spread: completions are far from independent evidence.
        spread = rng.exponential(size=num_prompts)[prompts]
        feature = spread * rng.normal(size=prompts.size)
        scores = 0.6 * feature + 0.8 * spread * rng.normal(size=prompts.size)
        estimate = within_prompt_correlation(scores, feature, prompts)
        hits += estimate.low <= 0.6 <= estimate.high
    # The percentile bootstrap is a little narrow for heavy tails: nominal 95 %, at least 88 % here.
    assert hits / runs >= 0.88


def test_partial_correlations_name_the_cause_and_clear_the_bystander():
    rng = np.random.default_rng(2)
    n = 12_000
    prompts = clusters(n // 4, 4)
    cause, other = rng.normal(size=(2, n))
    bystander = 0.8 * cause + 0.6 * rng.normal(size=n)
    noise = rng.normal(size=n)
    scores = 1.0 * cause - 0.5 * other + noise
    raw = within_prompt_correlation(scores, bystander, prompts).value
    assert raw == pytest.approx(0.8 / 1.5, abs=0.04)
    features = np.column_stack([cause, bystander, other])
    partial = [e.value for e in partial_correlations(scores, features, prompts)]
    # corr(s, cause | rest): cause keeps variance .36 given the bystander; noise has variance 1.
    assert partial == pytest.approx([0.6 / math.sqrt(1.36), 0, -0.5 / math.sqrt(1.25)], abs=0.04)


def test_partial_correlations_agree_with_regression_residuals():
    rng = np.random.default_rng(3)
    prompts = clusters(70, 5)
    features = rng.normal(size=(350, 4)) @ rng.normal(size=(4, 4))
    scores = features @ [1.0, -1.0, 0.5, 0.0] + rng.normal(size=350)
    within = np.column_stack([scores, features])
    means = np.stack([within[prompts == g].mean(axis=0) for g in range(70)])
    within = within - means[prompts]
    found = [e.value for e in partial_correlations(scores, features, prompts)]
    for j in range(4):
        others = np.delete(within[:, 1:], j, axis=1)
        residuals = [
            column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
            for column in (within[:, 0], within[:, 1 + j])
        ]
        assert found[j] == pytest.approx(np.corrcoef(*residuals)[0, 1], abs=1e-6)


def test_a_linear_score_gives_its_features_all_and_others_nothing():
    rng = np.random.default_rng(4)
    prompts = clusters(100, 3)
    features = rng.normal(size=(300, 3))
    weights = np.array([1.0, 0.0, -2.0])
    partial = partial_correlations(features @ weights, features, prompts)
    assert [e.value for e in partial] == pytest.approx(np.sign(weights), abs=1e-5)


def test_informative_features_drop_constants_and_combinations():
    rng = np.random.default_rng(5)
    prompts = clusters(50, 4)
    length, bullets = rng.integers(1, 40, 200), rng.integers(0, 5, 200)
    features = {
        "length": length,
        "bullets": bullets,
        "tokens": length + 1,
        "mix": 2.0 * length - bullets,
        "never": np.full(200, 0.1),
        "by prompt": prompts * 0.3,
        "noise": rng.normal(size=200),
    }
    names = informative_features(features, prompts)
    assert names == ["length", "bullets", "noise"]
    usable = np.column_stack([features[name] for name in names])
    assert len(partial_correlations(length * 1.0, usable, prompts)) == 3
    with pytest.raises(ValueError, match="feature 2 is constant"):
        partial_correlations(
            rng.normal(size=200), np.column_stack([length, bullets, length + 1]), prompts
        )


def test_a_feature_of_one_prompt_in_hundreds_still_has_a_finite_interval():
    rng = np.random.default_rng(6)
    prompts = clusters(200, 2)
    rare = np.zeros(400)
    rare[7] = 1
    features = np.column_stack([rng.normal(size=400), rare])
    for estimate in partial_correlations(rng.normal(size=400), features, prompts):
        assert -1 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_unusable_scores_are_refused():
    with pytest.raises(ValueError, match="scores do not vary"):
        within_prompt_correlation([1.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1])
    with pytest.raises(ValueError, match="NaN or infinite"):
        within_prompt_correlation([1.0, math.nan], [1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match=r"expected \(N,\)"):
        within_prompt_correlation([1.0, 2.0], [1.0, 2.0], [0, 0, 1])


# -------------------------------------------------------------------------------------------- drift


def test_a_shift_by_one_sd_drifts_by_one():
    rng = np.random.default_rng(7)
    prompts = clusters(64, 4)
    base = rng.normal(10, 3, 256)
    drift = feature_drift(base + base.std(ddof=1), prompts, base, prompts)
    assert drift.value == pytest.approx(1)
    assert (drift.low, drift.high) == pytest.approx((1, 1))
    assert feature_drift(base, prompts, base, prompts).value == 0


def test_drift_is_paired_by_prompt_and_needs_the_same_ones():
    base, policy = [0.0, 2.0, 10.0, 12.0], [1.0, 1.0, 1.0, 11.0]
    drift = feature_drift(policy, [0, 0, 0, 1], base, [0, 0, 1, 1])
    assert drift.value == 0  # prompt 0: 1 - 1, prompt 1: 11 - 11
    with pytest.raises(ValueError, match="same prompts"):
        feature_drift(policy, [0, 0, 1, 2], base, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="constant"):
        feature_drift([1.0, 2.0], [0, 1], [1.0, 1.0], [0, 1])
