"""The check before the first DPO step, and the warnings of a run that goes wrong."""

import json
import math

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from hf_align.recipes import dpo
from hf_align.recipes._policies import check_step_zero


@pytest.fixture(scope="module")
def pairs(testbed) -> Dataset:
    files = str(testbed.path / "preferences" / "train.parquet")
    return load_dataset("parquet", data_files=files, split="train[:48]")


@pytest.fixture
def make_trainer(testbed, pairs, tmp_path):
    """Builds a DPO trainer whose reference is the policy, or the policy with a nudged weight."""

    def make(nudge=0.0, reference=True, peft=None, **config):
        policy, other = (AutoModelForCausalLM.from_pretrained(testbed.policy_path) for _ in "ab")
        with torch.no_grad():
            other.model.norm.weight.mul_(1 + nudge)
        args = DPOConfig(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=8,
            max_length=64,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **config,
        )
        return DPOTrainer(
            model=policy,
            ref_model=other if reference else None,
            args=args,
            train_dataset=pairs,
            processing_class=AutoTokenizer.from_pretrained(testbed.policy_path),
            peft_config=peft,
        )

    return make


LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
SETUPS = {
    "a model of its own": {},
    "computed beforehand": {"precompute_ref_log_probs": True},
    "held by LoRA": {"peft": LORA, "reference": False},
}


@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_a_reference_that_is_the_policy_passes(make_trainer, setup):
    trainer = make_trainer(**setup)
    reference = trainer.ref_model
    for training in (True, False):
        trainer.model.train(training)
        check_step_zero(trainer)
        assert trainer.ref_model is reference
        assert trainer.model.training == training


@pytest.mark.parametrize("setup", list(SETUPS)[:2])
def test_a_reference_that_is_another_model_is_refused(make_trainer, setup):
    with pytest.raises(RuntimeError, match="reference is not the model") as refused:
        check_step_zero(make_trainer(nudge=0.02, **SETUPS[setup]))
    assert "on 32 pairs" in str(refused.value)


def test_an_adapter_that_has_already_moved_is_refused(make_trainer):
    trainer = make_trainer(**SETUPS["held by LoRA"])
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="reference is not the model"):
        check_step_zero(trainer)


def test_the_difference_is_told_in_nats(make_trainer, testbed):
    trainer = make_trainer(nudge=0.05)
    with pytest.raises(RuntimeError) as refused:
        check_step_zero(trainer)
    told = float(str(refused.value).split("differ by up to ")[1].split()[0])
    batch = trainer._prepare_inputs(
        trainer.data_collator([trainer.train_dataset[i] for i in range(32)])
    )
    logps = []
    # Written out here from the definition: the sum of log-softmax at the completion's tokens.
    for model in (trainer.model.eval(), trainer.ref_model.eval()):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        chosen = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        logps.append((chosen * batch["completion_mask"][:, 1:]).sum(1))
    assert told == pytest.approx(float((logps[0] - logps[1]).detach().abs().max()), rel=0.01)


def test_an_absurd_learning_rate_is_warned_of_while_it_happens_and_in_the_report(
    testbed, tmp_path, capsys
):
    path = tmp_path / "run"
    dpo.main(
        [
            *("--output_dir", str(path), "--learning_rate", "0.03", "--max_steps", "30"),
            *("--lr_scheduler_type", "constant", "--audit_steps", "0", "--num_eval_prompts", "16"),
            *("--num_eval_samples", "1", "--max_test_samples", "64", "--logging_steps", "2"),
        ]
    )
    said = capsys.readouterr().err
    report = json.loads((path / "report/report.json").read_text())
    warned = [line for line in report["warnings"] if "nats less likely" in line or "satur" in line]
    assert 1 <= len(warned) <= 2
    written = (path / "report/report.md").read_text().replace("\\", "")
    for line in warned:
        assert said.count(line) == 1
        assert line in written
    # What they claim is so: the logs say it too.
    logs = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in logs if "rewards/chosen" in line]
    fall = min(line["rewards/chosen"] for line in logs) / 0.1
    margin = max(line["rewards/margins"] for line in logs)
    assert any("less likely" in line for line in warned) <= (fall < -5)
    assert any("satur" in line for line in warned) <= (margin > 5)
    assert math.isfinite(fall)
