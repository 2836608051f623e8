"""PPO and RLOO as recipes: what a run directory promises, refusals, the same trajectory again."""

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

from hf_align.diagnostics.report import METRICS
from hf_align.recipes import _on_policy as on_policy

QUICK = ("--max_steps", "4", "--num_iterations", "2", "--per_device_train_batch_size", "8")
QUICK = (*QUICK, "--num_eval_prompts", "16", "--num_eval_samples", "1", "--logging_steps", "1")
QUICK = (*QUICK, "--audit_steps", "0", "--num_mini_batches", "1")
GOLD = ("--reward_model", "testbed")
# What the trainer logs beside our metrics: the optimizer's state and the closing summary.
TRAINER_LOGS = {"loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens"}
SUMMARY = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
SUMMARY |= {"total_flos"}


@pytest.fixture(scope="module")
def scorer(testbed, tmp_path_factory):
    """An untrained reward model on the testbed's policy, as a folder."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = tmp_path_factory.mktemp("models") / "scorer"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(
            testbed.policy_path, num_labels=1
        )
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(testbed.policy_path).save_pretrained(path)
    return path


@pytest.fixture
def recipe(testbed, tmp_path, monkeypatch):
    """Runs a recipe in this process and returns its run directory."""
    monkeypatch.chdir(tmp_path)

    def run(name, *args, to="run"):
        module = importlib.import_module(f"hf_align.recipes.{name}")
        quick = (*QUICK, "--num_generations", "2") if name == "rloo" else QUICK
        output = tmp_path / to
        module.main(["--output_dir", str(output), *quick, *GOLD, *map(str, args)])
        return output

    return run


@pytest.fixture
def refused(testbed, tmp_path, monkeypatch, capsys):
    """What a recipe says before anything is written: one line."""
    monkeypatch.chdir(tmp_path)

    def run(name, *args, code=2):
        module = importlib.import_module(f"hf_align.recipes.{name}")
        with pytest.raises(SystemExit) as stop:
            module.main(["--output_dir", str(tmp_path / "run"), *QUICK, *map(str, args)])
        assert stop.value.code == code
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1 and not (tmp_path / "run").exists()
        return lines[0]

    return run


def report_of(run):
    return json.loads((run / "report/report.json").read_text())


def logs_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(run):
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_a_run_holds_the_policy_alone_and_metrics_of_the_glossary(name, recipe, scorer):
    from transformers import AutoModelForCausalLM

    run = recipe(name, "--reward_model", scorer, "--audit_steps", "2", "--num_audit_prompts", "16")
    _, loading = AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))
    logged = {key for line in logs_of(run) for key in line}
    known = METRICS.keys() | {f"audit/{key}" for key in METRICS} | TRAINER_LOGS | SUMMARY
    assert logged <= known, sorted(logged - known)
    assert {"kl/sequence_k1", "reward/score", "reward/shaped", "reward/penalty"} <= logged
    if name == "ppo":
        assert {"value/loss", "value/explained_variance"} <= logged
    report = report_of(run)
    assert {"proxy/gain", "gold/gain", "kl/sequence"} <= report["metrics"].keys()
    assert (run / "report/gold_against_kl.png").is_file()
    lineage = json.loads((run / "lineage.json").read_text())
    assert lineage["reward_models"][0]["sha256"]


def test_optimising_gold_itself_the_proxy_is_gold(recipe):
    metrics = report_of(recipe("ppo"))["metrics"]
    assert metrics["proxy/mean"] == metrics["gold/mean"]


def test_several_rewards_are_added_up_with_their_weights(recipe, scorer):
    args = ("--reward_model", "testbed", scorer, "--reward_weights", "1.0", "0.5")
    run = recipe("ppo", *args)
    first = logs_of(run)[0]
    parts = [value for key, value in first.items() if key.startswith("reward/score/")]
    assert len(parts) == 2
    assert report_of(run)["evaluation"]["proxy"].startswith("1·")


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(name, recipe, tmp_path):
    whole = recipe(name, "--save_steps", "3", to="whole")
    part = recipe(name, "--save_steps", "3", "--save_total_limit", "9", to="part")
    for checkpoint in part.glob("checkpoint-4"):
        import shutil

        shutil.rmtree(checkpoint)
    (part / "model.safetensors").unlink()
    recipe(name, "--save_steps", "3", "--resume_from_checkpoint", to="part")
    ours, theirs = weights_of(part), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_stops_at_its_limit_is_audited_and_says_so(recipe):
    run = recipe(
        "ppo",
        *("--learning_rate", "1e-2", "--kl_limit", "0.1", "--max_steps", "40"),
        *("--audit_steps", "20", "--num_audit_prompts", "16"),
    )
    report = report_of(run)
    (said,) = [line for line in report["warnings"] if "kl_limit 0.1" in line]
    steps = [line["step"] for line in logs_of(run) if "train_loss" in line]
    assert steps[0] < 40 and f"step {steps[0] - 1}" in said
    audits = json.loads((run / "audits.json").read_text())
    assert audits[-1]["step"] == steps[0]


def test_a_merged_adapter_is_one_plain_model(recipe):
    from transformers import AutoModelForCausalLM

    run = recipe("ppo", "--use_peft", "--merge_adapter")
    _, loading = AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys"))


def test_translation_with_bleu_and_reference_answers(testbed, tmp_path, monkeypatch):
    from hf_align.recipes import rloo

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    args = ("--output_dir", str(run), "--max_steps", "2", "--audit_steps", "0")
    args = (*args, "--num_eval_prompts", "16", "--per_device_train_batch_size", "16")
    rloo.main(["--config", "recipes/rloo/testbed-translation.yaml", *args])
    metrics = report_of(run)["metrics"]
    assert 0 < metrics["proxy/mean"]["value"] < 1
    logs = logs_of(run)
    assert any("policy/likelihood_nll" in line for line in logs)
    # No folder of this machine is named where a card would show it.
    assert str(tmp_path) not in (run / "README.md").read_text()
    assert json.loads((run / "lineage.json").read_text())["model"]["name"] == on_policy.TRANSLATION


def test_conversations_are_prompts_too(recipe):
    run = recipe("ppo", "--dataset_config", "conversational")
    assert report_of(run)["metrics"]["gold/mean"]["value"] == pytest.approx(2.0, abs=1.2)


def test_the_language_modelling_loss_runs_beside_it(recipe):
    run = recipe("ppo", "--ptx_dataset", "testbed", "--ptx_coefficient", "0.5")
    assert any("policy/likelihood_nll" in line for line in logs_of(run))


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--beta", "-1"), "beta must be at least 0"),
        (("--num_generations", "0"), "num_generations must be at least 1"),
        (("--per_device_train_batch_size", "8", "--num_generations", "3"), "divisible"),
        (("--top_p", "0.9"), "top_p 0.9"),
        (("--kl_limit", "0"), "kl_limit must be above 0"),
        (("--kl_controller", "scheduled"), "beta_end"),
        (("--kl_controller", "adaptive", "--kl_horizon", "1"), "horizon"),
        (("--ptx_coefficient", "0.1"), "ptx_dataset"),
        (("--reward_model", "nowhere/to:be_found"), "reward_model"),
        (("--reward_model", "absent/folder/here"), "reward_model"),
        (("--reward_weights", "1", "2"), "reward_weights"),
        (("--max_completion_length", "4000"), "max_completion_length"),
        (("--value_model", "reward"), "value_model 'reward'"),
        (("--value_model", "huge"), "value_model must be"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(refused, args, named):
    assert named in refused("ppo", *GOLD, *args)


def test_a_policy_is_no_reward_model(refused, testbed):
    assert "reward_model" in refused("ppo", "--reward_model", testbed.policy_path)


def test_a_mean_baseline_needs_several_completions(refused):
    said = refused("rloo", *GOLD, "--num_generations", "1", "--baseline", "mean")
    assert "num_generations" in said


def test_a_reward_that_fails_mid_run_leaves_the_checkpoint(recipe, tmp_path, capsys):
    (tmp_path / "failing.py").write_text(
        "calls = 0\n"
        "def score(prompts, completions, **columns):\n"
        "    global calls\n"
        "    calls += len(prompts) > 2\n"
        "    if calls > 1:\n"
        "        raise RuntimeError('the judge is out to lunch')\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    with pytest.raises(SystemExit) as stop:
        recipe("ppo", "--reward_model", "failing.py:score", "--save_steps", "1")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "the judge is out to lunch" in said and "--resume_from_checkpoint" in said
    assert (tmp_path / "run/checkpoint-2/trainer_state.json").is_file()
