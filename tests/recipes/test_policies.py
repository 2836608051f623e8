"""Which models a run keeps in memory, and when the reference is computed beforehand."""

import gc
from types import SimpleNamespace

import pytest

from hf_align.recipes import _policies as policies
from hf_align.recipes._parser import Choices
from hf_align.types import InputError


def setup_with(peft=False, asked=False, **args):
    given = {"precompute_ref_log_probs": asked, "sync_ref_model": False, "num_train_epochs": 3.0}
    given |= {"max_steps": -1, "world_size": 1}
    return SimpleNamespace(
        args=SimpleNamespace(**(given | args)), model_args=SimpleNamespace(use_peft=peft)
    )


@pytest.mark.parametrize(
    ("setup", "audits", "precomputed"),
    [
        (setup_with(), 0, True),
        (setup_with(num_train_epochs=1.0), 0, False),
        (setup_with(max_steps=10), 0, False),
        (setup_with(peft=True), 0, False),
        (setup_with(), 10, False),
        (setup_with(sync_ref_model=True), 0, False),
        (setup_with(world_size=2), 0, False),
    ],
    ids=["epochs", "one epoch", "steps", "LoRA", "audits", "moving", "two processes"],
)
def test_the_reference_is_computed_beforehand_only_where_that_saves_work(
    setup, audits, precomputed
):
    policies.choose_precompute(Choices("dpo", {}, {}), setup, audits)
    assert setup.args.precompute_ref_log_probs is precomputed


def test_precomputing_in_several_processes_is_refused():
    asked = Choices("dpo", {"precompute_ref_log_probs": True}, {})
    with pytest.raises(InputError, match="one process only"):
        policies.choose_precompute(asked, setup_with(asked=True, world_size=2), 0)


@pytest.mark.parametrize(
    ("asked", "audits", "references"), [(False, 0, 1), (True, 0, 0), (True, 5, 1)]
)
def test_a_precomputed_reference_needs_no_second_model(testbed, asked, audits, references):
    setup = setup_with(asked=asked)
    setup.model_args.dtype, setup.model_kwargs = "float32", {}
    source = {"path": str(testbed.policy_path), "revision": None}
    policy, reference = policies.load_policy_and_reference(setup, source, audits)
    assert policy is not None and (reference is not None) == bool(references)


def test_what_training_held_is_freed_before_the_evaluation(testbed, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    from hf_align.testbed import tokenizer

    gc.collect()
    before = sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())
    models = [AutoModelForCausalLM.from_pretrained(testbed.policy_path) for _ in range(2)]
    row = {"prompt": "mention tea :", "chosen": "tea", "rejected": "so"}
    trainer = DPOTrainer(
        model=models[0],
        ref_model=models[1],
        args=DPOConfig(
            output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none"
        ),
        train_dataset=Dataset.from_list([row] * 8),
        processing_class=tokenizer(),
    )
    trainer.train()
    models.clear()
    policies.let_go(trainer)
    after = sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())
    assert after == before
    assert torch.is_grad_enabled()
