"""The token audit, on a word-level tokenizer whose lengths can be counted by hand."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_align.data import audit_with_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{{ m.role }} {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def word_tokenizer(template=None):
    words = ["<pad>", "<eos>", "<unk>", "user", "assistant", "a", "b", "c"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=template,
    )


def plain():
    return {
        "train": Dataset.from_list(
            [
                {"prompt": "a b ", "chosen": "c ", "rejected": "c c c "},
                {"prompt": "a a a a a ", "chosen": "b ", "rejected": "b ? "},
            ]
        )
    }


def chat(*prompt):
    answers = {name: [{"role": "assistant", "content": "b"}] for name in ("chosen", "rejected")}
    return {"train": Dataset.from_list([{"prompt": list(prompt), **answers}])}


def test_plain_rows_are_counted_with_eos_and_cut_or_dropped_as_the_trainer_would():
    audit = audit_with_tokenizer(plain(), word_tokenizer(), 5, "preference")
    figures = audit["splits"]["train"]
    # row 1: prompt 2, sequences 2+1+eos = 4 and 2+3+eos = 6; row 2: the prompt alone is 5
    assert figures["rows"] == 2
    assert figures["prompt_too_long"] == 1
    assert figures["truncated"] == 1
    assert figures["shortest_prompt"] == 2
    assert figures["tokens"]["prompt"]["max"] == 5
    assert figures["tokens"]["chosen"]["max"] == 2
    assert figures["tokens"]["rejected"]["max"] == 4
    assert figures["sequence_tokens"]["max"] == 8
    assert figures["unknown_tokens"] == 1
    assert any("1 of 2 prompts fill max_length 5" in problem for problem in audit["problems"])


def test_without_a_limit_nothing_is_too_long():
    figures = audit_with_tokenizer(plain(), word_tokenizer(), None, "preference")["splits"]["train"]
    assert figures["prompt_too_long"] == figures["truncated"] == 0


def test_conversations_are_counted_as_the_template_renders_them():
    audit = audit_with_tokenizer(
        chat({"role": "user", "content": "a a"}), word_tokenizer(TEMPLATE), 4, "preference"
    )
    figures = audit["splits"]["train"]
    # "user a a <eos> assistant" and "user a a <eos> assistant b <eos>"
    assert figures["tokens"]["prompt"]["max"] == 5
    assert figures["sequence_tokens"]["max"] == 7
    assert figures["prompt_too_long"] == 1
    assert audit["examples"][0]["chosen"] == "user a a <eos> assistant b <eos> "


def test_a_missing_chat_template_is_a_problem_for_conversations_alone():
    rows = chat({"role": "user", "content": "a"})
    audit = audit_with_tokenizer(rows, word_tokenizer(), 9, "preference")
    assert audit["splits"]["train"]["rows"] == 1
    assert audit["splits"]["train"]["prompt_too_long"] is None
    assert any("no chat template" in problem for problem in audit["problems"])
    assert not audit_with_tokenizer(plain(), word_tokenizer(), 99, "preference")["problems"]


def test_rows_that_the_template_refuses_are_counted_with_its_reason():
    rows = chat({"role": "system", "content": "a"}, {"role": "user", "content": "a"})
    audit = audit_with_tokenizer(rows, word_tokenizer(TEMPLATE), 9, "preference")
    assert audit["splits"]["train"]["unrenderable"] == 1
    assert any("refuses 1 of 1 rows (no system role)" in text for text in audit["problems"])


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        ({"text": "a b "}, {"text": 3}),
        ({"prompt": "a b ", "completion": "c "}, {"prompt": 2, "completion": 2}),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            {"messages": 6},
        ),
    ],
)
def test_every_sft_form_is_counted(row, tokens):
    split = {"train": Dataset.from_list([row])}
    figures = audit_with_tokenizer(split, word_tokenizer(TEMPLATE), 99, "sft")["splits"]["train"]
    assert {name: stats["max"] for name, stats in figures["tokens"].items()} == tokens
