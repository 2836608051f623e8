"""What a recipe reads: data, models and the gold reward, named by options or the testbed's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hf_align.configs import DataArguments, EvaluationArguments
from hf_align.data import LoadedData, load_data
from hf_align.hub import resolve_model, shown_name
from hf_align.recipes._parser import Choices, RecipeParser
from hf_align.rewards import (
    RewardModel,
    SentenceBLEU,
    checked_scores,
    named_reward,
    reward_function,
    reward_source,
)
from hf_align.testbed import MAX_NEW_TOKENS, Testbed, build_rankings, build_testbed, gold_reward
from hf_align.types import InputError, RewardFn, Text, content_of

TESTBED, BLEU = "testbed", "bleu"
_TESTBED_FORMS = ("standard", "conversational", "rankings")


def fill_from_testbed(parser: RecipeParser, choices: Choices) -> Choices:
    """Without data named anywhere a recipe runs its testbed YAML; flags still beat it.

    So it does where the testbed is named without a model.

    Raises:
        InputError: Data were named but no model.
    """
    named = choices.get("dataset_name") or choices.get("datasets")
    model = choices.get("model_name_or_path")
    if model is not None and choices.get("from_scratch"):
        raise InputError(
            f"from_scratch makes a model, and model_name_or_path names {model}; choose one"
        )
    if model is not None and "from_scratch" in parser.options:
        # The testbed's YAML starts from scratch; a model that was named is the one to train.
        choices.values.setdefault("from_scratch", False)
    wanting = named == TESTBED and model is None and not choices.get("from_scratch")
    if choices.config is None and (named is None or wanting):
        return parser.with_config(choices, testbed_config(choices))
    if named is None:
        raise InputError(f"dataset_name is missing ({choices.config}); name a file or a Hub id")
    if model is None and not choices.get("from_scratch"):
        scratch = "; or pass --from_scratch" if choices.recipe == "sft" else ""
        own = ", or 'testbed'" if named == TESTBED else ""
        raise InputError(
            f"model_name_or_path is missing; name a model folder or a Hub id{own}{scratch}"
        )
    return choices


def testbed_config(choices: Choices) -> str:
    """The YAML file that a recipe runs on the testbed: another one for losses on rankings."""
    kind = "" if choices.get("loss", "pairwise") == "pairwise" else "-kwise"
    return f"recipes/{choices.recipe}/testbed{kind}.yaml"


def load_testbed(choices: Choices) -> Testbed | None:
    """The testbed, built if need be, where the data or the model are the testbed's.

    Raises:
        InputError: `dataset_config` names none of its forms.
    """
    config = choices.get("dataset_config")
    if choices.get("dataset_name") == TESTBED and config not in (*_TESTBED_FORMS, None):
        raise InputError(
            f"dataset_config of the testbed must be one of {', '.join(map(repr, _TESTBED_FORMS))}; "
            f"got {config!r} ({choices.origins.get('dataset_config')})"
        )
    wanted = TESTBED in (choices.get("dataset_name"), choices.get("model_name_or_path"))
    return build_testbed() if wanted else None


def load_inputs(
    choices: Choices,
    task: Literal["sft", "preference", "ranking", "prompt"],
    testbed: Testbed | None,
    margin_column: str | None = None,
    keep_columns: tuple[str, ...] = (),
) -> LoadedData:
    """The normalised dataset that the options name, with `margin` where its column is named.

    Raises:
        InputError: The data cannot be used; names file, row, column.
        OSError: The Hub cannot be reached, or refuses.
    """
    args = choices.build(DataArguments)
    name, config = args.dataset_name, args.dataset_config
    config_is_chat = name == TESTBED and config == "conversational"
    if name == TESTBED:
        name, config = str(testbed_folder(testbed, task, config)), None
    data = load_data(
        name,
        task,
        mixture=args.datasets,
        config=config,
        revision=args.dataset_revision,
        train_split=args.dataset_train_split,
        test_split=args.dataset_test_split,
        columns=args.column_mapping() | ({"margin": margin_column} if margin_column else {}),
        keep_columns=(*keep_columns, *(("margin",) if margin_column else ())),
        conversational=True if task == "prompt" and config_is_chat else None,
        test_split_size=args.test_split_size,
        max_train_samples=args.max_train_samples,
        max_test_samples=args.max_test_samples,
        invalid_rows=args.invalid_rows,
    )
    if args.dataset_name == TESTBED:
        kind = "rankings" if args.dataset_config == "rankings" else task
        data.sources[:] = [replace(source, name=f"testbed-{kind}") for source in data.sources]
    return data


def testbed_folder(testbed: Testbed, task: str, config: str | None) -> Path:
    """Where the testbed's data for a task are, in the form that `dataset_config` names."""
    if config == "rankings":
        return build_rankings()
    if task == "prompt":
        return testbed.path / "prompts" / "rl.parquet"
    dataset = "demonstrations" if task == "sft" else "preferences"
    return testbed.conversational(dataset) if config == "conversational" else testbed.path / dataset


def locate_model(
    choices: Choices, testbed: Testbed | None, weights: bool = True
) -> dict[str, str | None]:
    """Where the model is and exactly which one: `{"name", "path", "revision", "sha256"}`.

    Without `weights` a folder that has none will do, for its tokenizer.

    Raises:
        InputError: No such folder, or one without a whole model in safetensors.
        OSError: The Hub cannot be reached, or refuses.
    """
    name = choices.get("model_name_or_path")
    if name is None:
        raise InputError("model_name_or_path is missing; name a model folder or a Hub id")
    path = str(testbed.policy_path) if name == TESTBED else name
    source = resolve_model(path, choices.get("model_revision"), weights=weights)
    return source | {"name": name, "path": source["name"]}


@dataclass(frozen=True)
class Gold:
    """A reward with its name: what counts as the truth, or what training optimises.

    Attributes:
        name: How the report calls it.
        reward: The function.
        source: Its entry in the lineage, where it is a model.
    """

    name: str
    reward: RewardFn
    source: dict[str, Any] | None = None


def load_gold(choices: Choices) -> Callable[[str], Gold | None]:
    """Checks the named gold reward now, and returns what loads it onto a device later.

    Raises:
        InputError: It names neither a function nor a model.
        OSError: The Hub cannot be reached, or refuses.
    """
    name = choices.get("gold_reward")
    if name is None and choices.get("dataset_name") == TESTBED:
        name = TESTBED
    if name is None:
        return lambda device: None
    return load_reward(name, "gold_reward")


def load_reward(name: str, option: str) -> Callable[[str], Gold]:
    """Checks a named reward now, and returns what loads it onto a device later.

    Args:
        name: 'testbed', 'bleu', a function as `reward_function` takes it, or a reward model.
        option: How messages call what was named.

    Raises:
        InputError: It names neither a function nor a model.
        OSError: The Hub cannot be reached, or refuses.
    """
    if name == TESTBED:
        return lambda device: Gold("the testbed's exact reward", gold_reward)
    if name == BLEU:
        return lambda device: Gold(BLEU, SentenceBLEU())
    function = reward_function(name, option)
    if function is not None:
        shown, reward = named_reward(name, function)
        return lambda device: Gold(shown, reward, reward_source(name))
    # A reward model may be an ensemble; what it lacks is said when it is loaded.
    source = resolve_model(name, option=option, weights=False)

    def load(device: str) -> Gold:
        reward = RewardModel(source["name"], source["revision"], device=device, option=option)
        return Gold(shown_name(source), reward, source)

    return load


def try_gold(
    gold: Gold | None, prompts: list[Text], columns: dict[str, dict[str, Any]] | None = None
) -> None:
    """Scores two prompts as if they were completions, so that a reward that cannot score says so
    before a model is trained.

    Raises:
        InputError: The reward raises, or returns NaN or the wrong number of scores.
    """
    if gold is None or not prompts:
        return
    some = prompts[:2]
    answers: list[Text] = [
        [{"role": "assistant", "content": content_of(prompt)}]
        if isinstance(prompt, list)
        else prompt
        for prompt in some
    ]
    further = {name: [by[repr(prompt)] for prompt in some] for name, by in (columns or {}).items()}
    scores = gold.reward(prompts=some, completions=answers, **further)
    checked_scores(scores, len(some), gold.name)


def as_pair(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of SFT data as `prompt` and `completion`; None for plain text, which has no prompt."""
    if "completion" in row:
        return {"prompt": row["prompt"], "completion": row["completion"]}
    messages = row.get("messages")
    if messages and len(messages) > 1 and messages[-1]["role"] == "assistant":
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    return None


def evaluation_prompts(
    choices: Choices, data: LoadedData, testbed: Testbed | None
) -> tuple[list[Text], list[Text]]:
    """Held-out prompts: those that the report's policies answer, and those of the audits; disjoint.

    The testbed has splits for each. Otherwise they are distinct prompts of the test split, two
    thirds of them for the report where there are too few for both.

    Raises:
        InputError: There are too few for an interval.
    """
    args = choices.build(EvaluationArguments)
    audits = args.num_audit_prompts if args.audit_steps else 0
    if choices.get("dataset_name") == TESTBED:
        conversational = data.report.conversational
        report, audit = (
            [[{"role": "user", "content": text}] if conversational else text for text in texts]
            for texts in (testbed.prompts("report"), testbed.prompts("audit"))
        )
        return report[: args.num_eval_prompts], audit[:audits]
    if "test" not in data.splits:
        raise InputError("there is no held-out split; raise --test_split_size above 0")
    pairs = (row if "prompt" in row else as_pair(row) for row in data.splits["test"])
    distinct = {repr(pair["prompt"]): pair["prompt"] for pair in pairs if pair is not None}
    prompts = list(distinct.values())
    needed = 4 if audits else 2
    if 0 < len(prompts) < needed:
        raise InputError(
            f"the test split has {len(prompts)} distinct prompts, and an evaluation needs "
            f"{needed}; raise --test_split_size, or name a larger --dataset_test_split"
        )
    if audits and len(prompts) < args.num_eval_prompts + audits:
        share = max(1, 2 * len(prompts) // 3)
        return prompts[:share][: args.num_eval_prompts], prompts[share:][:audits]
    return (
        prompts[: args.num_eval_prompts],
        prompts[args.num_eval_prompts : args.num_eval_prompts + audits],
    )


def lineage(model: dict[str, Any] | None, data: LoadedData, gold: Gold | None) -> dict[str, Any]:
    """What goes into a run, by id and revision or content hash: the content of `lineage.json`."""
    if model is None:
        model = {"name": "untrained model", "revision": None, "sha256": None}
    entries: dict[str, Any] = {"model": {key: model[key] for key in ("name", "revision", "sha256")}}
    entries["reference"] = entries["model"]
    if gold is not None:
        entries["gold_reward"] = gold.source or {"name": gold.name}
    return entries | {"data": [source.to_dict() for source in data.sources]}


def max_new_tokens(choices: Choices) -> int:
    """The longest completion to sample: the option, or the testbed's own limit."""
    if choices.get("dataset_name") == TESTBED and "eval_max_new_tokens" not in choices.values:
        return MAX_NEW_TOKENS
    return choices.build(EvaluationArguments).eval_max_new_tokens
