"""DPO throughput of a random 0.5B Qwen-shaped model in bf16: what the YAML defaults should be.

Measures tokens/s and model FLOP utilisation with and without gradient checkpointing and with a
precomputed reference. (TRL 1.16's DPO has no padding-free batches.) Needs a GPU; `--tiny` runs the
same code on a CPU with a toy shape, to check that it works.

    python tests/benchmarks/dpo_gpu.py [--steps 20] [--peak_tflops 790] [--tiny]
"""

import argparse
import itertools
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from hf_align.testbed import tokenizer as word_tokenizer

SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
TINY = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 512,
}


class Clock(TrainerCallback):
    """Seconds of each step after the first three, which warm up."""

    def __init__(self):
        self.seconds, self.begin = [], None

    def on_step_begin(self, args, state, control, **kwargs):
        _synchronise()
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        _synchronise()
        if state.global_step > 3:
            self.seconds.append(time.perf_counter() - self.begin)


def _synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pairs(num_rows, prompt_tokens, completion_tokens, seed=0):
    """Random pairs of a known length in tokens (the testbed's words are one token each)."""
    rng = np.random.default_rng(seed)
    words = ["tea", "rain", "music", "books", "really", "also"]

    def text(count):
        return " ".join(rng.choice(words, count))

    return Dataset.from_list(
        [
            {
                "prompt": text(prompt_tokens) + " ",
                "chosen": text(completion_tokens - 1),
                "rejected": text(completion_tokens - 1),
            }
            for _ in range(num_rows)
        ]
    )


def measure(shape, dataset, length, batch, steps, checkpointing, precompute):
    """Trains `steps` steps and returns tokens per second, parameters and peak memory in GB."""
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    config = Qwen2Config(**shape, max_position_embeddings=length)
    policy, reference = (Qwen2ForCausalLM(config) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=DPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=batch,
                max_length=length,
                bf16=gpu,
                use_cpu=not gpu,
                gradient_checkpointing=checkpointing,
                precompute_ref_log_probs=precompute,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=word_tokenizer(),
            callbacks=[clock],
        )
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    tokens = 2 * batch * length  # chosen and rejected
    memory = torch.cuda.max_memory_allocated() / 1e9 if gpu else float("nan")
    return tokens / float(np.median(clock.seconds)), policy.num_parameters(), memory


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak_tflops", type=float, default=790.0, help="measured bf16 peak")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("needs a GPU; --tiny checks the code on a CPU")
    shape, length = (TINY, 64) if args.tiny else (SHAPE, 1024)
    dataset = pairs(4 * args.batch, length // 2, length // 2)
    print(f"torch {torch.__version__}, {length} tokens per sequence, {args.batch} pairs per step")
    print("checkpointing  precomputed  tokens/s      MFU  peak GB")
    for checkpointing, precompute in itertools.product((False, True), (False, True)):
        speed, parameters, memory = measure(
            shape, dataset, length, args.batch, args.steps, checkpointing, precompute
        )
        # Forward and backward are 6 FLOP per parameter and token, the reference's forward 2 more.
        # Recomputation under checkpointing is not counted as useful work.
        flops = speed * parameters * (6 if precompute else 8)
        print(
            f"{checkpointing!s:>13}  {precompute!s:>11}  {speed:>8,.0f}  "
            f"{flops / args.peak_tflops / 1e12:>7.1%}  {memory:>7.1f}"
        )


if __name__ == "__main__":
    main()
