"""Builds, writes and reads the report of a run: report.json and its readable twin report.md.

`METRICS` names every metric once, with its unit, definition and direction; a report with any other
name is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_align.diagnostics.markdown import (
    Table,
    code,
    escaped,
    number,
    samples_table,
    table_lines,
)
from hf_align.diagnostics.overoptimization import LABELS, MIN_PROMPTS, Curve, Verdict
from hf_align.diagnostics.report_shape import check_shape
from hf_align.files import write_text
from hf_align.records import read_record
from hf_align.statistics import clustered_mean
from hf_align.types import Estimate, InputError

SCHEMA = 1

UP, DOWN, NEUTRAL = "higher is better", "lower is better", "no direction"

METRICS: dict[str, tuple[str, str, str]] = {
    "kl/sequence": (
        "nats",
        "KL(policy‖reference) summed over the completion, Rao-Blackwell.",
        NEUTRAL,
    ),
    "kl/sequence_k1": ("nats", "The same by k1 = log π − log π_ref; cross-check.", NEUTRAL),
    "kl/per_token": ("nats/token", "Sequence KL divided by the completion's length.", NEUTRAL),
    "kl/consistency_z": ("SE", "(k1 − Rao-Blackwell) / SE; beyond ±4 the report fails.", NEUTRAL),
    "kl/best_of_n": (
        "nats",
        "KL(best-of-n‖base policy) by the log-probabilities of the winners.",
        NEUTRAL,
    ),
    "kl/best_of_n_nominal": ("nats", "log n − (n − 1)/n, which bounds it from above.", NEUTRAL),
    "kl/coefficient": ("score/nat", "β of the KL penalty; a controller moves it.", NEUTRAL),
    "reward/score": ("score", "What the reward model emits.", UP),
    "reward/shaped": ("score", "The score after shaping.", UP),
    "reward/penalty": ("score", "KL penalty subtracted from the shaped score.", DOWN),
    "reward/mean": ("score", "Shaped score minus the KL penalty: what training maximises.", UP),
    "gold/mean": ("gold", "Gold reward of the policy's completions.", UP),
    "gold/reference": ("gold", "Gold reward of the reference's completions.", UP),
    "gold/gain": ("gold", "Gold of the policy minus the reference, same prompts.", UP),
    "gold/drop": ("gold", "Gold at its best earlier checkpoint minus the shipped policy.", DOWN),
    "gold/win_rate": ("share", "How often gold prefers the policy to the reference.", UP),
    "proxy/mean": ("score", "Proxy score of the policy's completions.", UP),
    "proxy/reference": ("score", "Proxy score of the reference's completions.", UP),
    "proxy/gain": ("score", "Proxy of the policy minus the reference, same prompts.", UP),
    "proxy/win_rate": ("share", "How often the proxy prefers the policy to the reference.", UP),
    "judge/win_rate": ("share", "How often the judge prefers the policy to the reference.", UP),
    "judge/length_controlled_win_rate": ("share", "The same at equal completion lengths.", UP),
    "length/mean": ("tokens", "Length of the policy's completions, EOS included.", NEUTRAL),
    "length/reference": ("tokens", "Length of the reference's completions.", NEUTRAL),
    "length/gain": ("tokens", "Length of the policy minus the reference, same prompts.", NEUTRAL),
    "length/ended": ("share", "Completions that ended by themselves before the limit.", UP),
    "length/without_eos": ("share", "Rollout completions cut off before their end token.", DOWN),
    "diversity/per_input": ("share", "Diversity among completions of one prompt.", UP),
    "diversity/across_inputs": ("share", "Diversity among completions of different prompts.", UP),
    "policy/entropy": ("nats/token", "Mean entropy of the policy's next token.", NEUTRAL),
    "policy/reference_nll": ("nats/token", "−log π_ref per token of the completions.", NEUTRAL),
    "policy/clip_fraction": ("share", "Tokens whose probability ratio was clipped.", NEUTRAL),
    "policy/loss": ("score", "Clipped policy-gradient loss; its level means nothing.", NEUTRAL),
    "policy/update_kl": ("nats/token", "KL of an update from the policy that drew.", NEUTRAL),
    "policy/left_rollout": ("count", "Updates dropped because that KL passed its limit.", DOWN),
    "policy/advantage_sd": ("score", "SD of completions' advantages over the baseline.", NEUTRAL),
    "policy/likelihood_nll": ("nats/token", "−log π of the texts mixed into the update.", DOWN),
    "value/loss": ("score²", "Loss of the value model.", DOWN),
    "value/explained_variance": ("share", "Variance of the returns the values explain.", UP),
    "value/mean": ("score", "Mean value that the states of a rollout are given.", NEUTRAL),
    "value/clip_fraction": ("share", "Tokens whose value moved beyond the clip.", NEUTRAL),
    "speed/tokens_per_second": ("tokens/s", "Completion tokens per second, updates included.", UP),
    "time/generate": ("s", "Per rollout and process: drawing completions.", DOWN),
    "time/score": ("s", "The same: log-probabilities under the reference, and values.", DOWN),
    "time/reward": ("s", "The same: reward models and functions.", DOWN),
    "time/update": ("s", "The same: forward, backward and optimizer passes.", DOWN),
    "nll/held_out": ("nats/token", "−log π of held-out completions.", DOWN),
    "nll/reference": ("nats/token", "−log π_ref of held-out completions.", DOWN),
    "implicit_reward/accuracy": (
        "share",
        "Held-out pairs whose chosen has the larger β·log(π/π_ref).",
        UP,
    ),
    "implicit_reward/margin": ("score", "β·log(π/π_ref), chosen minus rejected.", UP),
    "implicit_reward/nll": ("nats", "−log σ(margin) on held-out pairs; log 2 at the start.", DOWN),
    "accuracy/label": ("share", "Held-out pairs ordered as labelled.", UP),
    "accuracy/gold": ("share", "Held-out pairs ordered as gold orders them.", UP),
    "accuracy/on_policy": (
        "share",
        "Pairs of a policy's own completions ordered as gold orders them.",
        UP,
    ),
    "accuracy/ceiling": (
        "share",
        "Label accuracy of ordering pairs as gold does: annotator noise.",
        NEUTRAL,
    ),
    "accuracy/longest_wins": ("share", "Accuracy of always preferring the longer one.", NEUTRAL),
    "accuracy/log_likelihood": (
        "share",
        "Accuracy of ranking by log π(y) of a model trained on chosen.",
        NEUTRAL,
    ),
    "accuracy/log_likelihood_per_token": (
        "share",
        "The same by log π(y) divided by the number of tokens.",
        NEUTRAL,
    ),
    "accuracy/generative_classifier": (
        "share",
        "Accuracy of a language model asked which one is better.",
        NEUTRAL,
    ),
    "nll/label": (
        "nats/pair",
        "−log σ(score of chosen − score of rejected), held-out pairs.",
        DOWN,
    ),
    "calibration/temperature": ("ratio", "Divides margins to calibrate them; 1 is best.", NEUTRAL),
    "calibration/ece": (
        "share",
        "Mean gap of predicted and observed accuracy; noise adds to it.",
        DOWN,
    ),
    "calibration/ece_debiased": ("share", "Calibration error less its expected noise.", DOWN),
    "bias/length_correlation": ("r", "Correlation of score and length within prompts.", NEUTRAL),
    "bias/length_partial_correlation": ("r", "The same, given the other text features.", NEUTRAL),
    "bias/flip_rate": (
        "share",
        "Harmless edits that raise the score; 0.5 is indifferent.",
        NEUTRAL,
    ),
    "ensemble/disagreement": ("score SD", "SD over members on held-out completions.", NEUTRAL),
    "ensemble/disagreement_on_policy": (
        "score SD",
        "The same on a policy's own completions.",
        NEUTRAL,
    ),
    "ensemble/outlying": (
        "share",
        "A policy's completions beyond 99 % of held-out disagreement.",
        DOWN,
    ),
}
"""Name -> (unit, definition in one line, direction). The glossary is made from it."""


def build_report(
    *,
    recipe: str,
    policy: str,
    reference: str,
    verdict: Verdict,
    metrics: dict[str, Estimate],
    figures: list[str] | None = None,
    samples: list[dict] | None = None,
    curve: Curve | None = None,
    warnings: list[str] | None = None,
    evaluation: dict | None = None,
    tables: Sequence[Table] = (),
) -> dict:
    """Assembles the report of one run.

    Args:
        recipe: Name of the recipe.
        policy: Id or short name of the policy; never a local path.
        reference: Id or short name of the reference.
        verdict: The computed verdict.
        metrics: Name to estimate; names out of `METRICS`.
        figures: File names of figures next to the report.
        samples: Side-by-side rows: `prompt`, `policy`, `reference`, and any numbers to show with
            them, such as `policy_gold`. All rows have the same keys.
        curve: Gold and proxy per checkpoint.
        warnings: Sentences the reader must know.
        evaluation: Settings of the measurement: prompts, samples per prompt, temperature, seed.
        tables: Further numbers, each table with its heading.

    Raises:
        ValueError: On an unknown metric name or a value that is NaN or infinite.
    """
    for name, estimate in metrics.items():
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}, expected one of {', '.join(METRICS)}")
        numbers = [x for x in (estimate.value, estimate.low, estimate.high) if x is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"metric {name!r} is not finite: {estimate}")
    samples = list(samples or [])
    if any(set(row) != set(samples[0]) for row in samples):
        raise ValueError("the rows of samples have different keys, expected the same in all")
    if samples and not {"prompt", "policy", "reference"} <= set(samples[0]):
        raise ValueError(f"samples have {list(samples[0])}, expected prompt, policy and reference")
    return {
        "schema": SCHEMA,
        "recipe": recipe,
        "policy": policy,
        "reference": reference,
        "verdict": {"label": verdict.label, "text": verdict.text},
        "metrics": {name: _shown(estimate).to_dict() for name, estimate in metrics.items()},
        "tables": [table.to_dict() for table in tables],
        "figures": list(figures or []),
        "samples": samples,
        "curve": None if curve is None else _curve_points(curve),
        "minimum_detectable_drop": verdict.minimum_detectable_drop,
        "warnings": list(warnings or []),
        "evaluation": dict(evaluation or {}),
    }


def _shown(estimate: Estimate) -> Estimate:
    """An estimate without its interval where it rests on too few prompts to have one."""
    few = estimate.n < MIN_PROMPTS
    return Estimate(estimate.value, None, None, estimate.n) if few else estimate


def report_markdown(report: dict, figures_in: str = "") -> str:
    """The report as Markdown for a model card: verdict, metrics, figures, samples, settings.

    `figures_in` is the folder of the figures as seen from the Markdown file, such as "report/".

    Generated text is escaped: it cannot add table cells, HTML, links or images.
    """
    lines = [f"**{escaped(report['verdict']['text'])}**", ""]
    lines += [f"> Warning: {escaped(warning)}\n" for warning in report["warnings"]]
    lines += [
        f"Policy {code(report['policy'])} against reference {code(report['reference'])}.",
        "",
        "| metric | value | 95 % interval | prompts | unit | meaning |",
        "|---|---:|:---:|---:|---|---|",
    ]
    for name, entry in report["metrics"].items():
        unit, definition, direction = METRICS[name]
        interval = "–"
        if entry["low"] is not None and entry["high"] is not None:
            interval = f"[{number(entry['low'])},\u00a0{number(entry['high'])}]"
        meaning = definition if direction == NEUTRAL else f"{definition} ({direction})"
        cells = [f"`{name}`", number(entry["value"]), interval, str(entry["n"]), unit, meaning]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for table in report.get("tables", ()):  # reports written before there were any have none
        lines += table_lines(table)
    for figure in report["figures"]:
        title = Path(figure).stem.replace("_", " ").replace("-", " ")
        lines += [f"![{title}]({figures_in}{figure})", ""]
    if report["samples"]:
        lines += ["### Samples, not selected", "", *samples_table(report["samples"]), ""]
    if report["evaluation"]:
        settings = "; ".join(f"{escaped(k)}: {escaped(v)}" for k, v in report["evaluation"].items())
        lines += [f"Measured with {settings}.", ""]
    return "\n".join(lines)


def write_report(report: dict, folder: str | Path) -> Path:
    """Writes `report.json` and `report.md` into the folder, each whole or not at all.

    Returns:
        The path of `report.json`.

    Raises:
        ValueError: If the report holds NaN or infinite numbers; nothing is written then.
        OSError: If the folder cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"
    markdown = report_markdown(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.md", markdown)
    write_text(folder / "report.json", text)
    return folder / "report.json"


def load_report(path: str | Path) -> dict:
    """Reads and checks a `report.json`, given itself or its folder.

    Raises:
        InputError: If there is none, it is not JSON, or does not follow the schema.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"no report at {path}; give a report.json or the folder that holds it")
    report = read_record(path, str(path))
    check_report(report, str(path))
    return report


def check_report(report: object, label: str) -> None:
    """Refuses what is no report of this schema; `label` is how messages call it.

    Raises:
        InputError: Names the part, and what it should be.
    """
    check_shape(report, label, SCHEMA, METRICS, LABELS)


def _curve_points(curve: Curve) -> list[dict]:
    """One entry per checkpoint: step, sqrt_kl, and gold and proxy as estimates or None."""
    points = []
    for i, step in enumerate(curve.steps):
        point = {"step": int(step), "sqrt_kl": float(curve.sqrt_kl[i])}
        for name, values in (("gold", curve.gold), ("proxy", curve.proxy)):
            point[name] = None
            if values is not None:
                point[name] = clustered_mean(values[i], np.arange(values.shape[1])).to_dict()
        points.append(point)
    return points


def _plain(value: object) -> object:
    """numpy numbers and arrays for JSON."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored in a report")
