"""Completions as files: what is written is read, and what no run writes is refused."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from hf_align.diagnostics import sample_files
from hf_align.diagnostics.sample_files import (
    ScoredCompletions,
    audit_file,
    audited_step,
    forget_audits,
    read_completions,
    write_completions,
)
from hf_align.types import InputError

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "día\u202e?"}]


def completions(num=3, **numbers):
    return ScoredCompletions(
        ["plain", CHAT, "[1]"][:num],
        ["a", "", "<b>\u0000 ünï"][:num],
        np.arange(1, num + 1),
        np.array([True, False, True])[:num],
        **numbers,
    )


def columns(**changes):
    table = {
        "prompt": ["p"], "is_conversation": [False], "completion": ["c"], "length": [1],
        "ended": [True], "gold": [1.0], "proxy": [None], "log_ratio": [0.5],
    }  # fmt: skip
    return table | changes


def test_texts_conversations_and_numbers_come_back_as_they_were(tmp_path):
    written = completions(gold=np.array([1.5, -2, 0]), log_ratio=np.array([0.1, 0.2, 0.3]))
    write_completions(tmp_path / audit_file(7), written)
    read = read_completions(tmp_path / "audit_samples/step-00000007.parquet", "x")
    assert read.prompts == written.prompts and read.completions == written.completions
    assert read.gold.tolist() == [1.5, -2, 0] and read.proxy is None
    assert read.lengths.tolist() == [1, 2, 3] and read.ended.tolist() == [True, False, True]
    assert [file.name for file in (tmp_path / "audit_samples").iterdir()] == [
        "step-00000007.parquet"
    ]


@pytest.mark.parametrize(("most", "together", "kept"), [(2, 1, 2), (3, 2, 2), (1, 2, 2), (9, 1, 3)])
def test_the_first_whole_prompts_are_kept(most, together, kept):
    assert len(completions(gold=np.zeros(3)).first(most, together)) == kept


@pytest.mark.parametrize(
    ("path", "step"),
    [
        (audit_file(0), 0),
        (audit_file(120), 120),
        ("audit_samples/step-1.parquet", None),
        ("other/step-00000001.parquet", None),
        ("audits.json", None),
    ],
)
def test_a_file_tells_its_step(path, step):
    assert audited_step(path) == step


def test_what_lies_after_a_step_is_forgotten_and_nothing_else(tmp_path):
    for step in (0, 2, 4):
        write_completions(tmp_path / audit_file(step), completions())
    for name in (".step-00000002.9.parquet", "notes.txt"):
        (tmp_path / "audit_samples" / name).write_text("x")
    forget_audits(tmp_path, after=2)
    left = sorted(file.name for file in (tmp_path / "audit_samples").iterdir())
    assert left == ["notes.txt", "step-00000000.parquet", "step-00000002.parquet"]
    forget_audits(tmp_path / "absent", after=-1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gold": [float("nan")]}, "gold has values that are no finite"),
        ({"log_ratio": [float("inf")]}, "log_ratio has values"),
        ({"prompt": [3]}, "damaged|refused"),
        ({"is_conversation": [True]}, "no conversation"),
        ({"prompt": ['[{"role": 1}]'], "is_conversation": [True]}, "no conversation"),
        ({"prompt": ["[" * 99 + "]" * 99], "is_conversation": [True]}, "no conversation"),
        ({"completion": [None]}, "damaged|refused"),
        ({"length": ["x"]}, "damaged"),
    ],
)
def test_what_no_run_writes_is_refused(tmp_path, changes, words):
    parquet.write_table(pa.table(columns(**changes)), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=words):
        read_completions(tmp_path / "x.parquet", "x")


def test_files_that_are_none_are_refused(tmp_path):
    table = columns()
    del table["ended"]
    parquet.write_table(pa.table(table), tmp_path / "less.parquet")
    with pytest.raises(InputError, match="no column 'ended'"):
        read_completions(tmp_path / "less.parquet", "x")
    parquet.write_table(pa.table(columns()).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="0 rows"):
        read_completions(tmp_path / "empty.parquet", "x")
    many = pa.table({name: value * 20_000 for name, value in columns().items()})
    parquet.write_table(many, tmp_path / "many.parquet")
    with pytest.raises(InputError, match="20,000 rows"):
        read_completions(tmp_path / "many.parquet", "x")
    write_completions(tmp_path / "cut.parquet", completions())
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="x is damaged"):
        read_completions(tmp_path / "cut.parquet", "x")


def test_a_short_file_that_unpacks_to_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    long = "x" * 3_000_000
    table = pa.table(columns(completion=[long]))
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    monkeypatch.setattr(sample_files, "_MOST_UNPACKED", 1_000_000)
    with pytest.raises(InputError, match=r"3,\d{3},\d{3} bytes"):
        read_completions(tmp_path / "x.parquet", "x")


def test_one_long_text_named_by_many_rows_stays_one_text(tmp_path):
    rows = {name: value * 16_000 for name, value in columns().items()}
    places = pa.array(np.zeros(16_000, np.int32))
    rows["completion"] = pa.DictionaryArray.from_arrays(places, pa.array(["y" * 1_000_000]))
    parquet.write_table(pa.table(rows), tmp_path / "x.parquet")  # 16 GB if it were unpacked
    read = read_completions(tmp_path / "x.parquet", "x")
    assert read.completions[0] is read.completions[-1]
