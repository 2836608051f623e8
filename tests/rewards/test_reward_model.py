"""Reward models from folders: what they score, what normalising does to them, what they refuse."""

import json
import shutil

import numpy as np
import pytest

from hf_align.rewards import Ensemble, RewardModel, encode, normalise, write_ensemble
from hf_align.testbed import tokenizer as own_tokenizer
from hf_align.types import InputError

PROMPTS = ["mention tea rain :", "mention dogs cats sea :", "mention tea :"] * 3
COMPLETIONS = ["tea", "dogs and cats please", "tea " * 9, "rain", "sea sea", "x", "a b c", "", "so"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
ANSWERS = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]


def llama(seed=0, **changes):
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = {
        "vocab_size": len(own_tokenizer()),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_labels": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
        "pad_token_id": own_tokenizer().pad_token_id,
    }
    return LlamaForSequenceClassification(LlamaConfig(**(config | changes)))


def bert():
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(own_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config)


def save(model, folder, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or own_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(llama(), tmp_path_factory.mktemp("models") / "judge")


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    root = tmp_path_factory.mktemp("models") / "several"
    for seed in range(3):
        save(llama(seed), root / f"member-{seed}")
    write_ensemble(root, Ensemble(("member-0", "member-1", "member-2"), "worst_case"))
    return root


def plain_scores(folder, texts):
    """One text at a time through plain transformers, with nothing padded."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = own_tokenizer()
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def test_scores_are_those_of_the_plain_model_whatever_the_batching(folder):
    expected = plain_scores(
        folder, [p + c + "<eos>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    )
    assert np.ptp(expected) > 0.1
    for batch_size in (1, 2, 32):
        scores = RewardModel(folder, batch_size=batch_size).score(PROMPTS, COMPLETIONS)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_conversation_is_scored_as_its_template_renders_it(folder):
    texts = [
        f"<user>{p}<assistant>{c.strip()}<eos>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    reward = RewardModel(folder)
    expected = plain_scores(folder, texts)
    np.testing.assert_allclose(reward.score(CHATS, ANSWERS), expected, atol=1e-5)
    np.testing.assert_allclose(reward.score(CHATS, COMPLETIONS), expected, atol=1e-5)
    mixed = reward.score([*PROMPTS[:2], *CHATS[2:]], COMPLETIONS)
    np.testing.assert_allclose(mixed[2:], expected[2:], atol=1e-5)


def test_it_is_a_trl_reward_function_and_takes_part_in_rloo(folder, testbed, tmp_path):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    normalised = RewardModel(folder).members[0][0]
    normalise(normalised, mean=0.4, sd=2.0)
    reward = RewardModel(save(normalised, tmp_path / "normalised"))
    assert reward(prompts=PROMPTS, completions=COMPLETIONS, other=[1] * 9) == pytest.approx(
        reward.score(PROMPTS, COMPLETIONS).tolist()
    )
    args = RLOOConfig(
        str(tmp_path / "run"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = RLOOTrainer(
        str(testbed.policy_path),
        [reward, str(tmp_path / "normalised")],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": CHATS}),
    )
    assert trainer.reward_func_names[0] == "normalised"
    rows = [{"prompt": chat} for chat in CHATS]
    # TRL's own path through the saved folder does not know the offset, and nothing else differs.
    trainer.reward_weights = trainer.reward_weights.double()
    given = trainer._calculate_rewards(rows, CHATS, ANSWERS, [[0]] * 9).numpy()
    np.testing.assert_allclose(given[:, 0], reward.score(CHATS, ANSWERS), atol=1e-5)
    assert np.ptp(given[:, 0]) > 0.05
    np.testing.assert_allclose(given[:, 1] - given[:, 0], 0.4 / 2.0, atol=1e-5)


def test_what_is_too_long_is_cut_on_the_tokenizers_side_and_counted(folder):
    reward = RewardModel(folder, max_length=6)
    score = reward.score(["mention tea :", "mention tea :"], ["tea rain dogs", "tea"])
    # Six tokens of "mention tea : tea rain dogs <eos>"; the other has just five.
    expected = plain_scores(folder, ["mention tea : tea rain dogs", "mention tea : tea <eos>"])
    np.testing.assert_allclose(score, expected, atol=1e-5)
    assert (reward.num_scored, reward.num_truncated) == (2, 1)

    tokenizer = own_tokenizer()
    tokenizer.truncation_side = "left"
    reward = RewardModel.from_members([(reward.members[0][0], tokenizer)], max_length=6)
    score = reward.score(["mention tea :"], ["tea rain dogs"])
    np.testing.assert_allclose(
        score, plain_scores(folder, ["tea : tea rain dogs <eos>"]), atol=1e-5
    )
    # Without a wish the shorter of what model and tokenizer can read.
    RewardModel(folder).score(["tea " * 200], ["tea"])


def test_encoding_is_that_of_trls_reward_trainer(folder, tmp_path):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=None)
    with_eos = ["tea<eos>", *COMPLETIONS[1:]]
    for prompts, chosen in ((PROMPTS, with_eos), (CHATS, ANSWERS)):
        columns = {"prompt": prompts, "chosen": chosen, "rejected": chosen}
        trainer = RewardTrainer(str(folder), args, train_dataset=Dataset.from_dict(columns))
        ids, _ = encode(own_tokenizer(), prompts, chosen)
        assert ids == trainer.train_dataset["chosen_ids"][:]


@pytest.mark.parametrize("make", [llama, bert], ids=["no bias", "bias"])
def test_normalising_is_exact_and_survives_saving(make, tmp_path):
    before = RewardModel(save(make(), tmp_path / "before"))
    raw = before.score(PROMPTS, COMPLETIONS)
    model = before.members[0][0]
    normalise(model, raw.mean(), raw.std())
    own = before.score(PROMPTS, COMPLETIONS)
    again = RewardModel(save(model, tmp_path / "after")).score(PROMPTS, COMPLETIONS)
    for scores in (own, again):
        np.testing.assert_allclose(scores, (raw - raw.mean()) / raw.std(), atol=1e-5)
        assert abs(scores.mean()) < 1e-5
        assert abs(scores.std() - 1) < 1e-5
    # What plain transformers makes of the folder is off by one constant at most.
    plain = plain_scores(
        tmp_path / "after", [p + c + "<eos>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    )
    assert np.ptp(plain - own) < 1e-5
    written = json.loads((tmp_path / "after" / "config.json").read_text())
    assert ("reward_offset" in written) == (make is llama)
    assert make is llama or abs(plain - own).max() < 1e-5


def test_normalising_twice_is_normalising_once_for_the_second_reference(tmp_path):
    reward = RewardModel(save(llama(), tmp_path / "judge"))
    first, second = PROMPTS[:5], PROMPTS[5:]
    expected = reward.score(second, COMPLETIONS[5:])
    for prompts, completions in ((first, COMPLETIONS[:5]), (second, COMPLETIONS[5:])):
        scores = reward.score(prompts, completions)
        normalise(reward.members[0][0], scores.mean(), scores.std())
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(reward.score(second, COMPLETIONS[5:]), expected, atol=1e-5)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 0.0), (np.nan, 1.0), (0.0, -1.0), (0.0, np.inf)])
def test_what_cannot_be_normalised_leaves_the_head_alone(mean, sd):
    model = llama()
    before = model.score.weight.clone()
    with pytest.raises(InputError, match="cannot be normalised"):
        normalise(model, mean, sd)
    assert (model.score.weight == before).all()


def test_an_ensemble_scores_as_its_members_combined(ensemble, tmp_path):
    reward = RewardModel(ensemble)
    alone = [RewardModel(ensemble / f"member-{k}").score(PROMPTS, COMPLETIONS) for k in range(3)]
    np.testing.assert_allclose(reward.member_scores(PROMPTS, COMPLETIONS), alone, atol=1e-6)
    np.testing.assert_allclose(reward.score(PROMPTS, COMPLETIONS), np.min(alone, 0), atol=1e-6)

    worst = np.min(alone, axis=0)
    shutil.copytree(ensemble, tmp_path / "scaled")
    spec = Ensemble(reward.ensemble.members, "worst_case", mean=worst.mean(), sd=worst.std())
    write_ensemble(tmp_path / "scaled", spec)
    scaled = RewardModel(tmp_path / "scaled").score(PROMPTS, COMPLETIONS)
    np.testing.assert_allclose(scaled, (worst - worst.mean()) / worst.std(), atol=1e-5)

    loaded = RewardModel.from_members(reward.members, ensemble=reward.ensemble)
    np.testing.assert_allclose(loaded.score(PROMPTS, COMPLETIONS), worst, atol=1e-6)
    with pytest.raises(InputError, match="need an ensemble"):
        RewardModel.from_members(reward.members)
    with pytest.raises(InputError, match="got 2 models, and the ensemble names 3"):
        RewardModel.from_members(reward.members[:2], ensemble=reward.ensemble)


def test_scoring_a_model_in_training_leaves_it_in_training():
    model = llama()
    model.train()
    reward = RewardModel.from_members([(model, own_tokenizer())])
    reward.score(PROMPTS, COMPLETIONS)
    assert model.training
    assert reward.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: (path / "ensemble.json").write_text("{"), "ensemble.json is damaged"),
        (lambda path: (path / "ensemble.json").write_text("[]"), "ensemble.json is damaged"),
        (lambda path: rewrite(path, schema=2), "schema 2, this reads 1"),
        (lambda path: rewrite(path, combine="median"), "combine is 'median'"),
        (lambda path: rewrite(path, members=[]), "at least one member"),
        (lambda path: rewrite(path, members=["../judge"]), "name of a subfolder"),
        (lambda path: rewrite(path, weight=3), "unknown key 'weight'"),
        (lambda path: shutil.rmtree(path / "member-1"), "member member-1 is missing"),
    ],
)
def test_a_broken_ensemble_folder_is_refused_by_name(ensemble, tmp_path, change, words):
    copy = tmp_path / "copy"
    shutil.copytree(ensemble, copy)
    change(copy)
    with pytest.raises(InputError, match=words) as caught:
        RewardModel(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def rewrite(path, **changes):
    content = json.loads((path / "ensemble.json").read_text())
    (path / "ensemble.json").write_text(json.dumps(content | changes))


def test_what_is_no_reward_model_is_refused_with_the_reason(folder, testbed, tmp_path):
    def refusal(path):
        with pytest.raises(InputError) as caught:
            RewardModel(path, option="gold_reward")
        message = str(caught.value)
        assert message.startswith(f"gold_reward {path}")
        assert "\n" not in message
        return message

    message = refusal(testbed.policy_path)
    assert "not a trained reward model: score.weight" in message
    assert "causal language model" in message

    assert "one output, this one has 2" in refusal(save(llama(num_labels=2), tmp_path / "two"))

    tokenizer = own_tokenizer()
    tokenizer.pad_token = None
    assert "no pad token" in refusal(save(llama(), tmp_path / "no_pad", tokenizer))

    tokenizer = own_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert "added to the tokenizer alone" in refusal(save(llama(), tmp_path / "new", tokenizer))

    path = save(llama(), tmp_path / "other_shape")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    assert "of another shape" in refusal(path)

    path = save(llama(), tmp_path / "cut")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:3000])
    assert "cannot be loaded" in refusal(path)

    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(tmp_path / "empty")
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_what_cannot_be_scored_is_refused(folder, tmp_path):
    import torch

    with pytest.raises(InputError, match="got 1 completions for 2 prompts"):
        RewardModel(folder).score(PROMPTS[:2], ["tea"])
    broken = llama()
    torch.nn.init.constant_(broken.score.weight, float("nan"))
    with pytest.raises(InputError, match="returned nan for completion 0"):
        RewardModel(save(broken, tmp_path / "nan")).score(PROMPTS, COMPLETIONS)
    plain = own_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        RewardModel(save(llama(), tmp_path / "plain", plain)).score(CHATS, ANSWERS)


def test_parity_is_silent_for_the_same_tokenizer_and_names_each_difference(folder):
    reward = RewardModel(folder)
    assert reward.parity(own_tokenizer()) == []

    policy = own_tokenizer()
    policy.pad_token = "<unk>"
    assert any("pad tokens differ: '<unk>'" in line for line in reward.parity(policy))

    policy = own_tokenizer()
    policy.eos_token = "please"
    lines = reward.parity(policy)
    assert any("end tokens differ: 'please'" in line for line in lines)
    assert any("chat templates differ" in line for line in lines)  # it renders the end token

    policy = own_tokenizer()
    policy.chat_template = policy.chat_template + "{# the same, written differently #}"
    assert reward.parity(policy) == []

    policy = own_tokenizer()
    policy.add_tokens(["unheard"])
    (line,) = reward.parity(policy)
    count = len(own_tokenizer())
    assert f"{count + 1} tokens in the policy, {count} in judge, {count} in common" in line

    policy = own_tokenizer()
    policy.model_max_length = 4096
    (line,) = reward.parity(policy)
    assert "reads 128 tokens" in line
    assert "loses its end" in line

    own = own_tokenizer()
    own.chat_template = None
    own.pad_token = own.eos_token
    lines = RewardModel.from_members([(llama(), own)]).parity(own_tokenizer())
    assert any("pads with its end token" in line for line in lines)
    assert any("scores text alone" in line for line in lines)
