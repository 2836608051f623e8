"""PPO against the trainer that TRL had up to 1.12: samples per CPU second and peak memory.

Three worlds, each with a policy whose lengths are set by construction: a vocabulary of 384 and one
of 32,768 with short completions, and heavy-tailed lengths. At a learning rate of almost 0 both
trainers see the same lengths throughout. 64 samples per rollout, 2 epochs of 4 minibatches of 16,
runs alternated, each in its own process with one thread; the first rollout goes uncounted.

    python tests/benchmarks/ppo_speed.py --peer PATH/TO/PYTHON/WITH/TRL-1.12
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ppo_sides

WARM_UP = 1
STEADY = 1e-12
"""A learning rate at which weights, and so lengths, stay what they are."""


@dataclass(frozen=True)
class Case:
    """A world, and the least ratio to TRL's samples per CPU second that is promised in it.

    `phases` are the expected lengths of the classes of words that a completion goes through, and
    `starts` how often a prompt is of each class; one class leads to the next, and the last, or each
    where `mixed`, to the end token.
    """

    vocabulary: int
    phases: tuple[float, ...]
    mixed: bool
    starts: tuple[float, ...]
    max_new_tokens: int
    rollouts: int
    least: dict[str, float]


SHORT = {"phases": (3.25,) * 4, "mixed": False, "starts": (1, 0, 0, 0), "max_new_tokens": 48}
CASES = {
    "V=384, short": Case(384, **SHORT, rollouts=12, least={"separate": 1.5, "shared": 2.3}),
    "V=32768, short": Case(32_768, **SHORT, rollouts=5, least={"separate": 2.2, "shared": 3.2}),
    "V=384, heavy tail": Case(
        384,
        phases=(15, 50, 320),
        mixed=True,
        starts=(0.55, 0.25, 0.2),
        max_new_tokens=256,
        rollouts=5,
        least={"separate": 3.0},
    ),
}


def build(case: Case, folder: Path) -> dict[str, str]:
    """Policy, reward model and prompts of a case on disk; returns their paths."""
    import json

    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    words = {f"w{index}": index + 2 for index in range(case.vocabulary - 2)}
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1} | words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    policy = LlamaForCausalLM(config)
    classes = np.array_split(np.arange(2, case.vocabulary), len(case.phases))
    set_lengths(policy, case, classes)
    config.num_labels = 1
    reward = LlamaForSequenceClassification(config)
    rng = np.random.default_rng(0)
    prompts = []
    for start in rng.choice(len(classes), size=1024, p=case.starts):
        ids = rng.choice(classes[start], size=rng.integers(6, 13))
        prompts.append(" ".join(f"w{index - 2}" for index in ids))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return {
        "policy": str(folder / "policy"),
        "reward": str(folder / "reward"),
        "prompts": str(folder / "prompts.json"),
    }


def set_lengths(policy, case: Case, classes: list) -> None:
    """Makes the policy's next token depend on the last one's class alone, as `case` says.

    Each class has one direction that says "I am of it" and one that the head reads; the last
    layer's MLP turns the first into the second. The head's weights on the second are the logarithms
    of the probabilities wanted.
    """
    import torch

    number, size = len(classes), policy.config.hidden_size
    chances = torch.full((number, number + 1), 1e-9)  # from class i to class j; last: the end
    for i, length in enumerate(case.phases):
        chances[i, i] = 1 - 1 / length
        chances[i, number if case.mixed or i + 1 == number else i + 1] = 1 / length
    shares = torch.tensor([*(len(words) for words in classes), 1.0])
    logits = (chances / shares).log()
    logits = (logits - logits.max(dim=1, keepdim=True).values).clamp(min=-16) / math.sqrt(size)
    mlp = policy.model.layers[-1].mlp
    with torch.no_grad():
        for layer in policy.model.layers:  # random layers must not drown what is written here
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        table = policy.get_input_embeddings().weight
        table[0, number : 2 * number] = -16 / math.sqrt(size)  # never the pad token
        table[1, number : 2 * number] = logits[:, number]
        for i, words in enumerate(classes):
            table[words, :number] = torch.eye(number)[i]
            table[words, number : 2 * number] = logits[:, i]
        for i, words in enumerate(classes):
            token = table[words[0]].clone()
            token[2 * number :] = 0.0
            # The norm before the MLP sees about the embedding.
            level = (1.0 / table[words[0]].square().mean().sqrt()).item()
            gain = level * level * torch.sigmoid(torch.tensor(level)).item()
            for weight in (mlp.gate_proj.weight, mlp.up_proj.weight):
                weight[i] = 0.0
                weight[i, i] = 1.0
            column = -token
            column[number + i] += 8.0
            mlp.down_proj.weight[:, i] = column / gain


def counted(result: dict) -> tuple[float, float]:
    """Samples per CPU second after the warm-up, and the same without the seconds of gc."""
    first, last = result["cpu"][WARM_UP - 1], result["cpu"][-1]
    samples = ppo_sides.ROLLOUT * (len(result["cpu"]) - WARM_UP)
    collected = sum(spent for when, spent in result["gc"] if first <= when < last)
    return samples / (last - first), samples / (last - first - collected)


def phases(results: list[dict]) -> str:
    """Where our trainer's time went, in percent, by its own logs."""
    names = ("generate", "score", "reward", "update")
    logs = [log for result in results for log in result["logs"] if "time/update" in log]
    spent = [sum(log[f"time/{name}"] for log in logs) for name in names]
    shares = (100 * seconds / sum(spent) for seconds in spent)
    return ", ".join(f"{n} {share:.0f} %" for n, share in zip(names, shares, strict=True))


def measure(name: str, case: Case, paths: dict[str, str], args) -> bool:
    """Runs, prints and judges a case."""
    sides = ["trl", *ppo_sides.KINDS]
    found: dict[str, list[dict]] = {side: [] for side in sides}
    print(f"{name}: samples per CPU second, peak memory")
    for repeat in range(args.repeats):
        for side in sides[repeat % 3 :] + sides[: repeat % 3]:
            spec = paths | {
                "rollouts": case.rollouts + WARM_UP,
                "max_new_tokens": case.max_new_tokens,
                "rate": STEADY,
                "seed": repeat,
            }
            result = ppo_sides.run(side, spec, args.peer)
            found[side].append(result)
            lengths = [log["length/mean"] for log in result["logs"] if "length/mean" in log]
            length = f", mean length {statistics.mean(lengths):.1f}" if lengths else ""
            print(
                f"  {side:<9} seed {repeat}: {counted(result)[0]:6.1f}, "
                f"{result['peak']:5.0f} MB{length}",
                flush=True,
            )
    speeds = {
        side: [statistics.median(column) for column in zip(*map(counted, runs), strict=True)]
        for side, runs in found.items()
    }
    peaks = {side: statistics.median(r["peak"] for r in runs) for side, runs in found.items()}
    base, bare = speeds["trl"]
    print(f"  medians of {args.repeats} alternated runs")
    print(f"  trl       {base:6.1f} ({bare:.1f} without gc.collect), {peaks['trl']:5.0f} MB")
    passed = True
    for side in ppo_sides.KINDS:
        speed, least = speeds[side][0], case.least.get(side, 0.0)
        fine = speed >= least * base and peaks[side] <= peaks["trl"]
        passed &= fine
        print(
            f"  {side:<9} {speed:6.1f}, {peaks[side]:5.0f} MB: {speed / base:.2f} x TRL "
            f"({speed / bare:.2f} x without its gc.collect), promised {least or 'nothing'}: "
            f"{'ok' if fine else 'MISSED'}\n            {phases(found[side])}",
            flush=True,
        )
    return passed


def main() -> None:
    """Measures, prints, and exits with 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="an interpreter that has trl==1.12.0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--build", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if args.build:
        build(CASES[args.build[0]], Path(args.build[1]))
        return
    asked = "from importlib.metadata import version as v; import sys; print(sys.executable, *("
    asked += "f'{n} {v(n)}' for n in ('trl', 'transformers', 'torch', 'accelerate')), sep=', ')"
    for python in (sys.executable, args.peer):
        print(subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout.strip())
    print(f"machine: {os.cpu_count()} cores, 1 thread per run\n")
    passed = True
    for name in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own: on Linux a child's peak memory starts at its parent's.
            command = [sys.executable, __file__, "--peer", "-", "--build", name, folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            paths = {n: f"{folder}/{n}" for n in ("policy", "reward")}
            paths["prompts"] = f"{folder}/prompts.json"
            passed &= measure(name, CASES[name], paths, args)
    if not passed:
        sys.exit("a promise was not kept")


if __name__ == "__main__":
    main()
