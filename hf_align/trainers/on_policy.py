"""On-policy training on TRL's RLOOTrainer: rollouts, shaped rewards, KL control, clean stops.

TRL keeps what it does well: construction, prompts, generation engines, reward calls, samplers,
logging, checkpoints. What is replaced is the rollout, the loss, and the way a batch becomes forward
passes. Of TRL's internals only `_generate` and `_calculate_rewards` are called; a test holds their
signatures.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from trl import RLOOTrainer

from hf_align.rewards import RunningMoments
from hf_align.trainers import on_policy_setup as setup
from hf_align.trainers.completion_head import add_completion_head
from hf_align.trainers.language_loss import LanguageLoss
from hf_align.trainers.on_policy_config import OnPolicyConfig
from hf_align.trainers.on_policy_rollouts import Rollouts
from hf_align.trainers.on_policy_state import CleanStop, OnPolicyCheckpoints
from hf_align.trainers.rollout import Rollout, padded
from hf_align.types import InputError


class OnPolicyTrainer(OnPolicyCheckpoints, Rollouts, RLOOTrainer):
    """What PPO and REINFORCE share; a subclass adds `_assign_advantages` and `_loss`.

    Args:
        model: The policy: a causal language model, its path or its Hub id.
        reward_funcs: What scores completions: a `RewardModel`, a sequence-classification model or
            its id, a function of TRL's signature, or several, weighted by `args.reward_weights`.
        args: The options.
        train_dataset: Rows with `prompt`, text or conversation; further columns reach the rewards.
        eval_dataset: Prompts for `evaluate()`.
        processing_class: The policy's tokenizer.
        reward_processing_classes: Tokenizers of rewards given as model instances.
        callbacks: Callbacks of `transformers`.
        optimizers: An optimizer and a scheduler of one's own.
        quantization_config: For a policy given by name.
        peft_config: Makes the policy a LoRA policy, whose reference is itself without the adapter.
        ref_model: The reference; a frozen copy of the policy if left out.
        ptx_dataset: Rows for the language-modelling loss of `args.ptx_coefficient`.
        shapers: Functions `f(scores, scored) -> scores` applied before the configured shaping.

    Attributes:
        controller: The KL controller; its `value` is the current β.
        stop_reason: Why the run ended early, in a sentence; None if it did not.
        rollout: The completions in use.

    Raises:
        InputError: Data, options, rewards or models that cannot work, before training starts.
    """

    _tag_names: ClassVar = ["trl", "hf-align"]
    config_class: ClassVar[type] = OnPolicyConfig

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: OnPolicyConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        ref_model: Any = None,
        ptx_dataset: Any = None,
        shapers: Sequence[Any] = (),
    ):
        args = args if args is not None else self.config_class("outputs")
        setup.check_data(train_dataset, args)
        setup.check_sampling(args)
        policy = setup.load_policy(model, args, quantization_config)
        if processing_class is None:
            processing_class = setup.load_tokenizer(policy, args)
        rewards, models = setup.reward_functions(reward_funcs, reward_processing_classes, args)
        reference = setup.reference_of(policy, ref_model, peft_config)
        value = self._make_value_model(policy, models, processing_class, args, peft_config)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every weight gets a gradient at each step
        # With β = 0 TRL makes no reference of its own, from wherever the configuration points.
        beta, args.beta = args.beta, 0.0
        try:
            super().__init__(
                model=policy,
                reward_funcs=rewards,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                peft_config=peft_config,
            )
        finally:
            args.beta = beta
        self.beta = beta
        self.reward_models = models
        self.shapers = tuple(shapers)
        self.shaping, self.moments = setup.shaping_of(args), RunningMoments()
        self.controller = setup.controller_of(args, setup.num_rollouts(args, train_dataset))
        self._attach(value, reference)
        self.language = self._language_loss(ptx_dataset)
        self._begin()
        self.add_callback(CleanStop(self))

    def _begin(self) -> None:
        """The state of a run that has made no rollout yet."""
        self.rollout: Rollout | None = None
        self.stop_reason: str | None = None
        self._stop_kl: float | None = None
        self.first_ratio_gap: float | None = None
        self._slices: list[list[int]] | None = None
        self._units: list[float] = []
        self._leaving = False
        self._sums: dict[str, torch.Tensor] = {}
        self._update_kl = torch.zeros(2, device=self.accelerator.device)
        self._cycle = self.args.steps_per_generation * self.args.num_iterations
        self._num_evaluated = 0
        self._clock: dict[str, float] = {}

    # -- hooks of a subclass ----------------------------------------------------------------------

    def _make_value_model(self, policy, models, tokenizer, args, peft_config) -> Any:
        """A value model copied before anything is bound to the policy; None without one."""
        return None

    def _assign_advantages(
        self, rollout: Rollout, shaped: np.ndarray, kl: torch.Tensor, mode: str
    ) -> dict[str, float]:
        """Sets the rollout's advantages; returns metrics.

        Args:
            rollout: This process's completions.
            shaped: (N,) shaped scores of all processes.
            kl: (B, T) one-sample KL of this process's tokens.
            mode: "train" or "eval".
        """
        raise NotImplementedError

    def _loss(self, model: Any, rollout: Rollout, rows: list[int]) -> torch.Tensor:
        """The summed loss of some rows, of which `_num_units` are averaged over."""
        raise NotImplementedError

    def _num_units(self, rollout: Rollout, rows: list[int]) -> float:
        """What the loss of an optimizer step is a mean over, counted in these rows."""
        raise NotImplementedError

    # -- construction -----------------------------------------------------------------------------

    @property
    def causal_model(self) -> Any:
        """The causal language model itself, inside an adapter if there is one."""
        from peft import PeftModel

        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _attach(self, value: Any, reference: Any) -> None:
        base, device = self.causal_model, self.accelerator.device
        add_completion_head(base, self.temperature)
        if value is not None:
            name, module = value
            base.add_module(name, module.to(device))
        setup.disable_dropout(self.model, self.args)
        if reference is not None:
            setup.disable_dropout(reference, self.args)
            add_completion_head(reference, self.temperature)
            reference = setup.prepared(self, reference)
        self.reference = reference
        if self.use_vllm:
            setup.keep_value_model_from_vllm(self.vllm_generation)

    def _language_loss(self, dataset: Any) -> LanguageLoss | None:
        if not self.args.ptx_coefficient:
            return None
        if dataset is None:
            raise InputError(
                f"ptx_coefficient {self.args.ptx_coefficient} needs texts; give ptx_dataset"
            )
        return LanguageLoss(
            dataset,
            self._tokenizer,
            self.args.ptx_batch_size or self.args.per_device_train_batch_size,
            self.args.ptx_max_length,
            self.args.seed,
            (self.accelerator.process_index, self.accelerator.num_processes),
        )

    # -- training ---------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One slice: rolls out where it is time, then forward and backward passes by length."""
        # Its modules are many; an evaluation may have told the model inside a wrapper alone.
        if not (model.training and self.model.training):
            model.train()
        if self._step % self._cycle == 0 or self.rollout is None:
            self._close_clock()
            self._leaving = False
            self.rollout = self._roll_out(inputs, "train")
        started = time.perf_counter()
        place = self._step % self.args.steps_per_generation
        if place == 0 or self._slices is None:
            self._slices = self._cut_slices(self._step // self.args.steps_per_generation)
        loss = self._update(model, self._slices[place], place)
        self._step += 1
        self._clock["update"] = self._clock.get("update", 0.0) + time.perf_counter() - started
        return loss

    def _cut_slices(self, epoch: int) -> list[list[int]]:
        """A fresh order of the rollout's rows, and what each optimizer step averages over."""
        size, steps = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        seeds = [self.args.seed, epoch, self.accelerator.process_index]
        order = np.random.default_rng(seeds).permutation(len(self.rollout)).tolist()
        slices = [order[start : start + size] for start in range(0, len(order), size)]
        steps_rows = [
            order[start : start + size * steps] for start in range(0, len(order), size * steps)
        ]
        units = [self._num_units(self.rollout, rows) for rows in steps_rows]
        # DDP averages gradients over processes, so each divides by its share of the total.
        total = self.accelerator.reduce(
            torch.tensor(units, device=self.accelerator.device), reduction="sum"
        )
        self._units = (total / self.accelerator.num_processes).clamp(min=1.0).tolist()
        return slices

    def _update(self, model: Any, rows: list[int], place: int) -> torch.Tensor:
        """Backward passes of one slice; returns its share of the optimizer step's mean loss."""
        total = torch.zeros((), device=self.accelerator.device)
        if self._leaving and not self.is_deepspeed_enabled:
            return total  # no gradient anywhere, so the optimizer's step is none
        units = self._units[place // self.args.gradient_accumulation_steps]
        scale = 0.0 if self._leaving else 1.0 / units
        extra = self._language_pairs(rows)
        # DDP wants every weight in a synchronised backward pass, and this one has no value model.
        together = self.is_deepspeed_enabled
        if extra and not together:
            with self._unsynced(model):
                loss = self._language_term(model, extra)
                self.accelerator.backward(loss)
                total += loss.detach()
        parts = [rows] if together else self._parts(rows)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else self._unsynced(model):
                with self.compute_loss_context_manager():
                    loss = self._loss(model, self.rollout, part) * scale
                    if extra and together:
                        loss = loss + self._language_term(model, extra)
                self.accelerator.backward(loss)
            total += loss.detach()
        if self.accelerator.sync_gradients:
            self._maybe_leave(model)
        return total

    def _unsynced(self, model: Any) -> contextlib.AbstractContextManager:
        return self.accelerator.no_sync(model)

    def _maybe_leave(self, model: Any) -> None:
        """Drops this step and the rollout's others when the policy has moved too far."""
        limit = self.args.update_kl_limit
        if limit is None:
            return
        moved, count = self.accelerator.reduce(self._update_kl, reduction="sum").tolist()
        self._update_kl.zero_()
        if moved / max(count, 1.0) > limit:
            model.zero_grad(set_to_none=True)
            self._leaving = True
            self._metrics["train"]["policy/left_rollout"].append(1.0)

    def _check_first_ratio(self, log_ratio: torch.Tensor) -> None:
        """Says so when the first update does not see the policy that wrote the completions."""
        if self.first_ratio_gap is not None or self._step % self._cycle:
            return
        self.first_ratio_gap = float(log_ratio.detach().abs().max())
        if self.first_ratio_gap > (1e-3 if self._is_exact() else 0.3):
            warnings.warn(
                f"the first update's ratios differ from 1 by up to {self.first_ratio_gap:.2g}: the "
                "completions were drawn from, or scored under, another distribution than the "
                "policy's",
                stacklevel=2,
            )

    def _language_pairs(self, rows: list[int]) -> list[tuple[list[int], list[int]]]:
        """Contexts and targets of the likelihood term of this slice."""
        return self.language.batch(self._step) if self.language is not None else []

    def _language_coefficient(self) -> float:
        return self.args.ptx_coefficient

    def _language_term(self, model: Any, pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        """coefficient · mean negative log-likelihood per token, over the slices of a step."""
        pad = self._tokenizer.pad_token_id
        contexts, targets = zip(*pairs, strict=True)
        ids, mask = padded(contexts, targets, pad, self.accelerator.device)
        with self.compute_loss_context_manager():
            logps, _, _ = model(input_ids=ids, score_mask=mask)
        nll = -logps.mean()
        self._add("policy/likelihood_nll", nll.detach(), 1)
        return self._language_coefficient() * nll / self.args.gradient_accumulation_steps

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Rolls out an evaluation batch; the loss is its negative mean reward."""
        rollout = self._roll_out(inputs, "eval")
        return -rollout.rewards.mean(), None, None

    # -- logs -------------------------------------------------------------------------------------

    def _add(self, name: str, total: torch.Tensor, count: float | torch.Tensor) -> None:
        """Adds to a mean that is taken over all passes and processes at the next log."""
        sums = torch.stack([total.float(), torch.as_tensor(count, device=total.device).float()])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs what was measured since the last log, averaged over processes."""
        if self._sums:
            names = sorted(self._sums)
            sums = torch.stack([self._sums[name] for name in names])
            sums = self.accelerator.reduce(sums, reduction="sum")
            for name, (total, count) in zip(names, sums.tolist(), strict=True):
                self._metrics["train"][name].append(total / max(count, 1.0))
            self._sums.clear()
        super().log(logs, start_time)

    def _close_clock(self) -> None:
        """Turns the phases of the rollout that ends here into metrics."""
        if "start" in self._clock:
            seconds = time.perf_counter() - self._clock.pop("start")
            tokens = self._clock.pop("tokens")
            metrics = self._metrics["train"]
            metrics["speed/tokens_per_second"].append(tokens / seconds)
            for phase, spent in self._clock.items():
                metrics[f"time/{phase}"].append(spent)
        self._clock = {"start": time.perf_counter()}

    @contextlib.contextmanager
    def _timed(self, phase: str, mode: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if mode == "eval":
            return  # the clock is the training's
        self._clock[phase] = self._clock.get(phase, 0.0) + time.perf_counter() - started
