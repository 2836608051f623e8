"""Samples one policy on given prompts, and measures its answers: the unit that `compare` caches.

Writes `answers.npz` (rewards, lengths, KL, diversity), `answers.jsonl` (the texts) and `run.json`
with what the policy was and what it cost.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import AnswerArguments
from hf_align.files import replacing, write_text
from hf_align.recipes import _policy_names as policy_names
from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._run import Run, begin_run, recipe
from hf_align.sampling import Samples
from hf_align.sampling.contexts import DEFAULT, load_context
from hf_align.sampling.policies import ModelPolicy, PolicySpec, make_policy, parse_policy
from hf_align.types import InputError, Text, content_of

OWN = (AnswerArguments,)
NAME = "_compare_answers"
ARRAYS, TEXTS = "answers.npz", "answers.jsonl"


@dataclass(frozen=True)
class Source:
    """Where the model of a policy is, and what its training cost.

    Attributes:
        model: `{"name", "path", "revision", "sha256"}`, and the `base` of an adapter.
        step: Gradient steps at the checkpoint; None where nobody wrote it down.
        drawn: Completions drawn while it trained.
        recipe: What trained it.
        without_best: Whether the best audited checkpoint was asked for, and none had been kept.
    """

    model: dict[str, Any]
    step: int | None = None
    drawn: int | None = None
    recipe: str | None = None
    without_best: bool = False


def make_parser() -> RecipeParser:
    """The stage's options."""
    return RecipeParser(NAME, __doc__, OWN)


@recipe
def main(args: list[str] | None = None) -> None:
    """Runs the stage."""
    choices = make_parser().parse(args)
    options = choices.build(AnswerArguments)
    path = Path(options.output_dir)
    run = Run(NAME, path, None)
    found = locate(options.policy, options.checkpoint)
    begin_run(run, choices, asdict(options), {"model": found.model})
    arrays, texts, facts = measure(options, found)
    with replacing(path / ARRAYS) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    write_text(path / TEXTS, "".join(json.dumps(row) + "\n" for row in texts))
    run.record |= {"facts": facts, "status": "finished", "finished": _now()}
    run.write_json("run.json", run.record)


def _now() -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def locate(name: str, checkpoint: str) -> Source:
    """The model that the name of a policy ends with; of a run directory the asked checkpoint.

    Raises:
        InputError: There is none.
        OSError: The Hub cannot be reached, or refuses.
    """
    from hf_align.recipes._inputs import TESTBED
    from hf_align.testbed import build_testbed

    model = parse_policy(name).model
    where = str(build_testbed().policy_path) if model == TESTBED else model
    path = Path(where).expanduser()
    record = _record(path)
    step, shown, without_best = None, model, checkpoint == "best"
    if record is not None:
        best = path / "best"
        if checkpoint == "best" and (best / "audit.json").is_file():
            without_best = False
            step = json.loads((best / "audit.json").read_text(encoding="utf-8"))["step"]
            path = best
        else:
            step = _last_step(path)
        where, shown = str(path), record["name"]
    recorded = ((record or {}).get("lineage") or {}).get("model")
    model_source = policy_names.find_source(where, recorded=recorded) | {"name": shown}
    if record is None:
        return Source(model_source)
    drawn = _drawn(record, Path(model).expanduser(), step)
    return Source(model_source, step, drawn, record["recipe"], without_best)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"recipe", "config", "name"}
    return record if isinstance(record, dict) and needed <= record.keys() else None


def _last_step(path: Path) -> int | None:
    try:
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max(json.loads(line)["step"] for line in lines)
    except (OSError, ValueError, KeyError):
        return None


def _drawn(record: dict[str, Any], path: Path, step: int | None) -> int | None:
    """Completions that a run had drawn by a step: of on-policy training and expert iteration."""
    config = record["config"]
    if step is None:
        return None
    if record["recipe"] in ("ppo", "rloo"):
        each = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        return round(step * each / config.get("num_iterations", 1))
    if record["recipe"] == "expert_iteration":
        drawn = 0
        for number in range(1, config["rounds"] + 1):
            file = path / f"round-{number}" / "round.json"
            if step <= 0 or not file.is_file():
                break
            facts = json.loads(file.read_text(encoding="utf-8"))
            drawn, step = drawn + facts["drawn"], step - facts["steps"]
        return drawn
    return 0


def measure(
    options: AnswerArguments, found: Source
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], dict[str, Any]]:
    """The answers: arrays (G, m) by name, texts by prompt, and the facts about the policy.

    Raises:
        InputError: Policy, prompts and rewards do not fit each other.
    """
    from hf_align.trainers.audit import scored

    spec = parse_policy(options.policy)
    prompts, columns = read_prompts(Path(options.prompts), options.num_prompts)
    rewards = load_rewards(options)
    context = load_context(options.urial_prompt or DEFAULT) if spec.in_context else None
    tokenizer, config = policy_names.load_words(found.model)
    if context is None:
        check_room(options, tokenizer, config, prompts)
    model = policy_names.load_model(found.model, options.dtype)
    chooser = rewards.pop("selector", rewards.get("proxy"))
    policy = make_policy(spec, model, tokenizer, chooser and chooser.reward, context)
    samples = policy(
        prompts,
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        batch_size=options.batch_size,
        seed=options.seed,
        columns=columns,
        progress=True,
    )
    arrays = {
        name: scored(reward.reward, samples, columns, reward.name)
        for name, reward in rewards.items()
    }
    shape = (len(prompts), options.num_samples)
    inner = make_policy(replace(spec, best_of=()), model, tokenizer, None, context)
    reader, kind = tokenizer, None
    if options.reference is not None:
        reader, kl, kind = distance(options, spec, inner, samples)
        if kl is not None:
            arrays["kl"] = kl.reshape(shape)
    ids = [reader(text, add_special_tokens=False)["input_ids"] for text in samples.texts]
    arrays["lengths"] = (np.array([*map(len, ids)]) + samples.ended).reshape(shape)
    arrays["characters"] = np.array([*map(len, samples.texts)]).reshape(shape)
    arrays["ended"] = samples.ended.reshape(shape)
    arrays["diversity"] = diversity(ids, options.num_samples)
    texts = [
        {"prompt": prompt, "answers": samples.texts[i * shape[1] : (i + 1) * shape[1]]}
        for i, prompt in enumerate(prompts)
    ]
    facts = {
        "kl": kind,
        "draws_per_answer": spec.draws_per_answer,
        "gradient_steps": found.step,
        "drawn_in_training": found.drawn,
        "trained_by": found.recipe,
        "without_best": found.without_best,
        "rewards": {name: reward.name for name, reward in rewards.items()},
        "urial_prompt": context and {"version": context.version, "sha256": context.sha256},
    }
    return arrays, texts, facts


def distance(
    options: AnswerArguments, spec: PolicySpec, inner: Any, samples: Samples
) -> tuple[Any, np.ndarray | None, str | None]:
    """The reference's tokenizer, in whose tokens lengths are counted; the KL per answer, by what.

    A greedy policy has no KL from one that samples.
    """
    from hf_align.recipes._compare_kl import sequence_kl

    reference = locate(options.reference, options.checkpoint).model
    reader, _ = policy_names.load_words(reference)
    if not options.temperature:
        return reader, None, None
    model = policy_names.load_model(reference)
    return reader, *sequence_kl(spec, inner, ModelPolicy(model, reader), samples, options)


def check_room(options: AnswerArguments, tokenizer: Any, config: Any, prompts: list[Text]) -> None:
    """Refuses prompts that leave no room for an answer within the model's positions.

    Raises:
        InputError: Says by how much; or a conversation meets a model without a chat template.
    """
    from hf_align.recipes._training import num_tokens

    if isinstance(prompts[0], list) and tokenizer.chat_template is None:
        raise InputError(
            f"policies {options.policy}: the model has no chat template, and the prompts are "
            "conversations; name a chat model, or urial:<base>"
        )
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(num_tokens(tokenizer, prompt) for prompt in prompts)
    if positions is not None and longest + options.max_new_tokens > positions:
        raise InputError(
            f"policies {options.policy}: the longest prompt has {longest} tokens, which leaves no "
            f"room for max_new_tokens {options.max_new_tokens} in the model's {positions} "
            "positions; lower --max_new_tokens, or leave long prompts out"
        )


def read_prompts(file: Path, count: int) -> tuple[list[Text], dict[str, list[Any]]]:
    """The first prompts that `compare` wrote, one JSON value per line, and the columns beside."""
    lines = file.read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    if not isinstance(rows[0], dict):
        return rows, {}
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    return [row["prompt"] for row in rows], columns


def load_rewards(options: AnswerArguments) -> dict[str, Any]:
    """`{"gold" | "second" | "proxy" | "selector": the reward}` of those that are named.

    Raises:
        InputError: One names neither a function nor a model.
        OSError: The Hub cannot be reached, or refuses.
    """
    import torch

    from hf_align.recipes._inputs import load_reward

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device, rewards = str(found), {}
    for key, name in (("gold", options.gold_reward), ("second", options.second_reward)):
        if name is not None:
            rewards[key] = load_reward(name, f"{key}_reward")(device)
    for key, names in (("proxy", options.reward_model), ("selector", options.selector)):
        if names:
            rewards[key] = policy_names.find_chooser(names)(device)
    return rewards


def diversity(ids: list[list[int]], num_samples: int) -> np.ndarray:
    """(G,) 1 − self-BLEU among the answers to each prompt; NaN where one answer has no words."""
    from hf_align.diagnostics.diversity import self_bleu

    groups = [ids[start : start + num_samples] for start in range(0, len(ids), num_samples)]
    if num_samples < 2:
        return np.full(len(groups), np.nan)
    return np.array([1 - self_bleu(group) if all(group) else np.nan for group in groups])


def check_texts(prompts: list[Text]) -> None:
    """Refuses prompts without words.

    Raises:
        InputError: Says which one.
    """
    for number, prompt in enumerate(prompts):
        if not content_of(prompt).strip():
            raise InputError(f"prompt {number} is empty; leave it out")


if __name__ == "__main__":
    main()
