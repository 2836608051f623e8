"""`load_data` as a whole: rows accounted for, faults named, splits and mixtures as promised."""

import json

import pytest

from hf_align.data import load_data, write_dataset
from hf_align.types import InputError


def pair(i, chosen="good", rejected="bad"):
    return {"prompt": f"p{i}", "chosen": f"{chosen} {i}", "rejected": f"{rejected} {i}"}


PAIRS = [pair(i) for i in range(40)]


def load(path, task="preference", **options):
    return load_data(str(path), task, **({"test_split_size": 0} | options))


def accounted(report):
    return sum(report.rows_read.values()) == sum(report.rows_kept.values()) + sum(
        report.dropped.values()
    )


def test_the_first_faulty_row_is_named_with_file_row_column_and_remedy(write_jsonl):
    rows = [*PAIRS[:16], pair(16) | {"chosen": ""}, *PAIRS[17:]]
    with pytest.raises(InputError) as caught:
        load(write_jsonl(rows, "prefs.jsonl"))
    assert str(caught.value) == (
        "prefs.jsonl row 17, column 'chosen': empty text; drop such rows with --invalid_rows drop"
    )


def test_a_faulty_row_of_a_later_file_is_counted_within_that_file(write_jsonl, tmp_path):
    write_jsonl(PAIRS[:20], "data/train-00000-of-00002.jsonl")
    write_jsonl([*PAIRS[20:22], {"prompt": "p"}], "data/train-00001-of-00002.jsonl")
    with pytest.raises(InputError, match=r"train-00001-of-00002\.jsonl row 3, column 'chosen'"):
        load(tmp_path / "data")


def test_a_fault_is_named_by_the_users_own_column(write_jsonl):
    rows = [{"ask": "q", "good": "a", "bad": 3}]
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    with pytest.raises(InputError, match="row 1, column 'bad': expected text, got int"):
        load(write_jsonl(rows), columns=columns)


def test_dropped_rows_are_counted_by_reason_and_the_rest_is_kept(write_jsonl):
    faulty = [
        pair(0) | {"chosen": ""},
        pair(0) | {"rejected": None},
        pair(0) | {"prompt": 3},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
    ]
    data = load(write_jsonl([*faulty, *PAIRS]), invalid_rows="drop")
    expected = {"empty": 1, "missing": 1, "not_text": 1, "identical_pair": 1}
    assert data.report.dropped == expected
    assert data.splits["train"].to_list() == PAIRS
    assert accounted(data.report)


def test_identical_pairs_are_dropped_but_not_all_of_them_silently(write_jsonl):
    same = {"prompt": "q", "chosen": "x", "rejected": "x"}
    data = load(write_jsonl([same, *PAIRS]))
    assert data.report.dropped == {"identical_pair": 1}
    with pytest.raises(InputError, match="identical in all 3 pairs of train"):
        load(write_jsonl([same] * 3))


def test_a_dataset_without_any_usable_row_says_what_was_dropped(write_jsonl):
    rows = [pair(0) | {"chosen": ""}, pair(1) | {"prompt": None}]
    with pytest.raises(InputError, match=r"no usable rows in train of 2 read.*empty 1, missing 1"):
        load(write_jsonl(rows), invalid_rows="drop")


def test_repeated_and_contradicting_pairs_are_counted_and_kept(write_jsonl):
    swapped = {"prompt": "p3", "chosen": "bad 3", "rejected": "good 3"}
    elsewhere = {"prompt": "other", "chosen": "bad 4", "rejected": "good 4"}
    data = load(write_jsonl([*PAIRS, PAIRS[0], PAIRS[0], swapped, elsewhere]))
    assert data.report.counted == {"duplicates": 2, "contradictions": 1}
    assert data.report.rows_kept == {"train": 44}


def test_columns_are_mapped_and_a_missing_one_is_named_by_its_option(write_jsonl):
    rows = [{"ask": "q", "good": "a", "bad": "b", "extra": 1}]
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    data = load(write_jsonl(rows), columns=columns)
    assert data.splits["train"].to_list() == [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert "columns not used: extra" in data.report.notes
    with pytest.raises(InputError) as caught:
        load(write_jsonl(rows), columns=columns | {"prompt": "asked"})
    assert str(caught.value) == (
        "--prompt_column asked: no such column in data.jsonl; available: ask, bad, extra, good"
    )
    with pytest.raises(InputError, match="cannot map 'promt'; known columns: prompt"):
        load(write_jsonl(rows), columns={"promt": "ask"})


def test_a_mapping_decides_where_a_dataset_offers_several_layouts(write_jsonl):
    messages = [{"role": "user", "content": "m"}, {"role": "assistant", "content": "n"}]
    rows = [{"messages": messages, "prompt": "q", "gold": "a"}]
    mapped = load(write_jsonl(rows), "sft", columns={"completion": "gold"}).splits["train"]
    assert mapped.to_list() == [{"prompt": "q", "completion": "a"}]
    assert load(write_jsonl(rows), "sft").splits["train"].to_list() == [{"messages": messages}]


def test_a_mapped_prompt_keeps_its_system_message(write_jsonl):
    rows = [{"system": "s", "ask": "q", "chosen": "a", "rejected": "b"}]
    row = load(write_jsonl(rows), columns={"prompt": "ask"}).splits["train"][0]
    assert row["prompt"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
    ]


def test_kept_columns_travel_along(write_jsonl):
    rows = [row | {"margin": float(i), "solution": str(i)} for i, row in enumerate(PAIRS)]
    data = load(write_jsonl(rows), keep_columns=["margin"])
    assert data.splits["train"]["margin"] == [float(i) for i in range(40)]
    assert data.splits["train"].column_names == ["prompt", "chosen", "rejected", "margin"]
    assert load(write_jsonl(rows), "prompt", keep_columns=["solution"]).splits["train"][3] == {
        "prompt": "p3",
        "solution": "3",
    }
    with pytest.raises(InputError, match="keep_columns 'nope': no such column"):
        load(write_jsonl(rows), keep_columns=["nope"])


def test_a_dataset_can_be_wrapped_into_conversations_and_back(write_jsonl):
    wrapped = load(write_jsonl(PAIRS), conversational=True)
    assert wrapped.report.conversational
    assert wrapped.splits["train"][0]["prompt"] == [{"role": "user", "content": "p0"}]
    assert wrapped.splits["train"][0]["chosen"] == [{"role": "assistant", "content": "good 0"}]
    again = write_jsonl(wrapped.splits["train"].to_list(), "wrapped.jsonl")
    assert load(again, conversational=False).splits["train"].to_list() == PAIRS
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    with pytest.raises(InputError, match="cannot become plain text"):
        load(write_jsonl([{"prompt": chat}]), "prompt", conversational=False)


def test_without_a_test_split_prompts_are_held_out(write_jsonl):
    data = load(write_jsonl(PAIRS * 2), test_split_size=0.25)
    sides = {side: set(split["prompt"]) for side, split in data.splits.items()}
    assert not sides["train"] & sides["test"]
    assert sides["train"] | sides["test"] == {row["prompt"] for row in PAIRS}
    assert data.report.prompts == {side: len(prompts) for side, prompts in sides.items()}
    assert data.report.overlap == 0


def test_a_given_test_split_is_used_and_its_overlap_reported(write_jsonl, tmp_path):
    write_jsonl(PAIRS[:30], "data/train.jsonl")
    write_jsonl(PAIRS[25:], "data/validation.jsonl")
    data = load(tmp_path / "data", test_split_size=0.5)
    assert data.report.rows_kept == {"train": 30, "test": 15}
    assert data.report.overlap == 5
    assert data.report.warnings == ["5 prompts of the test split are also in train: not held out"]


def test_a_split_that_does_not_exist_is_named_with_those_that_do(write_jsonl, tmp_path):
    write_jsonl(PAIRS, "data/train.jsonl")
    write_jsonl(PAIRS, "data/test.jsonl")
    with pytest.raises(InputError, match=r"--dataset_train_split trian: .*available: .*train"):
        load(tmp_path / "data", train_split="trian")
    with pytest.raises(InputError, match=r"--dataset_test_split dev: .*available: .*test"):
        load(tmp_path / "data", test_split="dev")


def test_limits_take_rows_by_prompt_and_are_reported(write_jsonl):
    few = load(write_jsonl(PAIRS), max_train_samples=5)
    assert few.report.rows_kept == {"train": 5}
    assert few.report.dropped == {"max_train_samples": 35}
    assert accounted(few.report)
    backwards = load(write_jsonl(PAIRS[::-1], "back.jsonl"), max_train_samples=5)
    assert set(backwards.splits["train"]["prompt"]) == set(few.splits["train"]["prompt"])
    both = load(write_jsonl(PAIRS), max_test_samples=2, test_split_size=0.5)
    assert both.report.rows_kept["test"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"invalid_rows": "skip"}, "--invalid_rows skip: expected 'error' or 'drop'"),
        ({"test_split_size": 1.0}, "--test_split_size 1.0: expected 0 or a fraction below 1"),
        ({"max_train_samples": 0}, "--max_train_samples 0: expected 1 or more"),
        ({"max_test_samples": -1}, "--max_test_samples -1: expected 1 or more"),
        ({"mixture": [{"path": "x"}]}, "not both or neither"),
    ],
)
def test_impossible_options_are_refused_by_name(write_jsonl, options, message):
    with pytest.raises(InputError, match=message):
        load(write_jsonl(PAIRS), **options)


def test_preference_data_for_sft_and_the_task_it_cannot_serve_are_said(write_jsonl):
    data = load(write_jsonl(PAIRS), "sft")
    assert data.splits["train"][0] == {"prompt": "p0", "completion": "good 0"}
    assert any("prompt and the chosen completion" in note for note in data.report.notes)
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(InputError, match=r"data\.jsonl: no layout for the task 'preference'"):
        load(write_jsonl([chat]))


# Mixtures


def mix(parts, **options):
    return load_data(None, "preference", mixture=parts, **({"test_split_size": 0} | options))


def test_a_mixture_concatenates_its_parts_each_in_its_own_layout(write_jsonl):
    plain = write_jsonl(PAIRS, "plain.jsonl")
    asked = write_jsonl([{"question": "q", "chosen": "a", "rejected": "b"}], "asked.jsonl")
    data = mix([{"path": plain, "split": "train[:10%]"}, {"path": asked}])
    assert data.report.layout == "explicit + question_pairs"
    assert data.report.conversational
    assert [row["prompt"][0]["content"] for row in data.splits["train"]] == [
        "p0",
        "p1",
        "p2",
        "p3",
        "q",
    ]
    assert [source.name for source in data.sources] == [plain, asked]


@pytest.mark.parametrize(
    ("fractions", "sizes"),
    # the largest mixture without repeating rows: min(n_i / w_i) rows in all, shares w_i
    [((1, 1), (10, 10)), ((0.75, 0.25), (30, 10)), ((0.2, 0.8), (2, 10)), ((1, 0), (40, 0))],
)
def test_fractions_are_shares_of_the_whole_without_repeating_rows(write_jsonl, fractions, sizes):
    first = write_jsonl(PAIRS, "first.jsonl")
    second = write_jsonl([pair(100 + i) for i in range(10)], "second.jsonl")
    parts = [{"path": p, "fraction": f} for p, f in zip((first, second), fractions, strict=True)]
    data = mix(parts)
    numbers = [int(prompt[1:]) for prompt in data.splits["train"]["prompt"]]
    assert numbers == [*range(sizes[0]), *range(100, 100 + sizes[1])]
    assert accounted(data.report)


def test_a_part_maps_or_selects_its_own_columns(write_jsonl):
    mapped = write_jsonl([{"ask": "q", "good": "a", "bad": "b"}], "mapped.jsonl")
    noisy = write_jsonl([PAIRS[0] | {"system": "s"}], "noisy.jsonl")
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    data = mix(
        [
            {"path": mapped, "columns": columns},
            {"path": noisy, "columns": ["prompt", "chosen", "rejected"]},
        ]
    )
    assert data.splits["train"]["prompt"] == ["q", "p0"]


def test_a_part_may_name_a_folder_and_files(write_jsonl, tmp_path):
    write_jsonl(PAIRS[:5], "root/sub/a.jsonl")
    write_jsonl(PAIRS[5:], "root/sub/b.jsonl")
    parts = [{"path": str(tmp_path / "root"), "data_dir": "sub", "data_files": "a.jsonl"}]
    assert mix(parts).report.rows_kept == {"train": 5}
    with pytest.raises(InputError, match=r"data_files: no such file: .*c\.jsonl"):
        mix([parts[0] | {"data_files": ["c.jsonl"]}])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "the mixture is empty"),
        ([{"name": "x"}], "part 1 has no 'path'"),
        ([{"path": "x", "weight": 1}], "unknown key 'weight'; known keys: path"),
        ([{"path": "x", "fraction": 1}, {"path": "y"}], "every part of the mixture or for none"),
        ([{"path": "x"}, {"path": "y", "fraction": 1}], "every part of the mixture or for none"),
        ([{"path": "x", "fraction": -1}], "fraction -1: expected a share of 0 or more"),
        ([{"path": "x", "fraction": 0}], "all fractions are 0"),
        ([{"path": "x", "columns": 3}], "columns 3: expected a list"),
    ],
)
def test_a_wrong_mixture_is_refused_before_anything_is_read(parts, message):
    with pytest.raises(InputError, match=message):
        mix(parts)


def test_a_part_without_the_split_is_refused(write_jsonl):
    with pytest.raises(InputError, match=r"split test: no such split in .*available: train"):
        mix([{"path": write_jsonl(PAIRS), "split": "test"}])


def test_whole_texts_are_not_mixed_with_prompts_and_completions(write_jsonl):
    parts = [
        {"path": write_jsonl([{"text": "t"}], "t.jsonl")},
        {"path": write_jsonl([{"prompt": "q", "completion": "a"}], "p.jsonl")},
    ]
    with pytest.raises(InputError, match="load them separately"):
        load_data(None, "sft", mixture=parts, test_split_size=0)


# Report


def test_lengths_and_length_bias_are_those_of_hand_counted_pairs(write_jsonl):
    rows = [
        {"prompt": "one two", "chosen": "abcd ef", "rejected": "abc"},
        {"prompt": "one", "chosen": "a", "rejected": "a b"},
        {"prompt": "two", "chosen": "ab", "rejected": "cd"},
        {"prompt": "six", "chosen": "abcdef", "rejected": "x"},
    ]
    report = load(write_jsonl(rows)).report
    assert report.lengths["chosen"]["characters"]["mean"] == (7 + 1 + 2 + 6) / 4
    assert report.lengths["chosen"]["characters"]["median"] == 4
    assert report.lengths["prompt"]["words"]["max"] == 2
    bias = report.length_bias
    assert bias["ties"] == 1
    assert bias["longer_chosen"]["n"] == 3
    assert bias["longer_chosen"]["value"] == pytest.approx(2 / 3)
    assert bias["mean_difference"]["characters"] == (4 - 2 + 0 + 5) / 4
    assert bias["mean_difference"]["words"] == (1 - 1 + 0 + 0) / 4


def test_the_length_bias_interval_knows_that_pairs_of_one_prompt_go_together(write_jsonl):
    # Ten prompts whose eight pairs all agree carry no more than ten pairs would.
    rows = [
        {"prompt": f"p{i}", "chosen": "a" * (3 + 9 * (i % 2)) + str(k), "rejected": "b" * 8}
        for i in range(10)
        for k in range(8)
    ]
    share = load(write_jsonl(rows)).report.length_bias["longer_chosen"]
    assert share["n"] == 10 and share["pairs"] == 80
    assert share["value"] == pytest.approx(0.5)
    assert share["low"] < 0.2 and share["high"] > 0.8


def test_the_report_is_json_and_a_page_that_names_what_happened(write_jsonl):
    report = load(
        write_jsonl([*PAIRS, {"prompt": "q", "chosen": "", "rejected": "b"}]), invalid_rows="drop"
    ).report
    assert json.loads(json.dumps(report.to_dict()))["dropped"] == {"empty": 1}
    page = report.to_markdown()
    for words in ("layout `explicit`", "| train | 41 | 40 | 40 |", "| empty | 1 | empty text |"):
        assert words in page


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
@pytest.mark.parametrize("conversational", [False, True])
def test_what_is_written_reads_back(write_jsonl, tmp_path, file_format, conversational):
    data = load(write_jsonl(PAIRS), test_split_size=0.2, conversational=conversational)
    written = write_dataset(data, tmp_path / "out", file_format)
    assert sorted(path.name for path in written) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    again = load(tmp_path / "out")
    assert {k: v.to_list() for k, v in again.splits.items()} == {
        k: v.to_list() for k, v in data.splits.items()
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows_kept"] == (
        data.report.rows_kept
    )


def test_a_rewritten_folder_holds_one_dataset(write_jsonl, tmp_path):
    write_dataset(load(write_jsonl(PAIRS), test_split_size=0.2), tmp_path / "out")
    write_dataset(load(write_jsonl(PAIRS)), tmp_path / "out")
    assert not (tmp_path / "out" / "test.jsonl").exists()
    assert list(load(tmp_path / "out").splits) == ["train"]
