"""Our sampling loop against `generate` of transformers: CPU time of 64 completions.

A random Llama of 0.85 M parameters with a vocabulary of 384, and the same trunk with one of 32,768
(5 M). Prompts have 8 to 16 tokens. The end token has probability 1/13 everywhere, so completions
end after 13 tokens in the mean and are cut at 48. Both sides sample from the softmax at temperature
1; ours also returns log-probabilities. They take turns, with a new seed each time, and the ratio is
of the totals.

    OMP_NUM_THREADS=1 python tests/benchmarks/decoding_speed.py --repeats 15
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from importlib.metadata import version

LIMITS = {384: 1.4, 32_768: 1.8}
"""How many times as fast as `generate` ours must be, by vocabulary."""
END, MEAN_LENGTH, MAX_LENGTH = 1, 13, 48


def make_policy(vocabulary: int):
    """A random Llama whose head gives the end token probability 1/13, whatever came before."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=vocabulary > 1000,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config).eval()
    parameters = model.num_parameters()
    head = torch.nn.Linear(128, vocabulary)
    head.weight = model.lm_head.weight
    with torch.no_grad():
        head.bias.zero_()
        head.bias[END] = math.log((vocabulary - 1) / (MEAN_LENGTH - 1))
    model.lm_head = head
    return model, parameters


def make_sides(model, prompts: list[list[int]]) -> dict:
    """Per side a function of the seed that returns the lengths of what it drew."""
    import torch
    from transformers import GenerationConfig

    from hf_align.sampling.decoding import draw

    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_LENGTH,
        eos_token_id=END,
        pad_token_id=0,
    )

    def generate(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            drawn = model.generate(input_ids=padded, attention_mask=mask)[:, width:]
        return [row.index(END) + 1 if END in row else len(row) for row in drawn.tolist()]

    def ours(seed):
        generator = torch.Generator().manual_seed(seed)
        drawn = draw(model, prompts, max_new_tokens=MAX_LENGTH, end_ids=[END], generator=generator)
        return [len(ids) for ids in drawn.completion_ids]

    return {"generate": generate, "ours": ours}


def measure(vocabulary: int, repeats: int) -> float:
    """Prints one row; returns how many times as fast ours is."""
    import numpy as np

    rng = np.random.default_rng(0)
    model, parameters = make_policy(vocabulary)
    prompts = [rng.integers(2, vocabulary, rng.integers(8, 17)).tolist() for _ in range(64)]
    sides = make_sides(model, prompts)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    tokens = dict.fromkeys(sides, 0)
    for seed in range(repeats + 2):
        for side, draw in sorted(sides.items(), reverse=bool(seed % 2)):
            start = time.process_time()  # not the wall clock: other work on the machine would count
            lengths = draw(seed)
            spent = time.process_time() - start
            if seed >= 2:  # the first two warm up
                seconds[side].append(spent)
                tokens[side] += sum(lengths)
    ratio = sum(seconds["generate"]) / sum(seconds["ours"])
    medians = {side: statistics.median(spent) for side, spent in seconds.items()}
    means = {side: tokens[side] / repeats / len(prompts) for side in sides}
    print(
        f"{vocabulary:>6} {parameters / 1e6:>7.2f} M {medians['generate']:>10.3f} "
        f"{medians['ours']:>7.3f} {ratio:>6.2f} (limit {LIMITS[vocabulary]})   "
        f"{means['generate']:.1f} / {means['ours']:.1f}",
        flush=True,
    )
    return ratio


def main() -> None:
    """Measures, prints, and exits with 1 where ours is slower than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"torch {version('torch')}, transformers {version('transformers')}, ", end="")
    print(f"{os.environ['OMP_NUM_THREADS']} thread(s), {repeats} draws of 64 each\n")
    print("vocabulary, parameters; CPU s per draw: generate, ours; ratio; mean lengths")
    slow = [v for v, limit in LIMITS.items() if measure(v, repeats) < limit]
    if slow:
        sys.exit(f"slower than promised at a vocabulary of {slow}")


if __name__ == "__main__":
    main()
