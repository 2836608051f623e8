"""Blocks of rows hold what the loader reads at once: every format, size and place, in order."""

import csv
import gzip
import json
import tracemalloc

import pyarrow as pa
import pytest
from pyarrow import parquet

from hf_align.data import streaming
from hf_align.data.loading import open_source
from hf_align.data.streaming import fitted, merged_schema, open_stream
from hf_align.types import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"text": f"row {i}", "n": str(i)} for i in range(25)]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif ".csv" in path.name:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def rows_of(stream, size):
    return [row for block in stream.read(size) for row in block.to_rows()]


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.csv.gz", "a.parquet", "f/train.jsonl", "saved"],
)
@pytest.mark.parametrize("size", [1, 6, 7, 25, 1000])
def test_blocks_hold_what_the_loader_reads_at_once(tmp_path, name, size):
    path = tmp_path / name
    if name == "saved":
        import datasets

        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    else:
        write(path, ROWS)
    path = path.parent if name.startswith("f/") else path
    stream = open_stream(str(path))
    for _ in range(2):  # it can be read again
        blocks = list(stream.read(size))
        assert max(map(len, blocks)) <= size
        assert [row for block in blocks for row in block.to_rows()] == ROWS
        assert [block.first for block in blocks] == [
            sum(map(len, blocks[:i])) for i in range(len(blocks))
        ]
    assert stream.describe() == open_source(str(path)).source
    assert stream.num_rows in (None, len(ROWS))


def test_rows_are_located_in_their_file(tmp_path):
    write(tmp_path / "train-00000.jsonl", ROWS[:10])
    write(tmp_path / "train-00001.jsonl", ROWS[10:])
    write(tmp_path / "test.jsonl", ROWS[:2])
    blocks = list(open_stream(str(tmp_path)).read(4))
    assert blocks[1].location(1) == "train-00000.jsonl row 6"
    assert blocks[3].location(0) == "train-00001.jsonl row 1"
    assert rows_of(open_stream(str(tmp_path), split="test"), 9) == ROWS[:2]
    with pytest.raises(InputError, match="available: test, train"):
        open_stream(str(tmp_path), split="dev")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_long_rows_end_a_block_early(tmp_path, monkeypatch, name):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 3000)
    write(tmp_path / name, [{"text": f"{i}" * 1000} for i in range(10)])
    blocks = list(open_stream(str(tmp_path / name)).read(1000))
    assert 3 <= len(blocks) <= 10 and sum(map(len, blocks)) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty: it holds no rows"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"a": "\xff"}\n', "is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9], "truncated or damaged gzip"),
        ("a.csv", b"a,b\n1,2\n1\n", "line 3: fewer cells"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2: more cells"),
        ("a.csv", b"a,b\n\xff,1\n", "is not UTF-8"),
        ("a.parquet", b"PAR1", "not a readable Parquet"),
    ],
)
def test_a_damaged_file_is_refused_in_the_loaders_words(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        rows_of(open_stream(str(tmp_path / name)), 5)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_schema_grows_to_hold_every_row():
    first = pa.table({"a": [1, 2], "m": [{"x": 1}, None]})
    second = pa.table({"m": [{"y": "z"}], "a": [0.5], "b": ["new"]})
    schema = merged_schema(merged_schema(None, first.schema, "one"), second.schema, "two")
    rows = pa.concat_tables([fitted(first, schema), fitted(second, schema)]).to_pylist()
    assert rows[0] == {"a": 1.0, "m": {"x": 1, "y": None}, "b": None}
    assert rows[2] == {"a": 0.5, "m": {"x": None, "y": "z"}, "b": "new"}
    with pytest.raises(InputError, match="two: a column has another type"):
        merged_schema(schema, pa.table({"b": [["list"]]}).schema, "two")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_reading_takes_the_memory_of_a_block_whatever_the_rows(tmp_path, name):
    peaks = []
    for count in (2_000, 20_000):
        path = write(tmp_path / name, [{"text": f"{i} " * 50} for i in range(count)])
        stream = open_stream(str(path))
        tracemalloc.start()
        most = 0
        for block in stream.read(200):
            assert block.to_rows()
            most = max(most, pa.total_allocated_bytes())
        peaks.append(tracemalloc.get_traced_memory()[1] + most)
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


STREAM = """
import json
from hf_align.data.streaming import open_stream
try:
    stream = open_stream("org/pairs", split={split!r})
    rows = [row for block in stream.read(2) for row in block.to_rows()]
    again = sum(map(len, stream.read(100)))
    print(json.dumps({{"rows": rows, "again": again, "source": stream.describe().to_dict()}}))
except (OSError, ValueError) as error:
    print(json.dumps({{"said": str(error)}}))
"""


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_hub_dataset_is_streamed_at_the_commit_that_lineage_records(
    hub, with_hub, tmp_path, suffix
):
    rows = [{"prompt": f"p{i}", "completion": "good"} for i in range(5)]
    hub.files[f"train.{suffix}"] = write(tmp_path / f"a.{suffix}", rows).read_bytes()
    found = with_hub(STREAM.format(split="train"), hub.url)
    assert (found.get("rows"), found.get("again")) == (rows, 5), found
    assert (found["source"]["kind"], found["source"]["revision"]) == ("hub", COMMIT)
    downloads = [request for request in hub.requests if "/resolve/" in request]
    assert downloads and all(f"/resolve/{COMMIT}/" in request for request in downloads)
