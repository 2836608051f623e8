"""Pairs as questions: whole where there is room, else cut where it hurts least."""

import copy

import pytest

from hf_align.configs import ScratchArguments
from hf_align.recipes._baselines import best_completion, training_questions
from hf_align.recipes._pair_questions import make_questions, shortened, shown_prompt
from hf_align.recipes._scratch import build_from_text
from hf_align.testbed import tokenizer as word_tokenizer
from hf_align.types import InputError

TALK = [
    {"role": "user", "content": "Which is larger?"},
    {"role": "assistant", "content": "The sun."},
    {"role": "user", "content": "And colder?"},
]


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE tokenizer with a chat template, learnt from a little text."""
    rows = [{"text": "Which is larger, the sun or the moon? A: the sun. B: the moon."}] * 20

    class Rows(list):
        column_names = ("text",)

    return build_from_text(Rows(rows), ScratchArguments(scratch_vocab_size=300), 64, 0)[1]


def test_a_word_level_tokenizer_gets_two_tokens_for_the_answers():
    tokenizer = word_tokenizer()
    before = len(tokenizer)
    questions = make_questions(tokenizer, False, 64)
    assert len(tokenizer) == before + 2 and questions.labels == ("<A>", "<B>")
    ids, cut = questions.ask("mention tea :", "tea please", "so rain")
    words = tokenizer.convert_ids_to_tokens(ids)
    assert not cut
    assert words == [
        *("mention", "tea", ":", "<A>", ":", "tea", "please", "<B>", ":", "so", "rain"),
        *("<unk>", ":"),
    ]
    assert tokenizer.convert_ids_to_tokens(list(questions.answers)) == ["<A>", "<B>"]


def test_letters_that_are_tokens_answer_as_they_are(bpe):
    tokenizer = copy.deepcopy(bpe)
    before = len(tokenizer)
    questions = make_questions(tokenizer, False, 500)
    assert len(tokenizer) == before and questions.labels == ("A", "B")
    ids, _ = questions.ask("Which?", "the sun", "the moon")
    assert tokenizer.decode(ids) == "Which?\n\nA: the sun\n\nB: the moon\n\nBetter:"


def test_a_conversation_is_asked_about_in_one_turn_that_the_model_answers(bpe):
    questions = make_questions(copy.deepcopy(bpe), True, 500)
    answers = [[{"role": "assistant", "content": text}] for text in ("the sun", "the moon")]
    ids, _ = questions.ask(TALK, *answers)
    assert bpe.decode(ids) == (
        "<|user|>user: Which is larger?\n\nassistant: The sun.\n\nuser: And colder?"
        "\n\nA: the sun\n\nB: the moon\n\nBetter:<|assistant|>"
    )
    assert shown_prompt("as it is") == "as it is"


def test_what_does_not_fit_is_cut_from_long_completions_first():
    questions = make_questions(word_tokenizer(), False, 24)
    short, long = "tea", " ".join(["rain"] * 40)
    ids, cut = questions.ask("mention tea :", short, long)
    words = questions.tokenizer.convert_ids_to_tokens(ids)
    assert cut and len(ids) == 23  # the answer is the twenty-fourth
    assert words[:3] == ["mention", "tea", ":"] and words[5] == "tea"
    # Of a long prompt the end stays, and both completions keep as much as each other.
    ids, cut = questions.ask(" ".join(["so"] * 50) + " :", long, long)
    words = questions.tokenizer.convert_ids_to_tokens(ids)
    assert cut and len(ids) <= 23 and words[words.index("<A>") - 1] == ":"
    assert abs(words.count("rain") - 2 * (words.count("rain") // 2)) <= 1


def test_without_room_for_the_completions_the_length_is_to_blame():
    questions = make_questions(word_tokenizer(), False, 8)
    with pytest.raises(InputError, match="8 tokens have no room"):
        questions.ask("mention tea :", "tea", "rain")


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [((2, 9), 8, [2, 6]), ((9, 2), 8, [6, 2]), ((9, 9), 8, [4, 4]), ((9, 12), 9, [4, 5])],
)
def test_the_shorter_text_gives_the_longer_what_it_leaves(lengths, room, kept):
    texts = [[0] * length for length in lengths]
    assert list(map(len, shortened(texts, room))) == kept


def test_training_questions_are_answered_rightly_in_both_orders_and_only_answers_count():
    questions = make_questions(word_tokenizer(), False, 64)
    rows = [
        {"prompt": "mention tea :", "chosen": "tea", "rejected": "rain"},
        {"prompt": "mention sea :", "chosen": "sea so", "rejected": "rain rain"},
    ]
    examples = training_questions(questions, rows, 100, seed=0)
    assert len(examples) == 4
    to_words = questions.tokenizer.convert_ids_to_tokens
    for example in examples:
        words = to_words(example["input_ids"])
        answer = words[words.index(words[-1]) + 2]  # the word after the label that it names
        assert answer in ("tea", "sea")
        assert example["labels"] == [-100] * (len(words) - 1) + [example["input_ids"][-1]]
    named = [to_words(example["input_ids"])[-1] for example in examples]
    assert sorted(named) == ["<A>", "<A>", "<B>", "<B>"]
    assert len(training_questions(questions, rows, 3, seed=0)) == 3


def test_imitation_is_of_the_preferred_completion():
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    ranking = {"prompt": "p", "completions": ["bad", "good", "worse"], "ranks": [2, 1, 3]}
    for row in (pair, ranking):
        assert best_completion(row) == {"prompt": "p", "completion": "good"}
