"""PPO's arithmetic against that of TRL 1.12, the last release with a PPO trainer: largest absolute
differences, on tensors that a real update of TRL made.

    python tests/benchmarks/ppo_parity.py --peer PYTHON

PYTHON is an interpreter with trl 1.12. There `ppo_peer.py` makes one rollout and three epochs of
two microbatches with `trl.experimental.ppo` on random models of two layers, and writes down what
its loop had in hand; here our functions, and our models' forward, are put to the same numbers.

Three things differ on purpose, and are brought to one convention before comparing:
* TRL adds the score on the first pad token after the end token, a state with a value of its own;
  ours on the end token. With a mask of one token more, ours does the same; at γ = λ = 1 the
  advantages of real tokens are equal without it.
* TRL whitens with the unbiased variance, ours with the population's.
* TRL averages over each microbatch, ours over the whole optimizer step; the token-weighted mean of
  TRL's means is ours.

Exits with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from ppo_peer import (
    BATCH,
    BETA,
    CLIP,
    END,
    EOS_PENALTY,
    MICROBATCHES,
    PAD,
    RESPONSE,
    SETTINGS,
    TEMPERATURE,
    VALUE_CLIP,
    VALUE_COEFFICIENT,
    models,
    random_tensors,
)
from safetensors.torch import load_file

from hf_align.rewards import AdaptiveKL, Shaping, shape_scores
from hf_align.trainers.completion_head import add_completion_head
from hf_align.trainers.policy_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalized_advantages,
    is_clipped,
    masked_mean,
    token_kl,
    token_rewards,
    whiten,
)
from hf_align.trainers.rollout import padded
from hf_align.trainers.value_models import value_model_from_reward


class Table:
    """Largest absolute differences, printed as they come."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def add(self, name: str, found, expected, limit: float, where=None) -> None:
        found, expected = (torch.as_tensor(t, dtype=torch.float64) for t in (found, expected))
        if found.shape != expected.shape:
            raise SystemExit(f"{name}: got shape {found.shape}, expected {expected.shape}")
        difference = (found - expected).abs()
        difference = difference if where is None else difference[where]
        worst = float(difference.max())
        good = worst <= limit  # not for NaN
        print(f"  {name:<52} {worst:>9.1e}  <= {limit:.0e}{'' if good else '  FAILED'}")
        if not good:
            self.failed.append(name)


def part(tensors: dict, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, without it."""
    prefix += "/"
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def compare_random(table: Table, found: dict[str, torch.Tensor]) -> None:
    """The functions that TRL has outside its loop."""
    values, mask = random_tensors()
    table.add("masked mean", masked_mean(values, mask), found["mean"], 1e-6)
    kept = values[mask]
    ours = whiten(values, kept.mean(), kept.var(unbiased=True))
    table.add("whitening, unbiased variance as TRL's", ours, found["whitened"], 1e-5)
    ours = whiten(values, kept.mean(), kept.var(unbiased=False))
    share = (1 - 1 / len(kept)) ** 0.5
    table.add("whitening, our variance, times √(1 − 1/n)", ours * share, found["whitened"], 1e-5)


def compare_controller(table: Table) -> None:
    """Ziegler's update (1909.08593, section 2.2) in float64, which older TRL had."""
    rng = np.random.default_rng(0)
    ours, expected, worst = AdaptiveKL(0.2, 6.0, 10_000), np.float64(0.2), 0.0
    for kl, count in zip(rng.gamma(2.0, 3.0, 1000), rng.integers(1, 512, 1000), strict=True):
        ours.update(float(kl), int(count))
        expected *= 1 + np.clip(kl / 6.0 - 1, -0.2, 0.2) * count / 10_000
        worst = max(worst, abs(ours.value / expected - 1))
    table.add("adaptive beta over 1,000 rollouts (relative)", worst, 0.0, 1e-12)


class Ours:
    """TRL's models in our forward, and its rollout as unpadded sequences."""

    def __init__(self, tensors: dict[str, torch.Tensor], seed: int):
        own = models(seed)
        for role, model in own.items():
            model.load_state_dict(part(tensors, role))
        self.policy, self.reference, self.reward = own["policy"], own["reference"], own["reward"]
        for model in (self.policy, self.reference):
            add_completion_head(model, TEMPERATURE)
        self.policy.add_module("value_model", value_model_from_reward(own["value"]))
        ids = part(tensors, "rollout")["query_responses"]
        start = ids.shape[1] - RESPONSE
        self.prompts = [row[row != PAD].tolist() for row in ids[:, :start]]
        lengths = (tensors["rollout/sequence_lengths"] + 1).tolist()
        pairs = zip(ids[:, start:].tolist(), lengths, strict=True)
        self.completions = [row[:length] for row, length in pairs]

    def forward(self, model, rows: list[int], parts: str, longer: bool = False):
        """Log-probabilities and values as (len(rows), RESPONSE) tables; `longer` adds a pad token
        after the end token, whose state TRL values too."""
        completions = [self.completions[row] for row in rows]
        if longer:
            completions = [[*ids, PAD][:RESPONSE] for ids in completions]
        ids, mask = padded([self.prompts[row] for row in rows], completions, PAD)
        logps, _, values = model(input_ids=ids, score_mask=mask, parts=parts)
        lengths = torch.tensor([len(ids) for ids in completions])
        inside = torch.arange(RESPONSE) < lengths.unsqueeze(1)
        return [
            None if flat is None else torch.zeros(inside.shape).masked_scatter(inside, flat)
            for flat in (logps, values)
        ]


def compare_rollout(table: Table, ours: Ours, trl: dict, options: dict) -> None:
    """Log-probabilities, values, scores, rewards, advantages, returns, whitening."""
    kept, kept_longer = ~trl["padding_mask"], ~trl["padding_mask_p1"]
    rows = list(range(BATCH))
    with torch.no_grad():
        logps, values = ours.forward(ours.policy, rows, "both", longer=True)
        ref_logps, _ = ours.forward(ours.reference, rows, "policy")
    table.add("log-probabilities, policy", logps, trl["logprobs"], 1e-4, kept)
    table.add("log-probabilities, reference", ref_logps, trl["ref_logprobs"], 1e-4, kept)
    table.add("values", values, trl["values"], 1e-4)
    sequences = [p + c for p, c in zip(ours.prompts, ours.completions, strict=True)]
    with torch.no_grad():
        scores = [ours.reward(torch.tensor([ids])).logits.item() for ids in sequences]
    ended = [ids[-1] == END for ids in ours.completions]
    lengths = [len(ids) for ids in ours.completions]
    scores = shape_scores(Shaping(missing_eos_penalty=EOS_PENALTY), scores, lengths, ended)
    table.add("scores with the missing-EOS penalty", scores, trl["scores"], 1e-4)

    kl = token_kl(trl["logprobs"], trl["ref_logprobs"], options["kl_estimator"])
    table.add(f"KL per token, {options['kl_estimator']}", kl, trl["kl"], 1e-5)
    rewards = token_rewards(trl["scores"], kl, kept_longer.float(), BETA)
    table.add("token rewards, score on the first pad", rewards, trl["rewards"], 1e-5)
    discount = options["gamma"], options["lam"]
    advantages, returns = generalized_advantages(
        rewards, trl["values"], kept_longer.float(), *discount
    )
    table.add("advantages, score on the first pad", advantages, trl["advantages"], 1e-5)
    table.add("returns, score on the first pad", returns, trl["returns"], 1e-5)
    if discount == (1.0, 1.0):
        rewards = token_rewards(trl["scores"], kl, kept.float(), BETA)
        advantages, _ = generalized_advantages(rewards, trl["values"], kept.float(), 1.0, 1.0)
        table.add("advantages, score on the end token", advantages, trl["advantages"], 1e-5, kept)
    inside = advantages[kept]
    whitened = whiten(advantages, inside.mean(), inside.var(unbiased=True)) * kept
    # TRL sets the rest to 0 right after it.
    table.add("whitened advantages, unbiased variance", whitened, trl["whitened"], 1e-5, kept)


def compare_losses(table: Table, trl: dict) -> None:
    """Every pass's losses entry by entry, their means, gradients and clipped entries."""
    gathered: dict[str, list] = {}
    sums, clipped_entries = [], 0
    num_passes = len({key.split("/")[0] for key in trl if key.startswith("pass")})
    for index in range(num_passes):
        mb = part(trl, f"pass{index}")
        kept = ~trl["rollout/padding_mask"][mb["rows"]]
        kept_longer = ~trl["rollout/padding_mask_p1"][mb["rows"]]
        logps, values = (mb[name].requires_grad_() for name in ("new_logprobs", "vpred"))
        ratio, advantages = logps - mb["mb_logprobs"], mb["mb_advantage"]
        policy = clipped_policy_loss(ratio, advantages, CLIP, CLIP)
        value = clipped_value_loss(values, mb["mb_values"], mb["mb_return"], VALUE_CLIP)
        means = masked_mean(policy, kept), masked_mean(value, kept_longer)
        loss = means[0] + VALUE_COEFFICIENT * means[1]
        gradients = torch.autograd.grad(loss, (logps, values))
        clipped = is_clipped(ratio.detach(), advantages, CLIP, CLIP)
        clipped_entries += int(clipped[kept].sum())
        for name, ours, theirs in (
            ("policy loss per token", policy * kept, mb["pg_loss_max"] * kept),
            ("value loss per token", value, 0.5 * mb["vf_loss_max"]),
            ("loss of a pass", loss, mb["loss"]),
            ("gradient at log-probabilities", gradients[0], mb["new_logprobs_grad"]),
            ("gradient at values", gradients[1], mb["vpred_grad"]),
            ("clipped entries", clipped & kept, (mb["pg_losses2"] > mb["pg_losses"]) & kept),
        ):
            gathered.setdefault(name, []).append((ours.detach().reshape(-1), theirs.reshape(-1)))
        sums.append((float((policy * kept).detach().sum()), float(mb["pg_loss"]), int(kept.sum())))
    for name, pairs in gathered.items():
        ours, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
        table.add(name, ours, theirs, 0.0 if name == "clipped entries" else 1e-5)
    gaps = []
    for first in range(0, num_passes, MICROBATCHES):
        step = sums[first : first + MICROBATCHES]
        tokens = sum(n for _, _, n in step)
        ours = sum(total for total, _, _ in step) / tokens
        weighted = sum(mean * n for _, mean, n in step) / tokens
        table.add("policy loss of a step, TRL's means by tokens", ours, weighted, 1e-5)
        gaps.append(abs(ours - sum(mean for _, mean, _ in step) / len(step)))
    print(
        f"  ({clipped_entries} entries clipped; TRL's unweighted means are off by {max(gaps):.1e})"
    )


def compare_gradients(table: Table, ours: Ours, trl: dict) -> None:
    """The first pass's gradient of every weight, through our forward."""
    mb = part(trl, "pass0")
    kept = ~trl["rollout/padding_mask"][mb["rows"]]
    kept_longer = ~trl["rollout/padding_mask_p1"][mb["rows"]]
    logps, values = ours.forward(ours.policy, mb["rows"].tolist(), "both", longer=True)
    policy = clipped_policy_loss((logps - mb["mb_logprobs"]) * kept, mb["mb_advantage"])
    value = clipped_value_loss(values, mb["mb_values"], mb["mb_return"], VALUE_CLIP)
    loss = masked_mean(policy, kept) + VALUE_COEFFICIENT * masked_mean(value, kept_longer)
    loss.backward()
    named = {}
    for name, parameter in ours.policy.named_parameters():
        inside = name.removeprefix("value_model.")
        theirs = f"policy.{name}" if inside == name else f"value_model.{inside}"
        theirs = theirs.replace("value_model.backbone.", "value_model.model.")
        named[theirs.replace("value_model.head.", "value_model.score.")] = parameter.grad
    # Our copied head has a bias, TRL's has none.
    named.pop("value_model.score.bias")
    expected = part(trl, "gradient")
    expected = {k.replace("critic_backbone.", "value_model.model."): t for k, t in expected.items()}
    if named.keys() != expected.keys():
        raise SystemExit(f"weights differ in name: {sorted(named.keys() ^ expected.keys())}")
    for side in ("policy.", "value_model."):
        names = [name for name in named if name.startswith(side)]
        found, wanted = (torch.cat([x[n].reshape(-1) for n in names]) for x in (named, expected))
        label = f"gradient of {len(names)} weights, {side[:-1]} (of {wanted.abs().max():.1g})"
        table.add(label, found, wanted, 1e-4)


def compare(path: Path) -> list[str]:
    """Prints the table; returns the names that passed their limit."""
    tensors, table = load_file(path), Table()
    print("functions on random tensors")
    compare_random(table, part(tensors, "random"))
    compare_controller(table)
    for seed, (name, options) in enumerate(SETTINGS.items()):
        own = part(tensors, name)
        ours = Ours(own, seed)
        lengths = [len(ids) for ids in ours.completions]
        print(f"one update, {name}: {sum(lengths)} tokens in completions of {sorted(lengths)}")
        compare_rollout(table, ours, part(own, "rollout"), options)
        compare_losses(table, own)
        compare_gradients(table, ours, own)
    return table.failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="an interpreter with trl 1.12")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.safetensors"
        command = [args.peer, str(Path(__file__).with_name("ppo_peer.py")), str(path)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"the peer failed:\n{ran.stderr[-3000:]}")
        failed = compare(path)
    if failed:
        raise SystemExit(f"over the limit: {', '.join(failed)}")


if __name__ == "__main__":
    main()
