"""Mistakes in what the on-policy trainers are given: one clear line each, and nothing lost."""

import pytest
import torch
from datasets import Dataset

from hf_align.types import InputError


def told(error):
    """The message of an error, which is one line."""
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


# -- options -----------------------------------------------------------------------------------

OPTIONS = {
    "beta must be at least 0; got -0.1": {"beta": -0.1},
    "num_generations must be at least 1; got 0": {"num_generations": 0},
    "num_mini_batches must be at least 1": {"num_mini_batches": 0},
    "num_iterations must be at least 1": {"num_iterations": 0},
    "max_completion_length must be at least 1": {"max_completion_length": 0},
    "top_p 0.9 draws from another distribution": {"top_p": 0.9},
    "top_k 5 draws from another distribution": {"top_k": 5},
    "min_p 0.1 draws from another distribution": {"min_p": 0.1},
    "repetition_penalty 1.1 draws from another": {"repetition_penalty": 1.1},
    "temperature must be above 0": {"temperature": 0.0},
    "divisible by num_generations": {"num_generations": 3},
    "gradient_accumulation_steps 2": {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
    "leave out steps_per_generation": {"steps_per_generation": 4, "num_mini_batches": 2},
    "leave out steps_per_generation and": {"generation_batch_size": 32, "num_mini_batches": 2},
    "moving reference": {"sync_ref_model": True},
    "kl_limit must be above 0": {"kl_limit": 0.0},
    "update_kl_limit must be above 0": {"update_kl_limit": -1.0},
    "multiplies beta, which is 0": {"kl_controller": "adaptive", "beta": 0.0},
    "give beta_end": {"kl_controller": "scheduled"},
    "horizon is 3 completions": {"kl_controller": "adaptive", "kl_horizon": 3},
    "gamma must be between 0 and 1": {"gamma": 1.5},
    "gae_lambda must be between 0 and 1": {"gae_lambda": -0.5},
    "value_clip must be above 0": {"value_clip": 0.0},
    "value_coefficient must be at least 0": {"value_coefficient": -1.0},
    "needs texts; give ptx_dataset": {"ptx_coefficient": 0.1},
    "max_tokens_per_forward must be above 0": {"max_tokens_per_forward": 0},
    "reward_weights has 2 entries for 1 reward": {"reward_weights": [1.0, 2.0]},
    "32 prompts, and a rollout takes 64": {"num_mini_batches": 4},
}


@pytest.mark.parametrize("message", OPTIONS)
def test_options_that_cannot_work_are_refused(message, make_trainer):
    with pytest.raises(InputError, match=message) as refused:
        make_trainer(**OPTIONS[message])
    told(refused)


# -- data --------------------------------------------------------------------------------------


def test_data_that_no_rollout_can_be_made_from_is_refused(make_trainer, prompts):
    cases = {
        "has no column `prompt`; it has text": {"text": prompts},
        "train_dataset has 3 prompts": {"prompt": prompts[:3]},
        "takes text only": {"prompt": prompts, "image": prompts},
    }
    for message, columns in cases.items():
        with pytest.raises(InputError, match=message) as refused:
            make_trainer(data=Dataset.from_dict(columns))
        told(refused)


def test_a_prompt_that_leaves_no_room_is_named_by_its_length(make_trainer, prompts):
    long = " ".join(["mention", *["tea"] * 60])
    trainer = make_trainer(data=Dataset.from_dict({"prompt": [*prompts[:15], long]}))
    with pytest.raises(InputError, match="a prompt has 61 tokens") as refused:
        trainer.train()
    assert "64 positions" in told(refused)


def test_an_empty_prompt_is_refused(make_trainer, prompts):
    trainer = make_trainer(data=Dataset.from_dict({"prompt": [*prompts[:15], ""]}))
    with pytest.raises(InputError, match="leave empty prompts out") as refused:
        trainer.train()
    told(refused)


def test_a_stream_trains_for_as_many_steps_as_it_is_told(make_trainer, prompts):
    stream = Dataset.from_dict({"prompt": prompts}).to_iterable_dataset()
    trainer = make_trainer(data=stream, max_steps=6, num_iterations=2)
    trainer.train()
    assert trainer.state.global_step == 6
    with pytest.raises(InputError, match="max_steps") as refused:
        make_trainer(data=stream, max_steps=-1)
    told(refused)


# -- rewards -----------------------------------------------------------------------------------


def returns(value):
    """A reward function that returns one thing, called `mine`."""

    def mine(prompts, completions, **columns):
        return value(len(completions)) if callable(value) else value

    return mine


RESULTS = {
    "returned nan for completion 2 of 16": lambda n: [0.0, 0.0, float("nan"), *[0.0] * (n - 3)],
    "returned inf for completion 0 of 16": lambda n: torch.full((n,), torch.inf),
    "returned -inf for completion 0": lambda n: torch.full((n,), -torch.inf).tolist(),
    "returned 3 scores for 16 completions": [0.0, 1.0, 2.0],
    "returned 32 scores for 16 completions": lambda n: torch.zeros(n, 2),
    "must return a list with one number per completion": 1.0,
    "mine must return a list": None,
    "one number per completion .*meta": lambda n: torch.zeros(n, device="meta"),
    "list with one number per completion .*meta": lambda n: list(torch.zeros(n, device="meta")),
    "one number per completion .*could not convert": lambda n: ["high"] * n,
    "no reward scored 16 of 16 completions": lambda n: [None] * n,
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("message", RESULTS)
def test_a_reward_that_returns_no_number_each_is_named(message, asynchronous, make_trainer):
    mine = returns(RESULTS[message])
    if asynchronous:

        async def later(prompts, completions, **columns):
            return mine(prompts, completions)

        later.__name__ = "mine"
    trainer = make_trainer(rewards=later if asynchronous else mine, max_steps=1)
    with pytest.raises(InputError, match=message) as refused:
        trainer.train()
    assert "mine" in told(refused) or "no reward scored" in message


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_reward_that_raises_is_named_with_file_and_line(asynchronous, make_trainer):
    def broken(prompts, completions, **columns):
        raise KeyError("answer\nof the second line")

    async def later(prompts, completions, **columns):
        return broken(prompts, completions)

    trainer = make_trainer(rewards=later if asynchronous else broken, max_steps=1)
    with pytest.raises(InputError, match="raised KeyError") as refused:
        trainer.train()
    assert "test_ppo_bad_input.py" in told(refused)
    assert isinstance(refused.value.__cause__, KeyError)


def test_what_is_no_reward_is_refused(make_trainer, make_reward, words):
    cases = [
        ("reward_funcs is empty", {"rewards": []}),
        ("a reward must be a model, its id, or a function", {"rewards": [3]}),
        (
            "reward_processing_classes has 1 entries for 2",
            {
                "rewards": [make_reward(), make_reward(2)],
                "trainer_options": {"reward_processing_classes": [words]},
            },
        ),
    ]
    for message, options in cases:
        with pytest.raises(InputError, match=message) as refused:
            make_trainer(**options)
        told(refused)


# -- models ------------------------------------------------------------------------------------


def test_a_value_model_that_cannot_come_from_the_reward_is_refused_with_the_reason(
    make_trainer, make_reward, make_policy, words
):
    from transformers import BertConfig, BertForSequenceClassification

    from hf_align.rewards import RewardModel
    from hf_align.testbed.models import VOCABULARY, tokenizer

    other = make_reward(tokenizer=tokenizer((*VOCABULARY[:6], *reversed(VOCABULARY[6:]))))
    bert = BertForSequenceClassification(
        BertConfig(
            vocab_size=33,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            num_labels=1,
        )
    )
    encoder = RewardModel.from_members([(bert.eval(), words)])
    cases = [
        ("its tokenizer is not the policy's", other),
        ("has no linear `score`", encoder),
        ("no reward is a sequence-classification model", None),
    ]
    for reason, reward in cases:
        with pytest.raises(InputError, match=reason) as refused:
            make_trainer(rewards=reward, value_model="reward")
        assert "use value_model 'policy' or 'shared'" in told(refused)
        trainer = make_trainer(rewards=reward, value_model="auto", max_steps=1)
        trainer.train()
        value, policy = trainer.causal_model.value_model.backbone, make_policy().model
        assert {name: p.shape for name, p in value.named_parameters()} == {
            name: p.shape for name, p in policy.named_parameters()
        }


def test_a_diverged_policy_stops_with_a_reason(make_trainer, make_policy):
    trainer = make_trainer(policy=make_policy())
    with torch.no_grad():
        trainer.model.lm_head.weight[3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        trainer.train()


# -- a run that fails later --------------------------------------------------------------------


def test_a_reward_that_fails_mid_run_leaves_a_checkpoint_to_resume_from(make_trainer, tmp_path):
    def run(folder, fails_at, resume=None):
        calls = []

        def flaky(prompts, completions, **columns):
            calls.append(1)
            if len(calls) == fails_at:
                raise RuntimeError("the scoring service is away")
            return [float(len(set(completion.split()))) for completion in completions]

        trainer = make_trainer(
            folder=folder,
            rewards=flaky,
            num_iterations=2,
            max_steps=8,
            save_strategy="steps",
            save_steps=3,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    with pytest.raises(InputError, match="the scoring service is away"):
        run(tmp_path / "failed", fails_at=3)
    saved = sorted(path.name for path in (tmp_path / "failed").glob("checkpoint-*"))
    assert saved == ["checkpoint-3"]
    resumed = run(tmp_path / "failed", fails_at=None, resume=True)
    whole = run(tmp_path / "whole", fails_at=None)
    assert resumed.state.global_step == 8
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
