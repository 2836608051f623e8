"""What reward models do beside simpler rankings, run in full: minutes long, `make test ARGS="-m
slow"`. The figures are in recipes/README.md; the real comparisons are too few, and the models made
from scratch too small, for a claim that the reward model wins.
"""

import json
from pathlib import Path

import pytest

from hf_align.data import load_data
from hf_align.data.splits import prompt_key
from hf_align.recipes import reward, sft

pytestmark = pytest.mark.slow
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BASELINES = ("--baselines", "log_likelihood", "generative_classifier")
RANKINGS = (
    *("accuracy/label", "accuracy/longest_wins", "accuracy/log_likelihood"),
    *("accuracy/log_likelihood_per_token", "accuracy/generative_classifier"),
)
REAL = {
    "hh_rlhf_harmless_base_test.jsonl.gz": {
        "data": ("--invalid_rows", "drop"),
        "length": 384,
        "vocabulary": 2048,
        "steps": 400,
    },
    "alpaca_eval_annotations.parquet": {
        "data": ("--max_test_samples", 400),
        "length": 640,
        "vocabulary": 4096,
        "steps": 150,
    },
}


def report_of(run):
    return json.loads((run / "report/report.json").read_text())


@pytest.mark.parametrize("file", REAL)
def test_real_comparisons_beside_length_and_imitation(tmp_path, file):
    path, settings = SHARED_DATA / file, REAL[file]
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    data = ("--dataset_name", path, *settings["data"], "--max_steps", settings["steps"])
    size = ("--per_device_train_batch_size", 8, "--max_length", settings["length"])
    model = ("--scratch_hidden_size", 64, "--scratch_num_layers", 2)
    model += ("--scratch_vocab_size", settings["vocabulary"])
    brief = ("--num_eval_prompts", 8, "--num_eval_samples", 1, "--eval_max_new_tokens", 32)
    start, tuned = tmp_path / "sft", tmp_path / "reward"
    options = ("--from_scratch", *model, *data, *size, *brief, "--learning_rate", "3e-3")
    options += ("--max_train_samples", 3000)
    sft.main(list(map(str, (*options, "--output_dir", start))))
    options = ("--model", start, *data, *size, *BASELINES, "--learning_rate", "5e-4")
    options += ("--lr_scheduler_type", "cosine", "--warmup_steps", 20, "--save_strategy", "no")
    reward.main(list(map(str, (*options, "--output_dir", tuned))))
    metrics = report_of(tuned)["metrics"]
    for name in RANKINGS:
        assert metrics[name]["n"] == metrics["accuracy/label"]["n"] >= 30
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"], name
    sides = load_data(str(path), "preference", invalid_rows="drop").splits
    train, test = ({prompt_key(row) for row in sides[side]} for side in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_the_testbed_preference_modelling_beats_length_and_asking(testbed, tmp_path, seed):
    reward.main([*BASELINES, "--seed", str(seed), "--output_dir", str(tmp_path / "run")])
    report = report_of(tmp_path / "run")
    [table] = [t for t in report["tables"] if t["title"] == "Accuracy beside simpler rankings"]
    leads = {row[0]: row[2] for row in table["rows"]}
    for name in ("always the longer", "imitation: log-likelihood, summed", "asked which is better"):
        assert leads[name]["low"] > 0, name
    # Not the likelihood per token: the starting model's own knows the task as well.
    assert leads["noise ceiling: ordering as gold does"]["high"] < 0
    assert report["metrics"]["accuracy/gold"]["low"] > 0.65
