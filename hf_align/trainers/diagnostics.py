"""Audits a policy while any trainer trains it: sequence KL, gold, proxy, length, entropy and NLL.

Keeps the best audited checkpoint, and ends the run when gold has fallen or the KL budget is spent.
The proxy alone never decides: it goes on rising while it is gamed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_align.diagnostics.overoptimization import MIN_PROMPTS
from hf_align.diagnostics.sample_files import audit_file, forget_audits, write_completions
from hf_align.diagnostics.sequential import pocock_spending, sequential_test
from hf_align.files import write_text
from hf_align.trainers.audit import Auditor
from hf_align.trainers.best import BestCheckpoint
from hf_align.trainers.callbacks import AlreadyTrained
from hf_align.trainers.value_models import PREFIXES
from hf_align.types import InputError, RewardFn, Text

ALPHA = 0.05
"""Probability that `stop_when_gold_falls` ends a run whose gold never fell, over all its audits."""

AUDITS = "audits.json"
"""The file with every audit's step, KL, and gold and proxy per prompt."""

logger = logging.get_logger(__name__)


class DiagnosticsCallback(TrainerCallback):
    """Audits the policy before the first step, every `every` steps, and where training ends.

    For TRL's trainers (DPO, GRPO, RLOO, SFT, ...) and ours; not for reward models, which answer
    nothing. Attach it to the trainer instead of naming it in `callbacks`:

        trainer = DPOTrainer("ORG/SFT_MODEL", args=args, train_dataset=pairs)
        diagnostics = DiagnosticsCallback(
            prompts,  # held out from training, and from the final report
            trainer.processing_class,
            gold=score,  # TRL's reward signature; or a RewardModel that training does not see
            every=50,
            stop_when_gold_falls=True,
        ).attach(trainer)
        trainer.train()
        print(diagnostics.stop_reason, diagnostics.best_step, diagnostics.best_path)

    An audit draws completions of the same prompts with the same seed and logs, through the trainer
    and so to its trackers, `audit/kl/sequence` (Rao-Blackwell, nats), `audit/kl/sequence_k1` (its
    cross-check), `audit/kl/per_token`, `audit/policy/entropy` and `audit/policy/reference_nll`
    (nats per token), `audit/length/mean`, `audit/length/ended`, `audit/gold/mean` and
    `audit/proxy/mean`. Training takes the same steps as without it. With several processes the main
    one audits; all stop at the same step. `audits.json` lets a resumed run go on with the curve,
    and `audit_samples/` has what each audit read: the completions of the first prompts, 512 at most
    per audit, with gold, proxy and log-ratio; step 0 is the reference.

    The best checkpoint is the one with the largest mean gold, smoothed over neighbouring audits
    (`BestCheckpoint`). It lies in `best/`, as the trainer saves it (an adapter as an adapter, a
    policy without its value model), with `audit.json` naming its step; there is none while the
    policy that training began with is the best. Every audit that is not plainly below the best one
    writes the policy once, into a second folder that is gone at the end.

    Two things end a run, at a step's end and with a checkpoint: a KL above the budget, and gold
    that is significantly below an earlier audit's by a sequential test (`sequential_test`, Pocock
    spending, 5 % over all planned audits). Resumed from there it raises `AlreadyTrained` at once,
    unless the budget was raised or the test left out.

    Args:
        prompts: Texts or conversations.
        tokenizer: The policy's tokenizer.
        reference: What the KL is measured from. Left out: for LoRA the base with the adapter off,
            else a frozen copy of the policy made by `attach`, as much memory again as its weights;
            share the trainer's own with `reference=trainer.ref_model` where it has one.
        every: Steps between audits; 0 audits only before and after.
        gold: What counts as the truth: a reward function or model that training does not use.
        proxy: The reward that training optimises, to be seen beside gold.
        columns: What the rewards read beside, `{name: one value per prompt}`.
        num_samples: Completions per prompt and audit.
        max_new_tokens: Longest completion in tokens.
        batch_size: Completions drawn or scored at a time.
        seed: Seed of the audits' draws.
        keep_best: Whether to keep the best checkpoint; without gold there is none.
        kl_budget: Largest sequence KL, nats; a checkpoint above it is never the best.
        stop_when_gold_falls: Whether the sequential test may end the run.
        output_dir: Where `audits.json`, `audit_samples/` and `best/` go; the trainer's if left out.
        tell: Called with a sentence where something must be known; the log if left out.

    Attributes:
        audits: `{"step", "kl", "gold", "proxy"}` of each audit, the rewards per prompt.
        stop_reason: Why the run ended early, in a sentence; None if it did not.

    Raises:
        InputError: Options that cannot work together; names them and the remedy.
    """

    def __init__(
        self,
        prompts: list[Text],
        tokenizer: Any,
        *,
        reference: Any = None,
        every: int = 100,
        gold: RewardFn | None = None,
        proxy: RewardFn | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        num_samples: int = 1,
        max_new_tokens: int = 256,
        batch_size: int = 64,
        seed: int = 0,
        keep_best: bool = True,
        kl_budget: float | None = None,
        stop_when_gold_falls: bool = False,
        output_dir: str | Path | None = None,
        tell: Callable[[str], None] | None = None,
    ):
        self.auditor = Auditor(
            prompts=list(prompts),
            tokenizer=tokenizer,
            gold=gold,
            proxy=proxy,
            columns=dict(columns or {}),
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        _check_options(every, gold, len(prompts), kl_budget, stop_when_gold_falls)
        self.reference, self.every = reference, every
        self.kl_budget, self.stop_when_gold_falls = kl_budget, stop_when_gold_falls
        self.keeps_best = keep_best and gold is not None
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.tell = tell or logger.warning
        self.audits: list[dict[str, Any]] = []
        self.stop_reason: str | None = None
        self._trainer: Any = None
        self._audited: int | None = None
        self._num_planned = 0
        self._told_inconsistent = False

    def attach(self, trainer: Any) -> DiagnosticsCallback:
        """Adds the callback to a trainer, and settles the reference while no step has been taken.

        Raises:
            InputError: The policy is sharded over processes, so that none of them can sample it.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                "the policy is sharded over processes, and none of them can audit it; leave the "
                "callback out, and audit saved checkpoints"
            )
        self._trainer = trainer
        self.output_dir = self.output_dir or Path(trainer.args.output_dir)
        self._best = BestCheckpoint(self.output_dir)
        if trainer.accelerator.is_main_process:
            self.reference = _reference_of(trainer.model, self.reference)
        trainer.add_callback(self)
        return self

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, 0 for the policy that training began with.

        None where none is kept: without gold, without `keep_best`, or before the first audit.
        """
        return self._best.step if self.keeps_best and self.audits else None

    @property
    def best_path(self) -> Path | None:
        """The folder of the best checkpoint; None where there is none."""
        return self._best.path if self.best_step else None

    # -- when ------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        """Audits the policy before the first step; a resumed run goes on with its audits."""
        if self._trainer is None:
            raise InputError(
                "DiagnosticsCallback logs through its trainer: call .attach(trainer) instead of "
                "naming it in callbacks"
            )
        self._num_planned = 1 + (state.max_steps - 1) // self.every if self.every else 1
        self._audited = state.global_step
        self.audits, self.stop_reason = [], None
        if state.global_step:
            self._resume(state)
            return
        if state.is_world_process_zero:
            self._best.forget()
            forget_audits(self.output_dir, after=-1)
        self._audit(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        """Audits where it is time, and ends the run where an audit gives a reason to."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if not last and not (self.every and state.global_step % self.every == 0):
            return
        reason = self._audit(state, control)
        if reason is not None and not last:
            self.stop_reason = reason
            control.should_training_stop = control.should_save = True
            if state.is_world_process_zero:
                self.tell(reason)

    def on_train_end(self, args, state, control, **kwargs):
        """Audits a training that something else ended, and settles which checkpoint is the best."""
        # With load_best_model_at_end the model is by now another one than this step's.
        if self._audited != state.global_step and not args.load_best_model_at_end:
            self._audit(state, control)
        self._settle(state)

    # -- what ------------------------------------------------------------------------------------

    def _audit(self, state: Any, control: Any) -> str | None:
        """Audits in the main process and logs in all; returns a reason to end the run, if any."""
        self._audited = state.global_step
        found = self._measure(state.global_step) if state.is_world_process_zero else None
        metrics, reason = broadcast_object_list([found])[0]
        due = control.should_log
        # TRL's own `log` would empty what its trainers gather for their next line into this one.
        Trainer.log(self._trainer, {f"audit/{name}": value for name, value in metrics.items()})
        control.should_log = due
        return reason

    def _measure(self, step: int) -> tuple[dict[str, float], str | None]:
        audit = self.auditor.audit(self._trainer.model, self.reference, step)
        self.audits = [earlier for earlier in self.audits if earlier["step"] < step]
        self.audits.append(audit.record)
        # First: a step that is in the record has its completions, whenever the run is killed.
        write_completions(self.output_dir / audit_file(step), audit.samples)
        write_text(self.output_dir / AUDITS, json.dumps(self.audits) + "\n")
        if not audit.consistent and not self._told_inconsistent:
            self._told_inconsistent = True
            self.tell(
                f"step {step}: the two estimates of the KL disagree "
                f"({audit.metrics['kl/sequence']:.3g} and {audit.metrics['kl/sequence_k1']:.3g} "
                "nats): the completions were not drawn from the distribution that scores them"
            )
        if self.keeps_best and step:
            kl = audit.record["kl"]
            self._best.update(*self._curve(), kl, self._save, eligible=self._may_be_best())
        return audit.metrics, self._why_stop()

    def _may_be_best(self) -> bool:
        """Whether the newest policy is within the budget and not plainly below the best one."""
        newest = self.audits[-1]
        if self.kl_budget is not None and newest["kl"] > self.kl_budget:
            return False
        best = next(audit for audit in self.audits if audit["step"] == self._best.step)
        drops = np.subtract(best["gold"], newest["gold"])
        # Its successor would have to gain six standard errors for the smoothed value to be best.
        return bool(drops.mean() <= 2 * drops.std(ddof=1) / len(drops) ** 0.5)

    def _curve(self) -> tuple[list[int], list[float]]:
        """Audited steps and their mean gold."""
        golds = [float(np.mean(audit["gold"])) for audit in self.audits]
        return [audit["step"] for audit in self.audits], golds

    def _why_stop(self) -> str | None:
        """The reason that the audits so far give to end the run, in a sentence; None without."""
        last = self.audits[-1]
        if self.kl_budget is not None and last["kl"] > self.kl_budget:
            return (
                f"step {last['step']}: stopped, as the sequence KL of {last['kl']:.3g} nats is "
                f"above kl_budget {self.kl_budget:g}"
            )
        if not self.stop_when_gold_falls or len(self.audits) < 2:
            return None
        test = sequential_test(
            [audit["gold"] for audit in self.audits],
            num_looks=max(self._num_planned, len(self.audits) - 1),
            alpha=ALPHA,
            spending=pocock_spending,
        )
        if test.stopped_at is None:
            return None
        look, peak = test.looks[test.stopped_at - 1], self.audits[test.best_index]
        return (
            f"step {self.audits[test.stopped_at]['step']}: stopped, as gold is {look.drop:.2f} "
            f"(at least {look.lower:.2f}) below the audit of step {peak['step']}, tested at "
            f"{100 * ALPHA:g} % over all {self._num_planned} audits"
        )

    def _save(self, folder: Path) -> None:
        """The policy as the trainer saves it, without its pickle and its card."""
        self._trainer.save_model(str(folder), _internal_call=True)
        for name in ("training_args.bin", "README.md"):
            (folder / name).unlink(missing_ok=True)

    def _settle(self, state: Any) -> None:
        if self.keeps_best and state.is_world_process_zero:
            self._best.settle(*self._curve())

    # -- going on --------------------------------------------------------------------------------

    def _resume(self, state: Any) -> None:
        """Reads the audits up to the checkpoint, and refuses to go on where they ended the run."""
        over, reason = state.global_step >= state.max_steps, None
        if state.is_world_process_zero:
            self.audits = self._read_audits(state.global_step)
            self._best.forget(after=state.global_step)
            forget_audits(self.output_dir, after=state.global_step)
            reason = None if over else self._why_stop()
        (self.stop_reason,) = broadcast_object_list([reason])
        if over or self.stop_reason is not None:
            self._settle(state)
        if self.stop_reason is not None:
            if state.is_world_process_zero:
                self.tell(self.stop_reason)
            raise AlreadyTrained(
                f"{self.stop_reason}; raise kl_budget or leave stop_when_gold_falls out to go on"
            )

    def _read_audits(self, step: int) -> list[dict[str, Any]]:
        file, audits = self.output_dir / AUDITS, []
        if file.is_file():
            audits = json.loads(file.read_text(encoding="utf-8"))
        audits = [audit for audit in audits if audit["step"] <= step]
        wanted = {"gold": self.auditor.gold, "proxy": self.auditor.proxy}
        wanted = {name for name, reward in wanted.items() if reward is not None}
        for audit in audits:
            sizes = {len(audit.get(name, ())) for name in wanted}
            if sizes - {len(self.auditor.prompts)}:
                raise InputError(
                    f"{file} has audits of other prompts or rewards; resume with those that the "
                    "run began with"
                )
        if not audits or audits[0]["step"]:
            raise InputError(
                f"{file} has no audit of the policy that the run began with; resume without "
                "audits, or start again"
            )
        return audits


def _check_options(
    every: int,
    gold: RewardFn | None,
    num_prompts: int,
    kl_budget: float | None,
    stop_when_gold_falls: bool,
) -> None:
    if every < 0:
        raise InputError(f"every is {every}; give a number of steps, or 0")
    if kl_budget is not None and not kl_budget > 0:
        raise InputError(f"kl_budget is {kl_budget}; give a number of nats above 0")
    if stop_when_gold_falls and gold is None:
        raise InputError(
            "stop_when_gold_falls needs gold: a proxy goes on rising while it is gamed; give a "
            "gold reward, or use kl_budget"
        )
    if stop_when_gold_falls and num_prompts < MIN_PROMPTS:
        raise InputError(
            f"stop_when_gold_falls tests over prompts and has {num_prompts}; give at least "
            f"{MIN_PROMPTS}"
        )


def _reference_of(policy: Any, given: Any) -> Any:
    """The reference on the policy's device; None for a PEFT policy without one."""
    from peft import PeftModel

    if given is not None:
        return given if given.device == policy.device else given.to(policy.device)
    return None if isinstance(policy, PeftModel) else frozen_copy(policy)


def frozen_copy(policy: Any) -> Any:
    """A copy of a causal language model as it is now, without a value model, that never trains."""
    copied = copy.deepcopy(policy)
    # A trainer may have bound a forward of its own, which would still run the original's weights.
    if isinstance(vars(copied).get("forward"), MethodType):
        del copied.forward
    for prefix in PREFIXES:
        name = prefix.removesuffix(".")
        if name in dict(copied.named_children()):
            delattr(copied, name)
    return copied.eval().requires_grad_(False)
