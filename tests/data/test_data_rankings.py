"""Rankings as a task of their own: rows kept whole, faults named, ties and margins counted."""

import json
import math

import pytest

from hf_align.data import (
    audit_with_tokenizer,
    completions_and_ranks,
    load_data,
    ordered_pairs,
    write_dataset,
)
from hf_align.types import InputError


def ranking(i, ranks=(2, 1, 3)):
    return {
        "prompt": f"p{i}",
        "completions": [f"text {k} of {i}" for k in range(len(ranks))],
        "ranks": list(ranks),
    }


RANKINGS = [ranking(i, (2, 1, 3) if i % 2 else (1, 2)) for i in range(40)]


def load(path, task="ranking", **options):
    return load_data(str(path), task, **({"test_split_size": 0} | options))


def asked(text):
    return [{"role": "user", "content": text}]


def said(text):
    return [{"role": "assistant", "content": text}]


def test_pairs_are_ordered_best_first_and_ties_order_nothing():
    assert ordered_pairs([2, 1, 2, 3]) == [(1, 0), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert ordered_pairs([1, 1]) == []
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert completions_and_ranks(pair) == (["a", "b"], [1, 2])
    assert completions_and_ranks(RANKINGS[1]) == (RANKINGS[1]["completions"], [2, 1, 3])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "folder"])
def test_rankings_are_kept_whole_from_every_kind_of_file(write_jsonl, tmp_path, suffix):
    import pandas

    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        write_jsonl(RANKINGS)
    elif suffix == "parquet":
        pandas.DataFrame(RANKINGS).to_parquet(path)
    elif suffix == "csv":
        cells = {name: [row[name] for row in RANKINGS] for name in RANKINGS[0]}
        cells |= {name: list(map(json.dumps, cells[name])) for name in ("completions", "ranks")}
        pandas.DataFrame(cells).to_csv(path, index=False)
    else:
        write_jsonl(RANKINGS[:30], "data.folder/train.jsonl")
        write_jsonl(RANKINGS[30:], "data.folder/test.jsonl")
    data = load(path)
    assert [row for split in data.splits.values() for row in split.to_list()] == RANKINGS
    assert data.report.layout == "ranked" and data.report.task == "ranking"
    assert data.splits["train"].features["ranks"].feature.dtype == "int64"


def test_held_out_rankings_are_those_of_held_out_prompts(write_jsonl):
    data = load(write_jsonl(RANKINGS * 2), test_split_size=0.25)
    sides = {side: set(split["prompt"]) for side, split in data.splits.items()}
    assert not sides["train"] & sides["test"]
    assert sides["train"] | sides["test"] == {row["prompt"] for row in RANKINGS}
    held_out_pairs = load(write_jsonl(RANKINGS), "preference", test_split_size=0.25).splits["test"]
    assert set(held_out_pairs["prompt"]) == sides["test"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion_a": "b", "completion_b": "a", "p_a": 0.25},
        {"chosen": asked("q") + said("a"), "rejected": asked("q") + said("b")},
    ],
)
def test_a_pair_of_any_layout_is_a_ranking_of_two(write_jsonl, row):
    data = load(write_jsonl([row]))
    conversational = data.report.conversational
    expected = {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 2]}
    if conversational:
        expected |= {"prompt": asked("q"), "completions": [said("a"), said("b")]}
    assert data.splits["train"].to_list() == [expected]
    assert "pairs used as rankings of two completions" in data.report.notes


def test_rankings_win_over_pairs_in_the_same_rows(write_jsonl):
    rows = [RANKINGS[1] | {"chosen": "c", "rejected": "r"}]
    assert load(write_jsonl(rows)).splits["train"].to_list() == [RANKINGS[1]]
    assert load(write_jsonl(rows), "preference").splits["train"]["chosen"] == ["c"]


def test_conversations_and_text_in_one_ranking_become_conversations(write_jsonl):
    rows = [{"prompt": "q", "completions": ["a", said("b")], "ranks": [1, 2]}, RANKINGS[0]]
    train = load(write_jsonl(rows)).splits["train"]
    assert train[0] == {
        "prompt": asked("q"),
        "completions": [said("a"), said("b")],
        "ranks": [1, 2],
    }
    assert train[1]["completions"][0] == said("text 0 of 0")


def test_rankings_are_wrapped_and_unwrapped_like_other_rows(write_jsonl):
    wrapped = load(write_jsonl(RANKINGS), conversational=True)
    assert wrapped.splits["train"][1]["completions"][2] == said("text 2 of 1")
    again = write_jsonl(wrapped.splits["train"].to_list(), "wrapped.jsonl")
    assert load(again, conversational=False).splits["train"].to_list() == RANKINGS
    turns = [*said("a"), {"role": "tool", "content": "t"}, *said("b")]
    rows = [{"prompt": "q", "completions": [turns, "a"], "ranks": [1, 2]}]
    with pytest.raises(InputError, match="completion of several turns"):
        load(write_jsonl(rows), conversational=False)


FAULTS = [
    ({"ranks": [1, 2]}, "column 'ranks': 2 ranks for 3 completions"),
    ({"completions": ["a"], "ranks": [1]}, "column 'ranks': 1 ranks for 1 completions"),
    ({"completions": [], "ranks": []}, "column 'ranks': 0 ranks for 0 completions"),
    ({"ranks": [1, 2, 2.5]}, "column 'ranks': expected whole numbers, 1 for the best, got 2.5"),
    ({"ranks": [0, 1, 2]}, "column 'ranks': expected whole numbers, 1 for the best, got 0"),
    ({"ranks": [1, -1, 2]}, "column 'ranks': expected whole numbers, 1 for the best, got -1"),
    ({"ranks": [1, 2, None]}, "column 'ranks': expected whole numbers, 1 for the best, got None"),
    ({"ranks": [1, 2, True]}, "column 'ranks': expected whole numbers, 1 for the best, got True"),
    ({"ranks": [1, 2, math.nan]}, "got nan"),
    ({"ranks": None}, "column 'ranks': no value"),
    ({"ranks": 3}, "column 'ranks': expected a list, got int"),
    ({"ranks": "1, 2"}, "column 'ranks': expected a JSON list"),
    ({"completions": ["a", " ", "c"]}, "column 'completions': completion 2: empty text"),
    ({"completions": ["a", "b", None]}, "column 'completions': completion 3: no value"),
    ({"completions": ["a", "b", asked("c")]}, "column 'completions': completion 3: a completion s"),
    ({"completions": None}, "column 'completions': no value"),
    ({"prompt": ""}, "column 'prompt': empty text"),
]


@pytest.mark.parametrize(("change", "words"), FAULTS)
@pytest.mark.parametrize("task", ["ranking", "preference"])
def test_a_faulty_ranking_is_named_by_file_row_and_column(write_jsonl, change, words, task):
    path = write_jsonl([*RANKINGS[:4], ranking(4) | change, *RANKINGS[5:]], "ranks.jsonl")
    with pytest.raises(InputError) as caught:
        load(path, task)
    message = str(caught.value)
    assert message.startswith(f"ranks.jsonl row 5, {words[:20]}") or "got nan" in words
    assert words in message and "\n" not in message
    kept = load(path, task, invalid_rows="drop")
    assert "p4" not in kept.splits["train"]["prompt"]
    assert sum(kept.report.dropped.values()) == 1


def test_a_fault_is_named_by_the_users_own_column(write_jsonl):
    rows = [{"ask": "q", "texts": ["a", "b"], "order": [2, 1]}]
    columns = {"prompt": "ask", "completions": "texts", "ranks": "order"}
    expected = [{"prompt": "q", "completions": ["a", "b"], "ranks": [2, 1]}]
    assert load(write_jsonl(rows), columns=columns).splits["train"].to_list() == expected
    rows[0]["order"] = [2]
    with pytest.raises(InputError, match="row 1, column 'order': 1 ranks for 2"):
        load(write_jsonl(rows), columns=columns)


def test_what_orders_nothing_is_dropped_and_counted(write_jsonl):
    same = ranking(1) | {"completions": ["a", "a", "a"]}
    data = load(write_jsonl([ranking(0, (1, 1, 1)), same, ranking(2, (1, 2, 2)), *RANKINGS[3:]]))
    assert data.report.dropped == {"tie": 1, "identical_pair": 1}
    assert data.report.counted == {"tied_rank_pairs": 1}
    assert data.report.rows_read["train"] == data.report.rows_kept["train"] + 2
    with pytest.raises(InputError, match=r"no usable rows in train of 2 read; dropped: tie 2"):
        load(write_jsonl([ranking(0, (1, 1)), ranking(1, (3, 3, 3))]))


def test_rows_without_a_preference_are_no_rankings(write_jsonl):
    path = write_jsonl([{"prompt": "q", "completion": "a"}])
    with pytest.raises(InputError, match=r"'ranking'.*completions and ranks, or chosen.*--ranks_c"):
        load(path)
    path = write_jsonl([{"chosen": "the sky is blue", "rejected": "the sky is green"}])
    with pytest.raises(InputError, match="without a prompt column"):
        load(path)


def test_the_length_bias_of_rankings_is_that_of_their_pairs(write_jsonl):
    rows = [
        {"prompt": "one", "completions": ["abc", "a", "ab"], "ranks": [1, 2, 2]},  # +2, +1
        {"prompt": "two", "completions": ["abcd", "b"], "ranks": [2, 1]},  # -3
        {"prompt": "six", "completions": ["ab", "cd"], "ranks": [2, 1]},  # as long
    ]
    report = load(write_jsonl(rows)).report
    assert report.length_bias["longer_chosen"]["pairs"] == 3
    assert report.length_bias["longer_chosen"]["n"] == 2
    assert report.length_bias["ties"] == 1
    assert report.length_bias["mean_difference"]["characters"] == (2 + 1 - 3 + 0) / 4
    assert report.length_bias == load(write_jsonl(rows), "preference").report.length_bias
    assert report.lengths["completions"]["characters"]["mean"] == (3 + 1 + 2 + 4 + 1 + 2 + 2) / 7


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("conversational", [False, True])
def test_written_rankings_read_back(write_jsonl, tmp_path, file_format, conversational):
    data = load(write_jsonl(RANKINGS), test_split_size=0.2, conversational=conversational)
    write_dataset(data, tmp_path / "out", file_format)
    again = load(tmp_path / "out")
    for side, split in data.splits.items():
        assert again.splits[side].to_list() == split.to_list()


@pytest.mark.parametrize("conversational", [False, True])
def test_the_audit_counts_the_longest_completion_of_a_ranking(
    write_jsonl, tokenizer, conversational
):
    rows = [
        {"prompt": "w1 w2", "completions": [" w1", " w1 w2 w3 w4"], "ranks": [1, 2]},
        {"prompt": "w3 w4", "completions": [" w1", " w1 w2", " w3"], "ranks": [3, 2, 1]},
    ]
    data = load(write_jsonl(rows), conversational=conversational)
    # Plain: 2 + 4 + EOS and 2 + 2 + EOS; in the template two role markers and an EOS more.
    more = 3 if conversational else 0
    audit = audit_with_tokenizer(data.splits, tokenizer, 5 + more, "ranking")
    figures = audit["splits"]["train"]
    assert (figures["truncated"], figures["prompt_too_long"], figures["unrenderable"]) == (1, 0, 0)
    assert figures["sequence_tokens"]["max"] == 7 + more
    assert figures["unknown_tokens"] == 0
    assert list(audit["examples"][0]) == ["prompt", "completion 1", "completion 2"]


# Margins


def margins(*values):
    return [
        {"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "margin": value}
        for i, value in enumerate(values)
    ]


def test_a_margin_goes_along_where_it_is_asked_for(write_jsonl):
    path = write_jsonl(margins(0.5, 2, -1.0))
    assert load(path, "preference").splits["train"].column_names == ["prompt", "chosen", "rejected"]
    assert load(path, "preference", keep_columns=["margin"]).splits["train"]["margin"] == [
        *(0.5, 2.0, -1.0)
    ]
    named = [{**row, "gap": row.pop("margin")} for row in margins("0.25", 1)]
    data = load(
        write_jsonl(named), "preference", columns={"margin": "gap"}, keep_columns=["margin"]
    )
    assert data.splits["train"]["margin"] == [0.25, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "much", True])
def test_a_margin_that_is_no_finite_number_is_named_by_its_row(write_jsonl, value):
    path = write_jsonl(margins(1.0, 2.0, value), "margins.jsonl")
    with pytest.raises(
        InputError, match=r"^margins\.jsonl row 3, column 'margin': .*(finite|null)"
    ):
        load(path, "preference", keep_columns=["margin"])
    kept = load(path, "preference", keep_columns=["margin"], invalid_rows="drop")
    assert kept.splits["train"]["margin"] == [1.0, 2.0]
