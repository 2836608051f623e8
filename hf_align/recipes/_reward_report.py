"""The report of a reward model: how well it orders held-out pairs and by what means, how sure it
is, what it says of completions that it has not seen the like of, and what simpler rankings do.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

from hf_align.configs import RewardArguments
from hf_align.data import LoadedData
from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.report import build_report, report_markdown, write_report
from hf_align.hub import shown_name
from hf_align.recipes._baselines import baseline_rankings
from hf_align.recipes._held_out import HeldOut, hold_out, right
from hf_align.recipes._inputs import TESTBED, Gold
from hf_align.recipes._learning_curve import learning_curve_part
from hf_align.recipes._parser import Choices
from hf_align.recipes._reward_accuracy import accuracy_part
from hf_align.recipes._reward_bias import bias_part
from hf_align.recipes._reward_on_policy import disagreement_part, draw_on_policy, on_policy_part
from hf_align.recipes._run import Run, finish_run, saved_model_stays
from hf_align.recipes._training import Setup
from hf_align.rewards import RewardModel
from hf_align.statistics import clustered_difference
from hf_align.types import Estimate


def reward_report(
    choices: Choices,
    run: Run,
    setup: Setup,
    source: dict[str, Any],
    reward: RewardModel,
    scale: float,
    data: LoadedData,
    gold: Gold | None,
) -> None:
    """Judges the saved model on the held-out pairs, writes the report, and finishes the run.

    Held-out rankings are judged by the pairs that they order, each completion scored once. Margins
    are multiplied by `scale` before they are read as Bradley–Terry logits.
    """
    options = choices.build(RewardArguments)
    on_testbed = choices.get("dataset_name") == TESTBED
    tqdm.write("evaluating the reward model on held-out pairs", file=sys.stderr)
    with saved_model_stays(run):
        held = hold_out(reward, scale, data.splits["test"], gold, on_testbed, options.subset_column)
        rankings, part = baseline_rankings(options, setup, source, data.splits, held)
        whole = accuracy_part(held, rankings)
        whole.add(part)
        drawn = draw_on_policy(choices, run, setup, source, reward, held, gold)
        whole.add(on_policy_part(held, drawn))
        whole.add(bias_part(held, reward, gold, on_testbed))
        whole.add(disagreement_part(held, reward, drawn))
        whole.add(learning_curve_part(options, setup, source, data.splits, held))
    run.warnings += reward.parity(setup.tokenizer)
    folder = run.path / "report"
    report = build_report(
        recipe=run.recipe,
        policy=run.record["name"],
        reference=shown_name(source),
        verdict=judge(held, whole.metrics),
        metrics=whole.metrics,
        tables=whole.tables,
        figures=[save_figure(f, folder / f"{name}.png").name for name, f in whole.figures.items()],
        warnings=run.warnings,
        evaluation={
            "pairs": len(held.margins),
            "completions": len(held.scores),
            "members": len(reward.members),
            "gold": gold.name if gold else "none",
            **whole.settings,
            "seed": setup.args.seed,
        },
    )
    write_report(report, folder)
    finish_run(run, report, report_markdown(report, figures_in="report/"))


_BASELINES = {
    "accuracy/log_likelihood": "summed likelihood",
    "accuracy/log_likelihood_per_token": "likelihood per token",
    "accuracy/generative_classifier": "a model asked which is better",
}


def judge(held: HeldOut, metrics: dict[str, Estimate]) -> Verdict:
    """What the held-out pairs say of a reward model; of its safety under optimisation, nothing.

    There is a gain where it orders more pairs than length alone, which is paired by prompt.
    """
    accuracy = metrics["accuracy/label"]
    # Always preferring the longer, or always the shorter, whichever the data reward.
    longer = right(held.longer)
    longest = metrics["accuracy/longest_wins"].value
    length = longer if longest >= 0.5 else 1 - longer
    lead = clustered_difference(right(held.margins), length, held.prompts)
    shown = f"it orders {_shown(accuracy)} of held-out labels"
    others = [
        f"{what} {metrics[name].value:.3f}" for name, what in _BASELINES.items() if name in metrics
    ]
    against = f"length alone orders {max(longest, 1 - longest):.3f}, {_shown(lead)} less"
    if others:
        against = f"{against}; beside it {', '.join(others)}"
    if lead.low is None or lead.low <= 0:
        return Verdict("NO GAIN", f"NO GAIN: {shown}; {against}.")
    return Verdict(
        "INCONCLUSIVE",
        f"INCONCLUSIVE: {shown}; {against}. Whether a policy can game it, only a policy optimised "
        "against it shows.",
    )


def _shown(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
