"""BLEU as a reward and of a corpus: sacrebleu's own numbers, cases by hand, what is refused."""

import math
import sys

import numpy as np
import pytest
import sacrebleu

from hf_align.rewards import SentenceBLEU, corpus_bleu
from hf_align.types import InputError

WORDS = ("the", "cat", "sat", "on", "a", "mat", "quietly", ".")
MESSAGE = [{"role": "assistant", "content": "the cat sat on the mat"}]


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def rewards(completions, references):
    return SentenceBLEU()([""] * len(completions), completions, references=references)


def test_by_hand():
    """Unigrams 5/6, bigrams 3/5, trigrams 1/4, no 4-gram of 3: smoothed to 1 / (2 · 3)."""
    (reward,) = rewards(["the cat sat on a mat"], ["the cat slept on a mat"])
    assert reward == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_a_short_completion_pays_the_brevity_penalty_alone():
    """Its one unigram and no other order match; BP = exp(1 − 4/1), or exp(1 − 2/1) as the closer
    reference is the shorter."""
    assert rewards(["cat"], ["cat on a mat"]) == [pytest.approx(math.exp(-3))]
    assert rewards(["cat"], [["cat on a mat", "a cat"]]) == [pytest.approx(math.exp(-1))]


def test_perfect_is_one_and_nothing_in_common_is_zero():
    some = texts(20, 0)
    assert rewards(some, some) == pytest.approx([1.0] * 20)
    assert rewards(["dog", ""], ["the cat sat on", "the cat sat on"]) == [0.0, 0.0]


def test_each_reference_alone_earns_everything():
    references = ["the cat sat on a mat", "on a mat the cat sat quietly"]
    assert rewards(references, [references] * 2) == pytest.approx([1.0, 1.0])
    mixed = "on a mat the cat sat"
    assert rewards([mixed], [references])[0] > rewards([mixed], [references[0]])[0]


def test_equals_sacrebleu_sentence_bleu():
    completions, first, second = texts(60, 1), texts(60, 2), texts(60, 3)
    expected = [
        sacrebleu.sentence_bleu(text, list(references)).score / 100
        for text, *references in zip(completions, first, second, strict=True)
    ]
    found = rewards(completions, list(zip(first, second, strict=True)))
    assert found == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in found)
    assert len(set(expected)) > 30  # the draws are no trivial cases


def test_conversations_count_by_their_content():
    text = MESSAGE[0]["content"]
    reference = "the cat sat near the mat"
    assert rewards([MESSAGE], [reference]) == rewards([text], [[reference]])
    assert corpus_bleu([MESSAGE], [reference]) == corpus_bleu([text], [[reference]])


def test_the_column_can_be_named_and_others_are_ignored():
    reward = SentenceBLEU("target")
    assert reward([""], ["the cat"], target=["the cat"], references=["a"], step=3) == [
        pytest.approx(1.0)
    ]
    assert reward.__name__ == "bleu"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "bleu needs a column 'references'"),
        ({"target": ["a"]}, "needs a column 'references' .*there are: target"),
        ({"references": ["a", "b"]}, "column 'references' has 2 rows for 1 completions"),
        ({"references": [[]]}, r"column 'references' row 0 is \[\]"),
        ({"references": [None]}, "row 0 is None"),
        ({"references": [["a", None]]}, r"row 0 is \['a', None\]"),
        ({"references": [" "]}, r"row 0 is \[' '\]"),
        ({"references": "a"}, "column 'references' is 'a'; give a list"),
    ],
)
def test_missing_references_are_named(columns, words):
    with pytest.raises(InputError, match=words):
        SentenceBLEU()(["p"], ["a"], **columns)


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    for call in (SentenceBLEU, lambda: corpus_bleu(["a"], ["a"])):
        with pytest.raises(InputError, match=r'pip install "hf_align\[eval\]"') as caught:
            call()
        assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize("size", [1, 12, 200])
def test_corpus_equals_sacrebleu(size):
    completions, first, second = texts(size, 4), texts(size, 5), texts(size, 6)
    second[::2] = [None] * len(second[::2])  # sacrebleu's way of saying: only one reference here
    expected = sacrebleu.corpus_bleu(completions, [first, second]).score
    references = [
        [text for text in pair if text is not None] for pair in zip(first, second, strict=True)
    ]
    estimate = corpus_bleu(completions, references)
    assert estimate.value == pytest.approx(expected)
    assert estimate.n == size
    assert (estimate.low is None) == (size == 1)
    if size > 1:
        assert 0 <= estimate.low < estimate.value < estimate.high <= 100


def test_corpus_by_hand():
    """Over both sentences 5/6 and 4/4 unigrams, 3/5 and 3/3 bigrams, 1/4 and 2/2, 0/3 and 1/1."""
    estimate = corpus_bleu(
        ["the cat sat on a mat", "a mat quietly sat"],
        ["the cat slept on a mat", "a mat quietly sat"],
    )
    assert estimate.value == pytest.approx(100 * (9 / 10 * 6 / 8 * 3 / 6 * 1 / 4) ** 0.25)


def test_a_perfect_corpus_has_no_width():
    some = [f"{text} on a mat" for text in texts(60, 7)]
    for size in (10, 60):
        estimate = corpus_bleu(some[:size], some[:size])
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((100, 100, 100))


def test_the_interval_is_that_of_sentences_drawn_again():
    """Against a bootstrap that asks sacrebleu about every resampled corpus."""
    rng = np.random.default_rng(8)
    references = texts(80, 9)
    completions = [
        text if rng.random() < 0.5 else other
        for text, other in zip(references, texts(80, 10), strict=True)
    ]
    scores = []
    for _ in range(300):
        rows = rng.integers(80, size=80)
        drawn = [completions[i] for i in rows], [[references[i] for i in rows]]
        scores.append(sacrebleu.corpus_bleu(*drawn, force=True).score)
    low, high = np.quantile(scores, [0.025, 0.975])
    estimate = corpus_bleu(completions, references)
    spread = np.std(scores)
    assert estimate.low == pytest.approx(low, abs=0.5 * spread)
    assert estimate.high == pytest.approx(high, abs=0.5 * spread)


@pytest.mark.parametrize(
    ("completions", "references", "words"),
    [
        ([], [], "no completions"),
        (["a"], ["a", "b"], "2 rows for 1 completions"),
        (["a", "b"], ["a", []], r"references row 1 is \[\]"),
    ],
)
def test_a_corpus_that_cannot_be_scored_is_refused(completions, references, words):
    with pytest.raises(InputError, match=words):
        corpus_bleu(completions, references)
