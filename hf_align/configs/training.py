"""Options of every recipe that trains: data, evaluation, run directory, publishing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_align.configs._option import option


@dataclass
class DataArguments:
    """Which data to read, and how its columns are called."""

    dataset_name: str | None = option(
        None, "Hub id, local file (.jsonl[.gz], .parquet, .csv), folder, or 'testbed'."
    )
    dataset_config: str | None = option(
        None, "Configuration of the dataset (of the testbed: 'conversational' or 'rankings')."
    )
    dataset_revision: str | None = option(
        None, "Branch, tag or commit of a Hub dataset; resolved to a commit and recorded."
    )
    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str | None = option(
        None, "Held-out split; without one, prompts are held out from the training split."
    )
    datasets: list[dict[str, Any]] | None = option(
        None, "A mixture in TRL's form: [{path, name, split, columns, fraction}, ...]."
    )
    test_split_size: float = option(
        0.1, "Share of prompts held out where the data have no test split."
    )
    prompt_column: str | None = option(None, "Column to use as `prompt`.")
    completion_column: str | None = option(None, "Column to use as `completion`.")
    chosen_column: str | None = option(None, "Column to use as `chosen`.")
    rejected_column: str | None = option(None, "Column to use as `rejected`.")
    messages_column: str | None = option(None, "Column to use as `messages`.")
    completions_column: str | None = option(None, "Column to use as `completions`, a list.")
    ranks_column: str | None = option(
        None, "Column to use as `ranks` of the completions: 1 for the best, equal for a tie."
    )
    preference_column: str | None = option(
        None, "Column holding the probability that the second output is preferred."
    )
    max_train_samples: int | None = option(None, "Use at most this many training rows.")
    max_test_samples: int | None = option(None, "Use at most this many held-out rows.")
    invalid_rows: Literal["error", "drop"] = option(
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

    from_scratch: bool = option(
        False, "Build a small model and a BPE tokenizer from the training text (SFT only)."
    )
    scratch_hidden_size: int = option(128, "Width of the model built by --from_scratch.")
    scratch_num_layers: int = option(4, "Layers of the model built by --from_scratch.")
    scratch_vocab_size: int = option(4096, "Vocabulary of the tokenizer built by --from_scratch.")


@dataclass
class EvaluationArguments:
    """What the policy is held against, after and during training."""

    gold_reward: str | None = option(
        None,
        "What counts as the truth: 'testbed', 'package.module:function' or 'file.py:function' in "
        "TRL's reward signature, or a sequence-classification model (path or Hub id).",
    )
    num_eval_prompts: int = option(512, "Held-out prompts that the policies answer.")
    num_eval_samples: int = option(4, "Completions per held-out prompt and policy.")
    eval_max_new_tokens: int = option(256, "Longest completion sampled for the evaluation.")
    eval_generation_batch_size: int = option(64, "Completions sampled at a time.")
    audit_steps: int = option(
        0, "Sample, score and measure the KL every this many steps (0: only before and after)."
    )
    num_audit_prompts: int = option(256, "Prompts of one audit, apart from the evaluation's.")
    keep_best: bool = option(
        True, "Keep the audited checkpoint with the best gold in best/ (needs audits and gold)."
    )
    kl_budget: float | None = option(
        None, "End the run when an audit finds a sequence KL above this many nats."
    )
    stop_when_gold_falls: bool = option(
        False,
        "End the run when gold is below its best audit, by a test that errs in 5 % of runs however "
        "often one audits.",
    )


@dataclass
class RewardSourceArguments:
    """What a policy is optimised for, and on which further data."""

    reward_model: list[str] | None = option(
        None,
        "What scores completions: a reward model or ensemble (path or Hub id), "
        "'package.module:function', 'file.py:function', 'bleu', or 'testbed'; several are added "
        "up with --reward_weights.",
    )
    reward_columns: list[str] | None = option(
        None, "Columns of the data that the rewards read, such as references."
    )
    reference_model: str | None = option(
        None,
        "Model that the KL is measured from, folder or Hub id, where it is not the one that "
        "training starts from.",
    )
    ptx_dataset: str | None = option(
        None, "Texts, answers or conversations whose likelihood --ptx_coefficient keeps up."
    )


@dataclass
class RunArguments:
    """How the run directory is treated."""

    overwrite: bool = option(False, "Replace the run already in output_dir.")
    merge_adapter: bool = option(
        False, "Save a LoRA run as one merged model instead of an adapter."
    )
