"""How well a reward model orders held-out pairs: beside simpler rankings and the noise ceiling, by
margin, length difference and subset; and whether its margins are as sure as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_align.diagnostics import calibration, interval_plots, reward_plots
from hf_align.diagnostics.accuracy import AccuracyGroup, accuracy_by_group, accuracy_by_value
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.evaluation import always_longer_accuracy, pairwise_accuracy
from hf_align.recipes._held_out import HeldOut, Part, right
from hf_align.statistics import clustered_difference, clustered_share

_NUM_BINS = 6
_PAIRS_PER_BIN = 50
_FEW = 10
"""Ranges of fewer pairs are in the table, not in the figure."""
_MOST_SUBSETS = 30
"""Subsets shown in the report, the largest first."""


@dataclass(frozen=True)
class Ranking:
    """Another way of ordering the held-out pairs.

    Attributes:
        name: What the report calls it.
        margins: (N,) positive where it orders a pair as labelled.
        metric: Its accuracy's name in the report; None for those that are only in the table.
    """

    name: str
    margins: np.ndarray
    metric: str | None = None


def accuracy_part(held: HeldOut, others: Sequence[Ranking]) -> Part:
    """Accuracy beside `others`, length and the noise ceiling; by margin, length and subset."""
    rankings = [
        Ranking("this reward model", held.margins, "accuracy/label"),
        *length_rankings(held),
    ]
    part = ranking_part(held, [*rankings, *others])
    part.add(calibration_part(held))
    part.add(group_part(held))
    return part


def length_rankings(held: HeldOut) -> list[Ranking]:
    """Always the longer; and always the shorter, where that is right more often."""
    rankings = [Ranking("always the longer", held.longer, "accuracy/longest_wins")]
    longer = always_longer_accuracy(held.longer, np.zeros_like(held.longer), held.prompts)
    if longer.value < 0.5:
        rankings.append(Ranking("always the shorter", -held.longer))
    return rankings


def ranking_part(held: HeldOut, rankings: Sequence[Ranking]) -> Part:
    """Accuracy of each ranking, and how much more the first one has, on the same pairs."""
    part, first = Part(), rankings[0]
    labels = [pairwise_accuracy(ranking.margins, held.prompts) for ranking in rankings]
    golds = [held.gold_accuracy(ranking.margins) for ranking in rankings]
    rows: list[list[Cell]] = []
    for ranking, label, gold in zip(rankings, labels, golds, strict=True):
        lead = None
        if ranking is not first:
            lead = clustered_difference(right(first.margins), right(ranking.margins), held.prompts)
        rows.append([ranking.name, label, lead, gold])
        if ranking.metric is not None:
            part.metrics[ranking.metric] = label
    ceiling = None
    if held.agreement is not None:
        ceiling = clustered_share(held.agreement, held.prompts)
        lead = clustered_difference(right(first.margins), held.agreement, held.prompts)
        rows.insert(1, ["noise ceiling: ordering as gold does", ceiling, lead, None])
        part.metrics["accuracy/ceiling"] = ceiling
    if golds[0] is not None:
        part.metrics["accuracy/gold"] = golds[0]
    columns = ["ranking", "accuracy on labels", "reward model minus it", "accuracy by gold"]
    if golds[0] is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    note = "The same held-out pairs in every row; differences are paired."
    part.tables.append(Table("Accuracy beside simpler rankings", columns, rows, note))
    part.figures["rankings"] = interval_plots.ranking_figure(
        [ranking.name for ranking in rankings],
        labels,
        None if golds[0] is None else golds,
        ceiling=ceiling,
    )
    return part


def calibration_part(held: HeldOut) -> Part:
    """Likelihood, fitted temperature, calibration errors, reliability, distribution of scores."""
    part, margins, prompts = Part(), held.margins, held.prompts
    temperature = calibration.fitted_temperature(margins, prompts)
    error = calibration.debiased_calibration_error(margins, prompts)
    part.metrics = {
        "nll/label": calibration.negative_log_likelihood(margins, prompts),
        "calibration/temperature": temperature,
        "calibration/ece": calibration.expected_calibration_error(margins, prompts),
        "calibration/ece_debiased": error,
    }
    # Intervals of fewer pairs say nothing at a glance.
    num_bins = min(10, max(4, len(margins) // _PAIRS_PER_BIN))
    part.figures["reliability"] = reward_plots.reliability_figure(
        calibration.reliability(margins, prompts, num_bins=num_bins),
        temperature=temperature,
        calibration_error=error,
    )
    part.figures["scores"] = reward_plots.score_figure(
        held.scores[held.pairs.better], held.scores[held.pairs.worse]
    )
    part.settings["calibration"] = (
        "of Bradley-Terry scores" if held.scale != 1 else "of the scores as they are"
    )
    return part


def group_part(held: HeldOut) -> Part:
    """Accuracy by how sure the model is, by which completion is longer, and by subset."""
    part, correct, prompts = Part(), right(held.margins), held.prompts
    sure = np.abs(held.margins)
    longer = right(held.longer)

    def ranges(values: np.ndarray, symmetric: bool = False) -> list[list[AccuracyGroup] | None]:
        return [
            shares
            if shares is None
            else accuracy_by_value(shares, values, prompts, num_bins=_NUM_BINS, symmetric=symmetric)
            for shares in (correct, longer, held.agreement)
        ]

    by_margin, by_length = ranges(sure), ranges(held.longer, symmetric=True)
    part.tables = [
        _group_table("Accuracy by margin", "|margin|, Bradley-Terry logits", *by_margin),
        _group_table(
            "Accuracy by difference in length",
            "preferred minus other, words",
            by_length[0],
            None,
            by_length[2],
        ),
    ]
    part.figures["accuracy_by_margin_and_length"] = reward_plots.accuracy_figure(
        [
            _panel("Score difference |margin|, logits", by_margin[0], by_margin[2]),
            _panel("Length: preferred minus other, words", by_length[0], by_length[2]),
        ]
    )
    if held.subsets is not None:
        part.add(_subset_part(held, correct, longer))
    return part


def _panel(
    label: str, ours: Sequence[AccuracyGroup], ceiling: Sequence[AccuracyGroup] | None
) -> reward_plots.AccuracyPanel:
    """A panel of the ranges with enough pairs, or of all where none has."""
    shown = [place for place, group in enumerate(ours) if group.count >= _FEW]
    shown = shown or list(range(len(ours)))
    kept = [ours[place] for place in shown]
    if ceiling is None:
        return reward_plots.AccuracyPanel(kept, label)
    others = [ceiling[place] for place in shown]
    return reward_plots.AccuracyPanel(kept, label, others, "noise ceiling")


def _subset_part(held: HeldOut, correct: np.ndarray, longer: np.ndarray) -> Part:
    names, counts = np.unique(held.subsets, return_counts=True)
    shown = names[np.argsort(-counts, kind="stable")[:_MOST_SUBSETS]]
    inside = np.isin(held.subsets, shown)
    ours, theirs = (
        accuracy_by_group(shares[inside], held.subsets[inside], held.prompts[inside])
        for shares in (correct, longer)
    )
    part = Part(tables=[_group_table("Accuracy by subset", "subset", ours, theirs, None)])
    if len(shown) < len(names):
        part.settings["subsets shown"] = f"the {len(shown)} largest of {len(names)}"
    panel = reward_plots.AccuracyPanel(ours, "subset", theirs, "always the longer")
    part.figures["accuracy_by_subset"] = reward_plots.accuracy_figure([panel])
    return part


def _group_table(
    title: str,
    label: str,
    ours: Sequence[AccuracyGroup],
    longer: Sequence[AccuracyGroup] | None,
    ceiling: Sequence[AccuracyGroup] | None,
) -> Table:
    columns = [label, "pairs", "accuracy"]
    rows: list[list[Cell]] = [[group.label, group.count, group.accuracy] for group in ours]
    for name, others in (("always the longer", longer), ("noise ceiling", ceiling)):
        if others is not None:
            columns.append(name)
            rows = [[*row, other.accuracy.value] for row, other in zip(rows, others, strict=True)]
    return Table(title, columns, rows)
