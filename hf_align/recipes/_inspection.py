"""The work of the `inspect` recipe: what the rows are for, the model's view of them, the output.

Everything that can be refused is refused before any data are read, and an output folder appears
whole or not at all.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_align.configs import DataArguments, InspectArguments
from hf_align.data import LoadedData, Task, audit_with_tokenizer, detect_layout, write_dataset
from hf_align.data.loading import choose_splits, open_source
from hf_align.data.mixture import check_mixture, select_columns, select_split
from hf_align.data.preparing import Tally, map_columns
from hf_align.data.sources import RawSplit
from hf_align.files import check_writable
from hf_align.recipes import _inputs as inputs
from hf_align.recipes._models import load_tokenizer_and_config
from hf_align.recipes._parser import Choices
from hf_align.recipes._preflight import check_lengths, check_tokenizer, fit_length
from hf_align.testbed import Testbed
from hf_align.types import InputError

TASKS: tuple[Task, ...] = ("preference", "sft", "prompt")
"""What rows can be for, most informative first."""

_SAMPLE = 100  # rows that tell the layout
_WRITTEN = {"train.jsonl", "test.jsonl", "report.json", "report.md"}
_RECIPES = {"preference": "dpo", "sft": "sft", "ranking": "reward --loss kwise"}
_EXAMPLE_MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
_WIDTH = 80

_Split = tuple[RawSplit, Mapping[str, str]]


def check_options(choices: Choices, options: InspectArguments) -> None:
    """Refuses what cannot work before anything is read.

    Raises:
        InputError: Options that do not go together, or an output that is in the way.
        OSError: The output cannot be written.
    """
    if options.max_length is not None and options.model_name_or_path is None:
        raise InputError(
            f"max_length {options.max_length} counts tokens; name the model whose tokens with "
            "--model_name_or_path"
        )
    for name, least in (("max_length", 1), ("num_rows", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{name} must be {least} or more; got {value}")
    if not options.output:
        folder = Path(options.report_dir)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"report_dir {folder} is a file; name a folder")
        check_writable("report_dir", folder)
    else:
        _check_output(Path(options.output), options.overwrite, choices.get("dataset_name"))


def _check_output(path: Path, overwrite: bool, dataset: str | None) -> None:
    if path.exists() and not path.is_dir():
        raise InputError(f"output {path} is a file; name a folder")
    if dataset and path.exists() and Path(dataset).exists() and path.samefile(dataset):
        raise InputError(f"output {path} is the dataset itself; name another folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"output {path} is not empty; name another, or pass --overwrite")
        foreign = sorted({entry.name for entry in path.iterdir()} - _WRITTEN)
        if foreign or not _is_ours(path):
            why = f"it holds {foreign[0]!r}" if foreign else "no inspection wrote it"
            raise InputError(f"output {path}: --overwrite leaves this folder alone, {why}")
    check_writable("output", path)


def _is_ours(folder: Path) -> bool:
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("recipe") == "inspect"


def infer_task(args: DataArguments) -> Task:
    """What the rows are for: preference if the columns hold pairs, else sft, else prompt.

    Raises:
        InputError: The columns fit no task; the message lists them and says how to map them.
        OSError: The Hub cannot be reached, or refuses.
    """
    if args.dataset_name == inputs.TESTBED:
        return "preference"
    columns = args.column_mapping()
    if columns.keys() & {"completion", "messages"}:
        return "sft"
    read = _training_split(args)
    refusals: list[InputError] = []
    for task in TASKS:
        try:
            split, mapping = read(task)
        except InputError as error:  # a split of this name may exist for another task
            refusals.append(error)
            continue
        if not split.rows:
            return task  # the loader names the empty file
        rows = map_columns(split.rows, mapping, split.labels[0])
        names = set().union(*rows)
        try:
            detect_layout(names, rows[:_SAMPLE], task)
            return task
        except InputError as error:
            refusals.append(InputError(f"{split.labels[0]}: {error}"))
            if {"chosen", "rejected"} <= names:
                break  # pairs it is; what is wrong with them is the answer
    raise refusals[0]


def _training_split(args: DataArguments) -> Callable[[Task], _Split]:
    """Reads the split that a task would train on, and how its columns are mapped."""
    if args.datasets is not None:
        part = check_mixture(args.datasets)[0]
        keys = {"config": "name", "revision": "revision", "data_dir": "data_dir"}
        where = {ours: part.get(theirs) for ours, theirs in keys.items()}
        raw = open_source(part["path"], data_files=part.get("data_files"), **where)
        split = select_split(raw, part.get("split") or "train")
        mapping = part.get("columns") or args.column_mapping()
        if isinstance(mapping, list):
            split, mapping = select_columns(split, mapping, part["path"]), {}
        return lambda task: (split, mapping)
    raw = open_source(str(args.dataset_name), args.dataset_config, args.dataset_revision)
    cache: dict[str, RawSplit] = {}

    def read(task: Task) -> _Split:
        name = choose_splits(raw, args.dataset_train_split, None, task, Tally())["train"]
        if name not in cache:
            cache[name] = raw.readers[name]()
        return cache[name], args.column_mapping()

    return read


def load(choices: Choices, task: Task, testbed: Testbed | None) -> LoadedData:
    """The normalised dataset, with a warning where prompts and completions run into each other.

    The testbed's prompts are those of its pairs.

    Raises:
        InputError: The data cannot be used; names file, row, column.
        OSError: The Hub cannot be reached, or refuses.
    """
    if choices.get("dataset_name") == inputs.TESTBED and task == "prompt":
        data = _testbed_prompts(choices, testbed)
    else:
        data = inputs.load_inputs(choices, task, testbed)
    glued, total = _glued_rows(data), sum(map(len, data.splits.values()))
    if glued:
        data.report.warnings.append(
            f"in {glued:,} of {total:,} rows no space parts prompt and completion, so their words "
            "run together; end the prompts with a separator"
        )
    return data


def _testbed_prompts(choices: Choices, testbed: Testbed | None) -> LoadedData:
    folder = inputs.testbed_folder(testbed, "preference", choices.get("dataset_config"))
    values = choices.values | {"dataset_name": str(folder), "dataset_config": None}
    data = inputs.load_inputs(replace(choices, values=values), "prompt", testbed)
    data.sources[:] = [replace(source, name="testbed-prompt") for source in data.sources]
    return data


def _glued_rows(data: LoadedData) -> int:
    """Rows of plain text where a word of the prompt and one of the completion become one."""
    columns = data.splits["train"].column_names
    answer = next((name for name in ("chosen", "completion") if name in columns), None)
    if data.report.conversational or answer is None or "prompt" not in columns:
        return 0
    return sum(
        prompt[-1:].isalnum() and completion[:1].isalnum()
        for split in data.splits.values()
        for prompt, completion in zip(split["prompt"], split[answer], strict=True)
    )


def audit_model(choices: Choices, data: LoadedData, testbed: Testbed | None) -> dict[str, Any]:
    """What the model's tokenizer makes of the rows: `audit_with_tokenizer`, plus `model`,
    `max_positions`, and in `refusals` the sentences with which a trainer would stop.

    Loads tokenizer and configuration, never weights.

    Raises:
        InputError: No such model, or a longer max_length than it can take.
        OSError: The Hub cannot be reached, or refuses.
    """
    source = inputs.locate_model(choices, testbed, weights=False)
    tokenizer, config = load_tokenizer_and_config(source, choices.get("trust_remote_code", False))
    # Models with relative positions have no such limit and no such field.
    positions = getattr(config, "max_position_embeddings", None)
    max_length = {"max_length": choices.get("max_length")} | fit_length(choices, positions)
    task = data.report.task
    audit = audit_with_tokenizer(data.splits, tokenizer, max_length["max_length"], task)
    audit["tokenizer"]["name"] = source["name"]
    audit |= {"model": source, "max_positions": positions, "refusals": []}
    del source["path"]
    try:
        check_tokenizer(tokenizer, source["name"], data.report.conversational)
    except InputError as error:
        audit["refusals"].append(str(error))
        # The same fault in the audit's words would read as a second one.
        mine = tuple(f"{split}: " for split in audit["splits"])
        audit["problems"] = [line for line in audit["problems"] if line.startswith(mine)]
    try:
        check_lengths(audit, audit["max_length"])
    except InputError as error:
        audit["refusals"].append(str(error))
    for split, figures in audit["splits"].items():
        if figures["unknown_tokens"]:
            unknown = f"{tokenizer.unk_token}: {figures['unknown_tokens']:,}"
            audit["problems"].append(f"{split}: tokens unknown to the tokenizer, {unknown}")
    return audit


def write_output(path: Path, data: LoadedData, pages: Mapping[str, str]) -> None:
    """Writes dataset and report beside the folder, then renames: it appears whole or not at all.

    Raises:
        OSError: The folder cannot be written.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        draft.mkdir()
        write_dataset(data, draft)
        for suffix, text in pages.items():
            (draft / f"report{suffix}").write_text(text, encoding="utf-8")
        if path.is_dir():
            os.replace(path, old)
        os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"output {path} cannot be written ({reason})") from error
    finally:
        if old.is_dir() and not path.exists():
            os.replace(old, path)
        for left_over in (draft, old):
            shutil.rmtree(left_over, ignore_errors=True)


def closing(choices: Choices, options: InspectArguments, task: Task) -> str:
    """Where the results are, and the command to try next, with the options that were needed."""
    written = f"report: {options.report_dir}"
    if options.output:
        written = f"dataset and report: {options.output}"
    lines = [written]
    if task not in _RECIPES:
        return "\n".join([*lines, "next: prompts alone train nothing; give them completions"])
    words = [f"python -m hf_align.recipes.{_RECIPES[task]}"]
    words += [_word(name, value) for name, value in _next_options(choices, options).items()]
    command = "next: " + " ".join(words)
    if len(command) > _WIDTH:
        command = "next:\n  " + " \\\n    ".join(words)
    return "\n".join([*lines, command])


def _next_options(choices: Choices, options: InspectArguments) -> dict[str, Any]:
    fields = DataArguments.__dataclass_fields__
    chosen = {name: choices.values[name] for name in fields if name in choices.values}
    on_testbed = chosen.get("dataset_name") == inputs.TESTBED
    model = options.model_name_or_path
    if options.output:
        chosen = {"dataset_name": options.output}
        model = model or (inputs.TESTBED if on_testbed else _EXAMPLE_MODEL)
    elif on_testbed:
        # Without a name the recipes run their testbed YAML, which names the model too.
        del chosen["dataset_name"]
        model = None if model == inputs.TESTBED else model
    else:
        model = model or _EXAMPLE_MODEL
    chosen |= {"model_name_or_path": model} if model else {}
    for name in ("model_revision", "trust_remote_code", "max_length"):
        chosen |= {name: choices.values[name]} if name in choices.values else {}
    return chosen


def _word(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return f"--{name} {shlex.quote(text)}"
