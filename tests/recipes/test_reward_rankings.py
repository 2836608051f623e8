"""The reward recipe on rankings: K-wise and Plackett-Luce losses, margins, and what is refused."""

import json
import math
import random

import numpy as np
import pytest
from safetensors.torch import load_file

from hf_align.data import load_data, ordered_pairs
from hf_align.recipes import reward
from hf_align.rewards import RewardModel
from hf_align.testbed import build_rankings, gold_reward

WORDS = ["tea", "rain", "books", "music", "dogs", "cats"]
QUICK = ("--max_steps", 3, "--save_strategy", "no", "--logging_steps", 1, "--num_eval_prompts", 8)
RANKINGS = ("--dataset_name", "testbed", "--dataset_config", "rankings", "--max_test_samples", 40)


@pytest.fixture
def run(testbed, tmp_path, monkeypatch, capsys):
    """Runs the recipe here: (exit code, standard error, the run directory)."""
    monkeypatch.chdir(tmp_path)

    def run(*args, name="run"):
        code, output = 0, tmp_path / name
        try:
            reward.main(["--output_dir", str(output), *map(str, (*QUICK, *args))])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err, output

    return run


@pytest.fixture
def on_file(run, tmp_path):
    """Runs the recipe on rows of one's own, with the testbed's policy."""

    def on_file(rows, *args, name="run"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = ("--model_name_or_path", "testbed", "--dataset_name", path)
        return run(*model, "--max_length", 64, *args, name=name)

    return on_file


def rankings(count=24, size=4):
    """Rankings by how many of the topics are named, without ties."""
    rng = random.Random(0)
    made = []
    for index in range(count):
        topics = [WORDS[(index // 6**k + k) % 6] for k in range(3)]
        completions = [" ".join([*topics[:k], "so"]) for k in range(size)]
        order = rng.sample(range(size), size)
        made.append(
            {
                "prompt": f"mention {' '.join(topics)} :",
                "completions": [completions[k] for k in order],
                "ranks": [size - k for k in order],
            }
        )
    return made


def pairs_of(rows):
    return [
        {"prompt": r["prompt"], "chosen": r["completions"][i], "rejected": r["completions"][j]}
        for r in rows
        for i, j in ordered_pairs(r["ranks"])
    ]


def logs_of(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def report_of(output):
    return json.loads((output / "report/report.json").read_text())


def same_weights(first, second):
    ours, theirs = (load_file(path / "model.safetensors") for path in (first, second))
    return all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize("loss", ["kwise", "plackett_luce"])
def test_rankings_train_are_normalised_and_judged_by_their_pairs(run, loss):
    code, err, output = run("--loss", loss, *RANKINGS)
    assert code == 0, err
    report, splits = report_of(output), load_data(str(build_rankings()), "ranking").splits
    assert report["evaluation"]["pairs"] == 40 * 15
    assert report["evaluation"]["completions"] == 40 * 6

    model = RewardModel(output)
    train = splits["train"].select(range(math.ceil(4000 / 6)))
    reference = [(r["prompt"], text) for r in train for text in r["completions"]]
    scores = model.score(*map(list, zip(*reference, strict=True)))
    assert scores.mean() == pytest.approx(0.0, abs=1e-4)
    assert scores.std() == pytest.approx(1.0, abs=1e-4)

    rows = load_data(str(build_rankings()), "ranking", max_test_samples=40).splits["test"]
    by_prompt = {}
    for row in rows:
        prompts = [row["prompt"]] * 6
        s = model.score(prompts, row["completions"])
        g = gold_reward(prompts, row["completions"])
        right = [s[i] > s[j] for i, j in ordered_pairs(row["ranks"])]
        decided = [(i, j) for i in range(6) for j in range(6) if g[i] > g[j]]
        by_gold = [s[i] > s[j] for i, j in decided]
        found = by_prompt.setdefault(row["prompt"], ([], []))
        found[0].extend(right)
        found[1].extend(by_gold)
    for name, index in (("accuracy/label", 0), ("accuracy/gold", 1)):
        expected = np.mean([np.mean(found[index]) for found in by_prompt.values()])
        assert report["metrics"][name]["value"] == pytest.approx(expected, abs=2e-3)
        assert report["metrics"][name]["n"] == len(by_prompt)


def test_without_data_a_loss_on_rankings_runs_on_the_testbeds(run):
    code, err, output = run("--loss", "plackett_luce", "--max_test_samples", 20)
    assert code == 0, err
    config = json.loads((output / "run.json").read_text())["config"]
    assert (config["dataset_config"], config["loss"]) == ("rankings", "plackett_luce")
    assert config["per_device_train_batch_size"] == 8
    lineage = json.loads((output / "lineage.json").read_text())
    assert lineage["data"][0]["name"] == "testbed-rankings"


def test_pairwise_training_on_rankings_is_training_on_their_pairs(on_file):
    rows = rankings()
    _, _, as_rankings = on_file(rows, name="rankings")
    _, _, as_pairs = on_file(pairs_of(rows), name="pairs")
    assert same_weights(as_rankings, as_pairs)
    assert report_of(as_rankings)["metrics"] == report_of(as_pairs)["metrics"]


def test_pairs_train_k_wise_as_rankings_of_two(on_file):
    rows = pairs_of(rankings())
    # In batches of the same pairs, both losses are −log σ of the same differences.
    _, _, kwise = on_file(rows, "--loss", "kwise", name="kwise")
    _, _, pairwise = on_file(rows, name="pairwise")
    for ours, theirs in zip(logs_of(kwise), logs_of(pairwise), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_a_lora_model_and_an_ensemble_train_on_rankings(run):
    code, err, output = run(
        *("--loss", "kwise", *RANKINGS, "--num_members", 2, "--member_data", "disjoint"),
        *("--use_peft", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj"),
    )
    assert code == 0, err
    assert not list(output.rglob("adapter_config.json"))
    rows = load_data(str(build_rankings()), "ranking").splits["test"][0]
    members = RewardModel(output).member_scores([rows["prompt"]] * 6, rows["completions"])
    assert members.shape == (2, 6) and not np.allclose(members[0], members[1])


def test_held_out_rankings_are_evaluated_during_training(run):
    code, err, output = run(
        *("--loss", "kwise", *RANKINGS, "--eval_strategy", "steps", "--eval_steps", 3)
    )
    assert code == 0, err
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < line.get("eval_loss", 0) < 2 for line in lines)


# Margins


def with_margins(rows, margin):
    return [row | {"gap": margin} for row in rows]


def test_a_margin_is_subtracted_from_the_difference_of_the_scores(on_file):
    rows = with_margins(pairs_of(rankings()), 50.0)
    _, _, output = on_file(rows, "--margin_column", "gap")
    for line in logs_of(output):
        # −log σ(d − 50) is 50 − d to double precision; TRL logs the mean of d as `margin`.
        assert line["loss"] == pytest.approx(50 - line["margin"], rel=1e-3)


def test_a_margin_is_used_on_purpose_only_and_zero_changes_nothing(on_file):
    rows = pairs_of(rankings())
    _, _, plain = on_file(rows, name="plain")
    _, _, unnamed = on_file([row | {"margin": 9.0} for row in rows], name="unnamed")
    _, _, zero = on_file(with_margins(rows, 0), "--margin_column", "gap", name="zero")
    assert same_weights(plain, unnamed)
    for ours, theirs in zip(logs_of(zero), logs_of(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


# What is refused


def changed(**change):
    rows = rankings()
    return [*rows[:6], rows[6] | change, *rows[7:]]


KWISE = ("--loss", "kwise")
NAMED = ("--margin_column", "gap")
PAIR = {"prompt": "mention tea :", "chosen": "tea", "rejected": "rain"}
REFUSED = {
    "lengths": (changed(ranks=[1, 2]), KWISE, "row 7, column 'ranks': 2 ranks for 4"),
    "one": (changed(ranks=[1], completions=["a"]), KWISE, "row 7, column 'ranks': 1 ranks"),
    "zero": (changed(ranks=[0, 1, 2, 3]), KWISE, "row 7, column 'ranks': expected whole"),
    "part": (changed(ranks=[1, 2.5, 3, 4]), KWISE, "row 7, column 'ranks': expected whole"),
    "empty": (changed(completions=["a", "", "b", "c"]), KWISE, "completion 2: empty text"),
    "same for pairs": (changed(ranks=[1, 2]), (), "row 7, column 'ranks': 2 ranks for 4"),
    "ties": ([row | {"ranks": [1] * 4} for row in rankings()], KWISE, "dropped: tie 24"),
    "nothing ranked": (
        [{"prompt": "a", "completion": "b"}] * 9,
        KWISE,
        "needed: completions and ranks, or chosen and rejected",
    ),
    "no held-out rows": (rankings(), (*KWISE, "--test_split_size", 0), "raise --test_split_size"),
    "too long": (rankings(), (*KWISE, "--max_length", 6), "longer than max_length 6; raise"),
    "margin of a ranking": (rankings(), (*KWISE, *NAMED), "margin_column gap has no effect"),
    "no margins": (pairs_of(rankings()), NAMED, "--margin_column gap: no such column"),
    "nan": ([PAIR | {"gap": 1.0}, PAIR | {"gap": math.nan}], NAMED, "row 2, column 'gap': expec"),
    "null": ([PAIR | {"gap": 1.0}, PAIR | {"gap": None}], NAMED, "row 2, column 'gap': no value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_in_one_line(on_file, tmp_path, case):
    rows, args, words = REFUSED[case]
    code, err, output = on_file(rows, *args)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and words in line, line
    assert not output.exists()


def test_a_refused_run_leaves_an_old_one_as_it_was(on_file):
    _, _, output = on_file(rankings(), *KWISE)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    code, _, _ = on_file(changed(ranks=[1, 2]), *KWISE, "--overwrite")
    assert code == 2
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
