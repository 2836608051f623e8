"""Every layout, recognised and brought into TRL's columns; expected rows are written by hand."""

import pytest

from hf_align.data import InvalidRow, detect_layout, normalise_row
from hf_align.types import InputError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def normalised(row, task):
    layout = detect_layout(row.keys(), [row], task)
    return layout, normalise_row(row, layout, task)


CHAT = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: go\n\nAssistant: "
PAIRS = {
    "explicit": (
        {"prompt": "q", "chosen": " a", "rejected": " b"},
        {"prompt": "q", "chosen": " a", "rejected": " b"},
    ),
    "explicit_conversational": (CHAT, CHAT),
    "implicit_conversational": (
        {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
        CHAT,
    ),
    "full_conversations": (
        {"prompt": "q", "chosen": [user("q"), assistant("a")]}
        | {"rejected": [user("q"), assistant("b")]},
        CHAT,
    ),
    "question_pairs": (
        {"system": "be brief", "question": "q", "chosen": "a", "rejected": "b"},
        CHAT | {"prompt": [system("be brief"), user("q")]},
    ),
    "transcripts": (
        {"chosen": TRANSCRIPT + "good one", "rejected": TRANSCRIPT + "go od"},
        {
            "prompt": [user("hi"), assistant("yes?"), user("go")],
            "chosen": [assistant("good one")],
            "rejected": [assistant("go od")],
        },
    ),
    "explicit_transcript": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
        CHAT,
    ),
    "valued_pairs": (
        {"prompt": "q", "completion_a": "a", "completion_b": "b", "p_a": 0.25},
        {"prompt": "q", "chosen": "b", "rejected": "a", "probability": 0.75},
    ),
    "ranked": (
        {"prompt": "q", "completions": ["b", "a"], "ranks": [2, 1]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ),
}


@pytest.mark.parametrize("layout", PAIRS)
def test_each_preference_layout_is_recognised_and_gets_an_explicit_prompt(layout):
    row, expected = PAIRS[layout]
    found, result = normalised(row, "preference")
    assert found == layout
    assert result.rows == [expected]


@pytest.mark.parametrize("layout", PAIRS)
def test_sft_on_preference_data_takes_the_prompt_and_the_chosen_completion(layout):
    row, expected = PAIRS[layout]
    _, result = normalised(row, "sft")
    assert result.rows == [{"prompt": expected["prompt"], "completion": expected["chosen"]}]


@pytest.mark.parametrize("layout", PAIRS)
def test_prompts_are_the_same_whatever_the_task(layout):
    row, expected = PAIRS[layout]
    _, result = normalised(row, "prompt")
    assert result.rows == [{"prompt": expected["prompt"]}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [user("q")], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "q", "chosen": [assistant("a")], "rejected": "b"},
    ],
)
def test_text_beside_messages_is_wrapped_into_the_same_conversation(row):
    layout, result = normalised(row, "preference")
    assert layout == "explicit_mixed"
    assert result.rows == [CHAT]


SFT = {
    "messages": (
        {"messages": [user("q"), assistant("a")]},
        {"messages": [user("q"), assistant("a")]},
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [user("q"), assistant("a")]},
    ),
    "sharegpt with system": (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}]}
        | {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [system("s"), user("q"), assistant("a")]},
    ),
    "text": ({"text": "once"}, {"text": "once"}),
    "prompt/completion": ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}),
    "alpaca": (
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"prompt": [user("add\n\n1 2")], "completion": [assistant("3")]},
    ),
    "alpaca without input": (
        {"instruction": "hi", "input": "", "output": "ho"},
        {"prompt": [user("hi")], "completion": [assistant("ho")]},
    ),
    "question/answer": (
        {"question": "q", "answer": "a"},
        {"prompt": [user("q")], "completion": [assistant("a")]},
    ),
}


@pytest.mark.parametrize("name", SFT)
def test_each_sft_layout_gives_trl_columns(name):
    row, expected = SFT[name]
    assert normalised(row, "sft")[1].rows == [expected]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q"}, "q"),
        ({"messages": [user("q"), assistant("a")]}, [user("q")]),
        (
            {"messages": [user("q"), assistant("a"), user("r")]},
            [user("q"), assistant("a"), user("r")],
        ),
        ({"prompt": "q", "completion": "a"}, "q"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:"}, [user("q")]),
    ],
)
def test_prompts_come_from_any_layout(row, prompt):
    assert normalised(row, "prompt")[1].rows == [{"prompt": prompt}]


def test_a_transcript_is_cut_at_a_turn_even_where_both_answers_begin_alike():
    row = {"chosen": TRANSCRIPT + "Sure. Yes", "rejected": TRANSCRIPT + "Sure. No"}
    pair = normalised(row, "preference")[1].rows[0]
    assert pair["chosen"] == [assistant("Sure. Yes")]
    assert pair["rejected"] == [assistant("Sure. No")]


def test_answers_to_different_conversations_have_no_shared_prompt():
    other = "\n\nHuman: hi\n\nAssistant: no!\n\nHuman: go\n\nAssistant: "
    result = normalised({"chosen": TRANSCRIPT + "a", "rejected": other + "b"}, "preference")[1]
    assert result.rows == []
    assert result.dropped == {"diverging_prompt": 1}
    chats = {"chosen": [user("q"), assistant("a")], "rejected": [user("r"), assistant("b")]}
    assert normalised(chats, "preference")[1].dropped == {"diverging_prompt": 1}


def test_a_continued_conversation_is_no_answer_to_its_beginning():
    longer = [user("q"), assistant("a"), user("more"), assistant("b")]
    row = {"chosen": [user("q"), assistant("a")], "rejected": longer}
    assert normalised(row, "preference")[1].dropped == {"diverging_prompt": 1}


def test_neighbouring_turns_of_one_speaker_become_one_turn():
    start = "\n\nHuman: a\n\nHuman: b\n\nAssistant: "
    result = normalised({"chosen": start + "x", "rejected": start + "y"}, "preference")[1]
    assert result.rows[0]["prompt"] == [user("a\n\nb")]
    assert result.counted == {"merged_turns": 1}


def test_a_shared_assistant_turn_stays_with_the_answers():
    start = "\n\nHuman: q\n\nAssistant: one\n\nAssistant: "
    pair = normalised({"chosen": start + "x", "rejected": start + "y"}, "preference")[1].rows[0]
    assert pair["prompt"] == [user("q")]
    assert pair["chosen"] == [assistant("one\n\nx")]


def test_a_shared_first_message_of_an_answer_stays_with_the_answers():
    shared = [user("q"), assistant("one")]
    row = {"chosen": [*shared, assistant("x")], "rejected": [*shared, assistant("y")]}
    pair = normalised(row, "preference")[1].rows[0]
    assert pair["prompt"] == [user("q")]
    assert pair["rejected"] == [assistant("one"), assistant("y")]


def test_shared_system_and_tool_turns_belong_to_the_prompt():
    shared = [system("s"), user("q"), assistant("call"), {"role": "tool", "content": "42"}]
    row = {"chosen": [*shared, assistant("a")], "rejected": [*shared, assistant("b")]}
    assert normalised(row, "preference")[1].rows[0]["prompt"] == shared


def test_a_prompt_column_that_contradicts_the_conversations_is_counted():
    row = PAIRS["full_conversations"][0] | {"prompt": "something else"}
    result = normalised(row, "preference")[1]
    assert result.rows == [CHAT]
    assert result.counted == {"prompt_differs_from_conversation": 1}


def test_alpaca_eval_preferences_run_from_one_to_two():
    def row(value):
        return {"instruction": "q", "output_1": "a", "output_2": "b", "preference": value}

    strong = normalised(row(1.1), "preference")[1].rows[0]
    assert strong["chosen"] == [assistant("a")]
    assert strong["probability"] == pytest.approx(0.9)
    assert normalised(row(2), "preference")[1].rows[0]["chosen"] == [assistant("b")]
    assert normalised(row("1.75"), "preference")[1].rows[0]["chosen"] == [assistant("b")]
    assert normalised(row(1.5), "preference")[1].dropped == {"tie": 1}
    for missing in (None, float("nan"), ""):
        assert normalised(row(missing), "preference")[1].dropped == {"missing_preference": 1}
    for wrong in (0.5, 2.1, "a", True):
        with pytest.raises(InvalidRow, match="number from 1 to 2"):
            normalised(row(wrong), "preference")


def test_a_ranking_gives_every_strict_pair_and_counts_its_ties():
    row = {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}
    result = normalised(row, "preference")[1]
    assert {(pair["chosen"], pair["rejected"]) for pair in result.rows} == {("b", "a"), ("b", "c")}
    assert result.counted == {"tied_rank_pairs": 1}
    assert normalised(row | {"ranks": [1, 1, 1]}, "preference")[1].dropped == {"tie": 1}
    with pytest.raises(InvalidRow, match="2 ranks for 3 completions"):
        normalised(row | {"ranks": [1, 2]}, "preference")


def test_identical_answers_carry_no_preference():
    result = normalised({"prompt": "q", "chosen": "a", "rejected": "a"}, "preference")[1]
    assert result.rows == []
    assert result.dropped == {"identical_pair": 1}


@pytest.mark.parametrize(
    ("change", "reason", "column"),
    [
        ({"chosen": ""}, "empty", "chosen"),
        ({"chosen": " \n"}, "empty", "chosen"),
        ({"rejected": None}, "missing", "rejected"),
        ({"prompt": 7}, "not_text", "prompt"),
        ({"prompt": "a\ud800"}, "bad_unicode", "prompt"),
        ({"chosen": []}, "empty", "chosen"),
        ({"chosen": [{"role": "assistant", "content": None}]}, "missing", "chosen"),
        ({"chosen": [{"role": "judge", "content": "x"}]}, "bad_messages", "chosen"),
        ({"chosen": ["x"]}, "bad_messages", "chosen"),
        ({"prompt": [{"content": "x"}]}, "bad_messages", "prompt"),
        ({"chosen": [assistant("x"), user("y")]}, "bad_messages", "chosen"),
    ],
)
def test_a_faulty_value_is_named_by_reason_and_column(change, reason, column):
    with pytest.raises(InvalidRow) as caught:
        normalise_row(
            {"prompt": "q", "chosen": "a", "rejected": "b"} | change, "explicit", "preference"
        )
    assert (caught.value.reason, caught.value.column) == (reason, column)


@pytest.mark.parametrize(
    "chosen", ["no marker at all", "\n\nHuman: q\n\nAssistant: a\n\nHuman: b", TRANSCRIPT]
)
def test_a_transcript_must_open_with_a_turn_and_end_with_an_answer(chosen):
    row = {"chosen": chosen, "rejected": TRANSCRIPT + "b"}
    with pytest.raises(InvalidRow) as caught:
        normalise_row(row, "transcripts", "preference")
    assert caught.value.column == "chosen"


def test_plain_pairs_without_a_prompt_are_refused_and_not_cut_by_characters():
    rows = [{"chosen": "the sky is blue", "rejected": "the sky is green"}]
    with pytest.raises(InputError, match=r"without a prompt column.*--prompt_column"):
        detect_layout(rows[0].keys(), rows, "preference")


def test_unknown_columns_are_named_with_the_way_to_map_them():
    with pytest.raises(InputError, match=r"'preference'.*a, b; needed: chosen.*--chosen_column"):
        detect_layout(["b", "a"], [{"a": "x", "b": "y"}], "preference")
    with pytest.raises(InputError, match=r"'sft'.*--completion_column or --messages_column"):
        detect_layout(["a"], [{"a": "x"}], "sft")


def test_a_layout_that_cannot_serve_the_task_is_passed_over():
    row = {"text": "x", "prompt": "q"}
    assert detect_layout(row.keys(), [row], "sft") == "text"
    assert detect_layout(row.keys(), [row], "prompt") == "prompt_only"
