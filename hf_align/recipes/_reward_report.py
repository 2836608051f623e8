"""The report of a reward model: held-out accuracy, calibration, and what the score follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hf_align.data import LoadedData
from hf_align.diagnostics import calibration, features, reward_plots
from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.report import build_report, report_markdown, write_report
from hf_align.evaluation import always_longer_accuracy, pairwise_accuracy
from hf_align.hub import shown_name
from hf_align.recipes._evaluation import prompt_numbers
from hf_align.recipes._inputs import Gold
from hf_align.recipes._run import Run, finish_run, saved_model_stays
from hf_align.recipes._training import Setup
from hf_align.rewards import RewardModel, checked_scores
from hf_align.statistics import clustered_share
from hf_align.types import Estimate, content_of


def reward_report(
    run: Run,
    setup: Setup,
    source: dict[str, Any],
    reward: RewardModel,
    scale: float,
    data: LoadedData,
    gold: Gold | None,
) -> None:
    """Scores the held-out pairs with the saved model, writes the report, and finishes the run.

    Margins are multiplied by `scale` before they are read as Bradley–Terry logits.
    """
    rows = list(data.splits["test"])
    prompts = [row["prompt"] for row in rows]
    clusters = prompt_numbers(prompts)
    sides = {side: [row[side] for row in rows] for side in ("chosen", "rejected")}
    scores = {side: reward.score(prompts, texts) for side, texts in sides.items()}
    words = {
        side: np.array([len(content_of(text).split()) for text in texts])
        for side, texts in sides.items()
    }
    margins = scale * (scores["chosen"] - scores["rejected"])
    metrics = label_metrics(margins, words, clusters)
    both = np.concatenate([clusters, clusters])
    everything = np.concatenate([scores["chosen"], scores["rejected"]])
    lengths = np.concatenate([words["chosen"], words["rejected"]]).astype(float)
    metrics["bias/length_correlation"] = features.within_prompt_correlation(
        everything, lengths, both
    )
    if gold is not None:
        with saved_model_stays(run):
            metrics["accuracy/gold"] = gold_accuracy(gold, prompts, sides, scores, clusters)
    run.warnings += reward.parity(setup.tokenizer)
    judged = judge(metrics)
    report = build_report(
        recipe=run.recipe,
        policy=run.record["name"],
        reference=shown_name(source),
        verdict=judged,
        metrics=metrics,
        figures=draw(run.path / "report", scores, margins, clusters, metrics, lengths),
        warnings=run.warnings,
        evaluation={
            "pairs": len(rows),
            "members": len(reward.members),
            "calibration": "of Bradley-Terry scores" if scale != 1 else "of the scores as they are",
            "gold": gold.name if gold else "none",
            "seed": setup.args.seed,
        },
    )
    write_report(report, run.path / "report")
    finish_run(run, report, report_markdown(report, figures_in="report/"))


def label_metrics(
    margins: np.ndarray, words: dict[str, np.ndarray], prompts: np.ndarray
) -> dict[str, Estimate]:
    """Accuracy on the labels, its "always longer" baseline, likelihood and calibration.

    Args:
        margins: (N,) score of the chosen completion minus the rejected one's.
        words: (N,) lengths of the chosen and the rejected completions.
        prompts: (N,) the prompt of each pair.
    """
    return {
        "accuracy/label": pairwise_accuracy(margins, prompts),
        "accuracy/longest_wins": always_longer_accuracy(
            words["chosen"], words["rejected"], prompts
        ),
        "nll/label": calibration.negative_log_likelihood(margins, prompts),
        "calibration/temperature": calibration.fitted_temperature(margins, prompts),
        "calibration/ece": calibration.expected_calibration_error(margins, prompts),
        "calibration/ece_debiased": calibration.debiased_calibration_error(margins, prompts),
    }


def gold_accuracy(
    gold: Gold,
    prompts: list[Any],
    sides: dict[str, list[Any]],
    scores: dict[str, np.ndarray],
    clusters: np.ndarray,
) -> Estimate:
    """How often the score orders a pair as gold does, over the pairs that gold does not tie."""
    truth = {
        side: np.array(
            checked_scores(gold.reward(prompts=prompts, completions=texts), len(texts), gold.name)
        )
        for side, texts in sides.items()
    }
    difference = truth["chosen"] - truth["rejected"]
    decided = difference != 0
    agreement = np.sign(scores["chosen"] - scores["rejected"]) * np.sign(difference)
    return clustered_share((agreement[decided] + 1) / 2, clusters[decided])


def judge(metrics: dict[str, Estimate]) -> Verdict:
    """What the held-out pairs say of a reward model; of its safety under optimisation, nothing."""
    accuracy, longest = metrics["accuracy/label"], metrics["accuracy/longest_wins"]
    # Always preferring the longer, or always the shorter, whichever the data reward.
    baseline = max(longest.value, 1 - longest.value)
    shown = f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}] of held-out labels"
    against = f"length alone orders {baseline:.3f}"
    if accuracy.low <= baseline:
        return Verdict("NO GAIN", f"NO GAIN: it orders {shown}; {against}.")
    return Verdict(
        "INCONCLUSIVE",
        f"INCONCLUSIVE: it orders {shown}; {against}. Whether a policy can game it, only a policy "
        "optimised against it shows.",
    )


def draw(
    folder: Path,
    scores: dict[str, np.ndarray],
    margins: np.ndarray,
    prompts: np.ndarray,
    metrics: dict[str, Estimate],
    lengths: np.ndarray,
) -> list[str]:
    """Saves the report's figures and returns their file names."""
    figures = {
        "reliability": reward_plots.reliability_figure(
            calibration.reliability(margins, prompts),
            temperature=metrics["calibration/temperature"],
            calibration_error=metrics["calibration/ece_debiased"],
        ),
        "scores": reward_plots.score_figure(scores["chosen"], scores["rejected"]),
        "score_against_length": reward_plots.length_figure(
            np.concatenate([scores["chosen"], scores["rejected"]]),
            lengths,
            correlation=metrics["bias/length_correlation"],
            length_label="Completion length, words",
        ),
    }
    return [save_figure(figure, folder / f"{name}.png").name for name, figure in figures.items()]
