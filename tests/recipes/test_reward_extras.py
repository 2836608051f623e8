"""The reward recipe with everything that its report can hold: baselines, learning curve, subsets,
on-policy samples, ensembles; on the testbed and on text with conversations.
"""

import json
import random

import pytest

from hf_align.diagnostics.report import METRICS, load_report
from hf_align.recipes import reward, sft

QUICK = ("--max_steps", 4, "--save_strategy", "no", "--num_eval_prompts", 24)
BASELINES = ("--baselines", "log_likelihood", "generative_classifier")
LIKELIHOODS = ("accuracy/log_likelihood", "accuracy/log_likelihood_per_token")


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


def table_of(report, title):
    [table] = [table for table in report["tables"] if table["title"] == title]
    return {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}


def test_the_default_report_answers_every_question(run):
    code, err, output = run()
    assert code == 0, err
    report = load_report(output / "report")
    expected = {
        *("accuracy/label", "accuracy/longest_wins", "accuracy/ceiling", "accuracy/gold"),
        *("accuracy/on_policy", "nll/label", "calibration/temperature", "calibration/ece"),
        *("calibration/ece_debiased", "bias/length_correlation", "bias/flip_rate"),
        "bias/length_partial_correlation",
    }
    assert set(report["metrics"]) == expected
    assert report["metrics"]["accuracy/on_policy"]["n"] <= 24
    assert report["evaluation"]["on-policy completions"] == "24 prompts × 4"
    # The annotators' own noise: σ(Δ / 0.7) with 10 % flips lies between chance and certainty.
    assert 0.65 < report["metrics"]["accuracy/ceiling"]["value"] < 0.85
    page = (output / "report/report.md").read_text()
    for table in report["tables"]:
        assert f"### {table['title']}" in page
    for figure in report["figures"]:
        assert (output / "report" / figure).stat().st_size > 1000 and f"({figure})" in page
    assert {"rankings.png", "what_the_score_follows.png"} <= set(report["figures"])


def test_baselines_are_ranked_on_the_same_pairs_with_paired_differences(run):
    code, err, output = run(*BASELINES, "--max_test_samples", 120)
    assert code == 0, err
    report = load_report(output / "report")
    metrics = report["metrics"]
    for name in (*LIKELIHOODS, "accuracy/generative_classifier"):
        assert metrics[name]["n"] == metrics["accuracy/label"]["n"]
    rows = table_of(report, "Accuracy beside simpler rankings")
    for row in rows.values():
        lead = row["reward model minus it"]
        if lead is not None:
            expected = metrics["accuracy/label"]["value"] - row["accuracy on labels"]["value"]
            assert lead["value"] == pytest.approx(expected)
            assert lead["low"] < lead["high"]
    assert sum(name.startswith("imitation") for name in rows) == 2
    assert "asked in both orders, 4 steps" in report["evaluation"]["generative classifier"]
    assert "SFT on the preferred completions, 4 steps" in report["evaluation"]["imitation"]
    # What the baselines were trained with is not left behind.
    assert not list(output.glob("*-baseline")) and not list(output.glob("checkpoint-*"))


def test_a_learning_curve_ends_with_the_model_of_the_run(run):
    code, err, output = run("--learning_curve", 1000, 250, "--max_test_samples", 120)
    assert code == 0, err
    report = load_report(output / "report")
    rows = table_of(report, "Learning curve")
    assert list(rows) == ["250", "1000", "4096"]
    assert [row["steps"] for row in rows.values()] == [1, 2, 4]
    last = rows["4096"]
    assert last["accuracy on labels"] == report["metrics"]["accuracy/label"]
    assert last["accuracy by gold"] == report["metrics"]["accuracy/gold"]
    assert "learning_curve.png" in report["figures"]
    lines = (output / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 4


def test_an_ensemble_on_rankings_has_it_all_too(run):
    code, err, output = run(
        *("--loss", "kwise", "--num_members", 2, "--max_test_samples", 30, *BASELINES),
        *("--subset_column", "annotator", "--learning_curve", 100),
        *("--use_peft", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj"),
    )
    assert code == 0, err
    report = load_report(output / "report")
    for name in ("ensemble/disagreement", "ensemble/disagreement_on_policy", "ensemble/outlying"):
        assert report["metrics"][name]["value"] >= 0
    assert list(table_of(report, "Learning curve")) == ["100"]
    assert set(table_of(report, "Accuracy by subset")) <= {"ada", "ben", "cho", "dev"}
    together = table_of(report, "Members of the ensemble")["together"]
    assert together["accuracy on labels"] == report["metrics"]["accuracy/label"]
    assert {"disagreement.png", "accuracy_by_subset.png"} <= set(report["figures"])


def conversations(path, count=60):
    """Pairs of one-turn conversations in which the preferred answer is the kind one."""
    rng = random.Random(0)
    words = ["moon", "far", "away", "sun", "warm", "rivers", "run", "sea", "rain", "wide"]
    with path.open("w") as stream:
        for number in range(count):
            text = " ".join(rng.sample(words, 8))
            row = {
                "prompt": f"Question {number}: what of {rng.choice(words)}?",
                "chosen": f"Gladly. {text}.",
                "rejected": f"No! {text}.",
                "topic": rng.choice(["sky", "earth"]),
            }
            turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            for column, role in turns.items():
                row[column] = [{"role": role, "content": row[column]}]
            stream.write(json.dumps(row) + "\n")


def test_conversations_and_a_model_made_from_scratch(run, tmp_path):
    file, start = tmp_path / "chats.jsonl", tmp_path / "start"
    conversations(file)
    small = ("--max_length", 128, "--per_device_train_batch_size", 8, "--dataset_name", file)
    scratch = ("--scratch_hidden_size", 32, "--scratch_num_layers", 1, "--scratch_vocab_size", 400)
    sft.main(
        [
            *map(str, ("--from_scratch", *scratch, *small, *QUICK[:4], "--output_dir", start)),
            *("--num_eval_prompts", "2", "--num_eval_samples", "1", "--eval_max_new_tokens", "4"),
        ]
    )
    code, err, output = run(
        *("--model", start, *small, *BASELINES, "--learning_rate", "3e-3", "--max_steps", 60),
        *("--subset_column", "topic", "--test_split_size", 0.4),
    )
    assert code == 0, err
    report = load_report(output / "report")
    metrics = report["metrics"]
    # "Gladly" against "No!" is what all of them can see.
    for name in ("accuracy/label", *LIKELIHOODS):
        assert metrics[name]["value"] > 0.9, name
    assert set(table_of(report, "Accuracy by subset")) == {"sky", "earth"}
    assert "bullet" in table_of(report, "Edits that add no content")
    assert set(metrics) <= set(METRICS) and "accuracy/on_policy" not in metrics


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--baselines", "likelihood"), "baselines must be one of 'log_likelihood', 'generative"),
        (("--learning_curve", "0"), "learning_curve has the size 0"),
        (("--learning_curve", "5000"), "asks for 5000 training rows, and there are 4096"),
        (("--learning_curve", "many"), "learning_curve must be"),
        (("--subset_column", "nope"), "subset_column 'nope': no such column"),
        (("--max_test_samples", 1), "held-out split has one prompt"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_training(run, args, words):
    code, err, output = run(*args)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and words in line, line
    assert not output.exists()


def test_what_is_no_language_model_has_no_baselines_and_no_samples(run):
    _, _, first = run("--max_test_samples", 40, name="first")
    code, err, _ = run("--model", first, *BASELINES, "--dataset_name", "testbed")
    assert code == 2 and "no causal language model" in err
    code, err, output = run(
        "--model", first, "--dataset_name", "testbed", "--max_test_samples", 40, "--max_length", 64
    )
    assert code == 0, err
    assert "accuracy/on_policy" not in load_report(output / "report")["metrics"]


def test_several_processes_train_no_baselines(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, err, _ = run(*BASELINES)
    assert code == 2 and "baselines trains in one process" in err
