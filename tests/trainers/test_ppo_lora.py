"""LoRA policies: the reference is the model without its adapter; a value model is never LoRA."""

import gc

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from hf_align.trainers.value_models import is_value_parameter
from hf_align.types import InputError

# PEFT starts B at zero, so that A gets its first gradient at the second step.
STEPS = 3


def lora(**options):
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **options)


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def num_policies():
    """Causal language models that are alive."""
    gc.collect()
    return sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects())


def train(make_trainer, policy, peft, kind="ppo", **options):
    trainer = make_trainer(
        kind,
        policy=policy,
        max_steps=STEPS,
        num_iterations=1,
        trainer_options={} if peft is None else {"peft_config": peft},
        **options,
    )
    before = weights_of(trainer.model)
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    return trainer, moved


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_the_adapter_learns_and_there_is_one_model(kind, dropout, make_trainer, make_policy):
    alive = num_policies()
    trainer, moved = train(make_trainer, make_policy(), lora(lora_dropout=dropout), kind)
    assert num_policies() == alive + 1
    assert trainer.reference is None
    names = {name for name, _ in trainer.model.named_parameters()}
    value = {name for name in names if is_value_parameter(name)}
    assert len(value) == (2 if kind == "ppo" else 0)
    assert moved == {name for name in names if "lora_" in name} | value
    logs = trainer.state.log_history
    assert trainer.first_ratio_gap < 1e-5
    assert logs[0]["kl/sequence_k1"] == pytest.approx(0.0, abs=1e-6)
    assert abs(logs[-2]["kl/sequence_k1"]) > 1e-4


@pytest.mark.parametrize("value_model", ["policy", "reward"])
@pytest.mark.parametrize("given", ["config", "model"])
def test_a_value_model_of_its_own_is_trained_whole(
    value_model, given, make_trainer, make_policy, make_reward
):
    policy = make_policy() if given == "config" else get_peft_model(make_policy(), lora())
    peft = lora() if given == "config" else None
    trainer, moved = train(
        make_trainer, policy, peft, rewards=make_reward(), value_model=value_model
    )
    value = trainer.causal_model.value_model
    assert not [name for name, _ in value.named_modules() if "lora" in name]
    own = {name for name, _ in trainer.model.named_parameters() if is_value_parameter(name)}
    assert len(own) == len(list(value.parameters())) > 20 and own <= moved
    assert all(parameter.requires_grad for parameter in value.parameters())
    adapters = {name for name in moved if "lora_" in name}
    assert adapters and moved == own | adapters
    assert trainer.first_ratio_gap < 1e-5


def test_an_adapter_that_was_trained_before_is_its_own_reference(make_trainer, make_policy):
    policy = get_peft_model(make_policy(), lora())
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[6, 8, 9, 10]])
    with torch.no_grad():
        start = policy(ids).logits
        with policy.disable_adapter():
            assert (policy(ids).logits - start).abs().max() > 0.1
    trainer, moved = train(make_trainer, policy, None)
    assert trainer.state.log_history[0]["kl/sequence_k1"] == pytest.approx(0.0, abs=1e-5)
    assert not [name for name in moved if ".ref." in name]
    assert [name for name in moved if ".default." in name]
    trainer.model.eval()
    with torch.no_grad(), trainer._as_reference() as reference:
        torch.testing.assert_close(reference(ids).logits, start)
    with torch.no_grad():
        assert (trainer.model(ids).logits - start).abs().max() > 1e-4


def test_a_reference_beside_an_adapter_is_refused(make_trainer, make_policy):
    with pytest.raises(InputError, match="the reference is the base"):
        make_trainer(trainer_options={"peft_config": lora(), "ref_model": make_policy(1)})


def test_the_saved_adapter_is_an_adapter_and_nothing_else(make_trainer, make_policy, tmp_path):
    trainer, _ = train(make_trainer, make_policy(), lora(), save_strategy="steps", save_steps=3)
    trainer.save_model(str(tmp_path / "adapter"))
    ids = torch.tensor([[6, 8, 9, 10]])
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(ids).logits
    for folder in (tmp_path / "adapter", tmp_path / "run" / "checkpoint-3"):
        loaded = PeftModel.from_pretrained(make_policy(), folder).eval()
        names = {name for name, _ in loaded.named_parameters()}
        assert not any(map(is_value_parameter, names))
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, expected)
    assert not list((tmp_path / "adapter").glob("value*"))
    assert (tmp_path / "run" / "checkpoint-3" / "value_model.safetensors").is_file()
