"""What an on-policy run keeps in its checkpoints beside TRL's, and how it stops.

The checkpoint's model is the policy alone. The value model lies next to it, and one small file per
process has the rest of the state: the rollout in use, controller, moments, place in the rollout. So
a run that was killed goes on with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.utils import logging

from hf_align.trainers.rollout import Rollout
from hf_align.trainers.value_models import PREFIXES, is_value_parameter
from hf_align.types import InputError

VALUE_FILE = "value_model.safetensors"
_STATE = "on_policy_state_{}.pt"

logger = logging.get_logger(__name__)


class CleanStop(TrainerCallback):
    """Ends the run between two steps when the trainer has a reason to, with a checkpoint.

    The trainer tests for a stop after every slice, so a stop that is set inside a step would leave
    before the optimizer moves.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.stop_reason is not None:
            if state.is_world_process_zero:
                logger.warning(self.trainer.stop_reason)
            control.should_training_stop = control.should_save = True


class EpochOrders(Sampler):
    """A shuffling sampler whose order depends on seed and epoch alone.

    TRL's draws each epoch's order from where its generator stands, which no checkpoint keeps.

    Args:
        sampler: A sampler with a `generator`.
        seed: Seed of the orders.
        epoch: Gives the epoch that is about to begin.
    """

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]):
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        entropy = np.random.SeedSequence([self.seed, self.epoch()])
        self.sampler.generator.manual_seed(int(entropy.generate_state(1)[0]))
        return iter(self.sampler)


class OnPolicyCheckpoints:
    """The half of an on-policy trainer that saves and resumes."""

    def forget_value_model(self) -> None:
        """Takes the value model out of the policy once training is over, for merging and saving."""
        for prefix in PREFIXES:
            name = prefix.removesuffix(".")
            if hasattr(self.causal_model, name):
                delattr(self.causal_model, name)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves the policy alone, and the value model beside it in a checkpoint."""
        if not self._has_value_model():
            super()._save(output_dir, state_dict)
            return
        every = self.model.state_dict() if state_dict is None else state_dict
        policy = {name: value for name, value in every.items() if not is_value_parameter(name)}
        super()._save(output_dir, policy)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save and folder.name.startswith("checkpoint-"):
            value = {name: value for name, value in every.items() if is_value_parameter(name)}
            value = {name: tensor.cpu().contiguous() for name, tensor in value.items()}
            save_file(value, folder / VALUE_FILE, metadata={"format": "pt"})

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves this process's state before the file that makes a checkpoint complete."""
        super()._save_rng_state(output_dir)
        state = {
            "num_processes": self.accelerator.num_processes,
            "shape": self._rollout_shape(),
            "step": self._step,
            "leaving": self._leaving,
            "stop_reason": self.stop_reason,
            "stop_kl": self._stop_kl,
            "controller": self.controller.state_dict(),
            "moments": self.moments.state_dict(),
            "rollout": self.rollout.state_dict() if self.rollout is not None else None,
            "slices": self._slices,
            "units": self._units,
            "update_kl": self._update_kl.cpu(),
            "num_evaluated": self._num_evaluated,
        }
        torch.save(state, self._state_file(output_dir))

    def _state_file(self, folder: str) -> Path:
        return Path(folder) / _STATE.format(self.accelerator.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / VALUE_FILE
        if self._has_value_model() and path.is_file():
            target = self.model if model is None else model
            found = target.load_state_dict(load_file(path), strict=False)
            if found.unexpected_keys:
                raise OSError(
                    f"{path} is of another kind of value model; resume with the value_model that "
                    "the run began with"
                )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Says what a checkpoint lacks, but for the value model, which has a file of its own."""
        missing = [name for name in load_result.missing_keys if not is_value_parameter(name)]
        super()._issue_warnings_after_load(
            torch.nn.modules.module._IncompatibleKeys(missing, load_result.unexpected_keys)
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # A checkpoint of the model alone has no states at all, and starts with a new rollout.
        if checkpoint is None or not list(Path(checkpoint).glob(_STATE.format("*"))):
            return
        path = self._state_file(checkpoint)
        state = torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else {}
        if state.get("num_processes") != self.accelerator.num_processes:
            self._refuse_resume(checkpoint, "processes")
        if state["shape"] != self._rollout_shape():
            self._refuse_resume(checkpoint, "completions per slice, slices or passes")
        self._step, self._leaving = state["step"], state["leaving"]
        limit, reached = self.args.kl_limit, state["stop_kl"]
        if limit is not None and reached is not None and reached > limit:
            self.stop_reason, self._stop_kl = state["stop_reason"], reached
        elif reached is not None:
            self._leaving = False  # the limit was raised: the run goes on
        self.controller.load_state_dict(state["controller"])
        self.moments.load_state_dict(state["moments"])
        device = self.accelerator.device
        if state["rollout"] is not None:
            self.rollout = Rollout.from_state_dict(state["rollout"], device)
        self._slices, self._units = state["slices"], state["units"]
        self._update_kl = state["update_kl"].to(device)
        self._num_evaluated = state["num_evaluated"]

    def _rollout_shape(self) -> list[int]:
        return [self.args.per_device_train_batch_size, self.args.steps_per_generation, self._cycle]

    def _refuse_resume(self, checkpoint: str, what: str) -> None:
        raise InputError(
            f"{checkpoint} was written with another number of {what}; resume with what the run "
            "began with"
        )

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """TRL's sampler, in orders that a resumed run finds again."""
        sampler = super()._get_train_sampler(dataset)
        if not self.shuffle_dataset:
            return sampler
        slices = len(sampler) // self.args.generation_batch_size
        return EpochOrders(sampler, self.args.seed, lambda: self._step // max(1, slices))
