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
from hf_align.recipes._comparisons import Comparisons, comparisons
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

    Held-out rankings are judged by the pairs that they order, each completion scored once. Margins
    are multiplied by `scale` before they are read as Bradley–Terry logits.
    """
    held_out = comparisons(data.splits["test"])
    clusters = prompt_numbers(held_out.prompts)
    scores = reward.score(held_out.prompts, held_out.completions)
    words = np.array([len(content_of(text).split()) for text in held_out.completions])
    lengths = words.astype(float)
    margins = scale * (scores[held_out.better] - scores[held_out.worse])
    metrics = label_metrics(margins, words, held_out, clusters)
    metrics["bias/length_correlation"] = features.within_prompt_correlation(
        scores, lengths, clusters
    )
    if gold is not None:
        with saved_model_stays(run):
            metrics["accuracy/gold"] = gold_accuracy(gold, held_out, scores, clusters)
    run.warnings += reward.parity(setup.tokenizer)
    judged = judge(metrics)
    report = build_report(
        recipe=run.recipe,
        policy=run.record["name"],
        reference=shown_name(source),
        verdict=judged,
        metrics=metrics,
        figures=draw(run.path / "report", held_out, scores, margins, clusters, metrics, lengths),
        warnings=run.warnings,
        evaluation={
            "pairs": len(margins),
            "completions": len(scores),
            "members": len(reward.members),
            "calibration": "of Bradley-Terry scores" if scale != 1 else "of the scores as they are",
            "gold": gold.name if gold else "none",
            "seed": setup.args.seed,
        },
    )
    write_report(report, run.path / "report")
    finish_run(run, report, report_markdown(report, figures_in="report/"))


def label_metrics(
    margins: np.ndarray, words: np.ndarray, held_out: Comparisons, clusters: np.ndarray
) -> dict[str, Estimate]:
    """Accuracy on the labels, its "always longer" baseline, likelihood and calibration.

    Args:
        margins: (N,) score of each pair's preferred completion minus the other's.
        words: (M,) lengths of the completions.
        held_out: M completions and the N pairs among them.
        clusters: (M,) the prompt of each completion.
    """
    better, worse = held_out.better, held_out.worse
    prompts = clusters[better]
    return {
        "accuracy/label": pairwise_accuracy(margins, prompts),
        "accuracy/longest_wins": always_longer_accuracy(words[better], words[worse], prompts),
        "nll/label": calibration.negative_log_likelihood(margins, prompts),
        "calibration/temperature": calibration.fitted_temperature(margins, prompts),
        "calibration/ece": calibration.expected_calibration_error(margins, prompts),
        "calibration/ece_debiased": calibration.debiased_calibration_error(margins, prompts),
    }


def gold_accuracy(
    gold: Gold, held_out: Comparisons, scores: np.ndarray, clusters: np.ndarray
) -> Estimate:
    """How often the score orders a pair as gold does, over the pairs that gold does not tie."""
    prompts, completions = held_out.prompts, held_out.completions
    given = gold.reward(prompts=prompts, completions=completions)
    truth = np.array(checked_scores(given, len(completions), gold.name))
    better, worse = held_out.better, held_out.worse
    difference = truth[better] - truth[worse]
    decided = difference != 0
    agreement = np.sign(scores[better] - scores[worse]) * np.sign(difference)
    return clustered_share((agreement[decided] + 1) / 2, clusters[better][decided])


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
    held_out: Comparisons,
    scores: np.ndarray,
    margins: np.ndarray,
    clusters: np.ndarray,
    metrics: dict[str, Estimate],
    lengths: np.ndarray,
) -> list[str]:
    """Saves the report's figures and returns their file names."""
    figures = {
        "reliability": reward_plots.reliability_figure(
            calibration.reliability(margins, clusters[held_out.better]),
            temperature=metrics["calibration/temperature"],
            calibration_error=metrics["calibration/ece_debiased"],
        ),
        "scores": reward_plots.score_figure(scores[held_out.better], scores[held_out.worse]),
        "score_against_length": reward_plots.length_figure(
            scores,
            lengths,
            correlation=metrics["bias/length_correlation"],
            length_label="Completion length, words",
        ),
    }
    return [save_figure(figure, folder / f"{name}.png").name for name, figure in figures.items()]
