"""The completion head against dense forwards: families, slices, fallback, adapters, gradients."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)

from hf_align.trainers import completion_head
from hf_align.trainers.completion_head import add_completion_head
from hf_align.trainers.value_models import value_model_from_policy

VOCABULARY = 61

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    # Sharp distributions: at the usual 0.02 caps and scales would hardly show.
    "initializer_range": 0.25,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**_GROUPED),
    "qwen2": Qwen2Config(**_GROUPED, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.25,
    ),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        init_std=0.25,
    ),
    "gpt_neox": GPTNeoXConfig(**_COMMON),
    "gemma2": Gemma2Config(
        **_GROUPED, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0
    ),
    "granite": GraniteConfig(
        **_GROUPED,
        logits_scaling=0.4,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "cohere": CohereConfig(**_GROUPED, logit_scale=3.0),
    "mixtral": MixtralConfig(**_GROUPED, num_local_experts=4, num_experts_per_tok=2),
}


class TripledLlama(LlamaForCausalLM):
    """A family whose logits are not what its head makes of its last hidden states."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output


def built(family):
    """A random model in evaluation mode with a value head on its trunk."""
    torch.manual_seed(7)
    if family == "tripled":
        model = TripledLlama(FAMILIES["llama"])
    else:
        model = AutoModelForCausalLM.from_config(
            FAMILIES[family], attn_implementation="eager" if family == "gemma2" else None
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    width = model.base_model(torch.ones(1, 1, dtype=torch.long)).last_hidden_state.shape[-1]
    model.value_head = nn.Linear(width, 1)
    return model.eval()


def batch(seed=3):
    """Right-padded ids, what is scored, and the unpadded sequences with their first scored place.

    Contexts of 1 to 6 tokens, targets of 1 to 9.
    """
    generator = torch.Generator().manual_seed(seed)
    contexts, targets = [3, 1, 6, 2], [9, 4, 1, 6]
    width = max(c + t for c, t in zip(contexts, targets, strict=True))
    ids = torch.zeros(4, width, dtype=torch.long)
    mask = torch.zeros(4, width, dtype=torch.bool)
    rows = []
    for i, (context, target) in enumerate(zip(contexts, targets, strict=True)):
        length = context + target
        ids[i, :length] = torch.randint(2, VOCABULARY, (length,), generator=generator)
        mask[i, context:length] = True
        rows.append((ids[i, :length], list(range(context, length))))
    return SimpleNamespace(ids=ids, mask=mask, rows=rows, count=sum(targets))


def dense(model, rows, temperature=1.0):
    """Log-probabilities, entropies and values from whole forwards of one sequence at a time."""
    logps, entropies, values = [], [], []
    for ids, places in rows:
        logits = type(model).forward(model, input_ids=ids[None]).logits[0] / temperature
        hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0]
        for place in places:
            chances = logits[place - 1].softmax(-1)
            logps.append(chances[ids[place]].log())
            entropies.append(torch.special.entr(chances).sum())
            values.append(model.value_head(hidden[place - 1])[0])
    return torch.stack(logps), torch.stack(entropies), torch.stack(values)


def scored(model, data, **options):
    options = {"parts": "both", "with_entropy": True} | options
    return model(input_ids=data.ids, score_mask=data.mask, **options)


def gradients(outputs, parameters):
    """Of one weighted sum of all outputs, so that none can stand in for another."""
    total = 0.0
    for scale, output in zip((1.0, 0.5, 2.0), outputs, strict=True):
        total = total + scale * (output * torch.linspace(-1, 1, len(output))).sum()
    return torch.autograd.grad(total, parameters, allow_unused=True)


def assert_same_gradients(found, expected):
    for a, b in zip(found, expected, strict=True):
        if b is None:
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * (1 + b.abs().max().item()))


def head_rows(model):
    """Collects how many positions the output embeddings see, call by call."""
    seen = []

    def note(module, inputs):
        seen.append(inputs[0].shape[:-1].numel())

    model.get_output_embeddings().register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("family", [*FAMILIES, "tripled"])
def test_it_equals_a_dense_forward_of_each_sequence_alone(family, temperature):
    model, data = built(family), batch()
    parameters = list(model.parameters())
    expected = dense(model, data.rows, temperature)
    expected_gradients = gradients(expected, parameters)
    add_completion_head(model, temperature)
    seen = head_rows(model)
    found = scored(model, data)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == (data.count,)
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert_same_gradients(gradients(found, parameters), expected_gradients)
    # Known families pay for the scored positions alone, the unknown one for all.
    assert seen == [data.count if family != "tripled" else data.ids.numel()]


def test_a_mask_with_holes_gives_its_entries_row_by_row():
    model, data = built("llama"), batch()
    add_completion_head(model)
    every, _, _ = scored(model, data)
    kept = torch.rand(data.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    some, _, _ = model(input_ids=data.ids, score_mask=data.mask & kept)
    torch.testing.assert_close(some, every[kept[data.mask]])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_slices_change_nothing_but_the_memory(family, with_entropy, monkeypatch):
    model, data = built(family), batch()
    parameters = list(model.parameters())
    add_completion_head(model, 0.7)
    options = {"with_entropy": with_entropy, "parts": "both" if with_entropy else "policy"}
    whole = [part for part in scored(model, data, **options) if part is not None]
    expected = gradients((whole * 3)[:3], parameters)

    monkeypatch.setattr(completion_head, "_SLICE_CPU", 3 * VOCABULARY + 5)
    seen = head_rows(model)
    sliced = [part for part in scored(model, data, **options) if part is not None]
    assert seen == [3] * (data.count // 3) + [data.count % 3] * (data.count % 3 > 0)
    torch.testing.assert_close(sliced, whole)
    assert_same_gradients(gradients((sliced * 3)[:3], parameters), expected)
    assert len(seen) == 2 * -(-data.count // 3)  # each slice was made again for its gradient
    with torch.no_grad():
        torch.testing.assert_close(scored(model, data, **options)[0], whole[0])


def test_parts_are_computed_only_where_asked_for():
    model, data = built("llama"), batch()
    logps, _, values = dense(model, data.rows)
    add_completion_head(model)
    seen = head_rows(model)
    found = scored(model, data, parts="policy", with_entropy=False)
    assert found[1] is found[2] is None
    torch.testing.assert_close(found[0], logps)
    found = scored(model, data, parts="value")
    assert found[0] is found[1] is None
    torch.testing.assert_close(found[2], values)
    assert len(seen) == 1


def test_a_value_model_of_its_own_reads_the_states_before_each_token():
    model, data = built("llama"), batch()
    del model.value_head
    value = value_model_from_policy(model)
    nn.init.normal_(value.head.weight)
    expected = []
    for ids, places in data.rows:
        hidden = value.backbone(input_ids=ids[None]).last_hidden_state[0]
        expected += [value.head(hidden[place - 1])[0] for place in places]
    add_completion_head(model)
    model.add_module("value_model", value)
    logps, _, values = scored(model, data)
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-4, atol=1e-4)
    # Its loss reaches it alone, and the policy's loss the policy alone.
    named = dict(model.named_parameters())
    for output, own in ((logps, False), (values, True)):
        grads = torch.autograd.grad(output.sum(), named.values(), allow_unused=True)
        reached = {name for name, grad in zip(named, grads, strict=True) if grad is not None}
        assert reached == {name for name in named if name.startswith("value_model.") == own}
    torch.testing.assert_close(scored(model, data, parts="value")[2], values)


@pytest.mark.parametrize("family", ["llama", "gpt2", "tripled"])
def test_without_a_mask_the_model_is_unchanged(family):
    model, data = built(family), batch()
    prompts = data.ids[:, :5].clone()
    attention = torch.ones_like(prompts)
    attention[1, :2] = 0
    options = {
        "input_ids": prompts,
        "attention_mask": attention,
        "max_new_tokens": 8,
        "pad_token_id": 0,
    }

    def outcomes():
        torch.manual_seed(0)
        return [
            model.generate(**options, do_sample=False),
            model.generate(**options, do_sample=True, top_k=0),
            model(data.ids, labels=data.ids).loss,
            model(prompts, attention_mask=attention).logits,
        ]

    before = outcomes()
    add_completion_head(model, 0.7)
    for a, b in zip(outcomes(), before, strict=True):
        assert torch.equal(a, b)
    assert inspect.signature(model.forward) == inspect.signature(type(model).forward.__get__(model))


def test_adding_it_twice_keeps_the_last_temperature():
    model, data = built("llama"), batch()
    expected, _, _ = dense(model, data.rows, 0.7)
    add_completion_head(model, 2.0)
    add_completion_head(model, 0.7)
    torch.testing.assert_close(scored(model, data)[0], expected)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_an_adapted_policy_is_scored_with_and_without_its_adapter(targets):
    base, data = built("llama"), batch()
    without, _, _ = dense(base, data.rows)
    del base.value_head
    torch.manual_seed(1)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=64,
        target_modules=targets,
        init_lora_weights=False,
    )
    policy = get_peft_model(base, lora).eval()
    inner = policy.get_base_model()
    inner.add_module("value_head", nn.Linear(32, 1))
    expected = dense(inner, data.rows)
    assert (expected[0] - without).abs().max() > 0.1
    trained = [p for p in policy.parameters() if p.requires_grad]
    expected_gradients = gradients(expected, trained)
    add_completion_head(inner)
    found = scored(policy, data)
    torch.testing.assert_close(list(found), list(expected), rtol=1e-4, atol=1e-4)
    assert all(gradient is not None for gradient in expected_gradients)
    assert_same_gradients(gradients(found, trained), expected_gradients)
    with policy.disable_adapter():
        torch.testing.assert_close(scored(policy, data)[0], without, rtol=1e-4, atol=1e-4)


def test_an_adapted_head_is_scored_through_its_adapter():
    base, data = built("llama"), batch()
    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["lm_head"], init_lora_weights=False)
    policy = get_peft_model(base, lora).eval()
    inner = policy.get_base_model()
    expected = dense(inner, data.rows)
    add_completion_head(inner)
    torch.testing.assert_close(list(scored(policy, data)), list(expected), rtol=1e-4, atol=1e-4)


def test_half_precision_is_scored_in_float32():
    model, data = built("llama"), batch()
    expected, _, _ = dense(model, data.rows)
    model = model.to(torch.bfloat16)
    add_completion_head(model)
    found = scored(model, data)
    assert all(part.dtype == torch.float32 for part in found)
    assert (found[0] - expected).abs().max() < 0.3


def test_training_mode_is_left_as_it_was():
    for training in (True, False):
        model = built("llama").train(training)
        add_completion_head(model)
        assert all(module.training == training for module in model.modules())
