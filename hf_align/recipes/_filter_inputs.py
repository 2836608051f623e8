"""What the `filter` recipe is given: its options, the reward, the rows, and what of them is scored.

Everything that can be refused is refused before a model loads.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_align.configs import FilterArguments
from hf_align.data import DataSource, InvalidRow, detect_layout, normalise_row
from hf_align.data.layouts import SYSTEM_COLUMNS
from hf_align.data.splits import prompt_key
from hf_align.data.streaming import Block, RowStream, open_stream
from hf_align.data.texts import split_last_answer
from hf_align.hub import resolve_model, shown_name
from hf_align.recipes import _inputs as inputs
from hf_align.recipes._parser import Choices, RecipeParser
from hf_align.rewards import RewardModel, named_reward, reward_function, reward_source
from hf_align.testbed import gold_reward
from hf_align.types import InputError, RewardFn, Text

SCORE = "score"
"""The column that --keep_scores adds."""

NUM_GROUPS = 1000
"""Groups of prompts for intervals; a prompt's rows are in one of them."""

_SAMPLE = 100  # rows that tell the layout


def settle(parser: RecipeParser, choices: Choices) -> tuple[Choices, FilterArguments]:
    """The options, with the testbed's where no data are named; refuses what cannot work.

    Raises:
        InputError: Names the option and what to do.
    """
    if choices.config is None and choices.get("dataset_name") in (None, inputs.TESTBED):
        choices = parser.with_config(choices, "recipes/filter/testbed.yaml")
    for name, other in (("threshold", "keep_fraction"), ("keep_fraction", "threshold")):
        flagged = choices.origins.get(name) == "command line"
        if flagged and choices.origins.get(other) != "command line":
            choices.values.pop(other, None)  # flags beat the file
    options = choices.build(FilterArguments)
    if options.dataset_name is None:
        raise InputError(f"dataset_name is missing ({choices.config}); name a file or a Hub id")
    if options.reward_model is None:
        raise InputError(
            "reward_model is missing; name a reward model (folder or Hub id) or a function, "
            "'file.py:function'"
        )
    _check_cut(options)
    for name in ("batch_size", "max_length", "max_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1; got {value}")
    if options.seed < 0:
        raise InputError(f"seed must be at least 0; got {options.seed}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("filter runs in one process; start it without accelerate or torchrun")
    return choices, options


def _check_cut(options: FilterArguments) -> None:
    threshold, fraction = options.threshold, options.keep_fraction
    if threshold is None and fraction is None:
        raise InputError(
            "nothing says what to keep; pass --threshold SCORE, or --keep_fraction 0.5 for the "
            "better half"
        )
    if threshold is not None and fraction is not None:
        raise InputError(
            f"threshold {threshold:g} and keep_fraction {fraction:g} exclude each other; choose one"
        )
    if threshold is not None and not math.isfinite(threshold):
        raise InputError(f"threshold must be a finite number; got {threshold}")
    if fraction is not None and not 0 < fraction < 1:
        raise InputError(f"keep_fraction must be above 0 and below 1; got {fraction:g}")


@dataclass(frozen=True)
class Reward:
    """What scores the rows.

    Attributes:
        name: How the report calls it.
        source: Its entry in the lineage.
        score: In TRL's reward signature.
        model: The same, where it is a model.
    """

    name: str
    source: dict[str, Any]
    score: RewardFn
    model: RewardModel | None = None


def find_reward(options: FilterArguments) -> Callable[[], Reward]:
    """Checks the named reward now, and returns what loads it.

    Raises:
        InputError: It names neither a function nor a model, or an option that is for models alone.
        OSError: The Hub cannot be reached, or refuses.
    """
    name, revision = str(options.reward_model), options.reward_model_revision
    function = None if name == inputs.TESTBED else reward_function(name, "reward_model")
    if name == inputs.TESTBED or function is not None:
        for option in ("reward_model_revision", "max_length"):
            value = getattr(options, option)
            if value is not None:
                raise InputError(f"{option} {value}: {name} is a function; leave it out")
    if name == inputs.TESTBED:
        shown = "the testbed's exact reward"
        source = {"name": shown, "revision": None, "sha256": None}
        return lambda: Reward(shown, source, gold_reward)
    if function is not None:
        shown, scoring = named_reward(name, function)
        return lambda: Reward(shown, reward_source(name), scoring)
    if revision is not None and Path(name).expanduser().is_dir():
        raise InputError(
            f"reward_model_revision {revision}: {name} is a folder; Hub ids alone have it"
        )
    source = resolve_model(name, revision, option="reward_model", weights=False)

    def load() -> Reward:
        model = RewardModel(
            str(source["name"]),
            source["revision"],
            batch_size=options.batch_size,
            max_length=options.max_length,
            option="reward_model",
        )
        return Reward(shown_name(source), source, model, model)

    return load


def open_data(choices: Choices, options: FilterArguments) -> RowStream:
    """The named split, unread; of the testbed the demonstrations.

    Raises:
        InputError: No such file, folder, split or form of the testbed.
        OSError: The Hub cannot be reached, or refuses.
    """
    name, config = str(options.dataset_name), options.dataset_config
    if name != inputs.TESTBED:
        return open_stream(name, config, options.dataset_revision, options.dataset_split)
    folder = inputs.testbed_folder(inputs.load_testbed(choices), "sft", config)
    stream = open_stream(str(folder), split=options.dataset_split)
    shown = "testbed-rankings" if config == "rankings" else "testbed-sft"

    def describe() -> DataSource:
        return replace(stream.describe(), name=shown)

    return replace(stream, describe=describe)


@dataclass(frozen=True)
class Scorable:
    """A row's place in its block, and what of it is scored."""

    index: int
    prompt: Text
    completion: Text
    group: int


class RowReader:
    """Finds in a row what is scored.

    Attributes:
        layout: How the columns were understood, one of `hf_align.data.LAYOUTS`.

    Raises:
        InputError: The first rows have no such columns, or none that can be scored.
        OSError: The Hub cannot be reached, or refuses.
    """

    def __init__(self, stream: RowStream, options: FilterArguments):
        self.columns = options.column_mapping()
        self.drops = options.invalid_rows == "drop"
        block = next(iter(stream.read(_SAMPLE)), None)
        if block is None:
            raise InputError(f"--dataset_name {options.dataset_name}: the split holds no rows")
        named = {f"{role}_column": column for role, column in self.columns.items()}
        for option, column in (named | {"subset_column": options.subset_column}).items():
            if column is not None and column not in block.names():
                raise InputError(
                    f"--{option} {column}: no such column in {block.label}; available: "
                    f"{', '.join(sorted(block.names()))}"
                )
        if options.keep_scores and SCORE in block.names():
            raise score_exists()
        rows = [self._mapped(row) for row in block.to_rows()]
        asked = options.scored_column or self._mapped_kind()
        names = _columns_for(asked, set().union(*rows))
        try:
            self.layout = detect_layout(names, rows, "sft")
        except InputError as error:
            asked = f"scored_column {asked}: " if options.scored_column else ""
            raise InputError(f"{asked}{block.label}: {error} or --text_column") from error

    def _mapped_kind(self) -> str | None:
        kinds = self.columns.keys() & {"text", "completion", "messages"}
        return next(iter(kinds)) if len(kinds) == 1 else None

    def _mapped(self, row: Mapping[str, object]) -> dict[str, object]:
        taken = {*self.columns, *self.columns.values()}
        own = {name: value for name, value in row.items() if name not in taken}
        return own | {role: row.get(column) for role, column in self.columns.items()}

    def read(
        self, block: Block, rows: Sequence[Mapping[str, object]], unusable: Counter[str]
    ) -> list[Scorable]:
        """What is scored of each usable row; reasons for leaving out the others are counted.

        Raises:
            InputError: A faulty row, unless faulty rows are dropped; names file, row and column.
        """
        found = []
        for index, row in enumerate(rows):
            try:
                result = normalise_row(self._mapped(row), self.layout, "sft")
            except InvalidRow as error:
                if not self.drops:
                    column = self.columns.get(error.column, error.column)
                    raise InputError(
                        f"{block.location(index)}, column '{column}': {error.detail}; "
                        "drop such rows with --invalid_rows drop"
                    ) from error
                unusable[error.reason] += 1
                continue
            if not result.rows:
                unusable.update(result.dropped)
                continue
            made = result.rows[0]
            group = int.from_bytes(prompt_key(made)[:4], "big") % NUM_GROUPS
            found.append(Scorable(index, *prompt_and_completion(made), group))
        return found


def _columns_for(kind: str | None, names: set[str]) -> set[str]:
    """The columns that may be looked at, so that the layout is of the kind asked for."""
    conversations = {"messages", "conversations"}
    if kind == "text":
        return names & {"text"}
    if kind == "messages":
        return names & {*conversations, *SYSTEM_COLUMNS}
    return names - {"text", *conversations} if kind == "completion" else names


def prompt_and_completion(row: Mapping[str, Any]) -> tuple[Text, Text]:
    """What is scored of a normalised row: text has no prompt, a conversation its last answer."""
    if "text" in row:
        return "", row["text"]
    if "messages" not in row:
        return row["prompt"], row["completion"]
    turns = row["messages"]
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return split_last_answer(turns[: last + 1])


def score_exists() -> InputError:
    """What to say where --keep_scores would make a second column of one name."""
    return InputError(
        f"keep_scores: the dataset has a column '{SCORE}' already; leave out --keep_scores"
    )
