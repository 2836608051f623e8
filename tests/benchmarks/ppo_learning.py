"""PPO against the trainer that TRL had up to 1.12: what both have learnt after equal samples.

The testbed's policy is trained on a reward model with the same rates, coefficients, epochs and
minibatches (see ppo_sides.py), three seeds each. Writes `ppo_learning.png`, the reward model's
score (less the penalty for a missing end token) and the KL against samples seen, and
`ppo_learning.json`.

    python tests/benchmarks/ppo_learning.py --peer PATH/TO/PYTHON/WITH/TRL-1.12 --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ppo_sides

LAST = 10
"""Rollouts at the end that the verdict compares."""
LABELS = {
    "trl": "TRL 1.12",
    "separate": "ours, separate value model",
    "shared": "ours, shared trunk",
}
NAMES = {
    "score": ("objective/scores", "reward/shaped"),
    "kl": ("objective/kl", "kl/sequence_k1"),
}


def curves(result: dict, rollouts: int) -> dict[str, list[float]]:
    """Score and KL of each rollout, under whichever names the trainer logs them."""
    found = {
        key: [
            next(log[n] for n in names if n in log)
            for log in result["logs"]
            if set(names) & set(log)
        ]
        for key, names in NAMES.items()
    }
    if any(len(values) != rollouts for values in found.values()):
        sys.exit(f"expected {rollouts} rollouts in the logs, found {found}")
    return found


def trained_reward(folder: Path) -> str:
    """A reward model on the testbed's pairs, by the recipe."""
    config = Path(__file__).parents[2] / "recipes/reward/testbed.yaml"
    command = [sys.executable, "-m", "hf_align.recipes.reward", "--config", str(config)]
    subprocess.run([*command, "--output_dir", str(folder / "reward")], check=True)
    return str(folder / "reward")


def draw(found: dict[str, list[dict]], output: Path) -> Path:
    """Score and KL against samples seen: mean over seeds, and the range of the seeds."""
    import numpy as np

    from hf_align.diagnostics import plots

    looks = {
        "trl": (plots.BLACK, "--", "o"),
        "separate": (plots.BLUE, "-", "s"),
        "shared": (plots.VERMILION, "-.", "^"),
    }
    figure = plots.new_figure(height=6.0)
    axes = figure.subplots(2, 1, sharex=True)
    for axis, key, label in zip(
        axes,
        NAMES,
        ("Reward model's score\n(mean per completion)", "KL(π‖π_ref)\n(nats, per completion)"),
        strict=True,
    ):
        plots.style_axis(axis)
        for side, runs in found.items():
            values = np.array([run[key] for run in runs])
            samples = ppo_sides.ROLLOUT * np.arange(values.shape[1])
            color, line, marker = looks[side]
            axis.plot(
                samples,
                values.mean(0),
                color=color,
                linestyle=line,
                marker=marker,
                markevery=4,
                markersize=4,
                linewidth=1.6,
                label=LABELS[side],
            )
            axis.fill_between(
                samples, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0
            )
        axis.set_ylabel(label)
    seeds = len(found["trl"])
    axes[0].set_title(
        f"PPO at equal samples (mean and range of {seeds} seeds)",
        loc="left",
        fontsize=12,
        fontweight="bold",
    )
    axes[0].legend(loc="lower right", frameon=False, fontsize=9)
    axes[1].set_xlabel("Samples seen")
    axes[1].set_ylim(bottom=0)
    return plots.save_figure(figure, output / "ppo_learning.png")


def judge(found: dict[str, list[dict]]) -> bool:
    """Prints the table; whether our separate value model is no worse within two standard errors."""
    import numpy as np

    print(f"{'':<28} {'score, last ' + str(LAST):>16} {'score, all':>12} {'KL, last':>9} CPU s")
    ends = {}
    for side, runs in found.items():
        score = np.array([run["score"] for run in runs])
        ends[side] = score[:, -LAST:].mean(1)
        error = ends[side].std(ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else float("nan")
        kl = np.array([run["kl"][-LAST:] for run in runs]).mean()
        seconds = np.median([run["seconds"] for run in runs])
        print(
            f"{LABELS[side]:<28} {ends[side].mean():>8.3f} ± {error:.3f} {score.mean():>12.3f} "
            f"{kl:>9.2f} {seconds:>5.0f}"
        )
    ours, theirs = ends["separate"], ends["trl"]
    lead = ours.mean() - theirs.mean()
    if len(ours) < 2:
        return True
    error = ((ours.var(ddof=1) + theirs.var(ddof=1)) / len(ours)) ** 0.5
    print(
        f"ours (separate) - TRL 1.12 over the last {LAST} rollouts: {lead:+.3f} ± {error:.3f} (SE)"
    )
    return lead >= -2 * error


def main() -> None:
    """Trains, prints, draws, and exits with 1 where ours has learnt less."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="an interpreter that has trl==1.12.0")
    parser.add_argument("--output", type=Path, required=True, help="folder for figure and numbers")
    parser.add_argument("--reward", help="a reward model's folder; trained here if left out")
    parser.add_argument("--rollouts", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    args.output.mkdir(parents=True, exist_ok=True)

    from hf_align.testbed import build_testbed
    from hf_align.testbed.world import MAX_NEW_TOKENS

    testbed = build_testbed(progress=False)
    found: dict[str, list[dict]] = {side: [] for side in LABELS}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(testbed.prompts("rl")))
        spec = {
            "policy": str(testbed.policy_path),
            "reward": args.reward or trained_reward(Path(folder)),
            "prompts": str(prompts),
            "rollouts": args.rollouts,
            "max_new_tokens": MAX_NEW_TOKENS,
            "rate": args.rate,
        }
        for seed in range(args.seeds):
            for side in LABELS:
                result = ppo_sides.run(side, spec | {"seed": seed}, args.peer)
                run = curves(result, args.rollouts)
                run["seconds"] = result["cpu"][-1] - result["start"]
                found[side].append(run)
                last = sum(run["score"][-LAST:]) / LAST
                print(
                    f"{LABELS[side]:<28} seed {seed}: {run['score'][0]:.2f} -> {last:.2f}",
                    flush=True,
                )
    (args.output / "ppo_learning.json").write_text(json.dumps(found))
    print(draw(found, args.output))
    if not judge(found):
        sys.exit("ours has learnt less from equal samples")


if __name__ == "__main__":
    main()
