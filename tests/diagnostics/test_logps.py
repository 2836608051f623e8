"""Scores of samples and pairs against plain forward passes and TRL's own tokenisation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_align.diagnostics.kl import check_consistency, consistency_z
from hf_align.diagnostics.logps import answer_logps, pair_logps, score_samples
from hf_align.sampling import sample_completions
from hf_align.types import InputError

PROMPTS = ["w1 w2 w3 w4 w5", "w7", "w9 w3"]


def token_log_probs(model, prompt_ids, completion_ids, temperature=1.0):
    """(T, V) log-probabilities by one unpadded forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0]
    steps = logits[len(prompt_ids) - 1 : -1].double() / temperature
    return torch.log_softmax(steps, -1).numpy()


@pytest.fixture(scope="module")
def sampled(make_model, tokenizer):
    model = make_model(0)
    return sample_completions(model, tokenizer, PROMPTS, num_samples=7, max_new_tokens=9)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_one_unpadded_forward_pass_per_row(make_model, sampled, temperature):
    policy, reference = make_model(0), make_model(1)
    scores = score_samples(
        policy, reference, sampled, batch_size=4, time_chunk=2, temperature=temperature
    )
    for i, completion_ids in enumerate(sampled.completion_ids):
        prompt_ids = sampled.prompt_ids[sampled.prompt_index[i]]
        p = token_log_probs(policy, prompt_ids, completion_ids, temperature)
        q = token_log_probs(reference, prompt_ids, completion_ids, temperature)
        steps = np.arange(len(completion_ids))
        logp, ref_logp = p[steps, completion_ids].sum(), q[steps, completion_ids].sum()
        assert scores.logp[i] == pytest.approx(logp, abs=1e-4)
        assert scores.reference_logp[i] == pytest.approx(ref_logp, abs=1e-4)
        assert scores.k1[i] == pytest.approx(logp - ref_logp, abs=1e-4)
        assert scores.rao_blackwell[i] == pytest.approx((np.exp(p) * (p - q)).sum(), abs=1e-4)
        entropy = -(np.exp(p) * p).sum(1).mean()
        assert scores.entropy[i] == pytest.approx(entropy, abs=1e-4)
        assert scores.reference_nll[i] == pytest.approx(-ref_logp / len(steps), abs=1e-4)
    assert scores.length.tolist() == sampled.lengths.tolist()


def test_learned_absolute_positions_start_at_the_first_real_token(sampled, tokenizer):
    """GPT-2 sees a left-padded prompt as shifted unless position ids say otherwise."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config).eval()
    scores = score_samples(model, model, sampled, batch_size=21)
    for i, completion_ids in enumerate(sampled.completion_ids):
        log_probs = token_log_probs(
            model, sampled.prompt_ids[sampled.prompt_index[i]], completion_ids
        )
        expected = log_probs[np.arange(len(completion_ids)), completion_ids].sum()
        assert scores.logp[i] == pytest.approx(expected, abs=1e-4)


def test_a_policy_against_itself_has_kl_zero(make_model, sampled):
    policy = make_model(0)
    for reference in (policy, make_model(0)):
        scores = score_samples(policy, reference, sampled)
        assert np.abs(scores.k1).max() <= 1e-6
        assert np.abs(scores.rao_blackwell).max() <= 1e-6
        assert check_consistency(scores.k1, scores.rao_blackwell, sampled.prompt_index).consistent


def test_an_untrained_head_has_the_entropy_of_the_uniform_distribution(make_model, sampled):
    model = make_model(0)
    torch.nn.init.zeros_(model.lm_head.weight)
    scores = score_samples(model, model, sampled)
    assert scores.entropy == pytest.approx(np.log(40), abs=1e-6)
    assert scores.reference_nll == pytest.approx(np.log(40), abs=1e-6)


def test_k1_and_rao_blackwell_agree_on_the_policys_own_samples(make_model, tokenizer):
    policy, reference = make_model(0), make_model(1)
    prompts = [f"w{i} w{i + 1}" for i in range(30)]
    samples = sample_completions(
        policy, tokenizer, prompts, num_samples=20, max_new_tokens=8, batch_size=600
    )
    scores = score_samples(policy, reference, samples, batch_size=200)
    check = check_consistency(scores.k1, scores.rao_blackwell, samples.prompt_index)
    assert check.consistent
    assert check.rao_blackwell.value > 1
    assert (scores.rao_blackwell >= -1e-6).all()
    assert scores.rao_blackwell.std() < scores.k1.std()


def test_the_check_diverges_when_the_scorer_masks_a_token(make_model, tokenizer):
    policy, reference = make_model(0), make_model(1)
    prompts = [f"w{i} w{i + 1}" for i in range(30)]
    samples = sample_completions(
        policy, tokenizer, prompts, num_samples=20, max_new_tokens=8, batch_size=600
    )
    common = np.bincount([t for ids in samples.completion_ids for t in ids]).argmax()

    def suppress(module, inputs, logits):
        logits = logits.clone()
        logits[..., common] -= 8
        return logits

    policy.lm_head.register_forward_hook(suppress)
    scores = score_samples(policy, reference, samples, batch_size=200)
    assert abs(consistency_z(scores.k1, scores.rao_blackwell, samples.prompt_index)) > 4


def test_a_peft_policy_is_its_own_reference_without_the_adapter(make_model, sampled):
    policy = get_peft_model(
        make_model(0), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    )
    fresh = score_samples(policy, None, sampled)
    assert np.abs(fresh.k1).max() <= 1e-6
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    moved = score_samples(policy, None, sampled)
    expected = score_samples(policy, make_model(0), sampled)
    assert moved.rao_blackwell.mean() > 0.01
    assert moved.rao_blackwell == pytest.approx(expected.rao_blackwell, abs=1e-5)


def test_a_full_policy_without_reference_is_a_mistake(make_model, sampled):
    with pytest.raises(InputError, match="give a reference model"):
        score_samples(make_model(0), None, sampled)


def test_different_vocabularies_and_empty_completions_are_refused(make_model, sampled):
    larger = make_model(1)
    larger.resize_token_embeddings(44)
    with pytest.raises(ValueError, match="40 tokens and the reference 44"):
        score_samples(make_model(0), larger, sampled)
    empty = SimpleNamespace(prompt_index=[0, 0], prompt_ids=[[3]], completion_ids=[[4], []])
    with pytest.raises(ValueError, match="completion of sample 1 has no tokens"):
        score_samples(make_model(0), make_model(0), empty)


def test_scoring_restores_the_training_mode(make_model, sampled):
    policy, reference = make_model(0).train(), make_model(1)
    score_samples(policy, reference, sampled)
    assert policy.training
    assert not reference.training


TEXTS = {
    "prompt": ["w1 w2", "w3 ", "w5 w6 w7"],
    "chosen": [" w4 w5", "w6", " w1 w2 w3 w4 <eos>"],
    "rejected": [" w9", "w8 w9 w1", " w4"],
}
CONVERSATIONS = {
    column: [[{"role": "user" if column == "prompt" else "assistant", "content": t}] for t in texts]
    for column, texts in TEXTS.items()
}


@pytest.mark.parametrize("columns", [TEXTS, CONVERSATIONS], ids=["text", "conversation"])
@pytest.mark.parametrize("max_length", [None, 5])
def test_pair_logps_equal_trls_dpo_trainer(make_model, tokenizer, tmp_path, columns, max_length):
    """TRL prepares and collates the same rows; one unpadded forward pass scores its tokens."""
    from trl import DPOConfig, DPOTrainer

    model = make_model(0)
    config = DPOConfig(
        output_dir=str(tmp_path), max_length=max_length, report_to="none", use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(
        model=make_model(0),
        ref_model=make_model(0),
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
    )
    prepared = list(trainer.train_dataset)
    assert prepared if max_length else len(prepared) == 3
    for column in ("chosen", "rejected"):
        logps, lengths = pair_logps(
            model,
            tokenizer,
            columns["prompt"],
            columns[column],
            batch_size=2,
            max_length=max_length,
            time_chunk=2,
        )
        kept = np.flatnonzero(lengths)
        assert len(kept) == len(prepared)
        for i, row in zip(kept, prepared, strict=True):
            room = None if max_length is None else max_length - len(row["prompt_ids"])
            completion_ids = row[f"{column}_ids"][:room]
            log_probs = token_log_probs(model, row["prompt_ids"], completion_ids)
            expected = log_probs[np.arange(len(completion_ids)), completion_ids].sum()
            assert lengths[i] == len(completion_ids)
            assert logps[i] == pytest.approx(expected, abs=1e-4)


def test_the_completion_starts_where_prompt_and_full_text_diverge(make_model, tokenizer):
    """A template whose generation prompt the full conversation does not repeat."""
    model, template = make_model(0), tokenizer.chat_template
    prompt = [{"role": "user", "content": "w1"}]
    completion = [{"role": "assistant", "content": "w2"}]
    try:
        tokenizer.chat_template = template.replace("<assistant> {%", "<assistant> w9 w9 {%")
        logps, lengths = pair_logps(model, tokenizer, [prompt], [completion])
    finally:
        tokenizer.chat_template = template
    prompt_ids = tokenizer("<user> w1 <eos> <assistant>")["input_ids"]
    completion_ids = tokenizer("w2 <eos>")["input_ids"]
    log_probs = token_log_probs(model, prompt_ids, completion_ids)
    assert lengths.tolist() == [2]
    assert logps[0] == pytest.approx(log_probs[[0, 1], completion_ids].sum(), abs=1e-4)


def test_the_first_token_after_an_empty_prompt_is_context(make_model, tokenizer):
    model = make_model(0)
    logps, lengths = pair_logps(model, tokenizer, [""], ["w1 w2"])
    log_probs = token_log_probs(model, *(tokenizer(t)["input_ids"] for t in ("w1", "w2 <eos>")))
    assert lengths.tolist() == [2]
    expected = log_probs[[0, 1], tokenizer("w2 <eos>")["input_ids"]].sum()
    assert logps[0] == pytest.approx(expected, abs=1e-4)


def test_a_prompt_that_fills_max_length_leaves_no_tokens(make_model, tokenizer):
    logps, lengths = pair_logps(
        make_model(0), tokenizer, ["w1 w2 w3", "w1"], [" w4", " w4"], max_length=3
    )
    assert lengths.tolist() == [0, 2]
    assert logps[0] == 0
    assert logps[1] < 0


def test_an_answer_is_predicted_by_its_whole_question_and_nothing_else(make_model):
    model = make_model(0).train()
    questions, answers = [[4, 5, 6, 7, 8, 9], [10], [11, 12, 13]], [7, 20, 4]
    found = answer_logps(model, questions, answers, batch_size=2)
    for ids, row in zip(questions, found, strict=True):
        expected = token_log_probs(model.eval(), ids, [0])[0, answers]
        assert row == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="prompt of sample 1 has no tokens"):
        answer_logps(model, [[4], []], answers)


def test_pairs_must_match_in_number_and_kind(make_model, tokenizer):
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        pair_logps(make_model(0), tokenizer, ["w1", "w2"], ["w3"])
    with pytest.raises(InputError, match="both be texts or both be conversations"):
        pair_logps(make_model(0), tokenizer, ["w1"], [[{"role": "assistant", "content": "w2"}]])


def test_a_forward_pass_never_holds_more_logits_than_allowed(monkeypatch):
    from hf_align.diagnostics import logps

    monkeypatch.setattr(logps, "MAX_LOGITS", 3 * 11 * 100)
    completions = [[1] * length for length in (10, 2, 10, 4, 10, 30, 10)]
    prompts = [[1]] * len(completions)
    batches = list(logps._length_sorted_batches(prompts, completions, 4, vocabulary=100))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(completions)))
    for rows in batches:
        longest = max(len(completions[i]) for i in rows) + 1
        # One row must go through however long it is.
        assert len(rows) == 1 or len(rows) * longest * 100 <= logps.MAX_LOGITS
    assert max(map(len, batches)) > 1
