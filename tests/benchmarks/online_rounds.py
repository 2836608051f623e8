"""Three rounds against one round of as many comparisons, on the testbed: gold at equal KL.

`python tests/benchmarks/online_rounds.py` runs `recipes.online` for each seed: three rounds of
1,000 comparisons, every one of the current policy, and one round of 3,000, all of the first policy.
Twice: without a penalty until the KL passes 8 nats, read off at equal KL along the audits; and with
the KL held at 3 nats by the budget controller: as many PPO steps in total, the rounds starting from
the first policy or from the one before; and as many steps of the policy that is shipped.
Differences are paired by prompt, the average over seeds per prompt; intervals are over prompts.
Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.study import at_kl
from hf_align.statistics import clustered_mean
from hf_align.types import Estimate

KLS = (0.5, 1.0, 2.0, 3.0, 5.0)
HELD_AT = 3.0
LAST_SHARE = 1 / 3  # of the steps of a run whose KL is held, over which its audits are averaged
ROUNDS, COMPARISONS, STEPS = 3, 1000, 240

QUIET = {"num_eval_prompts": 64, "num_eval_samples": 1, "keep_best": False}
FREE = {"beta": 0, "lr_scheduler_type": "constant", "kl_budget": 8, "audit_steps": 10}
FREE |= {"max_steps": 400}
HELD = {"kl_controller": "budget", "kl_target": HELD_AT, "beta": 0.1, "learning_rate": 2e-4}
HELD |= {"lr_scheduler_type": "constant", "audit_steps": 20}
REWARD = {"num_eval_prompts": 32, "num_eval_samples": 2}


def run(folder: Path, seed: int, rounds: int, ppo: dict, start: str = "reference") -> None:
    """Runs the recipe where it is not finished."""
    options = ["--rounds", rounds, "--num_comparisons", ROUNDS * COMPARISONS // rounds]
    options += ["--ppo_options", json.dumps(ppo | QUIET), "--reward_options", json.dumps(REWARD)]
    options += ["--no_stop_when_gold_stalls", "--seed", seed, "--output_dir", folder]
    options += [] if start == "reference" else ["--start_from", start]
    command = [sys.executable, "-m", "hf_align.recipes.online", *map(str, options)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def curve_of(folder: Path, number: int) -> Curve:
    """Gold per audit prompt along the training of a round's policy."""
    audits = json.loads((folder / f"rounds/{number}/ppo/audits.json").read_text())
    kls = np.maximum([audit["kl"] for audit in audits], 0)
    return Curve(
        np.array([audit["step"] for audit in audits]),
        np.sqrt(kls),
        np.array([audit["gold"] for audit in audits]),
    )


def gold_at(curve: Curve, kls: tuple[float, ...]) -> np.ndarray:
    """(K, G) gold of each prompt at these KLs, NaN beyond the farthest audit."""
    return np.stack([at_kl(curve, kls, curve.gold[:, [g]]) for g in range(curve.gold.shape[1])], 1)


def around(curve: Curve, step: int) -> tuple[np.ndarray, float]:
    """(G,) gold of each prompt, and the KL, on average over the audits of the last third of so many
    steps.
    """
    last = (curve.steps > step * (1 - LAST_SHARE)) & (curve.steps <= step)
    return curve.gold[last].mean(axis=0), float((curve.sqrt_kl[last] ** 2).mean())


def over_prompts(values: np.ndarray) -> Estimate:
    """The mean of (S, G) values; the interval is over the G prompts."""
    return clustered_mean(values.ravel(), np.tile(np.arange(values.shape[1]), len(values)))


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def row(name: str, several: np.ndarray, one: np.ndarray) -> str:
    """A line of the table, from (S, G) gold of either side."""
    if np.isnan(several).any() or np.isnan(one).any():
        return f"| {name} | – | – | – | – |"
    each = "; ".join(f"{x:.2f}" for x in (several - one).mean(axis=1))
    cells = (shown(over_prompts(side)) for side in (several, one, several - one))
    return f"| {name} | {' | '.join(cells)} | {each} |"


def measured(output: Path, kind: str, seeds: list[int]) -> tuple[list, list, list]:
    """Per seed gold of three rounds and of one, the KL reached, and the proxies' accuracies."""
    gold, reached, accuracy = [], [], []
    for seed in seeds:
        curves = []
        for rounds in (ROUNDS, 1):
            folder = output / f"seed-{seed}" / f"{kind}-{rounds}"
            steps = {} if kind == "free" else {"max_steps": STEPS * ROUNDS // rounds}
            run(folder, seed, rounds, (FREE if kind == "free" else HELD) | steps)
            curves.append(curve_of(folder, rounds))
            if rounds == ROUNDS:
                report = json.loads((folder / "report/report.json").read_text())
                accuracy.append([one["accuracy"] for one in report["rounds"]])
        if kind == "free":
            gold.append([gold_at(curve, KLS) for curve in curves])
            reached.append([curve.steps[-1] for curve in curves])
        else:
            going_on = output / f"seed-{seed}" / f"prev-{ROUNDS}"
            run(going_on, seed, ROUNDS, HELD | {"max_steps": STEPS}, start="previous")
            last, long = curves
            ends = [around(last, STEPS), around(curve_of(going_on, ROUNDS), STEPS)]
            ends += [around(long, STEPS), around(long, STEPS * ROUNDS)]
            gold.append([end for end, _ in ends])
            reached.append([kl for _, kl in ends])
    return gold, reached, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--kinds", nargs="+", choices=["free", "held"], default=["free", "held"])
    parser.add_argument("--output", type=Path, default=Path("outputs/online-rounds"))
    options = parser.parse_args()
    lines, notes = [], []
    for kind in options.kinds:
        gold, reached, accuracy = measured(options.output, kind, options.seeds)
        if kind == "free":
            several, one = np.array(gold).swapaxes(0, 1)  # (S, K, G) each
            names = [f"KL {kl:g}, no penalty" for kl in KLS]
            lines += [row(name, several[:, k], one[:, k]) for k, name in enumerate(names)]
        else:
            anew, going_on, soon, late = np.array(gold).swapaxes(0, 1)  # (S, G) each
            held, total = f"KL held at {HELD_AT:g}", STEPS * ROUNDS
            lines.append(row(f"{held}, {STEPS} steps of either policy", anew, soon))
            lines.append(row(f"{held}, {total} steps, {STEPS} of the last policy", anew, late))
            lines.append(row(f"{held}, {total} steps, each round from the last", going_on, late))
        what = "PPO steps of the last round" if kind == "free" else "KL held, nats"
        notes.append(f"{what}, by seed: {np.round(reached, 2).tolist()}")
        for number in range(1, ROUNDS):
            by = [rounds[number] for rounds in accuracy]
            old, new = (np.mean([x[name]["gold"]["value"] for x in by]) for name in ("old", "new"))
            notes.append(
                f"{kind}, pairs of round {number + 1}: old {old:.2f}, new {new:.2f} by gold"
            )
    print("| gold at | three rounds | one round | difference | by seed |\n|---|---|---|---|---|")
    print("\n".join([*lines, "", *notes]))


if __name__ == "__main__":
    main()
