"""The reward recipe end to end on the testbed: one model, ensembles, LoRA, scale, report."""

import json

import numpy as np
import pytest

from hf_align.data import load_data
from hf_align.recipes import reward
from hf_align.recipes._rewarding import member_rows
from hf_align.rewards import RewardModel

QUICK = (
    *("--max_steps", 20, "--per_device_train_batch_size", 32, "--save_strategy", "no"),
    *("--num_eval_prompts", 8),
)


@pytest.fixture(scope="module")
def pairs(testbed):
    return load_data(str(testbed.preferences_path), "preference").splits


@pytest.fixture
def run(testbed, tmp_path, monkeypatch, capsys):
    """Runs the recipe here: (exit code, standard error, the run directory)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code, output = 0, tmp_path / "run"
        try:
            reward.main(["--output_dir", str(output), *map(str, (*QUICK, *args))])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err, output

    return run


def metrics_of(output):
    return json.loads((output / "report/report.json").read_text())["metrics"]


def scores_on(output, rows):
    model = RewardModel(output)
    prompts = [*rows["prompt"], *rows["prompt"]]
    return model.score(prompts, [*rows["chosen"], *rows["rejected"]])


def test_a_reward_model_is_saved_normalised_and_reported(run, pairs):
    code, err, output = run()
    assert code == 0, err
    scores = scores_on(output, pairs["train"].select(range(2000)))
    assert scores.mean() == pytest.approx(0.0, abs=1e-4)
    assert scores.std() == pytest.approx(1.0, abs=1e-4)
    metrics = metrics_of(output)
    for name in ("accuracy/label", "accuracy/gold", "accuracy/longest_wins", "nll/label"):
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"]
    assert metrics["calibration/temperature"]["value"] > 0
    assert {path.suffix for path in (output / "report").iterdir()} == {".json", ".md", ".png"}
    assert not (output / "training_args.bin").exists()


def test_the_saved_model_gives_trl_the_scores_of_the_report_up_to_a_constant(run, pairs):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _, _, output = run()
    rows = pairs["test"].select(range(16))
    model = AutoModelForSequenceClassification.from_pretrained(output).eval()
    tokenizer = AutoTokenizer.from_pretrained(output)
    columns = zip(rows["prompt"], rows["chosen"], strict=True)
    texts = [prompt + chosen + tokenizer.eos_token for prompt, chosen in columns]
    plain = []
    for text in texts:
        with torch.no_grad():
            plain.append(model(**tokenizer(text, return_tensors="pt")).logits.item())
    ours = RewardModel(output).score(rows["prompt"], rows["chosen"])
    difference = np.array(plain) - ours
    assert np.ptp(difference) < 1e-4


def test_without_normalisation_the_scores_stay_as_trained(run, pairs):
    _, _, output = run("--no_normalise")
    scores = scores_on(output, pairs["train"].select(range(500)))
    assert abs(scores.std() - 1.0) > 1e-3


@pytest.mark.parametrize("how", ["bootstrap", "disjoint"])
def test_an_ensemble_is_one_folder_whose_members_differ(run, pairs, how):
    options = ("--num_members", 2, "--member_data", how, "--combine", "worst_case")
    code, err, output = run(*options, "--max_steps", 5)
    assert code == 0, err
    rows = pairs["test"].select(range(64))
    model = RewardModel(output)
    members = model.member_scores(rows["prompt"], rows["chosen"])
    assert members.shape == (2, 64) and not np.allclose(members[0], members[1])
    combined = model.score(rows["prompt"], rows["chosen"])
    lowest = members.min(axis=0)
    # The worst case, moved and scaled as a whole.
    assert np.corrcoef(combined, lowest)[0, 1] == pytest.approx(1.0)


def test_an_ensemble_judges_another_run_by_name(run, tmp_path):
    from hf_align.recipes import dpo

    _, _, output = run("--num_members", 2, "--max_steps", 5)
    judged = tmp_path / "judged"
    quick = ["--max_steps", "2", "--num_eval_prompts", "8", "--audit_steps", "0"]
    dpo.main(["--gold_reward", str(output), "--output_dir", str(judged), *quick])
    assert "gold/win_rate" in metrics_of(judged)
    lineage = json.loads((judged / "lineage.json").read_text())
    assert len(lineage["gold_reward"]["sha256"]) == 64


def test_a_lora_reward_model_trains_its_head_and_is_saved_merged(run, pairs):
    code, err, output = run(
        *("--use_peft", "--lora_r", 4, "--lora_target_modules", "q_proj", "v_proj"),
        *("--learning_rate", "1e-2"),
    )
    assert code == 0, err
    assert not (output / "adapter_config.json").exists()
    scores = scores_on(output, pairs["test"])
    half = len(scores) // 2
    assert (scores[:half] > scores[half:]).mean() > 0.5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--num_members", 0), "at least 1"),
        (("--combine", "worst_case"), "add --num_members"),
        (("--member_data", "thirds"), "must be one of"),
        (("--num_members", 2, "--resume_from_checkpoint"), "no complete checkpoint"),
        (("--num_members", 2, "--resume_from_checkpoint", "x/checkpoint-4"), "name none"),
        (("--loss", "listwise"), "must be one of 'pairwise', 'kwise', 'plackett_luce'"),
        (("--loss", "kwise", "--margin_column", "m"), "has no effect on --loss kwise"),
        (("--margin_column", "gold"), "--margin_column gold: no such column"),
        (("--center_rewards_coefficient", "much"), "must be a number"),
        (("--use_peft", "--load_in_4bit"), "saved merged"),
        (("--use_peft", "--lora_target_modules", "nope"), "the trainer refuses"),
        (("--gold_reward", "math:pow"), "pow"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(run, args, message):
    code, err, output = run(*args)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and message in line and not output.exists()


def test_a_refused_overwrite_leaves_the_old_run_as_it_was(run):
    _, _, output = run("--max_steps", 2)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    code, _, _ = run("--overwrite", "--use_peft", "--lora_target_modules", "nope")
    assert code == 2
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_members_see_disjoint_prompts_or_a_bootstrap_of_them(pairs):
    rows = pairs["train"].select(range(600))
    parts = [member_rows(rows, "disjoint", index, 3, 0) for index in range(3)]
    prompts = [set(part["prompt"]) for part in parts]
    assert set.union(*prompts) == set(rows["prompt"])
    assert sum(map(len, prompts)) == len(set(rows["prompt"]))
    drawn = member_rows(rows, "bootstrap", 0, 3, 0)
    share = len(set(drawn["prompt"])) / len(set(rows["prompt"]))
    # A bootstrap of G prompts holds 1 − 1/e of them.
    assert share == pytest.approx(1 - np.exp(-1), abs=0.08)
