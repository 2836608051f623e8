"""The parts of a reward model's report, on scores whose right answers are known beforehand."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_align.diagnostics.calibration import noise_ceiling
from hf_align.recipes._comparisons import comparisons
from hf_align.recipes._evaluation import Answers
from hf_align.recipes._held_out import accuracy_by_gold, hold_out, label_agreement
from hf_align.recipes._inputs import Gold
from hf_align.recipes._learning_curve import drawn_rows, num_steps, steps_for
from hf_align.recipes._reward_accuracy import Ranking, accuracy_part
from hf_align.recipes._reward_bias import NUM_EDITED, TESTBED_EDITS, bias_part, edit_part
from hf_align.recipes._reward_on_policy import (
    Drawn,
    disagreement_part,
    on_policy_part,
    shuffled,
    thrice,
)
from hf_align.recipes._reward_report import judge
from hf_align.testbed import ANNOTATORS, gold_reward
from hf_align.types import InputError, content_of

TOPICS = ("tea", "rain", "books", "music")
PROMPT = "mention tea rain books music :"
GOLD = Gold("gold", gold_reward)


class Model:
    """A reward model, or an ensemble of functions of a text, combined by their mean."""

    def __init__(self, *functions):
        self.functions = self.members = functions

    def member_scores(self, prompts, completions):
        texts = [content_of(completion) for completion in completions]
        return np.array([[f(text) for text in texts] for f in self.functions], float)

    def combine(self, scores):
        return scores.mean(axis=0)

    def score(self, prompts, completions):
        return self.combine(self.member_scores(prompts, completions))


class Rows(list):
    """Rows that are columns too, as a dataset's."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def pairs(count=80, seed=0):
    """Pairs of one prompt each, the one with more topics preferred, lengths at random."""
    rng = np.random.default_rng(seed)
    rows = Rows()
    for number in range(count):
        topics = rng.permutation(TOPICS).tolist()
        chosen, rejected = (" ".join(topics[:k] + ["so"] * int(rng.integers(1, 6))) for k in (3, 1))
        prompt = f"mention {' '.join(topics)} : {number}"
        rows.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "annotator": ANNOTATORS[number % 4].name,
                "part": "abc"[number % 3],
            }
        )
    return rows


def num_topics(text):
    return sum(topic in text.split() for topic in TOPICS)


def num_words(text):
    return len(text.split())


def held(model, rows=None, gold=None, on_testbed=False, subset=None, scale=1.0):
    return hold_out(model, scale, rows or pairs(), gold, on_testbed, subset)


def cells(part, title):
    [table] = [table for table in part.tables if table.title == title]
    return {row[0]: list(row[1:]) for row in table.rows}


def test_a_model_that_counts_topics_orders_every_pair_and_length_does_not():
    found = held(Model(num_topics), gold=GOLD, on_testbed=True)
    likelihood = Ranking("log-likelihood", -found.margins, "accuracy/log_likelihood")
    part = accuracy_part(found, [likelihood])
    assert part.metrics["accuracy/label"].value == part.metrics["accuracy/gold"].value == 1
    assert part.metrics["accuracy/log_likelihood"].value == 0
    rows = cells(part, "Accuracy beside simpler rankings")
    longest = part.metrics["accuracy/longest_wins"].value
    assert 0.5 < longest < 1
    assert rows["always the longer"][1].value == pytest.approx(1 - longest)
    assert rows["log-likelihood"][1].value == 1  # the paired difference
    lead = rows["noise ceiling: ordering as gold does"][1]
    assert lead.value == pytest.approx(1 - part.metrics["accuracy/ceiling"].value)


def test_without_gold_nothing_speaks_of_it():
    part = accuracy_part(held(Model(num_topics)), [])
    assert not {"accuracy/gold", "accuracy/ceiling"} & part.metrics.keys()
    [table] = [t for t in part.tables if t.title == "Accuracy beside simpler rankings"]
    assert list(table.columns) == ["ranking", "accuracy on labels", "reward model minus it"]
    assert all(len(row) == 3 for row in table.rows)


def test_where_the_shorter_is_preferred_that_is_the_ranking_to_beat():
    rows = Rows({"prompt": f"p {n}", "chosen": "tea", "rejected": "tea so so"} for n in range(60))
    found = held(Model(lambda text: -num_words(text)), rows)
    table = cells(accuracy_part(found, []), "Accuracy beside simpler rankings")
    assert table["always the shorter"][0].value == 1
    assert table["always the shorter"][1].value == 0
    verdict = judge(found, accuracy_part(found, []).metrics)
    assert verdict.label == "NO GAIN" and "length alone orders 1.000" in verdict.text


def test_the_verdict_names_the_lead_over_length_and_the_baselines():
    found = held(Model(num_topics))
    margins = np.where(np.arange(80) % 4 == 0, -1.0, 1.0)
    part = accuracy_part(found, [Ranking("asked", margins, "accuracy/generative_classifier")])
    verdict = judge(found, part.metrics)
    assert verdict.label == "INCONCLUSIVE"
    assert "a model asked which is better 0.750" in verdict.text


def test_accuracy_by_margin_length_and_subset_add_up_to_the_whole():
    found = held(Model(num_words), subset="part")
    part = accuracy_part(found, [])
    whole = part.metrics["accuracy/label"].value
    for title in ("Accuracy by margin", "Accuracy by difference in length", "Accuracy by subset"):
        rows = cells(part, title)
        counts = [row[0] for row in rows.values()]
        assert sum(counts) == 80
        mean = sum(row[0] * row[1].value for row in rows.values()) / 80
        assert mean == pytest.approx(whole), title
    subsets = cells(part, "Accuracy by subset")
    assert list(subsets) == ["a", "b", "c"]
    # A model that counts words is right where the preferred one is longer.
    assert all(row[1].value == pytest.approx(row[2]) for row in subsets.values())


def test_the_ceiling_is_that_of_the_annotators_who_compared():
    rows = pairs()
    found = comparisons(rows)
    gold = np.array(gold_reward(found.prompts, found.completions))
    known = {annotator.name: annotator for annotator in ANNOTATORS}
    expected = noise_ceiling(
        gold[found.better] - gold[found.worse],
        np.arange(len(rows)),
        temperature=[known[row["annotator"]].temperature for row in rows],
        flip_rate=[known[row["annotator"]].flip_rate for row in rows],
    )
    agreement = label_agreement(found, rows["annotator"])
    assert agreement.mean() == pytest.approx(expected.value)


def test_a_model_without_an_opinion_is_told_in_one_line():
    with pytest.raises(InputError, match="the same score"):
        held(Model(lambda text: 1.0))


def test_a_column_without_a_value_is_a_subset_of_its_own():
    rows = pairs(6)
    for row in rows[:2]:
        row["part"] = None
    assert held(Model(num_topics), rows, subset="part").subsets.tolist()[:2] == ["(none)"] * 2


def test_ties_of_gold_are_left_out():
    accuracy = accuracy_by_gold(
        np.array([1.0, -1.0, 0.0, 5.0]), np.array([2, 2, 2, 0]), np.arange(4)
    )
    assert accuracy.value == 0.5 and accuracy.n == 3


# What the score follows


def test_a_model_of_length_follows_length_and_every_word_raises_it():
    model = Model(num_words)
    found = held(model, gold=GOLD)
    part = bias_part(found, model, GOLD, on_testbed=True)
    assert part.metrics["bias/length_correlation"].value == pytest.approx(1.0, abs=1e-6)
    assert part.metrics["bias/flip_rate"].value == 1.0
    rows = cells(part, "Edits that add no content")
    assert all(row[0].value == 1.0 and row[1].value > 0 for row in rows.values())
    # A first polite word is worth 0.4 in gold, a filler in short completions nothing.
    assert rows["one more “please”"][2].value == 1.0
    assert rows["one more filler"][2].value == 0.0


def test_only_edits_that_gold_does_not_reward_count_against_the_model():
    # It pays for politeness, as gold does, and for nothing else.
    model = Model(lambda text: num_topics(text) + 0.3 * text.split().count("please"))
    found = held(model, gold=GOLD)
    with_gold, _ = edit_part(found, model, GOLD, TESTBED_EDITS)
    assert with_gold.metrics["bias/flip_rate"].value == 0.5  # fillers alone, and they are ties
    without, _ = edit_part(held(model), model, None, TESTBED_EDITS)
    assert without.metrics["bias/flip_rate"].value == 0.75


def test_on_other_text_generic_edits_are_made_and_constant_features_left_out():
    model = Model(lambda text: text.count("!") + 0.1 * num_topics(text))
    part = bias_part(held(model), model, None, on_testbed=False)
    rows = cells(part, "Edits that add no content")
    assert set(rows) == {"polite word", "filler", "exclamation mark", "bullet"}
    assert rows["exclamation mark"][0].value == 1.0 and rows["filler"][0].value == 0.5
    features = cells(part, "What the score goes along with")
    assert "words" in features and "bold spans" not in features


def test_edits_are_bounded_by_a_number_of_completions():
    model = Model(num_words)
    part = bias_part(held(model, pairs(NUM_EDITED)), model, None, on_testbed=True)
    assert part.settings["edited completions"] == NUM_EDITED


def test_completions_of_equal_length_have_no_length_to_follow():
    rows = Rows(
        {"prompt": f"p {n}", "chosen": "tea rain", "rejected": "sea rain"} for n in range(60)
    )
    model = Model(num_topics)
    part = bias_part(held(model, rows), model, None, on_testbed=True)
    assert "bias/length_correlation" not in part.metrics


# On-policy pairs and ensembles


def drawn(model, gold, texts):
    """Drawn completions: G prompts with m texts each."""
    flat = [text for row in texts for text in row]
    scores = model.member_scores([""] * len(flat), flat)
    answers = Answers(
        SimpleNamespace(texts=flat), np.array(gold, float), np.ones((len(texts), len(texts[0])))
    )
    clusters = np.repeat(np.arange(len(texts)), len(texts[0]))
    return Drawn(answers, clusters, scores, model.combine(scores))


def test_on_policy_accuracy_is_over_pairs_of_one_prompt_that_gold_does_not_tie():
    model = Model(num_topics)
    texts = [["tea rain", "tea", "so"], ["so so so so", "tea rain books", "tea"]]
    gold = [[2, 1, 0], [1, 3, 1]]
    part = on_policy_part(held(model, gold=GOLD), drawn(model, gold, texts))
    # Five pairs differ in gold; "so so so so" against "tea rain books" is right too.
    assert part.metrics["accuracy/on_policy"].value == 1.0
    [row] = [
        row for name, row in cells(part, "Held-out and on-policy accuracy").items() if "own" in name
    ]
    # By length: first prompt 1, ½, ½ over its pairs; second prompt 0, 1.
    assert row[1].value == pytest.approx(((1 + 1 + 0.5) / 3 + (0 + 1) / 2) / 2)


def test_without_a_sample_or_where_gold_ties_all_there_is_no_on_policy_accuracy():
    model = Model(num_topics)
    found = held(model, gold=GOLD)
    assert not on_policy_part(found, None).metrics
    assert not on_policy_part(found, drawn(model, [[1, 1]], [["tea", "so"]])).metrics


def test_members_that_part_on_long_completions_are_seen_to():
    # Both count topics; on long completions one of them counts words as well.
    together = lambda text: num_topics(text) + 0.1 * num_words(text)  # noqa: E731
    apart = lambda text: together(text) + max(0, num_words(text) - 12)  # noqa: E731
    model = Model(together, apart)
    found = held(model)
    strange = drawn(model, [[0.0] * 2] * 60, [[" ".join(["so"] * 20), "tea"]] * 60)
    part = disagreement_part(found, model, strange)
    inside = part.metrics["ensemble/disagreement"].value
    assert part.metrics["ensemble/disagreement_on_policy"].value > inside
    assert part.metrics["ensemble/outlying"].value >= 0.5
    rows = cells(part, "Disagreement within the ensemble")
    assert rows["held out, words shuffled"][0].value == pytest.approx(inside, abs=1e-9)
    assert rows["held out, three times over"][0].value > inside
    assert set(cells(part, "Members of the ensemble")) == {"member 0", "member 1", "together"}


def test_a_single_model_has_nobody_to_disagree_with():
    model = Model(num_topics)
    assert not disagreement_part(held(model), model, None).tables


def test_strange_completions_keep_their_words():
    assert sorted(shuffled("a b c d e").split()) == list("abcde")
    assert shuffled("a b c d e") == shuffled("a b c d e") != "a b c d e"
    assert thrice(" a b ") == "a b a b a b" and shuffled("") == ""


# The learning curve


def test_smaller_sets_lie_within_larger_ones_and_prompts_stay_together():
    rows = Rows({"prompt": f"p {n // 4}"} for n in range(400))
    sizes = [set(drawn_rows(rows, size, 0)) for size in (40, 120, 400)]
    assert [len(rows) for rows in sizes] == [40, 120, 400]
    assert sizes[0] <= sizes[1] <= sizes[2]
    assert len({n // 4 for n in sizes[0]}) == 10
    assert drawn_rows(rows, 40, 1) != drawn_rows(rows, 40, 0)


def test_steps_fall_with_the_square_root_of_the_rows():
    args = SimpleNamespace(
        max_steps=-1, train_batch_size=64, gradient_accumulation_steps=2, num_train_epochs=3
    )
    assert num_steps(args, 4096) == 96 and num_steps(args, 4097) == 99
    args.max_steps = 7
    assert num_steps(args, 4096) == 7
    assert steps_for(96, 1024, 4096) == 48 and steps_for(96, 4096, 4096) == 96
    assert steps_for(3, 1, 4096) == 1
