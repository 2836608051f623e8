"""K-wise against pairwise training on the same rankings of 6 completions: time to accuracy.

Six completions of the testbed's policy per prompt are ranked by noisy gold, and the trainers are
those that the reward recipe builds. Pairwise training (TRL's RewardTrainer) sees all 15 pairs of
each ranking once, in random order: 30 sequences per ranking and epoch. K-wise training
(RankingTrainer) sees each ranking twice: 12 sequences. Batch
sizes and learning rates are the best found for each on other seeds and prompts. K-wise must take at
most half of the pairwise CPU time and lose no accuracy on held-out rankings.

    OMP_NUM_THREADS=1 python tests/benchmarks/kwise_speed.py --seeds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import combinations

import numpy as np

LIMIT = 0.5
K = 6
TAU = 0.7
FLIPS = 0.1
"""Noise as of the testbed's annotators: logistic, of gold differences over 0.7, then 10 % flips."""


def rankings(num_prompts: int, seed: int, split: str) -> list[dict]:
    """Rankings of K distinct completions of the testbed's policy, and their gold rewards.

    A ranking is by gold plus Gumbel noise of scale tau, so any two of its completions are ordered
    with probability σ(Δgold / tau), as the testbed's annotators do; then neighbours in
    rank swap places with probability 0.1.
    """
    from hf_align.testbed import build_testbed, gold_reward
    from hf_align.testbed.models import load_policy, sample_completions

    testbed = build_testbed(progress=False)
    policy, tokenizer = load_policy(testbed.policy_path)
    rng = np.random.default_rng(seed)
    pool = testbed.prompts(split)
    prompts = [pool[i] for i in rng.permutation(len(pool))[:num_prompts]]
    # Twice as many as needed: equal and empty completions are left out.
    drawn = sample_completions(
        policy, tokenizer, [p for p in prompts for _ in range(2 * K)], int(rng.integers(2**31))
    )
    rows = []
    for index, prompt in enumerate(prompts):
        some = [c for c in dict.fromkeys(drawn[2 * K * index : 2 * K * (index + 1)]) if c][:K]
        if len(some) < K:
            continue
        gold = np.array(gold_reward([prompt] * K, some))
        order = np.argsort(-(gold + TAU * rng.gumbel(size=K)))
        for place in range(K - 1):
            if rng.random() < FLIPS:
                order[[place, place + 1]] = order[[place + 1, place]]
        ranks = np.empty(K, dtype=int)
        ranks[order] = np.arange(1, K + 1)
        rows.append(
            {"prompt": prompt, "completions": some, "ranks": ranks.tolist(), "gold": gold.tolist()}
        )
    return rows


def accuracies(model, tokenizer, rows: list[dict]) -> tuple[float, float]:
    """Share of held-out pairs in the right order: by gold, and by the noisy ranking."""
    from hf_align.rewards import RewardModel

    reward = RewardModel.from_members([(model, tokenizer)], batch_size=256)
    scores = reward.score(
        [row["prompt"] for row in rows for _ in range(K)],
        [c for row in rows for c in row["completions"]],
    ).reshape(-1, K)
    gold = np.array([row["gold"] for row in rows])
    ranks = np.array([row["ranks"] for row in rows])
    i, j = np.array(list(combinations(range(K), 2))).T
    ahead = scores[:, i] > scores[:, j]
    differs = gold[:, i] != gold[:, j]
    by_gold = (ahead == (gold[:, i] > gold[:, j]))[differs].mean()
    return float(by_gold), float((ahead == (ranks[:, i] < ranks[:, j])).mean())


def train(side: str, rows: list[dict], batch: int, epochs: float, rate: float, seed: int):
    """One training; returns the model, its tokenizer and the CPU seconds of `Trainer.train`."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
    from trl import RewardConfig

    from hf_align.recipes._rewarding import build_trainer
    from hf_align.testbed import build_testbed
    from hf_align.trainers.ranking import ranking_pairs

    disable_progress_bars()
    path = build_testbed(progress=False).policy_path
    tokenizer = AutoTokenizer.from_pretrained(path)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    with tempfile.TemporaryDirectory() as folder:
        args = RewardConfig(
            folder,
            per_device_train_batch_size=batch,
            num_train_epochs=epochs,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            seed=seed,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        dataset = Dataset.from_list(ranking_pairs(rows) if side == "pairwise" else rows)
        trainer = build_trainer(
            side, model=model, args=args, train_dataset=dataset, processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        # Not the wall clock: other work on the machine would count.
        start = time.process_time()
        trainer.train()
        return model, tokenizer, time.process_time() - start


def main() -> None:
    """Measures, prints, and exits with 1 where K-wise training is slower or worse than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rankings", type=int, default=600)
    parser.add_argument("--held_out", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--pairwise", type=float, nargs=3, default=(64, 1, 1e-3), help="batch, epochs, rate"
    )
    parser.add_argument(
        "--kwise", type=float, nargs=3, default=(8, 2, 1e-3), help="batch, epochs, rate"
    )
    parser.add_argument("--sides", nargs="+", default=["pairwise", "kwise"])
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    packages = ("hf_align", "trl", "transformers", "torch")
    print("versions:", ", ".join(f"{name} {version(name)}" for name in packages))
    held_out = rankings(args.held_out, 99, "report")
    print(f"machine: {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s)")
    found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in args.sides}
    print(f"{'side':<15} seed rankings batch epochs     rate    CPU s  gold  ranking")
    for seed in range(args.seeds):
        rows = rankings(args.rankings, seed, "rl")
        for side in args.sides:
            batch, epochs, rate = args.pairwise if side == "pairwise" else args.kwise
            *trained, seconds = train(side, rows, int(batch), epochs, rate, seed)
            gold, ranking = accuracies(*trained, held_out)
            found[side].append((seconds, gold, ranking))
            print(
                f"{side:<15} {seed:>4} {len(rows):>8} {batch:>5g} {epochs:>6g} {rate:>8g} "
                f"{seconds:>8.1f} {gold:>5.3f} {ranking:>8.3f}",
                flush=True,
            )
    means = {side: [statistics.mean(c) for c in zip(*found[side], strict=True)] for side in found}
    for side, (seconds, gold, ranking) in means.items():
        print(f"{side}: {seconds:.1f} s, accuracy {gold:.3f} (gold) and {ranking:.3f} (rankings)")
    if not {"pairwise", "kwise"} <= means.keys():
        return
    ratio = means["kwise"][0] / means["pairwise"][0]
    leads = [k[1] - p[1] for k, p in zip(found["kwise"], found["pairwise"], strict=True)]
    lead = statistics.mean(leads)
    error = statistics.stdev(leads) / len(leads) ** 0.5 if len(leads) > 1 else 0.0
    print(
        f"K-wise / pairwise: time ratio {ratio:.2f}, gold accuracy {lead:+.4f} ± {error:.4f} (SE)"
    )
    if ratio > LIMIT or lead < -2 * error:
        sys.exit(f"not the accuracy of pairwise in {LIMIT} of its time")


if __name__ == "__main__":
    main()
