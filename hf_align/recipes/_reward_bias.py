"""What a reward model's score follows besides quality: correlations with features of the text, and
harmless edits that raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hf_align.diagnostics import features, interval_plots, reward_plots
from hf_align.diagnostics.interval_plots import Series
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.recipes._held_out import HeldOut, Part, scored_by
from hf_align.recipes._inputs import Gold
from hf_align.rewards import RewardModel
from hf_align.statistics import clustered_share
from hf_align.testbed.world import POLITE
from hf_align.types import Estimate

LENGTH = "words"
NUM_EDITED = 512
"""Held-out completions that are edited; each edit scores them once more."""

TESTBED_EDITS: Mapping[str, Callable[[str], str]] = {
    f"one more “{POLITE}”": features.add_polite_word,
    "one more filler": features.add_filler,
}
"""Edits that the testbed's language has words for."""

_EDITS_NOTE = (
    "How often an edit raises the score: 0.5 would be indifference, 1 or 0 a rule of the model's "
    "own. The effect is the mean change in standard deviations of the score."
)


_RAISED = (("score", interval_plots.SCORE), ("gold", interval_plots.GOLD))
_CORRELATED = (
    _RAISED[0],
    ("score, given the other features", interval_plots.GIVEN_OTHERS),
    _RAISED[1],
)


def bias_part(held: HeldOut, reward: RewardModel, gold: Gold | None, on_testbed: bool) -> Part:
    """Correlations with text features, partial and plain, and counterfactual flip rates."""
    part, correlations = feature_part(held)
    edits = TESTBED_EDITS if on_testbed else features.EDITS
    edited, flips = edit_part(held, reward, gold, edits)
    part.add(edited)
    if correlations:
        part.figures["what_the_score_follows"] = interval_plots.bias_figure(
            list(correlations),
            [
                Series(label, [row[place] for row in correlations.values()], style)
                for place, (label, style) in enumerate(_CORRELATED)
                if any(row[place] is not None for row in correlations.values())
            ],
            list(edits),
            [
                Series(label, [row[place] for row in flips], style)
                for place, (label, style) in enumerate(_RAISED)
                if any(row[place] is not None for row in flips)
            ],
        )
    return part


def feature_part(held: HeldOut) -> tuple[Part, dict[str, list[Estimate | None]]]:
    """Correlations within prompts: of the score, the same given the others, and of gold."""
    values = features.text_features(held.pairs.completions)
    names = features.informative_features(values, held.clusters)
    if not names:
        return Part(), {}
    matrix = np.column_stack([values[name] for name in names])
    partial = features.partial_correlations(held.scores, matrix, held.clusters)
    gold = held.gold
    if gold is not None and not features.informative_features({"gold": gold}, held.clusters):
        gold = None
    found: dict[str, list[Estimate | None]] = {}
    for name, given in zip(names, partial, strict=True):
        plain = features.within_prompt_correlation(held.scores, values[name], held.clusters)
        of_gold = gold is not None and features.within_prompt_correlation(
            gold, values[name], held.clusters
        )
        found[name] = [plain, given, of_gold or None]
    columns = ["feature", "correlation with the score", "given the others", "gold's correlation"]
    rows: list[list[Cell]] = [[name, *row] for name, row in found.items()]
    if gold is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    note = "Within prompts. A correlation is not yet use: the edits below test the cause."
    part = Part(tables=[Table("What the score goes along with", columns, rows, note)])
    if LENGTH in found:
        plain, given, _ = found[LENGTH]
        part.metrics = {
            "bias/length_correlation": plain,
            "bias/length_partial_correlation": given,
        }
        part.figures["score_against_length"] = reward_plots.length_figure(
            held.scores,
            values[LENGTH],
            correlation=plain,
            length_label="Completion length, words",
        )
    return part, found


def edit_part(
    held: HeldOut,
    reward: RewardModel,
    gold: Gold | None,
    edits: Mapping[str, Callable[[str], str]],
) -> tuple[Part, list[list[Estimate | None]]]:
    """How often each edit raises the score, and gold.

    `bias/flip_rate` is over all edits; where there is gold, over those that gold does not reward.
    """
    count = min(NUM_EDITED, len(held.scores))
    prompts, completions = held.pairs.prompts[:count], held.pairs.completions[:count]
    scores, clusters = held.scores[:count], held.clusters[:count]
    rows: list[list[Cell]] = []
    flips: list[list[Estimate | None]] = []
    raised, harmless = [], []
    for name, edit in edits.items():
        changed = [features.edited(completion, edit) for completion in completions]
        new = reward.score(prompts, changed)
        flip, of_gold = features.flip_rate(scores, new, clusters), None
        raised.append((np.sign(new - scores) + 1) / 2)
        harmless.append(np.ones(count, dtype=bool))
        if gold is not None:
            truth = scored_by(gold, prompts, changed)
            harmless[-1] = truth <= held.gold[:count]
            of_gold = clustered_share(~harmless[-1], clusters)
        flips.append([flip, of_gold])
        rows.append([name, flip, features.edit_effect(scores, new, clusters), of_gold])
    part = Part(settings={"edited completions": count})
    kept = np.concatenate(harmless)
    if kept.any():
        everywhere = np.tile(clusters, len(edits))
        part.metrics["bias/flip_rate"] = clustered_share(
            np.concatenate(raised)[kept], everywhere[kept]
        )
    columns = ["edit", "raises the score", "effect, SD", "raises gold"]
    if gold is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    part.tables = [Table("Edits that add no content", columns, rows, _EDITS_NOTE)]
    return part, flips
