"""Gold against hand-computed values; demonstrations and annotators against their formulas."""

from itertools import combinations

import numpy as np
import pytest

from hf_align.testbed import world
from hf_align.testbed.world import (
    ANNOTATORS,
    FILLERS,
    POLITE,
    SPLITS,
    TOPICS,
    Annotator,
    WorldSpec,
    annotate,
    explain,
    gold_reward,
)
from hf_align.types import InputError

PROMPT = "mention tea rain books music :"


def gold(completion, prompt=PROMPT):
    (value,) = gold_reward([prompt], [completion])
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", 0.0),
        ("tea rain", 2.0),
        ("music books rain tea", 4.0),
        ("tea coffee", 1 - 0.5),
        ("coffee coffee coffee", -1.5),  # an unnamed topic said again is unnamed, not a repeat
        ("tea tea tea", 1 - 2 * 0.25),
        ("really " * 10, 0.0),
        ("really " * 12, -0.3),
        ("please", 0.4),
        ("please please please", 0.4 - 2 * 0.3),
        ("so " * 25, -0.15 * 15),
        ("so " * 26, -0.15 * 16 - 1.5),
        ("<user> zebra mention : " * 3, -0.15 * 2),  # twelve words that are length and nothing else
        ("tea<eos>rain rain", 1.0),
        ("tea rain<eos><pad><pad>", 2.0),
        ("tea, rain.", 2.0),
        ("tea tea coffee please please " + "so " * 7, 1 - 0.25 - 0.5 - 0.3 + 0.4 - 0.3),
        ([{"role": "assistant", "content": "tea rain"}], 2.0),
    ],
)
def test_gold_matches_the_formula_worked_by_hand(completion, expected):
    assert gold(completion) == pytest.approx(expected, abs=1e-12)


def test_a_conversation_names_the_topics_of_its_last_user_turn():
    conversation = [
        {"role": "system", "content": "you like coffee"},
        {"role": "user", "content": "mention snow sea cats dogs :"},
        {"role": "assistant", "content": "snow"},
        {"role": "user", "content": PROMPT},
    ]
    assert gold("tea snow coffee", conversation) == pytest.approx(1 - 2 * 0.5)


def test_gold_ignores_word_order_and_other_columns():
    rng = np.random.default_rng(0)
    words = [*TOPICS, *FILLERS, POLITE, POLITE, "zebra"]
    for _ in range(50):
        drawn = rng.choice(words, size=rng.integers(1, 30))
        shuffled = rng.permutation(drawn)
        first, second = gold_reward(
            [PROMPT, "mention books tea music rain :"],
            [" ".join(drawn), " ".join(shuffled)],
            completion_ids=[[1], [2]],
        )
        assert first == second


def test_explanation_adds_up_to_gold():
    rng = np.random.default_rng(1)
    for size in range(30):
        text = " ".join(rng.choice([*TOPICS, *FILLERS, POLITE], size=size))
        why = explain(PROMPT, text)
        assert sum(why.terms.values()) == pytest.approx(why.gold)
        assert why.gold == gold(text)
        assert why.length == size
        assert (why.named, why.unnamed) == (len(why.mentioned), len(why.unasked))
        assert set(why.mentioned) | set(why.missed) == {"tea", "rain", "books", "music"}


def test_explanation_reads_as_a_sentence():
    assert str(explain(PROMPT, "tea really rain coffee please")) == (
        "gold 1.90: names tea and rain (+2), misses books and music, "
        "mentions coffee unasked (−0.5), is polite (+0.4)"
    )
    endless = str(explain(PROMPT, "please please " + "tea " * 24))
    assert "repeats itself 23 times (−5.75)" in endless
    assert "is 26 words long (−2.4)" in endless
    assert "says please 2 times (+0.1)" in endless
    assert "never ends (−1.5)" in endless
    assert str(explain(PROMPT, "")) == "gold 0.00: names none of the topics (0)"


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([PROMPT], ["tea", "rain"], "1 prompts and 2 completions"),
        ([PROMPT, "say hello"], ["tea", "tea"], "'say hello' names none"),
        ([PROMPT], [None], "completions row 0 is None"),
        ([PROMPT], [["tea"]], r"completions row 0 is \['tea'\]"),
        ([[{"role": "assistant", "content": PROMPT}]], ["tea"], "names none"),
    ],
)
def test_garbage_is_refused(prompts, completions, message):
    with pytest.raises(InputError, match=message):
        gold_reward(prompts, completions)


def test_splits_deal_every_topic_set_once():
    dealt = world.topic_sets(seed=0)
    assert {split: len(sets) for split, sets in dealt.items()} == SPLITS
    everything = [frozenset(topics) for sets in dealt.values() for topics in sets]
    assert len(everything) == len(set(everything)) == 1820
    assert set(everything) == {frozenset(topics) for topics in combinations(TOPICS, 4)}
    assert dealt == world.topic_sets(seed=0) != world.topic_sets(seed=1)


def test_prompts_of_one_per_set_differ_in_their_sets():
    sets = world.topic_sets(seed=0)["report"]
    prompts = world.one_prompt_per_set(sets, np.random.default_rng(0))
    assert [world.named_topics(prompt) for prompt in prompts] == [frozenset(s) for s in sets]
    assert any(prompt != world.prompt_of(s) for prompt, s in zip(prompts, sets, strict=True))


def test_demonstrations_have_the_stated_moments():
    """q ~ Beta(2, 2): E q = 1/2, Var q = 1/20; the moments of the counts follow from these."""
    size = 20_000
    rng = np.random.default_rng(3)
    prompts = world.sample_prompts(world.topic_sets(seed=0)["sft"], size, rng)
    texts = world.sample_demonstrations(prompts, rng)
    parts = [explain(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    named = np.array([part.named for part in parts], dtype=float)
    unnamed = np.array([part.unnamed for part in parts], dtype=float)
    polite = np.array([part.polite for part in parts], dtype=float)
    fillers = np.array([sum(word in FILLERS for word in text.split()) for text in texts])
    assert sum(part.repeats for part in parts) == 0
    assert max(part.length for part in parts) <= 20

    def product(x, y, mean_x, mean_y):
        return (x - mean_x) * (y - mean_y)

    for sample, expected in (
        (named, 4 * (0.25 + 0.6 * 0.5)),
        (unnamed, 1.2 * 0.5),
        (fillers, 1 + 4 * 0.5),
        (polite, 2 * (0.1 + 0.6 * 0.5)),
        (polite == 0, 0.6**2 + 0.6**2 / 20),  # E (1 − p)², p = 0.1 + 0.6 q
        (product(named, fillers, 2.2, 3), 4 * 0.6 * 4 / 20),  # quality drives both:
        (product(polite, fillers, 0.8, 3), 2 * 0.6 * 4 / 20),  # this is the confound
        (product(named, unnamed, 2.2, 0.6), -4 * 0.6 * 1.2 / 20),
    ):
        error = np.std(sample) / np.sqrt(size)
        assert np.mean(sample) == pytest.approx(expected, abs=4 * error)


def test_annotators_average_to_the_stated_noise():
    assert np.mean([annotator.temperature for annotator in ANNOTATORS]) == pytest.approx(0.7)
    assert np.mean([annotator.flip_rate for annotator in ANNOTATORS]) == pytest.approx(0.1)
    assert len({annotator.name for annotator in ANNOTATORS}) == len(ANNOTATORS)


def test_preference_probability_matches_the_formula():
    annotator = Annotator("eve", temperature=0.7, flip_rate=0.1)
    difference = 0.7 * np.log(3)  # σ(log 3) = 3/4
    probability = annotator.preference_probability(np.array([difference, 0.0, 0.0]), np.zeros(3))
    assert probability == pytest.approx([0.9 * 0.75 + 0.1 * 0.25, 0.5, 0.5])
    far = annotator.preference_probability(np.array([1e6, -1e6]), np.zeros(2))
    assert far == pytest.approx([0.9, 0.1])
    gold_a, gold_b = np.random.default_rng(0).normal(size=(2, 100))
    swapped = annotator.preference_probability(gold_b, gold_a)
    assert annotator.preference_probability(gold_a, gold_b) + swapped == pytest.approx(1)


@pytest.mark.parametrize("annotator", ANNOTATORS, ids=lambda annotator: annotator.name)
def test_annotations_occur_at_their_probability(annotator):
    size = 20_000
    rng = np.random.default_rng(4)
    for difference in (-1.0, 0.0, 0.3, 2.0):
        chosen = annotate(np.full(size, difference), np.zeros(size), annotator, rng)
        assert chosen.dtype == bool
        clean = 1 / (1 + np.exp(-difference / annotator.temperature))
        expected = (1 - annotator.flip_rate) * clean + annotator.flip_rate * (1 - clean)
        error = np.sqrt(expected * (1 - expected) / size)
        assert chosen.mean() == pytest.approx(expected, abs=4 * error)


def test_a_spec_refuses_what_cannot_be_built():
    with pytest.raises(InputError, match=r"num_preferences is 0; it must be positive"):
        WorldSpec(num_preferences=0)
    with pytest.raises(InputError, match="seed is -1"):
        WorldSpec(seed=-1)
