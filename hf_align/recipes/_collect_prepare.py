"""What people are given to compare: outputs sampled, scanned, selected, with their provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import CollectArguments
from hf_align.data import load_data
from hf_align.feedback import Collection, Gold, Item, Output, Project
from hf_align.feedback.texts import digest
from hf_align.recipes._inputs import TESTBED, load_reward
from hf_align.testbed import build_testbed, explain, gold_reward, sample_demonstrations
from hf_align.testbed.world import TOPICS, TOPICS_PER_PROMPT, prompt_of
from hf_align.types import InputError, Text, content_of

IDENTITY = (
    *("chatgpt", "openai", "gpt-3", "gpt-4", "gpt-5", "claude", "anthropic", "gemini", "bard"),
    *("llama", "meta ai", "mistral", "qwen", "alibaba cloud", "deepseek", "copilot", "grok"),
    *("gemma", "google deepmind", "smollm", "as an ai language model", "my knowledge cutoff"),
)
"""Words by which an output tells who wrote it. After FastChat's list of identity words:
https://github.com/lm-sys/FastChat/blob/main/fastchat/serve/monitor/elo_analysis.py"""

GUIDELINES = """# Which answer is better?

Read the prompt, then **both** answers, then decide.

* Better is the one that does what the prompt asks, correctly, without anything that was not asked.
* Between two that do, take the one you would rather have got.
* Say *slightly* where it was close, *tie* where you could not say, *both bad* where neither helps.
* Do not guess who wrote it. Skip what you cannot judge, and say why.
"""
TESTBED_GUIDELINES = """# Which answer is better?

A prompt names four topics. A good answer

* mentions **each** named topic once, and no other topic;
* is **brief**: ten words or fewer;
* says *please* or *kindly* once at most.

Filler words (*so, very, really, just*) help nobody.
"""


@dataclass(frozen=True)
class Candidates:
    """A prompt with everything that was written for it.

    Attributes:
        prompt: Text or messages.
        outputs: Distinct ones.
    """

    prompt: Text
    outputs: tuple[Output, ...]


def prepare_project(collection: Collection, options: CollectArguments, actor: str) -> str:
    """Makes the project if there is none, and adds its items; what to print.

    Raises:
        InputError: An option that cannot be, or the project exists with other settings.
        OSError: Data, a policy or a reward model cannot be read.
    """
    check_options(options)
    project, guidelines = _project(options), _guidelines(options)
    prompts, references = read_prompts(options)
    candidates = sample_candidates(options, prompts, references)
    candidates, empty = without_empty(candidates)
    candidates, told = scan_identity(candidates, options)
    candidates = scored(candidates, options.reward_model)
    items = select_items(candidates, options)
    gold = gold_items(options)
    if not items:
        raise InputError("no prompt has two different outputs; raise --num_samples")
    collection.lead.create_project(actor, project, guidelines)
    added = collection.lead.add_items(actor, options.project, [*items, *gold])
    kinds = [item.kind for item in items]
    lines = [
        f"project {options.project}: {added} of {len(items) + len(gold)} items are new "
        f"({kinds.count('pair')} pairs, {kinds.count('ranking')} rankings, {len(gold)} with a "
        f"known answer); {len(prompts) - len(items)} prompts had too few different outputs"
    ]
    if empty:
        lines.append(f"outputs without a word, left out, since nothing trains on them: {empty}")
    if told:
        done = "left out" if options.identity == "drop" else "kept"
        words = ", ".join(f"{word} {count}" for word, count in sorted(told.items()))
        lines.append(f"outputs that tell who wrote them, {done}: {words}")
    return "\n".join(lines)


def check_options(options: CollectArguments) -> None:
    """Refuses what cannot be, before anything is loaded.

    Raises:
        InputError: Says what.
    """
    if options.dataset_name is None:
        raise InputError("dataset_name is missing; name the prompts, or 'testbed'")
    if not options.policies and options.reference_column is None:
        raise InputError("policies are missing; name who answers the prompts")
    if options.selection in ("hard", "wide") and options.reward_model is None:
        raise InputError(f"selection {options.selection} needs --reward_model")
    if options.num_rankings and not 3 <= options.ranking_size <= 9:
        raise InputError(f"ranking_size {options.ranking_size}: expected 3 to 9")
    if options.quiz_pass is not None and options.gold is None:
        raise InputError("quiz_pass needs --gold with quiz pairs")
    if options.num_prompts < 1 or options.num_samples < 1:
        raise InputError("num_prompts and num_samples: expected at least 1")


def _project(options: CollectArguments) -> Project:
    return Project(
        options.project,
        title=options.title or options.project,
        overlap=options.overlap,
        quota=options.quota,
        gold_rate=options.gold_rate,
        repeat_rate=options.repeat_rate,
        quiz_pass=options.quiz_pass,
        rate_outputs=options.rate_outputs,
    )


def _guidelines(options: CollectArguments) -> str:
    if options.guidelines is None:
        return TESTBED_GUIDELINES if options.dataset_name == TESTBED else GUIDELINES
    try:
        return Path(options.guidelines).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"guidelines {options.guidelines}: no UTF-8 text") from error


def read_prompts(options: CollectArguments) -> tuple[list[Text], dict[str, str]]:
    """Distinct prompts drawn by the seed, and the references' texts by prompt.

    Raises:
        InputError: The data cannot be used.
        OSError: The Hub cannot be reached, or refuses.
    """
    references: dict[str, str] = {}
    if options.dataset_name == TESTBED:
        found: list[Text] = list(dict.fromkeys(build_testbed().prompts("rl")))
    else:
        kind = "prompt" if options.reference_column is None else "sft"
        columns = {"prompt": options.prompt_column, "completion": options.reference_column}
        data = load_data(
            str(options.dataset_name),
            kind,
            config=options.dataset_config,
            revision=options.dataset_revision,
            train_split=options.dataset_split,
            columns={ours: theirs for ours, theirs in columns.items() if theirs is not None},
            test_split_size=0.0,
        )
        rows = data.splits["train"]
        found = list({repr(prompt): prompt for prompt in rows["prompt"]}.values())
        if options.reference_column is not None:
            pairs = zip(rows["prompt"], rows["completion"], strict=True)
            references = {repr(prompt): content_of(text) for prompt, text in pairs}
    chosen = np.random.default_rng(options.seed).permutation(len(found))[: options.num_prompts]
    return [found[i] for i in sorted(chosen)], references


def sample_candidates(
    options: CollectArguments, prompts: Sequence[Text], references: dict[str, str]
) -> list[Candidates]:
    """Every policy's outputs at every temperature, with references, distinct by text."""
    written: list[list[Output]] = [[] for _ in prompts]
    for number, name in enumerate(options.policies or []):
        _add_samples(written, options, name, number, list(prompts))
    for outputs, prompt in zip(written, prompts, strict=True):
        text = references.get(repr(prompt))
        if text is not None:
            outputs.append(Output(text, "reference"))
    return [
        Candidates(prompt, tuple({o.completion: o for o in reversed(outputs)}.values())[::-1])
        for prompt, outputs in zip(prompts, written, strict=True)
    ]


def without_empty(candidates: Sequence[Candidates]) -> tuple[list[Candidates], int]:
    """The candidates that say something, and how many outputs do not."""
    kept = [
        Candidates(one.prompt, tuple(o for o in one.outputs if o.completion.strip()))
        for one in candidates
    ]
    counted = sum(len(one.outputs) for one in candidates) - sum(len(one.outputs) for one in kept)
    return kept, counted


def _add_samples(
    written: list[list[Output]],
    options: CollectArguments,
    name: str,
    number: int,
    prompts: list[Text],
) -> None:
    from hf_align.recipes import _policy_names as policy_names
    from hf_align.recipes._compare_answers import locate
    from hf_align.sampling.policies import make_policy, parse_policy

    spec = parse_policy(name)
    if spec.in_context or (spec.best_of and options.reward_model is None):
        raise InputError(f"policies {name}: name a model, or best_of_n:<n>:<model> and a reward")
    source = locate(name, "shipped").model
    tokenizer, _ = policy_names.load_words(source)
    if isinstance(prompts[0], list) and tokenizer.chat_template is None:
        raise InputError(f"policies {name}: no chat template, and the prompts are conversations")
    reward = load_reward(str(options.reward_model), "reward_model")("cpu") if spec.best_of else None
    model = policy_names.load_model(source)
    policy = make_policy(spec, model, tokenizer, reward and reward.reward, None)
    for place, temperature in enumerate(options.temperatures or [1.0]):
        seed = options.seed + 1009 * number + 101 * place
        samples = policy(
            prompts,
            num_samples=options.num_samples,
            max_new_tokens=options.max_new_tokens,
            temperature=temperature,
            batch_size=options.batch_size,
            seed=seed,
        )
        sampling = {"temperature": temperature, "max_new_tokens": options.max_new_tokens}
        if tokenizer.chat_template is not None:
            sampling["template_sha256"] = digest(str(tokenizer.chat_template))[:16]
        revision = source["revision"] or source["sha256"] or ""
        shown = name if spec.best_of else source["name"]
        for index, text in zip(samples.prompt_index, samples.texts, strict=True):
            written[index].append(Output(text, shown, revision, sampling, seed))


def scan_identity(
    candidates: Sequence[Candidates], options: CollectArguments
) -> tuple[list[Candidates], dict[str, int]]:
    """Leaves out outputs that tell who wrote them; word -> how many outputs hold it.

    A word that the prompt holds itself tells nothing.
    """
    names = [Path(name).name for name in options.policies or [] if name != TESTBED]
    words = {word.lower() for word in (*IDENTITY, *names, *(options.identity_words or []))}
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(words)))
    told: dict[str, int] = {}
    scanned = []
    for one in candidates:
        asked = set(pattern.findall(content_of(one.prompt).lower()))
        kept = []
        for output in one.outputs:
            found = set(pattern.findall(output.completion.lower())) - asked
            for word in found:
                told[word] = told.get(word, 0) + 1
            if not found or options.identity == "keep":
                kept.append(output)
        scanned.append(Candidates(one.prompt, tuple(kept)))
    return scanned, told


def scored(candidates: Sequence[Candidates], reward_model: str | None) -> list[Candidates]:
    """The candidates with the reward model's score among the facts of each output."""
    if reward_model is None:
        return list(candidates)
    from hf_align.recipes._judges import best_device

    reward = load_reward(reward_model, "reward_model")(best_device())
    prompts = [one.prompt for one in candidates for _ in one.outputs]
    texts: list[Text] = [
        output.completion
        if isinstance(one.prompt, str)
        else [{"role": "assistant", "content": output.completion}]
        for one in candidates
        for output in one.outputs
    ]
    scores = iter(reward.reward(prompts, texts) if texts else [])
    return [
        Candidates(
            one.prompt,
            tuple(replace(o, facts={"score": float(next(scores))}) for o in one.outputs),
        )
        for one in candidates
    ]


def select_items(candidates: Sequence[Candidates], options: CollectArguments) -> list[Item]:
    """A ranking of the first prompts that have enough outputs, a pair of each of the others."""
    rng = np.random.default_rng(options.seed)
    items, rankings = [], 0
    for one in candidates:
        outputs = [one.outputs[i] for i in rng.permutation(len(one.outputs))]
        size = min(options.ranking_size, len(outputs))
        if rankings < options.num_rankings and size >= options.ranking_size:
            items.append(Item(one.prompt, tuple(outputs[:size])))
            rankings += 1
        elif len(outputs) >= 2:
            items.append(Item(one.prompt, pick_pair(outputs, options.selection)))
    return items


def pick_pair(outputs: Sequence[Output], selection: str) -> tuple[Output, Output]:
    """The pair that a selection names, out of outputs in random order; see `CollectArguments`."""
    keys: dict[str, Callable[[tuple[Output, Output]], float]] = {
        "random": lambda pair: 0.0,
        "hard": lambda pair: abs(_score(pair[0]) - _score(pair[1])),
        "wide": lambda pair: -abs(_score(pair[0]) - _score(pair[1])),
        "diverse": lambda pair: shared_words(pair[0].completion, pair[1].completion),
    }
    return min(combinations(outputs, 2), key=keys[selection])


def _score(output: Output) -> float:
    return float(output.facts["score"])  # type: ignore[arg-type]


def shared_words(first: str, second: str) -> float:
    """Jaccard similarity of two texts' sets of words, 0 to 1."""
    a, b = set(first.lower().split()), set(second.lower().split())
    return len(a & b) / max(1, len(a | b))


def gold_items(options: CollectArguments) -> list[Item]:
    """Pairs with a known answer, from a file or the testbed's exact reward.

    Raises:
        InputError: A line of the file cannot be used.
    """
    if options.gold is None:
        return []
    if options.gold == TESTBED:
        return testbed_gold(options.seed)
    items = []
    lines = Path(options.gold).expanduser().read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(filter(str.strip, lines), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            texts = [content_of(row[side]) for side in ("chosen", "rejected")]
            prompt = row["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"gold {options.gold}, line {number}: expected prompt, chosen and rejected"
            ) from error
        # The better one is the first as often as the second, so that no place gives it away.
        best = "ab"[number % 2]
        outputs = [Output(text, "gold") for text in (texts if best == "a" else texts[::-1])]
        known = Gold(best, str(row.get("explanation", "")), bool(row.get("quiz", False)))
        items.append(Item(prompt, tuple(outputs), gold=known))
    return items


def testbed_gold(seed: int, number: int = 12, quiz: int = 3, margin: float = 1.5) -> list[Item]:
    """Pairs of demonstrations whose exact rewards are far apart, the first few for the quiz."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    while len(items) < number:
        drawn = rng.choice(TOPICS, TOPICS_PER_PROMPT, replace=False)
        prompt = prompt_of([str(topic) for topic in drawn])
        texts = sample_demonstrations([prompt, prompt], rng)
        first, second = gold_reward([prompt] * 2, list(texts))
        if abs(first - second) < margin:
            continue
        best = "ab"[len(items) % 2]  # no place is right more often, in the quiz neither
        if (first > second) != (best == "a"):
            texts = texts[::-1]
        said = " ".join(f"**{'AB'[i]}**: {explain(prompt, texts[i])}." for i in range(2))
        known = Gold(best, said, len(items) < quiz)
        items.append(Item(prompt, tuple(Output(text, "gold") for text in texts), gold=known))
    return items
