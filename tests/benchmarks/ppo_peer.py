"""What TRL 1.12's PPO has in hand in one update: variables of its training loop, in one file.

The other half of `ppo_parity.py`, which runs this in an interpreter with trl 1.12. Nothing of
hf_align is imported here.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file

VOCABULARY, PAD, END = 24, 0, 1
TEMPERATURE, CLIP, VALUE_CLIP, VALUE_COEFFICIENT = 0.7, 0.2, 0.1, 0.1
BETA, EOS_PENALTY, BATCH, RESPONSE, MICROBATCHES = 0.3, 1.0, 16, 10, 2
SETTINGS = {
    "k1, γ .98, λ .9": {"kl_estimator": "k1", "gamma": 0.98, "lam": 0.9},
    "k3, γ 1, λ 1": {"kl_estimator": "k3", "gamma": 1.0, "lam": 1.0},
}
ROLLOUT = (
    *("query_responses", "sequence_lengths", "contain_eos_token", "padding_mask"),
    *("padding_mask_p1", "logprobs", "ref_logprobs", "values", "scores", "kl", "rewards"),
    *("advantages", "returns"),
)
"""Variables of TRL's loop, by their names there, when it is about to whiten the advantages."""
MICROBATCH = (
    *("new_logprobs", "mb_logprobs", "mb_advantage", "mb_values", "mb_return", "vpred"),
    *("pg_losses", "pg_losses2", "pg_loss_max", "vf_loss_max", "pg_loss", "vf_loss", "loss"),
)
"""The same when it is about to go backward."""


def models(seed: int) -> dict[str, torch.nn.Module]:
    """Random policy, reference, value and reward model; policies end often and never draw a pad."""
    from transformers import (
        LlamaConfig,
        LlamaForSequenceClassification,
        PhiConfig,
        PhiForCausalLM,
    )

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": END,
        "eos_token_id": END,
        "initializer_range": 0.15,
    }
    built = {}
    torch.manual_seed(seed)
    for name in ("policy", "reference"):
        built[name] = PhiForCausalLM(PhiConfig(**sizes))
        with torch.no_grad():
            built[name].lm_head.bias[PAD] = -60.0
            built[name].lm_head.bias[END] = 1.0
    for name in ("value", "reward"):
        built[name] = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1)).eval()
    return built


def random_tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and a mask to average and whiten."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(64, 37, generator=generator) * 3 + 1
    return values, torch.rand(64, 37, generator=generator) < 0.6


def dump(path: str) -> None:
    """Runs TRL's functions and one update per setting, and saves what they saw."""
    from trl.experimental.ppo import ppo_trainer

    values, mask = random_tensors()
    found = {
        "random/mean": ppo_trainer.masked_mean(values, mask),
        "random/whitened": ppo_trainer.masked_whiten(values, mask),
    }
    for seed, (name, options) in enumerate(SETTINGS.items()):
        for key, tensor in peer_update(seed, options).items():
            found[f"{name}/{key}"] = tensor
    save_file({key: t.detach().contiguous().clone() for key, t in found.items()}, path)


def peer_update(seed: int, options: dict) -> dict[str, torch.Tensor]:
    """One update by TRL, with the variables of its loop at two places."""
    from trl.experimental.ppo import ppo_trainer

    own, found = models(seed), {}
    for role, model in own.items():
        for key, tensor in model.state_dict().items():
            found[f"{role}/{key}"] = tensor.clone()
    with tempfile.TemporaryDirectory() as folder:
        trainer = peer_trainer(own, seed, options, folder)
        whiten, backward = ppo_trainer.masked_whiten, trainer.accelerator.backward
        passes = []

        def watched_whiten(values, mask, shift_mean=True):
            variables = sys._getframe(1).f_locals
            found.update({f"rollout/{name}": variables[name].clone() for name in ROLLOUT})
            found["rollout/whitened"] = whiten(values, mask, shift_mean)
            return found["rollout/whitened"]

        def watched_backward(loss):
            variables = sys._getframe(1).f_locals
            kept = {name: variables[name] for name in MICROBATCH}
            for name in ("new_logprobs", "vpred"):
                kept[name].retain_grad()
            backward(loss)
            index = len(passes)
            passes.append(index)
            found[f"pass{index}/rows"] = torch.as_tensor(variables["micro_batch_inds"])
            for name, tensor in kept.items():
                found[f"pass{index}/{name}"] = tensor.detach().clone()
            for name in ("new_logprobs", "vpred"):  # undo the division by accumulated passes
                found[f"pass{index}/{name}_grad"] = kept[name].grad * MICROBATCHES
            if index == 0:
                for name, parameter in trainer.model.named_parameters():
                    if parameter.grad is not None:
                        found[f"gradient/{name}"] = parameter.grad * MICROBATCHES

        ppo_trainer.masked_whiten, trainer.accelerator.backward = watched_whiten, watched_backward
        np.random.seed(seed)  # TRL shuffles with it and seeds it nowhere
        try:
            trainer.train()
        finally:
            ppo_trainer.masked_whiten = whiten
    return found


def peer_trainer(own: dict, seed: int, options: dict, folder: str):
    """TRL's trainer for one update."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")),
        pad_token="w0",
        eos_token="w1",
        padding_side="left",
    )
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (BATCH,), generator=generator).tolist()
    prompts = [torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    args = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=BATCH // MICROBATCHES,
        gradient_accumulation_steps=MICROBATCHES,
        num_mini_batches=1,
        num_ppo_epochs=3,
        total_episodes=BATCH,
        num_sample_generations=0,
        response_length=RESPONSE,
        stop_token="eos",
        missing_eos_penalty=EOS_PENALTY,
        temperature=TEMPERATURE,
        kl_coef=BETA,
        cliprange=CLIP,
        cliprange_value=VALUE_CLIP,
        vf_coef=VALUE_COEFFICIENT,
        learning_rate=5e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=own["policy"],
        ref_model=own["reference"],
        reward_model=own["reward"],
        value_model=own["value"],
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": prompts}),
    )


if __name__ == "__main__":
    dump(sys.argv[1])
