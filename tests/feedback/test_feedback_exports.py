"""Exports: every vote lands where its options say, with prompts, hashes and people kept apart."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from feedback_world import LEAD, pairs

from hf_align.feedback import (
    Answer,
    Counts,
    DirectoryBackup,
    ExportOptions,
    Gold,
    Item,
    Output,
    Refused,
    export_rows,
    split_of,
    visible_text,
    write_export,
)
from hf_align.feedback.texts import spreadsheet_cell
from hf_align.types import InputError


def exported(collection, kind="preference", **options):
    counts = Counts()
    rows = list(export_rows(collection.store, "p", kind, ExportOptions(**options), counts))
    assert counts.rows == len(rows)
    return rows, counts


@pytest.fixture
def voted(make_collection):
    """30 pairs, three votes each by chance, and what each vote said in favour of output one."""
    collection = make_collection(pairs(30), overlap=3)
    rng, said = np.random.default_rng(0), {}
    for name in "xyz":
        person = collection.sign_in("p", f"local:{name}")
        while True:
            try:
                task = collection.next("p", person)
            except Refused:
                break
            choice = str(rng.choice(["left", "slightly_left", "tie", "right", "both_bad"]))
            strength = {"left": 2, "slightly_left": 1, "right": -2}.get(choice, 0)
            one_left = task.completions[0].startswith("one")
            said.setdefault(task.prompt, []).append(strength if one_left else -strength)
            collection.submit(person, task.token, Answer(choice=choice))
    return collection, said


def test_an_output_without_a_word_trains_nothing_and_is_counted(make_collection):
    empty = Item("says nothing", (Output("   ", "m"), Output("words", "n")))
    several = Item("one of three", tuple(Output(text, "m") for text in ("", "one", "two")))
    collection = make_collection([*pairs(1), empty, several], overlap=1)
    person = collection.sign_in("p", "local:a")
    for _ in range(3):
        task = collection.next("p", person)
        ranking = len(task.completions) == 3
        answer = Answer(ranks=[1, 2, 3]) if ranking else Answer(choice="left")
        collection.submit(person, task.token, answer)
    for kind in ("preference", "ranking"):
        rows, counts = exported(collection, kind, ties="both")
        assert all(row["prompt"] not in ("says nothing", "one of three") for row in rows)
        assert counts.dropped["empty output"] == 1, kind
    rows, _ = exported(collection, "unpaired", labels="choices")
    assert all(row["completion"].strip() for row in rows)
    assert len(exported(collection, "battle")[0]) == 2  # who won is known all the same


def test_battles_say_who_stood_left_and_who_won(voted):
    collection, said = voted
    rows, _ = exported(collection, "battle")
    assert len(rows) == sum(map(len, said.values()))
    found = {}
    for row in rows:
        for_left = {"model_a": 1, "model_b": -1}.get(row["winner"], 0) * row["strength"]
        one_left = row["output_a"].startswith("one")
        found.setdefault(row["prompt"], []).append(for_left if one_left else -for_left)
        assert row["output_a"] != row["output_b"]
    assert {p: sorted(v) for p, v in found.items()} == {p: sorted(v) for p, v in said.items()}
    assert {"model_a", "model_b", "tie", "tie (bothbad)"} == {row["winner"] for row in rows}
    lefts = sum(row["output_a"].startswith("one") for row in rows)
    assert 0 < lefts < len(rows)


def test_majority_single_and_soft_follow_from_the_votes(voted):
    collection, said = voted
    for votes in ("majority", "soft"):
        rows, counts = exported(collection, votes=votes)
        share = {p: np.mean([(s > 0) + 0.5 * (s == 0) for s in votes]) for p, votes in said.items()}
        expected = {
            p: "one" if value > 0.5 else "two" for p, value in share.items() if value != 0.5
        }
        assert {row["prompt"]: row["chosen"].split()[0] for row in rows} == expected
        assert counts.dropped["tie"] == sum(value == 0.5 for value in share.values())
        for row in rows:
            best = max(share[row["prompt"]], 1 - share[row["prompt"]])
            assert row["agreement"] == pytest.approx(best) and row["n_votes"] == 3
            assert row.get("p_chosen", best) == pytest.approx(best)
            assert (
                row["chosen_model"]
                == {"one": "model-a", "two": "model-b"}[row["chosen"].split()[0]]
            )
    rows, counts = exported(collection, votes="single")
    told = Counter((row["prompt"], row["chosen"].split()[0], row["strength"]) for row in rows)
    assert told == Counter(
        (prompt, "one" if s > 0 else "two", abs(s)) for prompt, v in said.items() for s in v if s
    )
    assert all("margin" not in row for row in rows)


def test_ties_both_ways_and_row_counts_add_up(voted):
    collection, said = voted
    dropped, counts = exported(collection, votes="single")
    both, _ = exported(collection, votes="single", ties="both")
    ties = sum(s == 0 for v in said.values() for s in v)
    assert counts.dropped["tie"] == ties and counts.items == 30
    assert len(dropped) + ties == 90 and len(both) == 90 + ties


def test_skips_gold_repeats_and_adjudication_are_by_option(make_collection, annotate):
    items = [*pairs(3), *pairs(3, start=50, gold=Gold("a"))]
    collection = make_collection(items, overlap=2, gold_rate=0.5, gold_min=50)
    ann = collection.sign_in("p", "local:ann")
    skipped = collection.next("p", ann)
    while collection.history("p", ann) == [] or skipped.prompt.startswith("prompt 5"):
        collection.skip(ann, skipped.token, "other")
        break
    annotate(collection, "local:ann")
    annotate(collection, "local:bob")
    plain, counts = exported(collection, votes="single")
    assert counts.dropped["skip"] + counts.dropped["gold"] > 0
    assert not any(row["prompt"].startswith("prompt 5") for row in plain)
    everything, _ = exported(
        collection, votes="single", include_gold=True, skips="tie", ties="both"
    )
    assert len(everything) > len(plain)
    item = plain[0]["item_id"]
    collection.lead.adjudicate(LEAD, "p", item, -2)
    settled = {row["item_id"]: row for row in exported(collection)[0]}[item]
    assert settled["adjudicated"] and settled["chosen"].startswith("two")
    ignored = {row["item_id"] for row in exported(collection, adjudicated=False)[0]}
    assert item not in ignored or ignored
    collection.lead.adjudicate(LEAD, "p", item, None)
    assert not any(row["adjudicated"] for row in exported(collection)[0])


def test_rankings_are_in_the_order_of_the_outputs(make_collection, annotate):
    outputs = tuple(Output(f"text {i}") for i in range(4))
    collection = make_collection([Item("q", outputs)], overlap=2)
    places = {"text 0": 2, "text 1": 1, "text 2": 2, "text 3": 4}
    annotate(collection, "local:a", lambda t: Answer(ranks=[places[c] for c in t.completions]))
    reverse = {"text 0": 1, "text 1": 2, "text 2": 3, "text 3": 4}
    annotate(collection, "local:b", lambda t: Answer(ranks=[reverse[c] for c in t.completions]))
    single, _ = exported(collection, "ranking", votes="single")
    assert sorted(row["ranks"] for row in single) == [[1, 2, 3, 4], [2, 1, 2, 3]]
    pooled, _ = exported(collection, "ranking")
    assert pooled[0]["completions"] == [output.completion for output in outputs]
    assert pooled[0]["ranks"] == [1, 1, 2, 3]  # mean ranks 1.5, 1.5, 2.5, 3.5


def test_ratings_and_flags_become_labels(make_collection, annotate):
    collection = make_collection(pairs(1), overlap=1, rate_outputs=True)
    flag = collection.briefing("p").project.flags[0]

    def choose(task):
        one_left = task.completions[0].startswith("one")
        ratings, flags = ([6, 7], [[], [flag]]) if one_left else ([7, 6], [[flag], []])
        return Answer(choice="both_bad", ratings=ratings, flags=flags)

    annotate(collection, "local:a", choose)
    done = collection.history("p", collection.sign_in("p", "local:a"))[0]
    assert dict(zip(done.completions, done.said["ratings"], strict=True)) == {
        **{"one 0": 6, "two 0": 7}
    }
    rows, _ = exported(collection, "unpaired")
    assert {row["completion"]: row["label"] for row in rows} == {"one 0": True, "two 0": False}
    rows, _ = exported(collection, "unpaired", labels="choices")
    assert {row["label"] for row in rows} == {False}


def test_demonstrations_and_conversations_have_trls_form(make_collection, annotate):
    prompt = [{"role": "user", "content": "hi"}]
    items = [Item(prompt), Item("plain"), Item(prompt, (Output("x"), Output("y")))]
    collection = make_collection(items, overlap=1)
    annotate(
        collection,
        "local:a",
        lambda t: Answer(choice="left") if t.kind == "pair" else Answer(text="hello"),
    )
    rows, _ = exported(collection, "demonstration")
    assert sorted(str(row["completion"]) for row in rows) == [
        *("[{'role': 'assistant', 'content': 'hello'}]", "hello")
    ]
    pair = exported(collection)[0][0]
    assert pair["prompt"] == prompt and pair["chosen"][0]["role"] == "assistant"


@pytest.mark.parametrize("file_format", ["jsonl", "parquet", "csv"])
def test_files_split_by_prompt_and_say_what_they_hold(voted, disk, file_format):
    collection, _ = voted
    folder = disk / "export"
    options = ExportOptions(votes="single")
    manifest = write_export(
        *(collection.store, "p", folder, "preference", options),
        file_format=file_format,
        test_share=0.3,
    )
    rows = read(folder / f"train.{file_format}"), read(folder / f"test.{file_format}")
    assert [len(part) for part in rows] == [manifest["rows"][name] for name in ("train", "test")]
    train, test = ({row["prompt"] for row in part} for part in rows)
    assert train and test and not train & test
    assert all(split_of(prompt, 0.3) == "test" for prompt in test)
    assert manifest["dropped"]["tie"] > 0
    with pytest.raises(InputError, match="exists"):
        write_export(collection.store, "p", folder, "preference")
    for bad in ({"file_format": "xls"}, {"test_share": 1.0}):
        with pytest.raises(InputError):
            write_export(collection.store, "p", disk / "no", "preference", **bad)
    assert not (disk / "no").exists()


def read(path):
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


def test_our_loader_reads_the_exports(voted, disk):
    from hf_align.data import load_data

    collection, _ = voted
    write_export(collection.store, "p", disk / "prefs", "preference", test_share=0.3)
    loaded = load_data(str(disk / "prefs"), task="preference")
    assert {"prompt", "chosen", "rejected"} <= set(loaded.splits["train"].column_names)


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_runs_no_formula(text):
    assert spreadsheet_cell(text) == "'" + text
    assert spreadsheet_cell(-1.5) == "-1.5" and spreadsheet_cell("a=b") == "a=b"


def test_formulas_in_prompts_and_outputs_are_inert_in_csv(make_collection, annotate, disk):
    collection = make_collection([Item("=A1", (Output("@x"), Output("+y")))], overlap=1)
    annotate(collection, "local:a")
    write_export(
        *(collection.store, "p", disk / "csv", "preference"), file_format="csv", test_share=0
    )
    row = read(disk / "csv" / "train.csv")[0]
    assert row["prompt"] == "'=A1" and {row["chosen"], row["rejected"]} == {"'@x", "'+y"}


def test_hidden_characters_are_spelled_out():
    shown = visible_text("safe\u202egnp.exe\u2066\u200b\x07 שלום\ttab\n")
    assert shown == "safe⟦U+202E⟧gnp.exe⟦U+2066⟧⟦U+200B⟧⟦U+0007⟧ שלום\ttab\n"


def test_joiners_stay_where_scripts_and_emoji_need_them_and_hide_nowhere_else():
    family, persian, hindi = "👩\u200d👧", "می\u200cروم", "क्\u200dष"
    coloured = "❤\ufe0f\u200d🔥"
    for text in (family, persian, hindi, coloured):
        assert visible_text(text) == text
    for text in ("pass\u200dword", "\u200d👩", "👩\u200d", "می\u200b\u200cروم"):
        assert "⟦U+200" in visible_text(text)


def test_raw_events_are_complete_and_nameless(voted):
    collection, _ = voted
    rows, _ = exported(collection, "raw")
    assert Counter(row["type"] for row in rows) == {
        **{"project": 1, "guidelines": 1, "item": 30, "answer": 90}
    }
    assert "local:" not in json.dumps(rows)


def test_erasure_removes_a_person_everywhere(make_collection, annotate, disk):
    backup = disk / "backup"
    collection = make_collection(pairs(6), backup=backup, level="safe", overlap=2)
    note = "my home address is 7 Rose Lane"
    ann, *_ = annotate(collection, "local:ann", lambda t: Answer(choice="left", notes=note))
    messages = [{"role": "user", "content": "I live at Rose Lane"}]
    turn = collection.open_turn("p", ann, messages, [Output("x"), Output("y")])
    collection.submit(ann, turn.token, Answer(choice="left"))
    bob, given, _ = annotate(collection, "local:bob")
    with pytest.raises(Refused):
        collection.erase("local:bob", "p", "local:ann")
    copies = {p: (backup / p).read_bytes() for p in DirectoryBackup(backup).list()}
    erased = collection.erase("local:ann", "p", "local:ann")
    assert erased.events == 8 and erased.segments >= 1
    files = [p for p in disk.rglob("*") if p.is_file()]
    assert len(files) >= 3
    for path in files:
        assert b"Rose Lane" not in path.read_bytes(), path
    assert {row["annotator"] for row in exported(collection, votes="single")[0]} == {bob}
    with collection.store.read() as connection:
        votes = [row[0] for row in connection.execute("SELECT votes FROM items")]
    assert votes == [1] * 6 and len(given) == 6
    # An old copy of the backup that turns up again brings nothing back; new votes are taken.
    annotate(collection, "local:ann", limit=2)
    collection.close()
    DirectoryBackup(backup).upload(copies)
    again = make_collection(path=disk / "fresh" / "collect.db", backup=backup)
    found = Counter(row["annotator"] for row in exported(again, votes="single")[0])
    assert found == {bob: 6, ann: 2}
