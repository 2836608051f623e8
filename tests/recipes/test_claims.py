"""What the READMEs claim, run in full: minutes long, `make test ARGS="-m slow"`."""

import json
from pathlib import Path

import pytest

from hf_align.recipes import dpo, sft

pytestmark = pytest.mark.slow
SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def metrics_of(run):
    return json.loads((run / "report/report.json").read_text())["metrics"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_dpo_on_the_testbed_beats_sft_in_gold_at_a_small_kl(testbed, tmp_path, seed):
    dpo.main(["--output_dir", str(tmp_path / "run"), "--seed", str(seed)])
    metrics = metrics_of(tmp_path / "run")
    assert metrics["gold/gain"]["n"] >= 512
    assert metrics["gold/gain"]["value"] >= 0.35 and metrics["gold/gain"]["low"] > 0
    assert metrics["gold/win_rate"]["value"] >= 0.60
    assert metrics["kl/sequence"]["value"] < 5.0


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("hh_rlhf_harmless_base_test.jsonl.gz", ["--invalid_rows", "drop"]),
        ("alpaca_eval_annotations.parquet", []),
    ],
)
def test_real_comparisons_train_from_scratch_and_are_reported_with_intervals(
    tmp_path, file, options
):
    if not (SHARED_DATA / file).is_file():
        pytest.skip(f"{SHARED_DATA / file} is not here")
    data = ["--dataset_name", str(SHARED_DATA / file), *options]
    size = ["--per_device_train_batch_size", "8", "--max_length", "512"]
    size += ["--num_eval_prompts", "48", "--num_eval_samples", "1", "--eval_max_new_tokens", "64"]
    model = ["--scratch_hidden_size", "64", "--scratch_num_layers", "2"]
    model += ["--scratch_vocab_size", "2048", "--max_train_samples", "1500"]
    start, tuned = tmp_path / "sft", tmp_path / "dpo"
    rate = ["--learning_rate", "3e-3", "--max_steps", "150"]
    sft.main(["--from_scratch", *model, *data, *size, *rate, "--output_dir", str(start)])
    loss = metrics_of(start)
    assert loss["nll/held_out"]["high"] < loss["nll/reference"]["low"]
    rate = ["--learning_rate", "1e-4", "--max_steps", "60"]
    dpo.main(["--model", str(start), *data, *size, *rate, "--output_dir", str(tuned)])
    metrics = metrics_of(tuned)
    assert metrics["kl/sequence"]["value"] > 0
    for name in ("implicit_reward/accuracy", "implicit_reward/nll", "accuracy/longest_wins"):
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"], name
