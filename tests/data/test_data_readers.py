"""Local files and folders: the same rows from every format, and damage named by file and line."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import pytest

from hf_align.data import load_data
from hf_align.types import InputError

ROWS = [
    {"prompt": f"p{i}, say", "chosen": f'yes "{i}"\nökay', "rejected": f"no {i}"} for i in range(30)
]


def load(path, task="preference", **options):
    return load_data(str(path), task, test_split_size=0, **options)


def rows_of(path, task="preference"):
    return load(path, task).splits["train"].to_list()


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, path):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path.read_bytes()


def make(tmp_path, form):
    path = tmp_path / f"rows{form}"
    table = datasets.Dataset.from_list(ROWS)
    if form == ".parquet":
        table.to_parquet(path)
    elif form == "/disk":
        path = tmp_path / "disk"
        table.save_to_disk(path)
    elif form == "/shards":
        path = tmp_path / "shards"
        path.mkdir()
        for i in range(3):
            (path / f"train-0000{i}-of-00003.jsonl").write_bytes(jsonl(ROWS[i * 10 : i * 10 + 10]))
    elif form in ("/hub snapshot", "/run directory"):
        path = tmp_path / "snapshot"
        (path / "data").mkdir(parents=True)
        (path / "README.md").write_text("card")
        if form == "/run directory":
            (path / "run.json").write_text('{"recipe": "filter"}')
        table.to_parquet(path / "data" / "train-00000-of-00001.parquet")
    else:
        data = {".jsonl": jsonl(ROWS), ".json": json.dumps(ROWS).encode()}
        plain = form.removesuffix(".gz")
        content = data[plain] if plain in data else as_csv(ROWS, tmp_path / "plain.csv")
        path.write_bytes(gzip.compress(content) if form.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "form",
    [
        *(".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet"),
        *("/disk", "/shards", "/hub snapshot", "/run directory"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, form):
    assert rows_of(make(tmp_path, form)) == ROWS


def test_conversations_survive_json_parquet_csv_and_disk(tmp_path):
    pair = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    rows = [pair, pair | {"prompt": [{"role": "user", "content": "r"}]}]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
    as_csv([{k: json.dumps(v) for k, v in row.items()} for row in rows], tmp_path / "rows.csv")
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "disk")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet", "disk"):
        assert rows_of(tmp_path / name) == rows, name


def test_jsonl_may_mix_text_and_messages(tmp_path):
    path = tmp_path / "mixed.jsonl"
    messages = [{"role": "user", "content": "q"}]
    path.write_bytes(jsonl([{"prompt": "p"}, {"prompt": messages}]))
    data = load(path, "prompt")
    assert data.splits["train"].to_list() == [
        {"prompt": [{"role": "user", "content": "p"}]},
        {"prompt": messages},
    ]
    assert data.report.counted == {"wrapped_rows": 1}


def test_json_may_wrap_its_rows_or_be_json_lines(tmp_path):
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "lines.json").write_bytes(jsonl(ROWS))
    assert rows_of(tmp_path / "wrapped.json") == rows_of(tmp_path / "lines.json") == ROWS
    one = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "one.json").write_text(json.dumps(one))
    assert rows_of(tmp_path / "one.json", "sft") == [one]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    for name, content in (("a.jsonl", jsonl(ROWS)), ("a.csv", as_csv(ROWS, tmp_path / "x.csv"))):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert rows_of(tmp_path / name) == ROWS


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    long = [{"prompt": "p", "chosen": "c" * 200_000, "rejected": "r"}]
    as_csv(long, tmp_path / "long.csv")
    limit = csv.field_size_limit()
    assert rows_of(tmp_path / "long.csv") == long
    assert csv.field_size_limit() == limit


GOOD = jsonl(ROWS[:2])
CSV = b"prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty \(0 bytes\)"),
        ("a.jsonl", b"\n\n", r"a\.jsonl is empty: it holds no rows"),
        ("a.jsonl.gz", gzip.compress(b""), r"a\.jsonl\.gz is empty: it holds no rows"),
        ("a.csv", CSV, r"a\.csv is empty: it holds no rows"),
        ("a.json", b"[]", r"a\.json is empty: it holds no rows"),
        ("a.jsonl", GOOD + b'{"prompt": \n', r"a\.jsonl line 3: invalid JSON"),
        ("a.jsonl", GOOD + b"[1]\n", r"a\.jsonl line 3: expected an object.*got list"),
        ("a.jsonl", GOOD + b'{"a": "\xe9"}\n', r"a\.jsonl line 3 is not UTF-8 \(byte 0xe9 at 7"),
        ("a.json", b'[{"a": "\xe9"}]', r"a\.json is not UTF-8 \(byte 0xe9"),
        ("a.json", b"[1]", r"a\.json row 1: expected an object.*got int"),
        ("a.json", b'[{"a": 1}', r"a\.json: invalid JSON"),
        ("a.csv", CSV + b"a,\xe9,c\n", r"a\.csv is not UTF-8 \(byte 0xe9"),
        ("a.csv", CSV + b"a,b\n", r"a\.csv line 2: fewer cells than the header"),
        ("a.csv", CSV + b"a,b,c,d\n", r"a\.csv line 2: more cells than the header"),
        ("a.csv", CSV + b'a,"b" x,c\n', r"a\.csv line 2: invalid CSV"),
        ("a.csv", CSV + b"[{'role': 1}],b,c\n", r"a\.csv line 2, column 'prompt'.*not JSON"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99)[:-20], r"a\.jsonl\.gz is a truncated"),
        ("a.csv.gz", gzip.compress(GOOD)[:-20], r"a\.csv\.gz is a truncated or damaged gzip"),
        ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz is not a gzip file"),
        ("a.parquet", b"PAR1nothing herePAR1", r"a\.parquet is not a readable Parquet file"),
        ("a.txt", b"x", r"a\.txt: unknown file type; supported: \.jsonl"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_folders_give_their_splits_by_name(tmp_path):
    for name in ("train_prefs-00000-of-00001.jsonl", "test_prefs.jsonl", "train_gen.jsonl"):
        (tmp_path / name).write_bytes(jsonl(ROWS[:20] if "train" in name else ROWS[20:]))
    (tmp_path / "extra.jsonl").write_bytes(jsonl(ROWS))
    data = load(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "test": 10}
    notes = " ".join(data.report.notes)
    assert "train = 'train_prefs', test = 'test_prefs'" in notes
    assert "splits not used: train_gen" in notes
    assert "not read: extra.jsonl" in notes


def test_folders_may_have_a_subfolder_per_split(tmp_path):
    for name, rows in (("train", ROWS[:20]), ("valid", ROWS[20:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_bytes(jsonl(rows))
    data = load(tmp_path)
    assert data.splits["train"].to_list() == ROWS[:20]
    assert data.splits["test"].to_list() == ROWS[20:]
    assert data.sources[0].files == ["train/part.jsonl", "valid/part.jsonl"]


def test_a_saved_dataset_dict_keeps_its_splits(tmp_path):
    splits = {"train": ROWS[:20], "test": ROWS[20:]}
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "disk")
    data = load(tmp_path / "disk")
    assert {name: split.to_list() for name, split in data.splits.items()} == splits
    assert data.sources[0].kind == "disk"


def test_one_split_in_two_formats_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    with pytest.raises(InputError, match=r"split 'train' comes as \.json and as \.jsonl"):
        load(tmp_path)


def test_a_folder_without_data_files_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no data files; supported: \.jsonl"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["./absent", "absent.jsonl", "a/b/c", "org/data.parquet", "~/no"])
def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(InputError, match=f"--dataset_name {name}: no such file or folder"):
        load(name)


def test_a_bare_word_is_neither_path_nor_hub_id():
    with pytest.raises(
        InputError, match=r"--dataset_name foo: neither an existing file.*'org/name'"
    ):
        load("foo")


def test_hub_options_are_refused_for_local_paths(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(InputError, match=r"--dataset_revision v1: .* is a local path"):
        load(tmp_path / "a.jsonl", revision="v1")
    with pytest.raises(InputError, match=r"--dataset_config x: .* is a local path"):
        load(tmp_path / "a.jsonl", config="x")


def test_the_content_hash_follows_the_bytes_and_not_the_place(tmp_path):
    import hashlib

    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_bytes(GOOD)
    alone = load(tmp_path / "a" / "train.jsonl").sources[0]
    assert alone.sha256 == hashlib.sha256(GOOD).hexdigest()
    assert alone.to_dict()["files"] == ["train.jsonl"]
    folders = [load(tmp_path / folder).sources[0].sha256 for folder in ("a", "b")]
    assert folders[0] == folders[1]
    (tmp_path / "b" / "train.jsonl").write_bytes(jsonl(ROWS[1:]))
    assert load(tmp_path / "b").sources[0].sha256 != folders[0]


def test_reading_local_files_leaves_no_cache_behind(tmp_path):
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = sorted(cache.rglob("*")) if cache.exists() else []
    rows_of(make(tmp_path, ".parquet"))
    rows_of(make(tmp_path, ".jsonl"))
    assert (sorted(cache.rglob("*")) if cache.exists() else []) == before
