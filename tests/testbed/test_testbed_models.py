"""Tokens and chat template as TRL will use them; models, training targets and sampling."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_align.testbed import explain, models, sample_completions, tiny_llama, world
from hf_align.types import InputError

PROMPT = "mention tea rain books music :"
COMPLETION = "tea really rain books please"


@pytest.fixture(scope="module")
def tokenizer():
    return models.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_llama(tokenizer)


def test_importing_the_testbed_loads_no_torch():
    code = (
        "import sys, hf_align.testbed; "
        "assert not {'torch', 'transformers', 'datasets', 'trl', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_survives_the_tokenizer(tokenizer):
    rng = np.random.default_rng(0)
    prompts = world.sample_prompts(world.topic_sets(0)["sft"], 100, rng)
    for text in [*prompts, *world.sample_demonstrations(prompts, rng), " ".join(models.VOCABULARY)]:
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.decode(ids) == text


def test_every_word_has_its_own_token_and_unknown_words_share_one(tokenizer):
    assert len(tokenizer) == len(set(models.VOCABULARY)) == 33
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]
    assert set(tokenizer.all_special_tokens) == {"<pad>", "<eos>", "<unk>"}


def test_completions_join_prompts_with_or_without_a_space(tokenizer):
    prompt = tokenizer(PROMPT)["input_ids"]
    joined = tokenizer(PROMPT + COMPLETION + "<eos>")["input_ids"]
    assert joined == tokenizer(f"{PROMPT} {COMPLETION} <eos>")["input_ids"]
    assert joined == [*prompt, *tokenizer(COMPLETION)["input_ids"], tokenizer.eos_token_id]


def test_no_word_merges_with_the_end_of_the_prompt(tokenizer):
    prompt = tokenizer(PROMPT)["input_ids"]
    for index, word in enumerate(models.VOCABULARY):
        assert tokenizer(PROMPT + word)["input_ids"] == [*prompt, index]


@pytest.mark.parametrize(
    "text", [COMPLETION, "tea, rain!? <user>so<assistant> zebra ::music tea_rain", ""]
)
def test_gold_counts_the_words_the_model_wrote(tokenizer, text):
    assert explain(PROMPT, text).length == len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "be very well :"}]])
@pytest.mark.parametrize("completion", [COMPLETION, "", " tea "])
def test_chat_prompt_is_a_prefix_of_the_conversation(tokenizer, system, completion):
    prompt = [*system, {"role": "user", "content": PROMPT}]
    turn = [{"role": "assistant", "content": completion}]
    for tokenize in (False, True):
        kwargs = {"tokenize": tokenize, "return_dict": False}
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **kwargs)
        whole = tokenizer.apply_chat_template(prompt + turn, **kwargs)
        further = tokenizer.apply_chat_template([*prompt, *turn, *prompt[-1:]], **kwargs)
        assert whole[: len(start)] == start
        assert further[: len(whole)] == whole
    expected = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    assert whole[len(start) :] == expected


def test_assistant_mask_covers_the_answers_and_their_eos(tokenizer):
    conversation = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": COMPLETION},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": " tea"},  # a space is no token for a mask to start on
    ]
    encoded = tokenizer.apply_chat_template(
        conversation, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = np.array(encoded["assistant_masks"], dtype=bool)
    assert tokenizer.decode(np.array(encoded["input_ids"])[mask]) == f"{COMPLETION} <eos> tea <eos>"


def test_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"<user>{PROMPT}<assistant>{COMPLETION}<eos>"
    assert loaded(text) == tokenizer(text)
    assert loaded.decode(loaded(PROMPT)["input_ids"]) == PROMPT
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.padding_side == "left"
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.parametrize(("size", "millions"), [("small", 0.10), ("medium", 0.34)])
def test_models_have_the_stated_size_and_ids(tokenizer, size, millions):
    model = tiny_llama(tokenizer, size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, None)


def test_initial_weights_follow_the_seed_alone(tokenizer):
    state = torch.random.get_rng_state()
    first, same, other = (tiny_llama(tokenizer, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_an_unknown_size_is_refused(tokenizer):
    with pytest.raises(InputError, match="size is 'huge'; choose one of small, medium"):
        tiny_llama(tokenizer, "huge")


def test_training_targets_are_the_completion_and_its_eos(tokenizer):
    ids, labels, lengths = models._encode(tokenizer, [PROMPT, PROMPT], ["tea rain", "so"], 2)
    assert lengths.tolist() == [1 + 6 + 1 + 3, 6 + 2]
    assert tokenizer.decode(ids[0]) == f"<user> {PROMPT} <assistant> tea rain <eos>"
    assert tokenizer.decode(ids[1, : lengths[1]]) == f"{PROMPT} so <eos>"
    for row, target in enumerate(("tea rain <eos>", "so <eos>")):
        kept = labels[row] != -100
        assert tokenizer.decode(labels[row][kept]) == target
        assert torch.equal(labels[row][kept], ids[row][kept])


def test_samples_follow_the_seed_and_fit_the_budget(model, tokenizer):
    prompts = [PROMPT, "mention snow sea :"] * 8  # two lengths: the batch is padded
    state = torch.random.get_rng_state()
    first = sample_completions(model, tokenizer, prompts, seed=0, batch_size=5)
    assert first == sample_completions(model, tokenizer, prompts, seed=0, batch_size=5)
    assert first != sample_completions(model, tokenizer, prompts, seed=1, batch_size=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(first) == 16
    assert max(len(text.split()) for text in first) <= world.MAX_NEW_TOKENS
    assert not any("<eos>" in text or "<pad>" in text for text in first)


def test_samples_come_from_the_full_distribution(tokenizer):
    """With every weight zero each token has probability 1/33, EOS as the first word too."""
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    size = 2000
    texts = sample_completions(model, tokenizer, [PROMPT] * size, seed=0)
    first = [text.split()[0] if text else "" for text in texts]
    for word in ("tea", "please", "<user>"):
        # <pad> and <unk> are not shown, so a shown word can also stand second.
        error = np.sqrt(1 / 33 / size)
        shown = 1 / 33 * (1 + 2 / 33)
        assert np.mean([w == word for w in first]) == pytest.approx(shown, abs=4 * error)
