"""Every option of ours that a YAML file or the command line may set, grouped by what it governs.

Trainer and model options are TRL's own (`DPOConfig`, `SFTConfig`, `ModelConfig`); the fields here
never reuse one of their names, but for `InspectArguments`, `FilterArguments` and
`BestOfNArguments`, which have no trainer beside them. All fields have a default, and none of this
imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which data to read, and how its columns are called."""

    dataset_name: str | None = _option(
        None, "Hub id, local file (.jsonl[.gz], .parquet, .csv), folder, or 'testbed'."
    )
    dataset_config: str | None = _option(
        None, "Configuration of the dataset (of the testbed: 'conversational' or 'rankings')."
    )
    dataset_revision: str | None = _option(
        None, "Branch, tag or commit of a Hub dataset; resolved to a commit and recorded."
    )
    dataset_train_split: str = _option("train", "Split to train on.")
    dataset_test_split: str | None = _option(
        None, "Held-out split; without one, prompts are held out from the training split."
    )
    datasets: list[dict[str, Any]] | None = _option(
        None, "A mixture in TRL's form: [{path, name, split, columns, fraction}, ...]."
    )
    test_split_size: float = _option(
        0.1, "Share of prompts held out where the data have no test split."
    )
    prompt_column: str | None = _option(None, "Column to use as `prompt`.")
    completion_column: str | None = _option(None, "Column to use as `completion`.")
    chosen_column: str | None = _option(None, "Column to use as `chosen`.")
    rejected_column: str | None = _option(None, "Column to use as `rejected`.")
    messages_column: str | None = _option(None, "Column to use as `messages`.")
    completions_column: str | None = _option(None, "Column to use as `completions`, a list.")
    ranks_column: str | None = _option(
        None, "Column to use as `ranks` of the completions: 1 for the best, equal for a tie."
    )
    preference_column: str | None = _option(
        None, "Column holding the probability that the second output is preferred."
    )
    max_train_samples: int | None = _option(None, "Use at most this many training rows.")
    max_test_samples: int | None = _option(None, "Use at most this many held-out rows.")
    invalid_rows: Literal["error", "drop"] = _option(
        "error", "Stop at the first unusable row, or drop such rows and count them in the report."
    )

    def column_mapping(self) -> dict[str, str]:
        """The columns that the user renamed: `{our name: their name}`."""
        named = {
            "prompt": self.prompt_column,
            "completion": self.completion_column,
            "chosen": self.chosen_column,
            "rejected": self.rejected_column,
            "messages": self.messages_column,
            "completions": self.completions_column,
            "ranks": self.ranks_column,
            "preference": self.preference_column,
        }
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}


@dataclass
class ScratchArguments:
    """A model made here instead of loaded: small, random, with a tokenizer learnt from the data."""

    from_scratch: bool = _option(
        False, "Build a small model and a BPE tokenizer from the training text (SFT only)."
    )
    scratch_hidden_size: int = _option(128, "Width of the model built by --from_scratch.")
    scratch_num_layers: int = _option(4, "Layers of the model built by --from_scratch.")
    scratch_vocab_size: int = _option(4096, "Vocabulary of the tokenizer built by --from_scratch.")


@dataclass
class EvaluationArguments:
    """What the policy is held against, after and during training."""

    gold_reward: str | None = _option(
        None,
        "What counts as the truth: 'testbed', 'package.module:function' or 'file.py:function' in "
        "TRL's reward signature, or a sequence-classification model (path or Hub id).",
    )
    num_eval_prompts: int = _option(512, "Held-out prompts that the policies answer.")
    num_eval_samples: int = _option(4, "Completions per held-out prompt and policy.")
    eval_max_new_tokens: int = _option(256, "Longest completion sampled for the evaluation.")
    eval_generation_batch_size: int = _option(64, "Completions sampled at a time.")
    audit_steps: int = _option(
        0, "Sample, score and measure the KL every this many steps (0: only before and after)."
    )
    num_audit_prompts: int = _option(256, "Prompts of one audit, apart from the evaluation's.")
    keep_best: bool = _option(
        True, "Keep the audited checkpoint with the best gold in best/ (needs audits and gold)."
    )
    kl_budget: float | None = _option(
        None, "End the run when an audit finds a sequence KL above this many nats."
    )
    stop_when_gold_falls: bool = _option(
        False,
        "End the run when gold is below its best audit, by a test that errs in 5 % of runs however "
        "often one audits.",
    )


@dataclass
class RewardSourceArguments:
    """What a policy is optimised for, and on which further data."""

    reward_model: list[str] | None = _option(
        None,
        "What scores completions: a reward model or ensemble (path or Hub id), "
        "'package.module:function', 'file.py:function', 'bleu', or 'testbed'; several are added "
        "up with --reward_weights.",
    )
    reward_columns: list[str] | None = _option(
        None, "Columns of the data that the rewards read, such as references."
    )
    ptx_dataset: str | None = _option(
        None, "Texts, answers or conversations whose likelihood --ptx_coefficient keeps up."
    )


@dataclass
class InspectArguments:
    """What an inspection looks at, and where it leaves its results."""

    task: Literal["preference", "sft", "prompt", "ranking"] | None = _option(
        None, "What the rows are for; without it the first of these that the columns allow."
    )
    model_name_or_path: str | None = _option(
        None, "Model folder, Hub id or 'testbed' whose tokenizer and template meet the data."
    )
    model_revision: str | None = _option(None, "Branch, tag or commit of a Hub model.")
    trust_remote_code: bool = _option(False, "Run a Hub model's own tokenizer code.")
    max_length: int | None = _option(
        None, "Tokens per sequence in training; without it 1,024 or what the model can take."
    )
    num_rows: int = _option(3, "Rows to show, spread over the training split (0: none).")
    output: str | None = _option(
        None, "Folder for the normalised dataset with report.json and report.md."
    )
    report_dir: str = _option(
        "outputs/inspect", "Folder for report.json and report.md where no output is named."
    )
    overwrite: bool = _option(False, "Replace the inspected dataset already in output.")


@dataclass
class FilterArguments:
    """Which rows are scored, by what, and which of them stay."""

    reward_model: str | None = _option(
        None,
        "What scores the rows: a reward model or an ensemble (folder or Hub id), "
        "'package.module:function' or 'file.py:function' in TRL's reward signature, or 'testbed'.",
    )
    reward_model_revision: str | None = _option(None, "Branch, tag or commit of a Hub model.")
    threshold: float | None = _option(None, "Keep the rows that score at least this.")
    keep_fraction: float | None = _option(
        None, "Keep this share of the rows, the best; rows that tie with the last of them stay too."
    )
    dataset_name: str | None = _option(
        None,
        "Hub id (streamed), local file (.jsonl[.gz], .parquet, .csv), folder, or 'testbed'.",
    )
    dataset_config: str | None = _option(
        None, "Configuration of the dataset (of the testbed: 'conversational' or 'rankings')."
    )
    dataset_revision: str | None = _option(
        None, "Branch, tag or commit of a Hub dataset; resolved to a commit and recorded."
    )
    dataset_split: str = _option("train", "Split to filter.")
    scored_column: Literal["text", "completion", "messages"] | None = _option(
        None,
        "What of a row is scored: `text` as it is, `completion` (or `chosen`) after its prompt, or "
        "the last answer of `messages`; without it what the columns allow.",
    )
    text_column: str | None = _option(None, "Column to use as `text`.")
    prompt_column: str | None = _option(None, "Column to use as `prompt`.")
    completion_column: str | None = _option(None, "Column to use as `completion`.")
    messages_column: str | None = _option(None, "Column to use as `messages`.")
    subset_column: str | None = _option(
        None, "Column of categories; the report says what share of each was dropped."
    )
    invalid_rows: Literal["error", "drop"] = _option(
        "error", "Stop at the first unusable row, or drop such rows and count them in the report."
    )
    max_rows: int | None = _option(None, "Read the first so many rows of the split.")
    batch_size: int = _option(32, "Rows scored at a time.")
    max_length: int | None = _option(
        None, "Tokens that the reward model reads of a row; without it as many as it can."
    )
    output_dir: str = _option("outputs/filter", "Folder for the kept rows and the report.")
    overwrite: bool = _option(False, "Replace the filtered dataset already in output_dir.")
    keep_scores: bool = _option(False, "Add each row's score to the kept rows, as `score`.")
    seed: int = _option(0, "Seed of the report's bootstrap intervals.")

    def column_mapping(self) -> dict[str, str]:
        """The columns that the user renamed: `{our name: their name}`."""
        named = {
            "text": self.text_column,
            "prompt": self.prompt_column,
            "completion": self.completion_column,
            "messages": self.messages_column,
        }
        return {ours: theirs for ours, theirs in named.items() if theirs is not None}


@dataclass
class RewardArguments:
    """How reward models are trained, how many, and what they are held against."""

    loss: Literal["pairwise", "kwise", "plackett_luce"] = _option(
        "pairwise",
        "Pairs one by one, all pairs of a ranking at once (K-wise), or its Plackett-Luce "
        "likelihood; the last two score each completion once.",
    )
    margin_column: str | None = _option(
        None, "Column with each pair's margin, which the pairwise loss asks of the scores."
    )
    num_members: int = _option(1, "Reward models to train; more than one make an ensemble.")
    member_data: Literal["all", "bootstrap", "disjoint"] = _option(
        "all", "What each member sees: every row, a bootstrap by prompt, or a part by prompt."
    )
    combine: Literal["mean", "worst_case", "uncertainty_weighted", "lower_confidence_bound"] = (
        _option("mean", "How an ensemble's scores become one.")
    )
    normalise: bool = _option(
        True, "Scale scores to mean 0 and standard deviation 1 on training completions."
    )
    gold_reward: str | None = _option(
        None, "What counts as the truth, as in the dpo recipe; 'testbed' for the testbed."
    )
    subset_column: str | None = _option(
        None, "Column of categories; the report has the accuracy on each of them."
    )
    baselines: list[Literal["log_likelihood", "generative_classifier"]] | None = _option(
        None,
        "Train simpler rankings beside it, each for as many steps: the likelihood of a model tuned "
        "on the preferred completions, or a model that is asked which of two is better.",
    )
    learning_curve: list[int] | None = _option(
        None, "Also train on so many rows, drawn by prompt, and report the accuracy of each size."
    )
    num_eval_prompts: int = _option(
        256,
        "Held-out prompts that the starting model answers, to be ordered by gold, or disagreed on "
        "by an ensemble.",
    )
    num_eval_samples: int = _option(4, "Its completions per prompt.")
    eval_max_new_tokens: int = _option(256, "Longest of these completions.")
    eval_generation_batch_size: int = _option(64, "Completions sampled at a time.")


@dataclass
class BestOfNArguments:
    """Whose completions are drawn, how many of which prompts, and what chooses among them."""

    model_name_or_path: str | None = _option(
        None, "The policy that is sampled: folder, Hub id, or 'testbed'."
    )
    model_revision: str | None = _option(None, "Branch, tag or commit of a Hub model.")
    dtype: str | None = _option(
        None, "Of the policy's weights, for example bfloat16; without it the saved one."
    )
    reward_model: list[str] | None = _option(
        None,
        "What chooses: a reward model or ensemble (path or Hub id), 'package.module:function', "
        "'file.py:function', 'bleu', or 'testbed'; several are added up with --reward_weights.",
    )
    reward_weights: list[float] | None = _option(None, "Weight of each reward; 1 without it.")
    reward_columns: list[str] | None = _option(
        None, "Columns of the data that the rewards read, such as references."
    )
    gold_reward: str | None = _option(
        None, "What counts as the truth, as in the dpo recipe; 'testbed' for the testbed."
    )
    dataset_name: str | None = _option(
        None, "Prompts: Hub id, local file (.jsonl[.gz], .parquet, .csv), folder, or 'testbed'."
    )
    dataset_config: str | None = _option(
        None, "Configuration of the dataset (of the testbed: 'conversational')."
    )
    dataset_revision: str | None = _option(
        None, "Branch, tag or commit of a Hub dataset; resolved to a commit and recorded."
    )
    dataset_split: str = _option("train", "Split whose prompts are answered.")
    prompt_column: str | None = _option(None, "Column to use as `prompt`.")
    messages_column: str | None = _option(None, "Column to use as `messages`.")
    invalid_rows: Literal["error", "drop"] = _option(
        "error", "Stop at the first unusable row, or drop such rows and count them in the report."
    )
    num_prompts: int | None = _option(512, "Answer so many of the prompts; null for all.")
    num_samples: int = _option(16, "Completions drawn per prompt, the pool.")
    select_n: int | None = _option(
        None, "Keep the best of the first so many of the pool; of all without it."
    )
    max_new_tokens: int | None = _option(
        None, "Longest completion; 256 without it, or half of the model's positions."
    )
    temperature: float = _option(1.0, "Divides the policy's logits.")
    batch_size: int = _option(64, "Completions drawn at a time.")
    output_dir: str = _option("outputs/best_of_n", "Folder for the completions and the report.")
    overwrite: bool = _option(False, "Replace the run already in output_dir.")
    push_to_hub: bool = _option(False, "Not offered: `hf upload` takes the folder's data/.")
    seed: int = _option(42, "Seed of the draws, and of how ties are broken.")


@dataclass
class GoodhartArguments:
    """Which runs are compared, by what, and what the report may cost."""

    runs: list[str] | None = _option(
        None,
        "Run directories, or Hub ids of published runs; without any, a small sweep is trained on "
        "the testbed.",
    )
    gold_reward: str | None = _option(
        None, "What counts as the truth, instead of what the runs were judged by; as in dpo."
    )
    reward_model: list[str] | None = _option(
        None, "The proxy, instead of what each run was trained on; several are added up."
    )
    reference: str | None = _option(
        None, "Folder or Hub id of the reference, where the runs' own is not at hand by its name."
    )
    dataset_name: str | None = _option(
        None, "Data with the held-out prompts, where the first run's own are not at hand."
    )
    num_eval_prompts: int | None = _option(None, "Held-out prompts that every policy answers.")
    num_eval_samples: int | None = _option(None, "Completions per prompt and policy, 2 or more.")
    eval_max_new_tokens: int | None = _option(None, "Longest completion sampled.")
    eval_generation_batch_size: int | None = _option(None, "Completions sampled at a time.")
    best_of_n: int | None = _option(
        None,
        "Completions per prompt of the reference, for best-of-n beside the runs (0: none); 64 on "
        "the testbed, otherwise 16.",
    )
    kl_budget: float | None = _option(None, "Sequence KL, nats, beyond which a policy is reported.")
    fail_on: list[Literal["over_optimised", "invalid", "no_gain", "inconclusive"]] | None = _option(
        None, "Exit with code 3 if a run has one of these verdicts; the report is still written."
    )
    output_dir: str = _option(
        "outputs/goodhart", "Folder for the report, and for the sweep's runs."
    )
    overwrite: bool = _option(False, "Replace the report already in output_dir; runs there stay.")
    seed: int = _option(42, "Seed of the samples.")


@dataclass
class RunArguments:
    """How the run directory is treated."""

    overwrite: bool = _option(False, "Replace the run already in output_dir.")
    merge_adapter: bool = _option(
        False, "Save a LoRA run as one merged model instead of an adapter."
    )
