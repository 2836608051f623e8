"""Sampling is from the model's own distribution, reproducible, and leaves no trace."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_align.sampling import sample_completions
from hf_align.types import InputError

EOS = 1


def next_token_probabilities(model, prompt_ids, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids])).logits[0, -1]
    return torch.softmax(logits / temperature, -1).numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_token_frequencies_match_the_softmax(make_model, tokenizer, temperature):
    """Two prompts of unequal length, so that one is padded; chi-square with 39 df has SD 8.8."""
    model = make_model(0)
    prompts, n = ["w1 w2 w3 w4 w5", "w7"], 4000
    samples = sample_completions(
        model,
        tokenizer,
        prompts,
        num_samples=n,
        max_new_tokens=1,
        temperature=temperature,
        batch_size=1000,
    )
    for g, prompt in enumerate(prompts):
        probabilities = next_token_probabilities(model, tokenizer(prompt)["input_ids"], temperature)
        tokens = [samples.completion_ids[i][0] for i in np.flatnonzero(samples.prompt_index == g)]
        counts = np.bincount(tokens, minlength=len(probabilities))
        expected = n * probabilities
        frequent = expected > 5
        chi_square = (((counts - expected) ** 2) / expected)[frequent].sum()
        degrees = frequent.sum() - 1
        assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_the_checkpoints_own_generation_settings_do_not_apply(make_model, tokenizer):
    """top_k 1, suppressed words and a repetition penalty would each reshape the distribution."""
    plain, opinionated = make_model(1), make_model(1)
    opinionated.generation_config.update(
        top_k=1,
        temperature=0.1,
        repetition_penalty=3.0,
        suppress_tokens=[5, 6],
        min_new_tokens=4,
        forced_eos_token_id=7,
    )
    before = opinionated.generation_config.to_dict()
    arguments = {"num_samples": 50, "max_new_tokens": 6, "seed": 3}
    expected = sample_completions(plain, tokenizer, ["w1 w2"], **arguments)
    got = sample_completions(opinionated, tokenizer, ["w1 w2"], **arguments)
    assert got.completion_ids == expected.completion_ids
    assert opinionated.generation_config.to_dict() == before


def test_nothing_follows_the_end_token_and_ended_says_so(make_model, tokenizer):
    samples = sample_completions(
        make_model(2), tokenizer, ["w1", "w2 w3"], num_samples=200, max_new_tokens=12
    )
    assert 0 < samples.ended.sum() < len(samples)
    for ids, ended in zip(samples.completion_ids, samples.ended, strict=True):
        assert EOS not in ids[:-1]
        assert (ids[-1] == EOS) == ended
        assert len(ids) == 12 or ended
    assert not any("<eos>" in text for text in samples.texts)
    assert samples.lengths.tolist() == [len(ids) for ids in samples.completion_ids]


def test_every_one_of_several_end_tokens_ends(make_model, tokenizer):
    model = make_model(2)
    model.generation_config.eos_token_id = [5, 6]
    samples = sample_completions(model, tokenizer, ["w1"], num_samples=300, max_new_tokens=12)
    last = {
        ids[-1] for ids, ended in zip(samples.completion_ids, samples.ended, strict=True) if ended
    }
    assert last == {EOS, 5, 6}
    assert all(not {EOS, 5, 6} & set(ids[:-1]) for ids in samples.completion_ids)


def test_seeded_and_without_touching_the_global_random_state(make_model, tokenizer):
    model = make_model(3)
    torch.manual_seed(11)
    untouched = torch.rand(3)
    torch.manual_seed(11)
    first = sample_completions(model, tokenizer, ["w1"], num_samples=20, max_new_tokens=5, seed=4)
    assert torch.equal(torch.rand(3), untouched)
    torch.rand(7)
    second = sample_completions(model, tokenizer, ["w1"], num_samples=20, max_new_tokens=5, seed=4)
    other = sample_completions(model, tokenizer, ["w1"], num_samples=20, max_new_tokens=5, seed=5)
    assert first.completion_ids == second.completion_ids
    assert first.completion_ids != other.completion_ids


def test_training_mode_is_restored_module_by_module(make_model, tokenizer):
    model = make_model(4)
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    sample_completions(model, tokenizer, ["w1"], max_new_tokens=3)
    assert [module.training for module in model.modules()] == before
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False


def test_conversations_go_through_the_chat_template(make_model, tokenizer):
    prompt = [{"role": "user", "content": "w3"}]
    samples = sample_completions(make_model(5), tokenizer, [prompt, "w3"], max_new_tokens=3)
    assert tokenizer.decode(samples.prompt_ids[0]) == "<user> w3 <eos> <assistant>"
    assert tokenizer.decode(samples.prompt_ids[1]) == "w3"
    assert samples.completions[0] == [{"role": "assistant", "content": samples.texts[0]}]
    assert samples.completions[1] == samples.texts[1]


def test_order_is_the_callers_whatever_the_lengths(make_model, tokenizer):
    prompts = ["w1 w2 w3", "w4", "w5 w6"]
    samples = sample_completions(
        make_model(6), tokenizer, prompts, num_samples=2, max_new_tokens=4, batch_size=4
    )
    assert samples.prompt_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert samples.completion_prompts == [prompts[i] for i in samples.prompt_index]
    assert [len(ids) for ids in samples.prompt_ids] == [3, 1, 2]
    assert all(samples.completion_ids)


def test_padded_batches_hold_every_token_once(make_model, tokenizer):
    samples = sample_completions(
        make_model(6), tokenizer, ["w1 w2 w3", "w4"], num_samples=5, max_new_tokens=6
    )
    seen = []
    for rows, batch in samples.padded_batches(4, pad_token_id=0):
        for row, i in enumerate(rows):
            real = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
            completion = batch["input_ids"][row][batch["completion_mask"][row] == 1].tolist()
            assert completion == samples.completion_ids[i]
            assert real == samples.prompt_ids[samples.prompt_index[i]] + completion
        seen += rows.tolist()
    assert sorted(seen) == list(range(10))


def test_a_peft_policy_samples_and_keeps_its_settings(make_model, tokenizer):
    base = make_model(7)
    expected = sample_completions(base, tokenizer, ["w1"], num_samples=8, max_new_tokens=5)
    policy = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    settings = base.generation_config
    settings.top_k = 1
    got = sample_completions(policy, tokenizer, ["w1"], num_samples=8, max_new_tokens=5)
    assert got.completion_ids == expected.completion_ids  # a fresh adapter changes nothing
    assert policy.generation_config is settings
    assert policy.get_base_model().generation_config is settings


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        ([], {}, "no prompts"),
        (["w1", ""], {}, "prompt 1 has no tokens"),
        (["w1"], {"temperature": 0.0}, "temperature is 0.0"),
        (["w1"], {"num_samples": 0}, "num_samples is 0"),
        (["w1"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_mistakes_are_named(make_model, tokenizer, prompts, changes, message):
    with pytest.raises(InputError, match=message):
        sample_completions(make_model(0), tokenizer, prompts, **{"max_new_tokens": 3} | changes)


def test_two_thousand_short_completions_take_seconds(make_model, tokenizer):
    """520 prompts x 4 samples x 26 tokens on a 0.1 M-parameter model, one thread."""
    model = make_model(8, hidden_size=64, scale=0.02)
    prompts = [" ".join(f"w{(i + j) % 36}" for j in range(4 + i % 3)) for i in range(520)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    samples = sample_completions(
        model, tokenizer, prompts, num_samples=4, max_new_tokens=26, batch_size=512
    )
    elapsed = time.process_time() - start
    torch.set_num_threads(threads)
    assert len(samples) == 2080
    assert elapsed < 6
