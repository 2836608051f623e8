"""The loop draws from the model's own distribution, says so exactly, and leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from hf_align.sampling import decoding
from hf_align.sampling.decoding import can_draw, draw
from hf_align.sampling.picking import BLOCK, pick
from hf_align.types import InputError

VOCABULARY, END = 48, 1
ENDS = [END, *range(41, 48)]
"""Many, so that rows of random models end at different times."""
PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [12, 13, 14], [15, 16, 17, 18]]
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": END}
SMALL = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.2}
OPT = SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 16, "init_std": 0.2}
SOFTCAPS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "head_dim": 8}
GRANITE = {"logits_scaling": 0.5, "residual_multiplier": 0.7, "embedding_multiplier": 2.0}
LATENT = {
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
FAMILIES = {
    "llama": ("Llama", SMALL),
    "llama, grouped queries": ("Llama", SMALL | {"num_key_value_heads": 2}),
    "llama, eager": ("Llama", SMALL | {"attn_implementation": "eager"}),
    "gpt2": ("GPT2", COMMON | GPT2),
    "qwen2": ("Qwen2", SMALL | {"num_key_value_heads": 2}),
    "opt": ("OPT", OPT),
    "gpt_neox": ("GPTNeoX", SMALL),
    "gemma2": ("Gemma2", SMALL | SOFTCAPS | {"num_key_value_heads": 2}),
    "granite": ("Granite", SMALL | GRANITE),
    "deepseek, keys wider than values": ("DeepseekV3", SMALL | LATENT),
}
WINDOWED = ("Mistral", SMALL | {"sliding_window": 32, "num_key_value_heads": 2})


def build(family, seed=0):
    """A random model of a family, in evaluation mode, without dropout."""
    name, options = family
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**options)
        model = transformers.AutoModelForCausalLM.from_config(config)
        # Biases and norms start at 0 and 1, where mistakes about them do not show.
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def with_lora(model):
    """The same with LoRA on attention and head, its second factor not 0."""
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "lm_head"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.1))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return adapted


def drawn(model, prompts=PROMPTS, *, seed=0, **options):
    options = {"max_new_tokens": 24, "end_ids": ENDS} | options
    return draw(model, prompts, generator=torch.Generator().manual_seed(seed), **options)


def expected_logps(model, prompt, completion, temperature):
    """Of each token of a completion by one unpadded forward pass without a cache."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    every = torch.log_softmax(logits / temperature, -1)
    return every.gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("family", [*FAMILIES, "lora", "sliding window"])
def test_logps_are_those_of_a_plain_forward_pass(family):
    if family == "lora":
        model = with_lora(build(FAMILIES["llama"])).eval()
    else:
        model = build(WINDOWED if family == "sliding window" else FAMILIES[family])
    assert can_draw(model, max_length=32)
    result = drawn(model, temperature=0.7, num_samples=3, batch_size=8)
    lengths = {len(ids) for ids in result.completion_ids}
    assert len(lengths) > 3, "rows must end at different times for this to test anything"
    for row, (ids, logps) in enumerate(zip(result.completion_ids, result.logps, strict=True)):
        expected = expected_logps(model, PROMPTS[row // 3], ids, 0.7)
        assert logps.dtype == torch.float32
        torch.testing.assert_close(logps, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_at_temperature_0_it_is_greedy_search(family):
    model = build(FAMILIES[family], seed=3)
    result = drawn(model, temperature=1e-6, batch_size=3)
    for prompt, ids in zip(PROMPTS, result.completion_ids, strict=True):
        greedy = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=ENDS,
            pad_token_id=0,
        )
        assert ids == greedy[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_frequencies_match_the_softmax(temperature):
    """Two prompts of unequal length; each chi-square within 5 standard deviations of its mean."""
    model, n = build(FAMILIES["llama"]), 8000
    prompts = [[5, 6, 7, 8], [9]]
    result = drawn(model, prompts, num_samples=n, max_new_tokens=1, temperature=temperature)
    for g, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        probabilities = torch.softmax(logits / temperature, -1).numpy()
        counts = np.bincount(
            [ids[0] for ids in result.completion_ids[g * n : (g + 1) * n]], minlength=VOCABULARY
        )
        assert_frequencies(counts, n * probabilities)


def test_second_tokens_follow_the_first():
    """After dropping rows, too: P(second | first) of the most frequent first token."""
    model, n = build(FAMILIES["llama"]), 8000
    result = drawn(model, [[9]], num_samples=n, max_new_tokens=2)
    pairs = [ids for ids in result.completion_ids if len(ids) == 2]
    assert len(pairs) < n
    first = np.bincount([ids[0] for ids in pairs]).argmax()
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([[9, first]])).logits[0, -1], -1).numpy()
    seconds = [ids[1] for ids in pairs if ids[0] == first]
    counts = np.bincount(seconds, minlength=VOCABULARY)
    assert_frequencies(counts, len(seconds) * probabilities)


def assert_frequencies(counts, expected):
    frequent = expected > 5
    assert frequent.sum() > 5
    # The rare ones are one class, so that no mass is left out.
    counts = np.append(counts[frequent], counts[~frequent].sum())
    expected = np.append(expected[frequent], expected[~frequent].sum())
    chi_square = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    degrees = len(counts) - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [48, 8 * BLOCK, 8 * BLOCK + 1, 11 * BLOCK, 12 * BLOCK - 1])
def test_every_token_gets_its_share_of_the_uniforms(size):
    """One stage and two, whole blocks and not: shares of a grid of (u, v) within its resolution."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, size)
    logits[:, 3] = -torch.inf
    steps = 250
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    counts = torch.zeros(size)
    for u in grid:
        uniforms = torch.stack([u.expand(steps), grid], 1)
        tokens, logps = pick(logits.expand(steps, -1), uniforms)
        counts += torch.bincount(tokens[:, 0], minlength=size)
    probabilities = torch.softmax(logits[0], -1)
    assert counts[3] == 0
    torch.testing.assert_close(logps, torch.log(probabilities)[tokens[:, 0]], atol=1e-5, rtol=0)
    # An interval of the grid holds its length times 250 points, give or take one, in each stage.
    torch.testing.assert_close(counts / steps**2, probabilities, atol=2.1 / steps, rtol=0)


@pytest.mark.parametrize("size", [40, 20 * BLOCK + 5])
def test_the_ends_of_the_unit_interval_draw_tokens_that_can_occur(size):
    logits = torch.full((2, size), -torch.inf)
    logits[:, 7], logits[:, size - 9] = 0.0, 0.0
    lowest, highest = 0.0, 1.0 - 2.0**-53
    uniforms = torch.tensor([[lowest, lowest], [highest, highest]], dtype=torch.float64)
    tokens, logps = pick(logits, uniforms)
    assert tokens[:, 0].tolist() == [7, size - 9]
    torch.testing.assert_close(logps, torch.full((2,), np.log(0.5), dtype=torch.float32))


def test_halves_quarters_and_eighths_are_exact():
    logits = torch.log(torch.tensor([[4.0, 2.0, 0.0, 1.0, 1.0]])).expand(8, -1)
    uniforms = torch.arange(8, dtype=torch.float64)[:, None].expand(-1, 2) / 8
    assert pick(logits, uniforms)[0][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 3, 4]


def test_when_rows_are_dropped_changes_nothing(monkeypatch):
    """Each row has its own random numbers: a look every 5 steps, or never, draws the same."""
    model = build(FAMILIES["llama"])
    head = torch.nn.Linear(32, 1)
    at_once = drawn(model, num_samples=6, value_head=head)
    for every in (5, 100):
        monkeypatch.setattr(decoding, "_look_every", lambda device, every=every: every)
        later = drawn(model, num_samples=6, value_head=head)
        assert later.completion_ids == at_once.completion_ids
        for name in ("logps", "values"):
            for a, b in zip(getattr(later, name), getattr(at_once, name), strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_completions_end_with_one_end_token_or_at_the_limit():
    result = drawn(build(FAMILIES["llama"]), num_samples=40, end_ids=[END, 20], max_new_tokens=12)
    last = set()
    for ids in result.completion_ids:
        assert not {END, 20} & set(ids[:-1])
        assert len(ids) == 12 or ids[-1] in (END, 20)
        last.add(ids[-1])
    assert {END, 20} < last


def test_equal_generators_draw_equally_and_others_do_not():
    model = build(FAMILIES["gpt2"])
    first, same, other = (drawn(model, seed=seed) for seed in (1, 1, 2))
    assert first.completion_ids == same.completion_ids != other.completion_ids
    assert all(torch.equal(a, b) for a, b in zip(first.logps, same.logps, strict=True))
    fresh = [
        draw(model, PROMPTS, max_new_tokens=24, end_ids=[END]).completion_ids for _ in range(2)
    ]
    assert fresh[0] != fresh[1]


def test_nothing_of_the_model_or_the_global_random_state_changes():
    model = with_lora(build(FAMILIES["llama"])).train()
    model.base_model.model.model.layers[0].eval()
    training = {name: module.training for name, module in model.named_modules()}
    settings, head = model.generation_config.to_dict(), torch.nn.Linear(32, 1)
    state = torch.get_rng_state()
    result = drawn(model, value_head=head)
    assert {name: module.training for name, module in model.named_modules()} == training
    assert model.generation_config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_output_embeddings()._forward_pre_hooks
    # Dropout was off, whatever the mode.
    expected = expected_logps(model.eval(), PROMPTS[0], result.completion_ids[0], 1.0)
    torch.testing.assert_close(result.logps[0], expected, atol=1e-4, rtol=0)


def test_what_was_drawn_can_enter_a_loss():
    """Tensors made for inference only could not; checkpointing, too, must not be in the way."""
    model = build(FAMILIES["llama"]).train()
    model.gradient_checkpointing_enable()
    result = drawn(model, value_head=torch.nn.Linear(32, 1))
    scale = torch.ones((), requires_grad=True)
    sum((scale * row).sum() for row in [*result.logps, *result.values]).backward()
    assert scale.grad is not None


def test_values_are_of_the_states_before_each_token():
    model, head = build(FAMILIES["llama"]), torch.nn.Linear(32, 1)
    result = drawn(model, value_head=head, num_samples=2, with_logps=False)
    assert result.logps is None
    for row, ids in enumerate(result.completion_ids):
        prompt = PROMPTS[row // 2]
        with torch.no_grad():
            states = model.model(torch.tensor([prompt + ids])).last_hidden_state[0]
            expected = head(states[len(prompt) - 1 : -1])[:, 0]
        torch.testing.assert_close(result.values[row], expected, atol=1e-4, rtol=0)


def test_a_prompt_that_repeats_is_read_once():
    model, sizes = build(FAMILIES["llama"]), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    drawn(model, num_samples=4, max_new_tokens=2, end_ids=[])
    distinct = {tuple(ids) for ids in PROMPTS}
    assert sizes == [(len(distinct), 6), (4 * len(PROMPTS), 1)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Mamba", COMMON | {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}),
        ("Bloom", COMMON | {"hidden_size": 32, "n_layer": 1, "n_head": 2}),
        ("Falcon", SMALL | {"alibi": True}),
        ("Bert", SMALL),
        WINDOWED,
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_models_are_refused(name, options):
    assert not can_draw(build((name, options)))


def test_a_window_that_something_would_leave_is_refused():
    model = build(WINDOWED)
    assert can_draw(model, max_length=32)
    assert not can_draw(model, max_length=33)


def test_wrapped_models_other_adapters_and_encoders_are_refused():
    model = build(FAMILIES["llama"])
    assert can_draw(with_lora(build(FAMILIES["llama"])))
    assert not can_draw(torch.nn.Sequential(model))
    prompt_tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not can_draw(get_peft_model(model, prompt_tuning))
    t5 = transformers.T5Config(**COMMON, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    assert not can_draw(transformers.T5ForConditionalGeneration(t5))


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([[5], []], {}, "prompt 1 has no tokens"),
        ([[5]], {"temperature": 0.0}, "temperature is 0.0"),
        ([[5]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[5]], {"num_samples": 0}, "num_samples is 0"),
        ([[5]], {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_mistakes_are_named(prompts, changes, message):
    with pytest.raises(InputError, match=message):
        drawn(build(FAMILIES["llama"]), prompts, **changes)


def test_logits_that_are_no_numbers_are_refused():
    model = build(FAMILIES["llama"])
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        drawn(model)


def test_no_prompts_draw_nothing():
    assert drawn(build(FAMILIES["llama"]), []).completion_ids == []
