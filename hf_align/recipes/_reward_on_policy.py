"""A reward model on completions that it was not trained on: those of the model that training
started from, ordered by gold, and what the members of an ensemble make of stranger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hf_align.configs import RewardArguments
from hf_align.diagnostics.disagreement import compare_disagreement
from hf_align.diagnostics.features import edited
from hf_align.diagnostics.interval_plots import disagreement_figure
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.evaluation import pairwise_accuracy
from hf_align.recipes._evaluation import REFERENCE_STREAM, Answers, Evaluator, load_policy
from hf_align.recipes._held_out import HeldOut, Part, accuracy_by_gold
from hf_align.recipes._inputs import Gold, max_new_tokens
from hf_align.recipes._models import is_language_model
from hf_align.recipes._parser import Choices
from hf_align.recipes._run import Run
from hf_align.recipes._training import Setup, num_tokens
from hf_align.rewards import RewardModel
from hf_align.statistics import clustered_mean
from hf_align.types import Text, content_of

NUM_STRANGE = 512
"""Held-out completions that are made strange for an ensemble."""


@dataclass(frozen=True)
class Drawn:
    """Completions of the starting model, m for each of G prompts.

    Attributes:
        answers: Completions, and their gold where there is any.
        clusters: (G · m,) the prompt of each, as a number.
        member_scores: (k, G · m) scores by member.
        scores: (G · m,) the reward model's scores.
    """

    answers: Answers
    clusters: np.ndarray
    member_scores: np.ndarray
    scores: np.ndarray


def draw_on_policy(
    choices: Choices,
    run: Run,
    setup: Setup,
    source: dict[str, Any],
    reward: RewardModel,
    held: HeldOut,
    gold: Gold | None,
) -> Drawn | None:
    """Samples the model that training started from, and scores what it wrote.

    None where nothing would come of it: neither gold nor an ensemble, or no language model.
    """
    if gold is None and len(reward.members) == 1:
        return None
    if not is_language_model(source, setup.args.trust_remote_code):
        return None
    options, longest = choices.build(RewardArguments), max_new_tokens(choices)
    if "eval_max_new_tokens" not in choices.values and setup.max_positions:
        longest = min(longest, setup.max_positions // 2)
    room = (setup.max_positions or 10**9) - longest
    distinct = list({repr(prompt): prompt for prompt in held.pairs.prompts}.values())
    prompts = [p for p in distinct if num_tokens(setup.tokenizer, p) <= room]
    if len(prompts) < 2:
        run.warn(
            f"no completions are sampled: with eval_max_new_tokens {longest} fewer than two "
            f"held-out prompts fit into the model's {setup.max_positions} positions"
        )
        return None
    prompts = prompts[: options.num_eval_prompts]
    evaluator = Evaluator(
        tokenizer=setup.tokenizer,
        prompts=prompts,
        audit_prompts=[],
        gold=gold,
        num_samples=options.num_eval_samples,
        max_new_tokens=longest,
        batch_size=options.eval_generation_batch_size,
        seed=setup.args.seed,
    )
    policy = load_policy(
        source["path"], source["revision"], setup.model_args.dtype, **setup.model_kwargs
    )
    answers = evaluator.answer(policy, prompts, evaluator.num_samples, REFERENCE_STREAM)
    samples = answers.samples
    members = reward.member_scores(samples.completion_prompts, samples.completions)
    return Drawn(answers, np.asarray(samples.prompt_index), members, reward.combine(members))


def on_policy_part(held: HeldOut, drawn: Drawn | None) -> Part:
    """Accuracy by gold on pairs of the starting model's completions, beside length."""
    if drawn is None:
        return Part()
    num_prompts, num_samples = drawn.answers.lengths.shape
    part = Part(settings={"on-policy completions": f"{num_prompts} prompts × {num_samples}"})
    if drawn.answers.gold is None or num_samples < 2:
        return part
    first, second = zip(*combinations(range(num_samples), 2), strict=True)

    def between(values: np.ndarray) -> np.ndarray:
        table = values.reshape(num_prompts, num_samples)
        return (table[:, list(first)] - table[:, list(second)]).ravel()

    gold = between(drawn.answers.gold)
    if not gold.any():
        return part
    prompts = np.repeat(np.arange(num_prompts), len(first))
    words = np.array([len(text.split()) for text in drawn.answers.samples.texts], float)
    accuracy = accuracy_by_gold(between(drawn.scores), gold, prompts)
    longer = accuracy_by_gold(between(words), gold, prompts)
    part.metrics["accuracy/on_policy"] = accuracy
    rows: list[list[Cell]] = [
        ["held out", held.gold_accuracy(held.margins), held.gold_accuracy(held.longer)],
        ["of the starting model's own completions", accuracy, longer],
    ]
    columns = ["pairs", "accuracy by gold", "always the longer"]
    note = "Pairs that gold does not tie."
    part.tables.append(Table("Held-out and on-policy accuracy", columns, rows, note))
    return part


def shuffled(text: str) -> str:
    """The text with its words in another order, the same one each time."""
    words = text.split()
    return " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))


def thrice(text: str) -> str:
    """The text three times over."""
    return " ".join([text.strip()] * 3)


STRANGE: Mapping[str, Callable[[str], str]] = {
    "held out, words shuffled": shuffled,
    "held out, three times over": thrice,
}
"""Completions that nobody writes."""


def disagreement_part(held: HeldOut, reward: RewardModel, drawn: Drawn | None) -> Part:
    """How far an ensemble's members disagree on held-out completions and on others."""
    if len(reward.members) == 1:
        return Part()
    sets: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if drawn is not None:
        sets["the starting model's own"] = (drawn.member_scores, drawn.clusters)
    prompts, clusters = held.pairs.prompts[:NUM_STRANGE], held.clusters[:NUM_STRANGE]
    for name, change in STRANGE.items():
        texts: list[Text] = [edited(c, change) for c in held.pairs.completions[:NUM_STRANGE]]
        kept = [i for i, text in enumerate(texts) if content_of(text)]
        scores = reward.member_scores([prompts[i] for i in kept], [texts[i] for i in kept])
        sets[name] = (scores, clusters[kept])
    inside, part = held.member_scores, Part()
    centre, spread = held.scores.mean(), held.scores.std()
    rows: list[list[Cell]] = []
    for name, (scores, owners) in sets.items():
        compared = compare_disagreement(inside, held.clusters, scores, owners)
        level = clustered_mean((reward.combine(scores) - centre) / spread, owners)
        if not rows:
            mean = clustered_mean((held.scores - centre) / spread, held.clusters)
            rows.append(["held out", compared.inside, None, mean])
            part.metrics["ensemble/disagreement"] = compared.inside
        rows.append([name, compared.outside, compared.outlying, level])
        if drawn is not None and scores is drawn.member_scores:
            part.metrics["ensemble/disagreement_on_policy"] = compared.outside
            part.metrics["ensemble/outlying"] = compared.outlying
    columns = ["completions", "disagreement, SD", "beyond 99 % of held out", "mean score, SD"]
    note = (
        "Standard deviation over members in standard deviations of the score. Members that agree "
        "can all be wrong: low disagreement is no reason for trust."
    )
    part.tables = [Table("Disagreement within the ensemble", columns, rows, note)]
    part.tables.append(_member_table(held))
    names, disagreement, outlying, _ = zip(*rows, strict=True)
    part.figures["disagreement"] = disagreement_figure(names, disagreement, outlying)
    return part


def _member_table(held: HeldOut) -> Table:
    rows: list[list[Cell]] = []
    for number, scores in enumerate([*held.member_scores, held.scores]):
        margins = held.between_pairs(scores)
        name = f"member {number}" if number < len(held.member_scores) else "together"
        rows.append([name, pairwise_accuracy(margins, held.prompts), held.gold_accuracy(margins)])
    columns = ["model", "accuracy on labels", "accuracy by gold"]
    if held.gold is None:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table("Members of the ensemble", columns, rows)
