"""Real preference data: hh-rlhf's transcripts and AlpacaEval's annotations, where at hand."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from hf_align.data import load_data

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HH = DATA / "hh_rlhf_harmless_base_test.jsonl.gz"
ALPACA = DATA / "alpaca_eval_annotations.parquet"


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not at hand")


@needs(HH)
def test_every_transcript_is_accounted_for_and_can_be_put_together_again():
    data = load_data(str(HH), "preference", test_split_size=0, invalid_rows="drop")
    report = data.report
    assert report.layout == "transcripts"
    assert report.rows_read == {"train": 2312}
    assert report.dropped.keys() == {"empty", "diverging_prompt"}
    assert report.rows_kept["train"] + sum(report.dropped.values()) == 2312
    with gzip.open(HH, "rt", encoding="utf-8") as stream:
        sources = {
            (squeeze(row["chosen"]), squeeze(row["rejected"])) for row in map(json.loads, stream)
        }
    changed = 0
    for row in data.splits["train"]:
        assert row["prompt"][-1]["role"] == "user"
        assert len(row["chosen"]) == len(row["rejected"]) == 1
        rebuilt = tuple(transcript([*row["prompt"], *row[side]]) for side in ("chosen", "rejected"))
        changed += rebuilt not in sources
    # joined neighbouring turns lose a speaker's mark; every other row is there word for word
    assert changed == report.counted["merged_turns"]


def transcript(turns):
    speakers = {"user": "Human", "assistant": "Assistant"}
    return squeeze("".join(f"{speakers[turn['role']]}:{turn['content']}" for turn in turns))


def squeeze(text):
    """The text without whitespace, which the turns are stripped of."""
    return "".join(text.split())


@needs(HH)
def test_the_empty_answers_of_the_published_file_are_refused_by_row():
    with pytest.raises(
        ValueError, match=r"row 87, column 'chosen': empty text in the final answer"
    ):
        load_data(str(HH), "preference")


@needs(ALPACA)
def test_alpaca_eval_preferences_reproduce_the_published_win_rates():
    data = load_data(
        str(ALPACA), "preference", test_split_size=0, keep_columns=["generator_2", "output_2"]
    )
    assert data.report.layout == "valued_pairs"
    assert data.report.rows_kept["train"] + data.report.dropped["tie"] == 9656
    with (DATA / "alpaca_eval_leaderboard.csv").open() as stream:
        published = {row[""]: row for row in csv.DictReader(stream)}
    wins = {}
    for row in data.splits["train"]:
        p = row["probability"]
        won = row["chosen"][0]["content"] == row["output_2"]
        wins.setdefault(row["generator_2"], []).append(p if won else 1 - p)
    assert len(wins) == 12
    for model, values in wins.items():
        # exact ties were dropped: each stood for one half
        ties = [0.5] * (round(float(published[model]["n_total"])) - len(values))
        mean = 100 * np.mean([*values, *ties])
        assert mean == pytest.approx(float(published[model]["win_rate"]), abs=0.01)
