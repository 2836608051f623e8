"""TRL's RewardTrainer on rankings: a prompt with all its completions is one element of a batch, and
each completion goes through the model once per step, not once per pair.

Rows are `prompt`, `completions` (list) and `ranks` (list of integers, 1 = best, ties equal), as
text or conversations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import pad

from hf_align.rewards import encode
from hf_align.trainers.losses import centering_loss, kwise_loss, plackett_luce_loss, strict_pairs
from hf_align.types import InputError

_COLUMNS = ("prompt", "completions", "ranks")


def check_rankings(dataset: Iterable[dict[str, Any]]) -> None:
    """Refuses rankings that cannot be trained on, naming the first bad row.

    Raises:
        InputError: A column is missing; fewer than two completions; not one rank per completion; a
            rank that is no integer of at least 1; or no row prefers any completion to another.
    """
    decided = rows = 0
    for index, row in enumerate(dataset):
        _check_ranking(row, index)
        decided += len(set(row["ranks"])) > 1
        rows += 1
    if not decided:
        raise InputError(
            f"none of the {rows} rankings prefers one completion to another; ranks are 1 for the "
            "best, 2 for the next, and equal for a tie"
        )


def check_margins(dataset: Iterable[dict[str, Any]]) -> None:
    """Refuses a `margin` column with what is no finite number, naming the row.

    Raises:
        InputError: A margin is missing, NaN, infinite or no number.
    """
    for index, row in enumerate(dataset):
        margin = row.get("margin")
        if isinstance(margin, bool) or not isinstance(margin, (int, float)):
            raise InputError(f"row {index}: margin is {margin!r}; give a number")
        if not math.isfinite(margin):
            raise InputError(f"row {index}: margin is {margin}; give a finite number")


def ranking_pairs(dataset: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every strict pair of every ranking as `prompt`, `chosen`, `rejected`; ties give none."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completions"][min(i, j, key=row["ranks"].__getitem__)],
            "rejected": row["completions"][max(i, j, key=row["ranks"].__getitem__)],
        }
        for row in dataset
        for i, j in combinations(range(len(row["ranks"])), 2)
        if row["ranks"][i] != row["ranks"][j]
    ]


@dataclass
class RankingCollator:
    """Pads the completions of B rankings to one block, and their ranks to one table.

    `ranks` and `mask` are (B, K), K the longest ranking, padded with 0. `input_ids` and
    `attention_mask` are (N, T), the N real completions of all prompts in order, padded right.

    Attributes:
        pad_token_id: Fills `input_ids`.
        pad_to_multiple_of: T is a multiple of it.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(ids) for example in examples for ids in example["completion_ids"]]
        ranks = [torch.tensor(example["ranks"]) for example in examples]
        multiple = self.pad_to_multiple_of
        return {
            # First, because the trainer counts a batch by the first tensor's rows: prompts.
            "ranks": pad(ranks, padding_value=0),
            "mask": pad([torch.ones_like(row) for row in ranks], padding_value=0),
            "input_ids": pad(ids, padding_value=self.pad_token_id, pad_to_multiple_of=multiple),
            "attention_mask": pad(
                [torch.ones_like(row) for row in ids], padding_value=0, pad_to_multiple_of=multiple
            ),
        }


class RankingTrainer(RewardTrainer):
    """RewardTrainer whose batch elements are whole rankings.

    Tokenisation, evaluation, logging, checkpoints, PEFT and `center_rewards_coefficient` are TRL's;
    the dataset's form, its collator and the loss are replaced. As with pairs, a row with a
    completion longer than `max_length` is left out. Logged are TRL's metrics, where `accuracy` is
    the share of strict pairs scored in the right order and `margin` their mean difference.

    Args:
        model: Folder, Hub id or model, as for RewardTrainer.
        args: RewardTrainer's configuration; the batch size counts prompts.
        train_dataset: Rankings.
        eval_dataset: Rankings, or several named sets of them.
        processing_class: The tokenizer.
        callbacks: Further callbacks.
        peft_config: Of an adapter to train instead of the whole model.
        loss: "kwise" (all pairs, `kwise_loss`) or "plackett_luce" (`plackett_luce_loss`).

    Raises:
        InputError: An unknown loss, or rankings that `check_rankings` refuses.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RewardConfig,
        train_dataset: Dataset | IterableDataset,
        eval_dataset: Dataset
        | IterableDataset
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        loss: Literal["kwise", "plackett_luce"] = "kwise",
    ):
        losses = {"kwise": kwise_loss, "plackett_luce": plackett_luce_loss}
        if loss not in losses:
            raise InputError(f"loss is {loss!r}; choose one of {', '.join(losses)}")
        self.ranking_loss = losses[loss]
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
        )
        # The pad token is known only now.
        self.data_collator = RankingCollator(
            self.processing_class.pad_token_id, args.pad_to_multiple_of
        )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        names = dataset.column_names or list(next(iter(dataset)))
        if "completion_ids" in names:
            return dataset
        options = {}
        if isinstance(dataset, Dataset):
            check_rankings(dataset)
            options = {
                "num_proc": args.dataset_num_proc,
                "desc": f"Tokenizing {dataset_name} dataset",
            }

        def tokenize(row, index):
            _check_ranking(row, index)
            prompts = [row["prompt"]] * len(row["completions"])
            ids, _ = encode(processing_class, prompts, row["completions"])
            return {"completion_ids": ids, "ranks": [int(rank) for rank in row["ranks"]]}

        dataset = dataset.map(tokenize, with_indices=True, remove_columns=names, **options)
        if args.max_length is None:
            return dataset
        if options:
            options["desc"] = f"Filtering {dataset_name} >{args.max_length} tokens"
        return dataset.filter(
            lambda row: max(map(len, row["completion_ids"])) <= args.max_length, **options
        )

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["completion_ids", "ranks"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ranks, mask = inputs["ranks"], inputs["mask"].bool()
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            use_cache=False,
        )
        flat = outputs.logits.squeeze(-1).float()
        scores = flat.new_zeros(mask.shape).masked_scatter(mask, flat)  # (B, K)
        loss = self.ranking_loss(scores, ranks, mask)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * centering_loss(scores, mask)
        with torch.no_grad():
            self._record(flat, scores, strict_pairs(ranks, mask), inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def _record(self, flat, scores, better, attention_mask) -> None:
        """TRL's metrics, from ragged rankings: sums are gathered, since sizes differ by process."""
        mode = "train" if self.model.training else "eval"
        differences = (scores[:, :, None] - scores[:, None, :])[better]
        own = torch.stack(
            [
                flat.sum(),
                flat.new_tensor(flat.numel()),
                (differences > 0).float().sum(),
                differences.sum(),
                flat.new_tensor(differences.numel()),
            ]
        )
        total, count, right, margin, pairs = self.accelerator.reduce(own, "sum").tolist()
        ends = torch.stack([flat.min(), -flat.max()])
        low, high = self.accelerator.gather(ends[None]).amin(dim=0).tolist()
        metrics = self._metrics[mode]
        if mode == "train":
            tokens = self.accelerator.gather(attention_mask.sum()).sum().item()
            self._total_train_tokens += tokens // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["min_reward"].append(low)
        metrics["mean_reward"].append(total / count)
        metrics["max_reward"].append(-high)
        if pairs:
            metrics["accuracy"].append(right / pairs)
            metrics["margin"].append(margin / pairs)


def _check_ranking(row: dict[str, Any], index: int) -> None:
    for column in _COLUMNS:
        if row.get(column) is None:
            raise InputError(f"row {index} of the rankings has no {column}; rows need {_COLUMNS}")
    completions, ranks = row["completions"], row["ranks"]
    if not isinstance(completions, list) or not isinstance(ranks, list):
        raise InputError(f"row {index} of the rankings: completions and ranks must be lists")
    if len(completions) < 2:
        raise InputError(
            f"row {index} of the rankings has {len(completions)} completions; a ranking has two or "
            "more"
        )
    if len(ranks) != len(completions):
        raise InputError(
            f"row {index} of the rankings has {len(ranks)} ranks for {len(completions)} "
            "completions; give one per completion"
        )
    for rank in ranks:
        # Not finite, NaN included, makes the second comparison false before int() is asked.
        number = isinstance(rank, (int, float)) and not isinstance(rank, bool)
        if not (number and 1 <= rank < math.inf and rank == int(rank)):
            raise InputError(
                f"row {index} of the rankings has the rank {rank!r}; ranks are integers, 1 = best"
            )
