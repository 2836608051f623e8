"""Runs that end before their last step, and the best audited checkpoint in directory and report."""

import importlib
import json
import shutil

import pytest

from hf_align.recipes._evaluation import POLICY_STREAM
from hf_align.sampling import sample_completions

SMALL = ("--max_steps", "6", "--audit_steps", "2", "--num_audit_prompts", "24")
SMALL = (*SMALL, "--num_eval_prompts", "16", "--num_eval_samples", "2", "--logging_steps", "1")
SMALL = (*SMALL, "--per_device_train_batch_size", "8", "--save_steps", "2")
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")
STEEP = ("--learning_rate", "1e-2")
# Gold of the audits by their number, which is the third where nothing else is between them.
SCRIPT = (
    "means = [0.0, 1.0, 5.0, 1.0]\n"
    "def score(prompts, completions, **columns):\n"
    "    mean = means.pop(0) if len(completions) == 24 else 0.0\n"
    "    return [mean + 0.01 * len(c) for c in completions]\n"
)


@pytest.fixture
def recipe(testbed, tmp_path, monkeypatch):
    """Runs a recipe in this process and returns its run directory."""
    monkeypatch.chdir(tmp_path)

    def run(name, *args, to="run"):
        module = importlib.import_module(f"hf_align.recipes.{name}")
        module.main(["--output_dir", str(tmp_path / to), *SMALL, *args])
        return tmp_path / to

    return run


def report_of(run):
    return json.loads((run / "report/report.json").read_text())


def checkpoints(run):
    """The report's rows by name, each as a dictionary."""
    (table,) = [t for t in report_of(run)["tables"] if t["title"] == "Checkpoints"]
    return {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}


@pytest.mark.parametrize(
    "options", [(), LORA, (*LORA, "--merge_adapter")], ids=["full", "LoRA", "merged"]
)
def test_the_best_audited_checkpoint_is_kept_and_measured_on_the_reports_prompts(
    options, recipe, testbed, tmp_path, capsys
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "judge.py").write_text(SCRIPT)
    run = recipe("dpo", "--gold_reward", "judge.py:score", *STEEP, *options)
    assert report_of(run)["best_audited_step"] == 4
    assert f"best audited checkpoint: step 4, {run / 'best'}" in capsys.readouterr().out
    rows = checkpoints(run)
    assert [row["step"] for row in rows.values()] == [0, 4, 6]
    assert list(rows) == ["reference", "best audited", "shipped"]
    if options:
        base = AutoModelForCausalLM.from_pretrained(testbed.policy_path)
        best = PeftModel.from_pretrained(base, str(run / "best"))
    else:
        best = AutoModelForCausalLM.from_pretrained(run / "best")
    samples = sample_completions(
        best,
        AutoTokenizer.from_pretrained(run / "best"),
        testbed.prompts("report")[:16],
        num_samples=2,
        max_new_tokens=26,
        batch_size=512,
        seed=42000 + POLICY_STREAM,
    )
    found = rows["best audited"]
    assert found["length, tokens"]["value"] == pytest.approx(samples.lengths.mean())
    gold = [0.01 * len(text) for text in samples.texts]
    assert found["gold"]["value"] == pytest.approx(sum(gold) / len(gold), abs=1e-6)
    assert 0 < found["KL, nats"]["value"] != rows["shipped"]["KL, nats"]["value"]
    metrics = report_of(run)["metrics"]
    for name, metric in (("gold", "gold/mean"), ("KL, nats", "kl/sequence")):
        assert rows["shipped"][name]["value"] == metrics[metric]["value"]
    assert rows["reference"]["gold"]["value"] == metrics["gold/reference"]["value"]
    assert "best/" in (run / "README.md").read_text()


def test_nothing_is_kept_where_that_was_not_asked_for(recipe):
    run = recipe("dpo", "--no_keep_best")
    assert not (run / "best").exists() and report_of(run)["best_audited_step"] is None
    assert report_of(run)["tables"] == []


@pytest.mark.parametrize("name", ["dpo", "ppo"])
def test_a_run_that_spends_its_kl_budget_ends_there_and_says_so_again_when_resumed(name, recipe):
    args = (*STEEP, "--kl_budget", "0.01", "--max_steps", "40")
    run = recipe(name, *args, *(("--reward_model", "testbed") if name == "ppo" else ()))
    step = json.loads((run / "audits.json").read_text())[-1]["step"]
    assert step < 40 and (run / f"checkpoint-{step}").is_dir()
    first = report_of(run)
    (said,) = [line for line in first["warnings"] if "kl_budget 0.01" in line]
    assert said.startswith(f"step {step}: stopped")
    # What a kill during the evaluation leaves.
    shutil.rmtree(run / "report")
    (run / "model.safetensors").unlink()
    args = (*args, *(("--reward_model", "testbed") if name == "ppo" else ()))
    again = report_of(recipe(name, *args, "--resume_from_checkpoint"))
    assert again["metrics"] == first["metrics"] and again["verdict"] == first["verdict"]
    assert again["warnings"] == first["warnings"] and again["tables"] == first["tables"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in logged) == step


def test_a_fall_of_gold_ends_a_run(recipe, tmp_path):
    (tmp_path / "judge.py").write_text(SCRIPT)
    args = ("--gold_reward", "judge.py:score", "--stop_when_gold_falls", "--max_steps", "40")
    run = recipe("sft", "--model_name_or_path", "testbed", "--max_length", "64", *args)
    (said,) = [line for line in report_of(run)["warnings"] if "stopped" in line]
    assert said.startswith("step 6: stopped, as gold is 4.0") and "step 4" in said
    assert report_of(run)["best_audited_step"] == 4


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--kl_budget", "1", "--audit_steps", "0"), "kl_budget needs audits"),
        (("--stop_when_gold_falls", "--audit_steps", "0"), "stop_when_gold_falls needs audits"),
        (("--kl_budget", "0"), "kl_budget must be above 0"),
        (("--kl_budget", "1", "--fsdp", "full_shard"), "sharded"),
        (("--stop_when_gold_falls", "--num_audit_prompts", "7"), "it needs 8"),
        (
            (
                *("--stop_when_gold_falls", "--dataset_name", "pairs.jsonl"),
                *("--model_name_or_path", "testbed"),
            ),
            "--gold_reward",
        ),
    ],
)
def test_stops_that_nothing_could_decide_are_refused(args, named, recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe("dpo", *args)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named in lines[0]
    assert not (tmp_path / "run").exists()
