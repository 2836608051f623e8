"""The models that training starts from: policy, reference, and the check that they are the same."""

from __future__ import annotations

import copy
import gc
import os
from typing import Any

from hf_align.configs import ScratchArguments
from hf_align.data import LoadedData
from hf_align.recipes._evaluation import load_policy
from hf_align.recipes._inputs import TESTBED, max_new_tokens
from hf_align.recipes._parser import Choices
from hf_align.recipes._training import Setup
from hf_align.types import InputError


def from_scratch(choices: Choices, data: LoadedData) -> tuple[Any, Any]:
    """An untrained model and tokenizer: the testbed's for its data, else learnt from the text."""
    seed = choices.get("seed", 42)
    if choices.get("dataset_name") == TESTBED:
        import torch

        from hf_align.testbed import tiny_llama
        from hf_align.testbed import tokenizer as testbed_tokenizer

        tokenizer = testbed_tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return tiny_llama(tokenizer), tokenizer
    from hf_align.recipes._scratch import build_from_text

    sizes = choices.build(ScratchArguments)
    positions = (choices.get("max_length") or 1024) + max_new_tokens(choices)
    return build_from_text(data.splits["train"], sizes, positions, seed)


def policy_and_start(
    setup: Setup,
    source: dict[str, Any] | None,
    scratch: tuple[Any, Any] | None,
    audit_steps: int,
) -> tuple[Any, Any]:
    """The policy to fine-tune, and the model it starts from where something needs that in memory.

    A model made from scratch is on no disk, so its start is kept; a loaded one is kept only for
    audits.
    """
    if scratch is not None:
        return scratch[0], copy.deepcopy(scratch[0])
    if audit_steps:
        return load_policy_and_reference(setup, source, audit_steps)
    return _load(setup, source), None


def choose_precompute(choices: Choices, setup: Setup, audit_steps: int) -> None:
    """Computes the reference's log-probabilities beforehand where that is faster.

    Once per pair instead of once per pair and epoch, and without a second model in memory. With one
    epoch there is nothing to save, LoRA has its reference inside, and audits need it alive. TRL
    hands the values over in a file that only the first process can find, so several do without.

    Raises:
        InputError: It was asked for, and there are several processes.
    """
    if setup.args.precompute_ref_log_probs and setup.args.world_size > 1:
        raise InputError(
            "precompute_ref_log_probs works in one process only; leave it out, and each process "
            "keeps its reference in memory"
        )
    asked = "precompute_ref_log_probs" in choices.values
    if asked or setup.args.sync_ref_model or setup.args.world_size > 1:
        return
    repeated = setup.args.num_train_epochs > 1 and setup.args.max_steps <= 0
    if repeated and not setup.model_args.use_peft and not audit_steps:
        setup.args.precompute_ref_log_probs = True


def load_policy_and_reference(
    setup: Setup,
    source: dict[str, Any],
    audit_steps: int,
    reference: dict[str, Any] | None = None,
) -> tuple[Any, Any]:
    """The policy and its reference, both from one pinned source unless the reference has its own.

    The reference is None where the policy itself serves: LoRA without its adapter; or, when its
    log-probabilities are precomputed, the policy before its first step. (Under FSDP TRL would
    load another for that, from an unpinned id, so there it is given one.)
    """
    precomputed = getattr(setup.args, "precompute_ref_log_probs", False)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    within = setup.model_args.use_peft or (precomputed and not audit_steps and not sharded)
    return _load(setup, source), None if within else _load(setup, reference or source)


def _load(setup: Setup, source: dict[str, Any]) -> Any:
    return load_policy(
        source["path"],
        source["revision"],
        setup.model_args.dtype,
        place=False,
        **setup.model_kwargs,
    )


def check_step_zero(trainer: Any, num_pairs: int = 32) -> None:
    """Makes sure that a DPO trainer's reference is the policy it starts from: every margin is 0.

    TRL takes its implicit reference from wherever the model's configuration points; a reference at
    another revision trains without complaint towards the wrong anchor.

    Raises:
        RuntimeError: The log-probabilities under policy and reference differ by more than rounding.
    """
    import torch

    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # the weights are in pieces until training begins
    rows = [trainer.train_dataset[i] for i in range(min(num_pairs, len(trainer.train_dataset)))]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    model = trainer.model
    was_training = model.training
    model.eval()
    held_aside = trainer.ref_model
    # Not `or`: a compiled model has no truth value.
    trainer.ref_model = model if held_aside is None else held_aside
    policy = torch.cat(trainer.compute_ref_log_probs(model, batch))
    trainer.ref_model = held_aside
    if "ref_chosen_logps" in batch:
        reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    else:
        reference = torch.cat(
            trainer.compute_ref_log_probs(held_aside if held_aside is not None else model, batch)
        )
    model.train(was_training)
    gap = (policy - reference).abs()
    # float32 sums differ in the sixth digit; bf16 in the third.
    half = trainer.args.bf16 or trainer.args.fp16 or model.dtype != torch.float32
    rounding = 1e-2 if half else 1e-4
    if bool((gap > rounding * (1 + reference.abs())).any()):
        raise RuntimeError(
            f"at step 0 policy and reference differ by up to {gap.max().item():.3g} nats on "
            f"{len(rows)} pairs; the reference is not the model that training starts from"
        )


def let_go(trainer: Any) -> None:
    """Frees what training held, before the evaluation loads the saved policy beside its reference.

    A trainer and its models refer to each other in circles, so their memory returns only when the
    collector has run.
    """
    import torch

    sharded_loading = trainer.is_deepspeed_enabled
    trainer.accelerator.free_memory()
    vars(trainer).clear()  # it is not used again, and half of what it holds holds the models
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sharded_loading:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # Under ZeRO-3 loading is a collective operation, and the other processes are done.
        unset_hf_deepspeed_config()
