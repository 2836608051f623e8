"""One PPO run of either trainer in its own interpreter, for ppo_speed.py and ppo_learning.py.

`hf_align.trainers.ppo.PPOTrainer`, or `trl.experimental.ppo.PPOTrainer` of TRL 1.12, the last that
had one. Same policy, reward model, prompts, samples per rollout, epochs, minibatches and rates;
everything else is each trainer's own default. The interpreter of the second needs no hf_align.

    python tests/benchmarks/ppo_sides.py SPEC.json RESULT.json
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROLLOUT = 64
EPOCHS, MINIBATCHES = 2, 4
KINDS = {"separate": "reward", "shared": "shared"}
"""Our sides and their `value_model`; the third side, `trl`, has a separate one."""


def run(side: str, spec: dict, peer: str) -> dict:
    """Runs a side in its own process; `spec` as `main` reads it. Exits where the run fails."""
    python = peer if side == "trl" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "spec.json", Path(folder) / "result.json"
        given.write_text(json.dumps(spec | {"side": side, "output": f"{folder}/run"}))
        command = [python, __file__, str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
        return json.loads(found.read_text())


class Marks:
    """CPU seconds and logs at the end of each rollout.

    Args:
        steps: Optimizer steps that the trainer counts per rollout.
    """

    def __init__(self, steps: int):
        from transformers import TrainerCallback

        marks = self
        self.cpu: list[float] = []
        self.logs: list[dict] = []

        class Callback(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step % steps == 0:
                    marks.cpu.append(time.process_time())

            def on_log(self, args, state, control, logs=None, **kwargs):
                if logs and state.global_step % steps == 0:
                    marks.logs.append({k: v for k, v in logs.items() if isinstance(v, float | int)})

        self.callback = Callback()


def common(spec: dict, rate: float) -> dict:
    """Options that both configurations know by the same name."""
    return {
        "output_dir": spec["output"],
        "learning_rate": rate,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-5,
        "temperature": 1.0,
        "num_mini_batches": MINIBATCHES,
        "missing_eos_penalty": 1.0,
        "seed": spec["seed"],
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def ours(spec: dict) -> tuple[Marks, object]:
    """Our trainer, ready to train, and its marks."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from hf_align.trainers.on_policy_config import PPOConfig
    from hf_align.trainers.ppo import PPOTrainer

    steps = EPOCHS * MINIBATCHES
    args = PPOConfig(
        **common(spec, spec["rate"]),
        per_device_train_batch_size=ROLLOUT // MINIBATCHES,
        num_iterations=EPOCHS,
        max_completion_length=spec["max_new_tokens"],
        max_steps=steps * spec["rollouts"],
        logging_steps=steps,
        beta=0.05,
        epsilon=0.2,
        value_model=KINDS[spec["side"]],
        value_coefficient=0.1,
        value_clip=0.2,
        gamma=1.0,
        gae_lambda=0.95,
        score_clip=None,
    )
    marks = Marks(steps)
    trainer = PPOTrainer(
        AutoModelForCausalLM.from_pretrained(spec["policy"], dtype=torch.float32),
        spec["reward"],
        args,
        Dataset.from_dict({"prompt": json.loads(Path(spec["prompts"]).read_text())}),
        processing_class=AutoTokenizer.from_pretrained(spec["policy"]),
        callbacks=[marks.callback],
    )
    trainer.remove_callback(PrinterCallback)
    return marks, trainer


def theirs(spec: dict) -> tuple[Marks, object]:
    """The trainer of TRL 1.12, ready to train, and its marks.

    Its `gradient_accumulation_steps` skips optimizer steps, so there is no accumulation; a
    minibatch is then one forward pass (https://github.com/huggingface/trl/issues/5645).
    """
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        PrinterCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(spec["policy"], padding_side="left")
    prompts = json.loads(Path(spec["prompts"]).read_text())
    rows = Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]})
    args = PPOConfig(
        **common(spec, spec["rate"]),
        per_device_train_batch_size=ROLLOUT,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=ROLLOUT,
        num_ppo_epochs=EPOCHS,
        total_episodes=ROLLOUT * spec["rollouts"],
        response_length=spec["max_new_tokens"],
        stop_token="eos",
        num_sample_generations=0,
        kl_coef=0.05,
        cliprange=0.2,
        vf_coef=0.1,
        cliprange_value=0.2,
        gamma=1.0,
        lam=0.95,
    )
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(spec["policy"], dtype=torch.float32) for _ in range(2)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(
            spec["reward"], num_labels=1, dtype=torch.float32
        )
        for _ in range(2)
    )
    # What our RewardModel subtracts from a normalised reward model's output, as this head's bias.
    for model in (reward, value):
        offset = getattr(model.config, "reward_offset", 0.0)
        model.score.bias = torch.nn.Parameter(torch.tensor([-offset]))
    marks = Marks(1)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows.select(range(ROLLOUT)),
        callbacks=[marks.callback],
    )
    trainer.remove_callback(PrinterCallback)
    return marks, trainer


def main() -> None:
    """Reads SPEC.json (side, policy, reward, prompts, rollouts, max_new_tokens, rate, seed, output)
    and writes CPU seconds at the end of each rollout, logs, seconds of gc and peak memory."""
    given, found = map(Path, sys.argv[1:])
    spec = json.loads(given.read_text())
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    marks, trainer = (theirs if spec["side"] == "trl" else ours)(spec)
    collected, plain = [], gc.collect

    def collect(*args):
        started = time.process_time()
        freed = plain(*args)
        collected.append((started, time.process_time() - started))
        return freed

    gc.collect = collect
    started, wall = time.process_time(), time.perf_counter()
    trainer.train()
    result = {
        "start": started,
        "cpu": marks.cpu,
        "gc": collected,
        "logs": marks.logs,
        "wall": time.perf_counter() - wall,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    found.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
