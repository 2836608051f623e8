"""Language-modelling batches: the tokens of each kind of row, and the order of the rows."""

import copy
import itertools
from collections import Counter

import pytest
from tokenizers.processors import TemplateProcessing

from hf_align.trainers.language_loss import LanguageLoss, answer_tokens, prompt_tokens, tokens_of
from hf_align.types import InputError

# Ids of the test tokenizer: <pad> 0, <eos> 1, <user> 2, <assistant> 3, w0 4, w1 5, ...
EOS, USER, ASSISTANT = 1, 2, 3


def chat(*turns):
    """Messages by user and assistant in turn."""
    roles = itertools.cycle(["user", "assistant"])
    return [{"role": next(roles), "content": content} for content in turns]


@pytest.fixture
def beginning(tokenizer):
    """A tokenizer that begins every text with a token of its own, as Llama's does."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A", special_tokens=[("<user>", USER)]
    )
    return own


@pytest.mark.parametrize(
    ("row", "context", "targets"),
    [
        ({"text": "w1 w2 w3"}, [5], [6, 7, EOS]),
        ({"text": "w1 w2 <eos>"}, [5], [6, EOS]),
        ({"text": "w1"}, [5], [EOS]),
        ({"text": ""}, [EOS], []),
        ({"prompt": "w1 w2", "completion": "w3"}, [5, 6], [7, EOS]),
        ({"prompt": "w1 w2", "completion": "w3 <eos>"}, [5, 6], [7, EOS]),
        ({"prompt": "w1 w2", "completion": ""}, [5, 6], [EOS]),
        (
            {"prompt": chat("w1"), "completion": chat("", "w2")[1:]},
            [USER, 5, EOS, ASSISTANT],
            [6, EOS],
        ),
        ({"messages": chat("w1", "w2")}, [USER, 5, EOS, ASSISTANT], [6, EOS]),
        (
            {"messages": chat("w1", "w2", "w3", "w4 w5")},
            [USER, 5, EOS, ASSISTANT, 6, EOS, USER, 7, EOS, ASSISTANT],
            [8, 9, EOS],
        ),
    ],
)
def test_rows_become_context_and_targets(row, context, targets, tokenizer):
    assert tokens_of(row, tokenizer, 64) == (context, targets)


def test_nothing_precedes_the_first_token_of_a_row_without_a_prompt(tokenizer):
    # The first column of a batch is never scored.
    assert tokens_of({"prompt": "", "completion": "w1 w2"}, tokenizer, 64) == ([5], [6, EOS])
    assert tokens_of({"prompt": "", "completion": ""}, tokenizer, 64) == ([EOS], [])
    assert tokens_of({"prompt": "", "completion": "w1 w2"}, tokenizer, 2) == ([5], [6])


def test_a_token_that_begins_texts_begins_no_answer(beginning):
    assert tokens_of({"text": "w1 w2"}, beginning, 64) == ([USER], [5, 6, EOS])
    row = {"prompt": "w1", "completion": "w2"}
    assert tokens_of(row, beginning, 64) == ([USER, 5], [6, EOS])
    assert prompt_tokens("w1", beginning) == [USER, 5]


@pytest.mark.parametrize("length", range(1, 8))
def test_rows_are_cut_at_the_end_to_the_longest_allowed(length, tokenizer):
    rows = [
        {"text": "w1 w2 w3 w4"},
        {"prompt": "w1 w2", "completion": "w3 w4"},
        {"messages": chat("w1", "w2")},
    ]
    for row in rows:
        context, targets = tokens_of(row, tokenizer, length)
        whole = tokens_of(row, tokenizer, 64)
        assert context + targets == (whole[0] + whole[1])[: max(length, len(context))]
        # Where the prompt alone is too long nothing is left to learn.
        assert not targets or len(context) + len(targets) <= length


def test_a_template_that_rewrites_an_answered_prompt_still_gives_the_answer(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = tokenizer.chat_template.replace(
        "<assistant> {% endif %}", "w30 w31 {% endif %}"
    )
    context = prompt_tokens(chat("w1"), own)
    assert context == [USER, 5, EOS, 34, 35]
    assert answer_tokens(chat("w1"), chat("", "w2")[1:], context, own) == [6, EOS]


def test_other_columns_are_refused(tokenizer):
    with pytest.raises(InputError, match="columns chosen, rejected; give `text`"):
        tokens_of({"chosen": "w1", "rejected": "w2"}, tokenizer, 64)


def test_conversations_without_an_answer_are_refused(tokenizer):
    for messages, roles in (
        (chat("w1"), "user"),
        (chat("w1", "w2", "w3"), "user, assistant, user"),
        (chat("w1", "w2")[1:], "assistant"),
        ([], "no one"),
    ):
        with pytest.raises(InputError, match=f"end with an answer of the assistant.*by {roles}$"):
            tokens_of({"messages": messages}, tokenizer, 64)
    for prompt, completion in ((chat("w1"), "w2"), ("w1", chat("", "w2")[1:])):
        with pytest.raises(InputError, match="one is text and the other messages"):
            tokens_of({"prompt": prompt, "completion": completion}, tokenizer, 64)


def language(tokenizer, size=10, batch_size=3, **options):
    rows = [{"text": f"w0 w{i}"} for i in range(1, size + 1)]
    return LanguageLoss(rows, tokenizer, batch_size, 16, **({"seed": 1} | options))


def word(pair):
    """Which row a pair is of."""
    context, targets = pair
    assert context == [4]
    assert targets[1:] == [EOS]
    return targets[0] - 4


def words(loss, indices):
    return [word(pair) for index in indices for pair in loss.batch(index)]


def test_data_without_a_target_are_refused_and_such_rows_left_out(tokenizer):
    rows = [{"text": ""}, {"text": "w0 w1"}, {"prompt": "w1 w2 w3 w4", "completion": "w5"}]
    loss = LanguageLoss(rows, tokenizer, 2, 4, seed=0)
    assert loss.pairs == [([4], [5, EOS])]
    assert loss.batch(0) == loss.pairs * 2
    with pytest.raises(InputError, match="no row with a token to learn"):
        LanguageLoss([{"text": ""}], tokenizer, 2, 4, seed=0)


def test_a_batch_depends_on_seed_and_index_alone(tokenizer):
    first, second = language(tokenizer), language(tokenizer)
    forwards = [words(first, [index]) for index in range(12)]
    backwards = [words(second, [index]) for index in reversed(range(12))][::-1]
    assert forwards == backwards
    assert forwards != [words(language(tokenizer, seed=2), [index]) for index in range(12)]


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 23])
def test_every_row_comes_once_in_each_lap_in_a_new_order(batch_size, tokenizer):
    loss = language(tokenizer, batch_size=batch_size)
    drawn = words(loss, range(50 // batch_size + 1))[:50]
    laps = [drawn[start : start + 10] for start in range(0, 50, 10)]
    assert all(sorted(lap) == list(range(1, 11)) for lap in laps)
    assert len({tuple(lap) for lap in laps}) == 5


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_lap_without_a_row_in_common(world, tokenizer):
    size, batch_size = 24, 2
    ranks = [language(tokenizer, size, batch_size, process=(rank, world)) for rank in range(world)]
    slices = size // (batch_size * world)
    for lap in range(3):
        indices = range(lap * slices, (lap + 1) * slices)
        drawn = [words(loss, indices) for loss in ranks]
        assert Counter(itertools.chain(*drawn)) == Counter(range(1, size + 1))
    # Together they see what one process with batches of that size would.
    alone = language(tokenizer, size, batch_size * world)
    for index in range(5):
        assert words(alone, [index]) == [w for loss in ranks for w in words(loss, [index])]
