"""What on-policy runs leave on disk, and that they go on from it as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from hf_align.types import InputError

# Two steps a pass, two passes a rollout: checkpoints 3, 6 and 9 lie within rollouts.
ROLLOUTS = {"num_mini_batches": 2, "num_iterations": 2, "per_device_train_batch_size": 8}
SAVING = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": None}
STEPS = 10

SETUPS = {
    "separate": {
        "kl_controller": "adaptive",
        "kl_horizon": 64,
        "kl_target": 0.05,
        "normalise_scores": "running",
    },
    "shared": {"value_model": "shared", "gradient_accumulation_steps": 2, "save_steps": 5},
    "leaving": {"update_kl_limit": 1e-4, "learning_rate": 1e-2, "kl_controller": "budget"},
    "ptx": {"value_model": "policy", "ptx_coefficient": 0.5, "ptx_batch_size": 3},
    "lora": {},
    "reinforce": {"num_generations": 2, "kl_controller": "scheduled", "beta_end": 0.0},
}


def trained(setup, make_trainer, make_reward, folder, resume=None, **changes):
    options = ROLLOUTS | SAVING | {"max_steps": STEPS} | SETUPS[setup] | changes
    named = {}
    if setup == "lora":
        named["peft_config"] = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    if setup == "ptx":
        texts = [f"mention {word} : please" for word in ("tea", "rain", "sea", "dogs", "cats")]
        named["ptx_dataset"] = Dataset.from_dict({"text": texts})
    trainer = make_trainer(
        "reinforce" if setup == "reinforce" else "ppo",
        folder=folder,
        rewards=make_reward(),
        trainer_options=named,
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logs_of(trainer):
    """Everything that is logged but for times, which differ from run to run."""
    lines = []
    for line in trainer.state.log_history:
        if "train_runtime" in line:
            continue
        lines.append({k: v for k, v in line.items() if not k.startswith(("time/", "speed/"))})
    return lines


def assert_same_run(resumed, whole):
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
    assert resumed.controller.state_dict() == whole.controller.state_dict()
    assert resumed.moments.state_dict() == whole.moments.state_dict()
    assert resumed._step == whole._step
    assert len(logs_of(whole)) == STEPS
    assert logs_of(resumed) == logs_of(whole)
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0
    adams = (t.optimizer.optimizer.state_dict()["state"] for t in (resumed, whole))
    for mine, other in zip(*(states.values() for states in adams), strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in other)


@pytest.mark.parametrize("setup", SETUPS)
def test_a_run_resumed_within_a_rollout_is_the_same_run(setup, make_trainer, make_reward, tmp_path):
    whole = trained(setup, make_trainer, make_reward, tmp_path / "whole")
    start = tmp_path / "whole" / f"checkpoint-{SETUPS[setup].get('save_steps', 6)}"
    place = torch.load(start / "on_policy_state_0.pt", weights_only=True)
    assert place["step"] % whole._cycle != 0  # within a rollout
    assert setup != "leaving" or place["leaving"]
    resumed = trained(setup, make_trainer, make_reward, tmp_path / "resumed", resume=str(start))
    assert_same_run(resumed, whole)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tiny_trainers import build_reward, build_trainer, word_tokenizer
from transformers import TrainerCallback
from hf_align.rewards import RewardModel

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

words = word_tokenizer()
reward = RewardModel.from_members([(build_reward(words), words)], name="tiny")
trainer = build_trainer("ppo", {folder!r}, words, rewards=reward, **{options!r})
trainer.add_callback(Kill())
trainer.train()
"""


def test_a_killed_process_leaves_a_checkpoint_that_goes_on(make_trainer, make_reward, tmp_path):
    folder = tmp_path / "killed"
    options = ROLLOUTS | SAVING | {"max_steps": STEPS} | SETUPS["separate"]
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), options=options)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    whole = trained("separate", make_trainer, make_reward, tmp_path / "whole")
    resumed = trained("separate", make_trainer, make_reward, folder, resume=True)
    assert_same_run(resumed, whole)


# -- what is on disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_is_the_policy_and_the_value_model_lies_beside_it(
    tied, make_trainer, make_policy, make_reward, tmp_path
):
    for value_model in ("reward", "shared"):
        trainer = make_trainer(
            policy=make_policy(tie_word_embeddings=tied),
            folder=tmp_path / value_model,
            rewards=make_reward(),
            value_model=value_model,
            max_steps=1,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "final"))
        ids = torch.tensor([[6, 8, 9, 10]])
        with torch.no_grad():
            expected = trainer.model.eval()(ids).logits
        checkpoint = tmp_path / value_model / "checkpoint-1"
        for folder in (checkpoint, tmp_path / "final"):
            model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            assert not any(info.values()), info
            with torch.no_grad():
                torch.testing.assert_close(model(ids).logits, expected)
        assert (checkpoint / "value_model.safetensors").is_file()
        assert not [path for path in (tmp_path / "final").iterdir() if "value" in path.name]
        assert not list((tmp_path / "final").glob("on_policy_state*"))


def test_code_in_a_checkpoint_is_not_run(make_trainer, make_reward, tmp_path):
    trained("separate", make_trainer, make_reward, tmp_path / "run", max_steps=3)
    checkpoint, proof = tmp_path / "run" / "checkpoint-3", tmp_path / "proof"

    class Payload:
        def __reduce__(self):
            return Path.touch, (proof,)

    torch.save({"step": Payload()}, checkpoint / "on_policy_state_0.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        trained("separate", make_trainer, make_reward, tmp_path / "run", resume=str(checkpoint))
    assert not proof.exists()


def test_a_checkpoint_of_another_run_is_refused(make_trainer, make_reward, tmp_path):
    trained("separate", make_trainer, make_reward, tmp_path / "run", max_steps=3)
    checkpoint = tmp_path / "run" / "checkpoint-3"

    def resume(**changes):
        folder = tmp_path / "new"
        trained("separate", make_trainer, make_reward, folder, resume=str(checkpoint), **changes)

    with pytest.raises(OSError, match="another kind of value model"):
        resume(value_model="shared")
    with pytest.raises(InputError, match="the saved KL controller holds"):
        resume(kl_controller="scheduled", beta_end=0.0)
    with pytest.raises(InputError, match="completions per slice, slices or passes"):
        resume(per_device_train_batch_size=4)
    elsewhere = shutil.copytree(checkpoint, tmp_path / "checkpoint-3")
    (elsewhere / "on_policy_state_0.pt").rename(elsewhere / "on_policy_state_1.pt")
    checkpoint = elsewhere
    with pytest.raises(InputError, match="another number of processes"):
        resume()


def test_a_run_stopped_by_its_kl_limit_goes_on_once_the_limit_is_raised(make_trainer, tmp_path):
    def run(resume=None, **options):
        trainer = make_trainer(
            folder=tmp_path / "run", learning_rate=1e-2, max_steps=12, num_iterations=2, **options
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    stopped = run(kl_limit=0.02)
    step = stopped.state.global_step
    assert stopped.stop_reason and step < 11
    # With the limit as it was, the run ends where it did, and the policy is the same.
    again = run(resume=True, kl_limit=0.02)
    assert again.stop_reason == stopped.stop_reason and again.state.global_step <= step + 1
    for ours, theirs in zip(again.model.parameters(), stopped.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    resumed = run(resume=str(tmp_path / "run" / f"checkpoint-{step}"), kl_limit=1e3)
    assert resumed.stop_reason is None and resumed.state.global_step == 12
