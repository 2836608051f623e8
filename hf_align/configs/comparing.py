"""Options of the compare recipe, and of its stage that samples one policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hf_align.configs._option import option


@dataclass
class CompareArguments:
    """Which policies are compared, by what, on which prompts, and what the table may cost."""

    policies: list[str] | None = option(
        None,
        "Run directories, folders or Hub ids of models and LoRA adapters, "
        "'best_of_n:<n>:<model>' or 'urial:<base>', each "
        "perhaps as NAME=POLICY; policies of one name are seeds of one method. Without any, the "
        "whole table is trained on the testbed.",
    )
    reference: str | None = option(
        None, "The policy that all are compared with: folder or Hub id; the first one without it."
    )
    gold_reward: str | None = option(
        None, "What counts as the truth, as in dpo; it judges, too, unless --judge is given."
    )
    reward_model: list[str] | None = option(
        None, "The proxy, which chooses for best_of_n: reward models or functions, added up."
    )
    second_reward: str | None = option(
        None, "Another truth, such as harmlessness beside helpfulness, for a plane of both."
    )
    reward_columns: list[str] | None = option(
        None, "Columns of the data that the rewards read, such as references."
    )
    checkpoint: Literal["best", "last"] = option(
        "best", "Of a run directory, its best audited checkpoint if it has one, or the last."
    )
    urial_prompt: str | None = option(
        None, "Prompt of urial: policies: its name or a file; urial-1, or the testbed's own."
    )
    dataset_name: str | None = option(
        None, "Prompts: Hub id, local file (.jsonl[.gz], .parquet, .csv), folder, or 'testbed'."
    )
    dataset_config: str | None = option(None, "Configuration of the dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a Hub dataset.")
    dataset_split: str = option("train", "Split whose prompts are answered.")
    prompt_column: str | None = option(None, "Column to use as `prompt`.")
    messages_column: str | None = option(None, "Column to use as `messages`.")
    num_prompts: int = option(512, "Prompts that every policy answers.")
    num_samples: int = option(4, "Answers per prompt and policy, 2 or more.")
    max_new_tokens: int | None = option(None, "Longest answer; 256, or the testbed's own limit.")
    temperature: float = option(1.0, "Divides the policies' logits in the table.")
    temperatures: list[float] | None = option(
        None, "Also the win rate at each of these temperatures, 0 being greedy."
    )
    num_temperature_prompts: int = option(256, "Prompts that are answered at each of them.")
    batch_size: int = option(64, "Completions drawn or scored at a time.")
    dtype: str | None = option(None, "Of the policies' weights; without it the saved one.")
    seeds: list[int] | None = option(
        None, "Of the testbed's table: every method is trained once per seed; 1 2 3 without it."
    )
    num_workers: int | None = option(
        None,
        "Processes that train and sample on the testbed, one thread each; one per core without it. "
        "Given policies are sampled one after another in this process.",
    )
    output_dir: str = option("outputs/compare", "Folder of the report, the answers and the runs.")
    overwrite: bool = option(False, "Replace the report already in output_dir; answers are kept.")
    seed: int = option(42, "Seed of the answers.")


@dataclass
class AnswerArguments:
    """One policy's answers and what is measured on them."""

    policy: str | None = option(None, "The policy's name.")
    reference: str | None = option(None, "What its KL is measured from.")
    prompts: str | None = option(None, "JSON lines with prompts, and what rewards read beside.")
    gold_reward: str | None = option(None, "As in compare.")
    reward_model: list[str] | None = option(None, "As in compare.")
    selector: list[str] | None = option(
        None, "What chooses for best_of_n, instead of the reward model."
    )
    second_reward: str | None = option(None, "As in compare.")
    checkpoint: Literal["best", "last"] = option("best", "As in compare.")
    urial_prompt: str | None = option(None, "As in compare.")
    num_prompts: int = option(512, "The first so many of the prompts.")
    num_samples: int = option(4, "Answers per prompt.")
    max_new_tokens: int = option(256, "Longest answer.")
    temperature: float = option(1.0, "Divides the logits.")
    batch_size: int = option(64, "Completions drawn or scored at a time.")
    dtype: str | None = option(None, "Of the weights.")
    content: str | None = option(None, "Hash of what the names stood for.")
    output_dir: str = option("outputs/answers", "Folder of the answers.")
    overwrite: bool = option(False, "Replace the answers in output_dir.")
    seed: int = option(42, "Seed of the draws.")
