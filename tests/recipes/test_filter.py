"""`filter` on rows whose scores are known by construction: what stays, is said, and is refused.

The reward of most tests reads a row's score out of its text, so the rows to keep are known.
"""

import csv
import gzip
import json
import shlex

import numpy as np
import pytest

from hf_align.data import load_data
from hf_align.recipes import _filter_output, _filtering, filter, sft
from hf_align.recipes._filtering import example_rows
from hf_align.rewards import RewardModel
from hf_align.testbed import gold_reward
from hf_align.testbed import tokenizer as own_tokenizer

REWARDS = """
import json

def written(prompts, completions):
    return [float(text.split()[0]) for text in completions]

def noted(prompts, completions, **columns):
    with open("seen.jsonl", "a") as file:
        for pair in zip(prompts, completions):
            file.write(json.dumps(pair) + "\\n")
    return [0.0] * len(prompts)

def broken(prompts, completions):
    return [float("nan") if "7" in text.split() else 1.0 for text in completions]

def short(prompts, completions):
    return [1.0]

def raising(prompts, completions):
    raise RuntimeError("no such luck")

def interrupted(prompts, completions):
    raise KeyboardInterrupt

def longer(prompts, completions):
    with open("rows.jsonl", "a") as file:
        file.write('{"text": "9 more"}\\n')
    return [1.0] * len(prompts)
"""
BY_TEXT = ("--reward_model", "rewards.py:written")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARDS)


@pytest.fixture
def run(capsys):
    """Runs the recipe in this process: (exit code, what it printed, what it complained about)."""

    def run(*args):
        code = 0
        try:
            filter.main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def texts(scores):
    return [
        {"text": f"{score} {'word ' * (index % 5)}end", "id": index, "kind": f"k{index % 3}"}
        for index, score in enumerate(scores)
    ]


def write(name, rows):
    if ".csv" in name:
        with open(name, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), name)
    else:
        with (gzip.open if name.endswith(".gz") else open)(name, "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def kept(folder="outputs/filter"):
    """The rows that stayed, as the datasets library reads the folder."""
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), cache_dir="cache")["train"].to_list()


def report(folder="outputs/filter"):
    with open(f"{folder}/report/report.json", encoding="utf-8") as stream:
        return json.load(stream)


def everything(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def draws(seed, count, ties=False):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, count).tolist() if ties else rng.permutation(count).tolist()


# --- what stays


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_a_threshold_keeps_the_rows_that_reach_it_whole_and_in_order(run, name):
    rows = texts(draws(0, 2500))  # more than are read at a time
    write(name, rows)
    code, page, err = run(name, *BY_TEXT, "--threshold", 1700, "--overwrite")
    assert code == 0, err
    expected = [row for row in rows if int(row["text"].split()[0]) >= 1700]
    if name.endswith(".csv"):
        expected = [row | {"id": str(row["id"])} for row in expected]
    assert kept() == expected
    assert len(expected) == 800 and "Kept 800 of 2,500 rows (32.0%)" in page


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fraction", [0.001, 1 / 3, 0.5, 0.97])
def test_a_share_is_exact_up_to_ties(run, seed, fraction):
    count = 50 + 37 * seed
    for ties in (False, True):
        scores = draws(seed, count, ties)
        write("rows.jsonl", texts(scores))
        code, _, err = run("rows.jsonl", *BY_TEXT, "--keep_fraction", fraction, "--overwrite")
        assert code == 0, err
        facts = report()
        cut, stayed = facts["cut"]["value"], facts["rows"]["kept"]
        wanted = max(1, int(count * fraction + 0.5))
        assert stayed == sum(score >= cut for score in scores)
        assert sum(score > cut for score in scores) < wanted <= stayed
        assert ties or stayed == wanted


def test_the_kept_rows_are_those_at_or_above_the_cut_with_their_scores(run):
    scores = draws(3, 400, ties=True)
    write("rows.jsonl", texts(scores))
    run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.4, "--keep_scores")
    cut = report()["cut"]["value"]
    expected = [row | {"score": float(s)} for row, s in zip(texts(scores), scores, strict=True)]
    assert kept() == [row for row in expected if row["score"] >= cut]


def test_many_files_are_named_and_read_in_order(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_filter_output, "SHARD_BYTES", 1)
    monkeypatch.setattr(_filter_output, "_GROUP_ROWS", 300)
    monkeypatch.setattr(_filtering, "_BLOCK_ROWS", 100)
    rows = texts(draws(1, 1500))
    write("rows.jsonl", rows)
    run("rows.jsonl", *BY_TEXT, "--threshold", 0, "--batch_size", 25)
    files = sorted(path.name for path in (tmp_path / "outputs/filter/data").iterdir())
    assert files == [f"train-{i:05}-of-00005.parquet" for i in range(5)]
    assert kept() == rows


def test_max_rows_reads_the_first_rows_only(run):
    rows = texts(draws(2, 1300))
    write("rows.jsonl", [*rows, {"text": ""}])  # never reached
    for limit in (1, 999, 1000, 1001):
        code, _, err = run(
            "rows.jsonl", *BY_TEXT, "--threshold", 0, "--max_rows", limit, "--overwrite"
        )
        assert code == 0, err
        assert report()["rows"]["read"] == limit


def test_columns_and_types_of_arrow_sources_stay(run, tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("large_string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "small": datasets.Value("int8"),
            "when": datasets.Value("timestamp[ms]"),
            "turns": datasets.List({"a": datasets.Value("float32")}),
        }
    )
    rows = [
        {"text": f"{i}", "label": i % 2, "small": i, "when": i * 1000, "turns": [{"a": 0.5}] * i}
        for i in range(10)
    ]
    data = datasets.Dataset.from_list(rows, features=features)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        code, _, err = run(name, *BY_TEXT, "--threshold", 5, "--overwrite")
        assert code == 0, err
        loaded = datasets.load_dataset("outputs/filter", cache_dir=f"cache-{name}")["train"]
        assert loaded.features == features
        assert loaded.to_list() == data.select(range(5, 10)).to_list()


def test_columns_that_appear_late_or_change_from_whole_numbers_to_fractions_stay(run):
    rows = [{"text": "1 a", "n": 1}] * 1200 + [{"text": "1 b", "n": 2.5, "more": {"x": "y"}}]
    write("rows.jsonl", rows)
    code, _, err = run("rows.jsonl", *BY_TEXT, "--threshold", 1)
    assert code == 0, err
    found = kept()
    assert found[0] == {"text": "1 a", "n": 1.0, "more": None} and len(found) == 1201
    assert found[-1] == {"text": "1 b", "n": 2.5, "more": {"x": "y"}}


# --- what is scored


CHAT = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "two"},
]


@pytest.mark.parametrize(
    ("row", "options", "pair"),
    [
        ({"text": "words"}, (), ["", "words"]),
        ({"body": "words", "prompt": "q"}, ("--text_column", "body"), ["", "words"]),
        ({"prompt": "q ", "completion": "a"}, (), ["q ", "a"]),
        ({"q": "q", "a": "b"}, ("--prompt_column", "q", "--completion_column", "a"), ["q", "b"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, (), ["q", "a"]),
        ({"messages": CHAT}, (), [CHAT[:3], CHAT[3:]]),
        ({"messages": CHAT[:3]}, (), [CHAT[:1], CHAT[1:2]]),
        ({"messages": CHAT, "text": "words"}, (), [CHAT[:3], CHAT[3:]]),
        ({"messages": CHAT, "text": "words"}, ("--scored_column", "text"), ["", "words"]),
        (
            {"messages": CHAT, "prompt": "q", "completion": "a"},
            ("--scored_column", "completion"),
            ["q", "a"],
        ),
    ],
)
def test_what_is_scored_follows_from_the_columns_unless_it_is_named(run, row, options, pair):
    write("rows.jsonl", [row])
    code, _, err = run(
        "rows.jsonl", "--reward_model", "rewards.py:noted", "--threshold", 0, *options
    )
    assert code == 0, err
    with open("seen.jsonl") as stream:
        assert [json.loads(line) for line in stream] == [pair]
    assert kept() == [row]


def test_a_function_gets_a_batch_at_a_time_in_order(run):
    write("rows.jsonl", texts(range(10)))
    args = ["--reward_model", "rewards.py:written", "--keep_scores", "--threshold", 0]
    run("rows.jsonl", *args, "--batch_size", 3)
    assert [row["score"] for row in kept()] == list(range(10))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random reward model that tells texts apart."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(own_tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            max_position_embeddings=128,
            initializer_range=0.5,
            pad_token_id=own_tokenizer().pad_token_id,
        )
        built = LlamaForSequenceClassification(config)
    path = tmp_path_factory.mktemp("models") / "judge"
    built.save_pretrained(path)
    own_tokenizer().save_pretrained(path)
    return path


WORDS = ["tea", "rain", "books", "music", "dogs", "cats", "sea"]


def pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "prompt": f"mention {WORDS[i % 7]} :",
            "completion": " ".join(rng.choice(WORDS, rng.integers(1, 12))),
        }
        for i in range(count)
    ]


def test_scores_are_those_of_the_reward_model(run, model):
    rows = pairs(60)
    expected = RewardModel(model).score(*([row[k] for row in rows] for k in rows[0]))
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    chat_scores = RewardModel(model).score(
        [row["messages"][:1] for row in chats], [row["messages"][1:] for row in chats]
    )
    plain = [{"text": row["completion"]} for row in rows]
    text_scores = RewardModel(model).score([""] * 60, [row["text"] for row in plain])
    for data, scores in ((rows, expected), (chats, chat_scores), (plain, text_scores)):
        write("rows.jsonl", data)
        args = ["--reward_model", model, "--keep_fraction", 0.5, "--keep_scores"]
        code, _, err = run("rows.jsonl", *args, "--overwrite", "--batch_size", 7)
        assert code == 0, err
        best = np.sort(np.argsort(-scores)[:30])
        found = kept()
        np.testing.assert_allclose([row["score"] for row in found], scores[best], atol=1e-5)
        assert [{k: v for k, v in row.items() if k != "score"} for row in found] == [
            data[i] for i in best
        ]
    assert report()["truncated"] == 0


def test_truncated_rows_are_counted(run, model):
    rows = pairs(40)
    write("rows.jsonl", rows)
    args = ["--reward_model", model, "--keep_fraction", 0.5, "--max_length", 8]
    code, page, err = run("rows.jsonl", *args)
    assert code == 0, err
    # A word is a token: the prompt's three, the completion's, EOS.
    longer = sum(3 + len(row["completion"].split()) + 1 > 8 for row in rows)
    assert 0 < longer < 40 and report()["truncated"] == longer
    assert f"warning: {longer} of 40 rows are longer than the reward model reads" in page


# --- what is said


def test_the_report_holds_numbers_computed_by_hand(run):
    scores = [5, 1, 4, 2, 3, 0]
    write("rows.jsonl", texts(scores))
    code, page, _ = run("rows.jsonl", *BY_TEXT, "--threshold", 3, "--subset_column", "kind")
    facts = report()
    assert code == 0
    assert facts["rows"] == {
        **{"read": 6, "unusable": 0, "scored": 6, "kept": 3, "dropped": 3, "kept_share": 0.5}
    }
    # Rows have 2 + index % 5 words; kept are 0, 2 and 4.
    words = facts["lengths"]["words"]
    assert (words["kept"]["median"], words["dropped"]["median"]) == (4, 3)
    assert (words["kept"]["max"], words["dropped"]["mean"]) == (6, pytest.approx(10 / 3))
    assert facts["scores"]["kept"]["min"] == 3 and facts["scores"]["dropped"]["max"] == 2
    lengths = [2, 3, 4, 5, 6, 2]
    r = np.corrcoef(scores, lengths)[0, 1]
    assert facts["correlation"]["words"]["value"] == pytest.approx(r)
    shares = {group["value"]: group["dropped_share"] for group in facts["subsets"]["groups"]}
    assert {name: share["value"] for name, share in shares.items()} == {
        **{"k0": 0.5, "k1": 0.5, "k2": 0.5}
    }
    assert all(0 < share["low"] < 0.5 < share["high"] < 1 for share in shares.values())
    assert facts["truncated"] is None
    with open("outputs/filter/report/report.md", encoding="utf-8") as stream:
        markdown = stream.read()
    assert "| kept | 3 | 50.0% |" in markdown and "| k1 | 2 | 50.0% |" in markdown
    assert "Kept 3 of 6 rows" in page and "Kept 3 of 6 rows" in markdown


def test_a_score_that_follows_length_is_warned_of(run):
    rows = [{"text": f"{i} " + "word " * i} for i in range(60)]
    write("rows.jsonl", rows)
    _, page, _ = run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.5)
    assert report()["correlation"]["words"]["value"] == pytest.approx(1)
    assert "warning: the score follows length (1.00 [1.00, 1.00])" in page
    write("rows.jsonl", [{"text": f"{i} word"} for i in range(60)])
    _, page, _ = run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.5, "--overwrite")
    assert report()["correlation"]["words"] is None and "warning" not in page


def test_ties_that_keep_more_than_was_asked_for_are_warned_of(run):
    write("rows.jsonl", texts([1] * 30 + [0] * 30))
    _, page, _ = run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.25)
    assert report()["rows"]["kept"] == 30
    assert "30 rows stay where 15 were asked for, because 30 tie at 1" in page
    _, page, _ = run("rows.jsonl", *BY_TEXT, "--threshold", -1, "--overwrite")
    assert "nothing was dropped: the lowest score is 0" in page


def test_examples_are_those_nearest_to_the_cut_and_farthest_from_it():
    scores = np.array([*draws(5, 40), np.nan])  # 0 to 39 in some order, and a row without a score
    chosen = example_rows(scores, 20.0)
    by_kind = {
        kind: {int(scores[row]) for row in chosen if chosen[row] == kind}
        for kind in chosen.values()
    }
    assert by_kind == {
        "kept, nearest the cut": set(range(20, 25)),
        "kept, highest": set(range(35, 40)),
        "dropped, nearest the cut": set(range(15, 20)),
        "dropped, lowest": set(range(5)),
    }
    few = example_rows(np.array([1.0, 2.0, 3.0]), 2.0)
    assert set(few) == {0, 1, 2} and few[0] == "dropped, nearest the cut"


def test_examples_show_the_rows_and_cannot_format_the_page(run):
    rows = texts(draws(6, 60))
    rows[7]["text"] = "99 `code` | <b>\x1b[2J " + "long " * 500
    write("rows.jsonl", rows)
    run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.5)
    examples = report()["examples"]
    assert len(examples) == 20 and sum("kept" in e["kind"] for e in examples) == 10
    assert examples[0]["row"] == "rows.jsonl row 8" and examples[0]["score"] == 99
    for example in examples[1:]:
        row = rows[int(example["row"].split()[-1]) - 1]
        assert (
            example["completion"] == row["text"]
            and float(row["text"].split()[0]) == example["score"]
        )
    with open("outputs/filter/report/report.md", encoding="utf-8") as stream:
        line = next(line for line in stream if "row 8:" in line)
    assert "`99 'code' | <b>\\x1b[2J long" in line and len(line) < 600


def test_unusable_rows_are_dropped_and_counted_on_request(run):
    rows = [*texts(range(8)), {"text": ""}, {"text": None}, {"id": 3}, {"text": 5}]
    write("rows.jsonl", rows)
    code, _, err = run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.5)
    assert code == 2 and "rows.jsonl row 9, column 'text': empty text" in err
    code, _, err = run("rows.jsonl", *BY_TEXT, "--keep_fraction", 0.5, "--invalid_rows", "drop")
    assert code == 0, err
    # Of the usable ones half: what cannot be scored has no share.
    facts = report()
    assert facts["rows"]["read"] == 12
    assert facts["unusable"] == {"empty": 1, "missing": 2, "not_text": 1}
    assert (facts["rows"]["scored"], facts["rows"]["kept"]) == (8, 4)
    assert kept() == rows[4:8]


def test_records_say_what_went_in(run, tmp_path):
    write("rows.jsonl", texts(range(9)))
    run("rows.jsonl", *BY_TEXT, "--threshold", 4, "--output_dir", "made/here")
    record = json.loads((tmp_path / "made/here/run.json").read_text())
    lineage = json.loads((tmp_path / "made/here/lineage.json").read_text())
    assert (record["status"], record["recipe"], record["name"]) == ("finished", "filter", "here")
    assert record["lineage"] == lineage and record["config"]["threshold"] == 4
    assert lineage["reward_model"]["name"] == "rewards.py:written"
    assert len(lineage["reward_model"]["sha256"]) == 64
    [source] = lineage["data"]
    assert (source["name"], source["split"]) == ("rows.jsonl", "train")
    from hashlib import sha256

    assert source["sha256"] == sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert everything(tmp_path / "made/here") == [
        *("README.md", "data", "data/train-00000-of-00001.parquet", "lineage.json", "report"),
        *("report/report.json", "report/report.md", "report/scores.png", "run.json"),
    ]


# --- the testbed


def test_without_arguments_the_better_half_of_the_demonstrations_stays(run, testbed):
    code, page, err = run()
    assert code == 0, err
    rows = load_data("outputs/filter/data", "sft", test_split_size=0).splits["train"]
    gold = gold_reward(rows["prompt"], rows["completion"])
    assert min(gold) == report()["cut"]["value"]
    assert 0.5 <= report()["rows"]["kept_share"] < 0.52
    command = shlex.split(page[page.index("next:") :])[1:]
    values = sft.make_parser().parse(command[3:]).values
    assert values["dataset_name"] == "outputs/filter/data"
    lineage = report()["data"]
    assert lineage["name"] == "testbed-sft" and str(testbed.path) not in json.dumps(report())
    # A flag beats the file's way of cutting.
    code, page, err = run("--threshold", 4, "--overwrite", "--max_rows", 2000)
    assert code == 0, err
    assert report()["cut"]["value"] == 4 and report()["cut"]["keep_fraction"] is None


# --- what is refused


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--threshold", 1], "reward_model is missing"),
        ([*BY_TEXT], "--threshold SCORE, or --keep_fraction"),
        ([*BY_TEXT, "--threshold", 1, "--keep_fraction", 0.5], "exclude each other"),
        ([*BY_TEXT, "--keep_fraction", 1], "above 0 and below 1; got 1"),
        ([*BY_TEXT, "--keep_fraction", 0], "above 0 and below 1; got 0"),
        ([*BY_TEXT, "--keep_fraction", -0.1], "above 0 and below 1"),
        ([*BY_TEXT, "--threshold", "inf"], "finite number"),
        ([*BY_TEXT, "--threshold", 60], "drops all 20 rows: the highest score is 19"),
        (["--reward_model", "rewards.py:broken", "--threshold", 0], "nan for rows.jsonl row 8"),
        (["--reward_model", "rewards.py:short", "--threshold", 0], "1 scores for 20 completions"),
        (["--reward_model", "rewards.py:raising", "--threshold", 0], "RuntimeError: no such luck"),
        (["--reward_model", "rewards.py:absent", "--threshold", 0], "no function 'absent'"),
        (["--reward_model", "absent.py:f", "--threshold", 0], "reward_model absent.py:f"),
        (["--reward_model", "absent", "--threshold", 0], "no such folder, and not a Hub id"),
        (["--reward_model", "CAUSAL", "--threshold", 0], "a causal language model has no such"),
        ([*BY_TEXT, "--threshold", 0, "--max_length", 9], "is a function; leave it out"),
        ([*BY_TEXT, "--threshold", 0, "--text_column", "body"], "--text_column body: no such"),
        ([*BY_TEXT, "--threshold", 0, "--subset_column", "x"], "--subset_column x: no such"),
        ([*BY_TEXT, "--threshold", 0, "--scored_column", "messages"], "scored_column messages"),
        ([*BY_TEXT, "--threshold", 0, "--dataset_split", "dev"], "available: train"),
        ([*BY_TEXT, "--threshold", 0, "--batch_size", 0], "batch_size must be at least 1"),
        ([*BY_TEXT, "--threshold", 0, "--output_dir", "rows.jsonl"], "is a file"),
        ([*BY_TEXT, "--threshold", 0, "--output_dir", "full"], "is not empty"),
        ([*BY_TEXT, "--threshold", 0, "--output_dir", "full", "--overwrite"], "no filter wrote"),
        ([*BY_TEXT, "--threshold", 0, "--output_dir", ".", "--overwrite"], "dataset itself"),
        (["gone.jsonl", *BY_TEXT, "--threshold", 0], "no such file or folder"),
        (["holes.jsonl", *BY_TEXT, "--threshold", 0], "holes.jsonl row 2, column 'completion'"),
        (["mixed.jsonl", *BY_TEXT, "--threshold", 0], "mixed.jsonl, column 'id'"),
        (["cut.jsonl", *BY_TEXT, "--threshold", 0], "cut.jsonl line 2: invalid JSON"),
        (["empty.jsonl", *BY_TEXT, "--threshold", 0], "empty.jsonl is empty"),
        (["bad.parquet", *BY_TEXT, "--threshold", 0], "not a readable Parquet file"),
        (["odd.jsonl", *BY_TEXT, "--threshold", 0], "no layout"),
        (["scored.jsonl", *BY_TEXT, "--threshold", 0, "--keep_scores"], "'score' already"),
        (
            ["blank.jsonl", *BY_TEXT, "--threshold", 0, "--invalid_rows", "drop"],
            "no usable rows; left out: empty 2",
        ),
    ],
)
def test_what_cannot_be_filtered_is_refused_in_one_line(run, tmp_path, testbed, args, message):
    rows = texts(range(20))
    write("rows.jsonl", rows)
    write("holes.jsonl", [{"prompt": "q", "completion": "1 a"}, {"prompt": "q"}])
    write("mixed.jsonl", [{"text": "1 a", "id": 1}, {"text": "1 a", "id": "one"}])
    write("odd.jsonl", [{"foo": 1}])
    write("scored.jsonl", [{"text": "1 a", "score": 1}])
    write("blank.jsonl", [{"text": ""}, {"text": " "}])
    write("empty.jsonl", [])
    (tmp_path / "cut.jsonl").write_text('{"text": "1 a"}\n{"text":')
    (tmp_path / "bad.parquet").write_text("nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    args = [str(testbed.policy_path) if arg == "CAUSAL" else str(arg) for arg in args]
    if args[0].startswith("--"):
        args = ["rows.jsonl", *args]
    before = everything(tmp_path)
    code, page, err = run(*args)
    assert (code, page) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and err.endswith(lines[0] + "\n")
    assert [name for name in everything(tmp_path) if "__pycache__" not in name] == before


def test_overwrite_replaces_a_filtered_dataset_and_a_failure_leaves_it(run, tmp_path, monkeypatch):
    write("rows.jsonl", texts(range(20)))
    run("rows.jsonl", *BY_TEXT, "--threshold", 10)
    code, _, err = run("rows.jsonl", *BY_TEXT, "--threshold", 15)
    assert code == 2 and "--overwrite" in err
    before = everything(tmp_path)

    def full_disk(writer, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_filter_output.ShardWriter, "write", full_disk)
    for output, more in (("outputs/filter", ["--overwrite"]), ("new/other", [])):
        code, _, err = run("rows.jsonl", *BY_TEXT, "--threshold", 15, "--output_dir", output, *more)
        assert code == 1
        assert err == f"error: output_dir {output} cannot be written (No space left on device)\n"
    assert everything(tmp_path) == before and len(kept()) == 10
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run("rows.jsonl", *BY_TEXT, "--threshold", 15, "--overwrite")[0] == 0
    assert report()["rows"]["kept"] == 5


def test_an_interrupted_filter_leaves_nothing(run, tmp_path):
    write("rows.jsonl", texts(range(20)))
    before = everything(tmp_path)
    code, _, err = run("rows.jsonl", "--reward_model", "rewards.py:interrupted", "--threshold", 0)
    assert code == 130 and err == "\nstopped; nothing was written\n"
    assert [name for name in everything(tmp_path) if "__pycache__" not in name] == before


def test_data_that_change_between_the_readings_are_the_worlds_fault(run, tmp_path):
    write("rows.jsonl", texts(range(3)))
    code, _, err = run("rows.jsonl", "--reward_model", "rewards.py:longer", "--threshold", 0)
    assert code == 1 and "rows.jsonl changed while it was read" in err
    assert not (tmp_path / "outputs").exists()
