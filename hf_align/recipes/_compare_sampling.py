"""Runs a comparison's stages, reads what they measured, and lets a judge decide every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_align.configs import CompareArguments, JudgeArguments
from hf_align.evaluation.judging import position_report
from hf_align.recipes import _compare_inputs as inputs
from hf_align.recipes import _compare_table as table
from hf_align.recipes import _compare_testbed as on_testbed
from hf_align.recipes._compare_inputs import Entry
from hf_align.recipes._compare_table import Method
from hf_align.recipes._judges import Judges, find_judges
from hf_align.recipes._run import Run
from hf_align.sampling.policies import parse_policy
from hf_align.types import InputError, Text


@dataclass
class Comparison:
    """What was sampled.

    Attributes:
        reference: What all are compared with.
        methods: The others, in the order of the table.
        prompts: The prompts.
        by_temperature: Per temperature the methods on the first of the prompts.
        notes: What the reader of the table must know.
        tiers: The order that is expected by gold, if one is.
    """

    reference: Method
    methods: list[Method]
    prompts: list[Text]
    by_temperature: dict[float, list[Method]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tiers: Sequence[Sequence[str]] = ()

    @property
    def everything(self) -> list[Method]:
        """The reference first."""
        return [self.reference, *self.methods]


def find_judge(options: JudgeArguments) -> Judges | None:
    """The judge that is asked, checked and not loaded; None where scores judge.

    Raises:
        InputError: One that cannot work.
        OSError: The Hub cannot be reached, or refuses.
    """
    return find_judges(options) if options.judge else None


def sample(
    path: Path, options: CompareArguments, prompts: list[Text], columns: dict[str, list[Any]]
) -> Comparison:
    """Trains what the table on the testbed needs, and samples every policy that is not yet.

    Raises:
        InputError: A policy cannot be used.
        OSError: A stage failed.
    """
    notes: tuple[str, ...] = ()
    tiers: Sequence[Sequence[str]] = ()
    if options.policies:
        inputs.check_rewards(options, prompts, columns)
        entries = inputs.read_policies(options)
        name = options.reference or parse_policy(entries[0].policy).model
        reference, entries = _split(entries, name)
        stages = []
    else:
        seeds = options.seeds or [1, 2, 3]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"seeds has one twice: {seeds}")
        stages = on_testbed.placed(on_testbed.stages(seeds), str(path))
        entries = on_testbed.entries(seeds, str(path))
        reference, name = on_testbed.reference_entries(seeds, str(path)), inputs.TESTBED
        notes, tiers = on_testbed.NOTES, on_testbed.TIERS
    file = inputs.write_prompts(path, prompts, columns)
    hashed = bool(options.policies)
    answered = inputs.answer_stages([*reference, *entries], options, name, file, hashed=hashed)
    tempered = {
        t: inputs.answer_stages(
            [e for e in entries if e.seed == 0], options, name, file, t, hashed=hashed
        )
        for t in sorted(set(options.temperatures or []))
    }
    inputs.run_all(
        [*stages, *answered, *(s for each in tempered.values() for s in each)], path, options
    )
    folders = [path / stage.name for stage in answered]
    methods = _methods([*reference, *entries], folders)
    by_temperature = {
        t: _methods([e for e in entries if e.seed == 0], [path / s.name for s in each])
        for t, each in tempered.items()
    }
    return Comparison(methods[0], methods[1:], prompts, by_temperature, notes, tiers)


def _split(entries: Sequence[Entry], name: str) -> tuple[list[Entry], list[Entry]]:
    """The reference's entries, and the others."""
    own = [entry for entry in entries if entry.policy == name]
    others = [entry for entry in entries if entry.policy != name]
    if not others:
        raise InputError(f"policies: nothing is compared with the reference {name}; name another")
    if not own:
        shown = Path(name).name or name
        own = [Entry(f"{shown} (reference)", name, others[0].reward_model)]
    return own, others


def _methods(entries: Sequence[Entry], folders: Sequence[Path]) -> list[Method]:
    found: dict[str, list[Path]] = {}
    for entry, folder in zip(entries, folders, strict=True):
        found.setdefault(entry.method, []).append(folder)
    return [table.load_method(name, places) for name, places in found.items()]


def judge_pairs(
    run: Run,
    options: CompareArguments,
    judge_options: JudgeArguments,
    judges: Judges | None,
    comparison: Comparison,
) -> str | None:
    """Lets scores or a judge decide every pair; returns the score's name, None for a judge."""
    everyone = [*comparison.methods, *(m for ms in comparison.by_temperature.values() for m in ms)]
    if judges is None:
        key = "gold" if options.gold_reward is not None else "proxy"
        for method in everyone:
            table.judge_by_score(method, on_the_same(comparison.reference, method), key)
        return key
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    judge, both = judges.load(str(found), options.seed), judge_options.judge_orders == "both"
    for method in everyone:
        prompts = comparison.prompts[: len(method.texts[0])]
        reference = on_the_same(comparison.reference, method)
        table.judge_by_asking(method, reference, judge, prompts, both)
        failed = sum(int(judged.failed.sum()) for judged in method.judged)
        if failed:
            run.warn(f"{method.name}: {failed} pairs have no usable answer of the judge")
        size = len(method.texts[0][0])
        for judged in method.judged:
            places = position_report(judged, [p for p in prompts for _ in range(size)])
            if places is not None and places.alarm:
                run.warn(
                    f"{method.name}: the judge gives the same answer in both orders in only "
                    f"{places.consistency.value:.0%} of pairs"
                )
    return None


def on_the_same(reference: Method, method: Method) -> Method:
    """The reference on the first prompts, as many as a method answered, paired answer by answer."""
    count, size = next(iter(method.seeds[0].values())).shape[0], len(method.texts[0][0])
    seeds = [
        {
            key: (values if key == "diversity" else values[:, :size])[:count]
            for key, values in arrays.items()
        }
        for arrays in reference.seeds
    ]
    texts = [[row[:size] for row in rows[:count]] for rows in reference.texts]
    return Method(reference.name, seeds, texts, reference.facts)
