"""REINFORCE: its gradient by hand for every baseline, the likelihood term, and that it learns."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from hf_align.types import InputError


def letters(prompts, completions, **columns):
    """A reward that differs between completions of a prompt."""
    return [0.1 * len(completion) for completion in completions]


PLAIN = {"missing_eos_penalty": 0.0, "score_clip": None, "max_grad_norm": 0.0, "max_steps": 1}


def sequence_logp(model, prompt, completion):
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, torch.tensor(completion)[:, None]).sum()


def likelihood(model, prompts, answers):
    """Mean negative log-likelihood per token."""
    total = sum(-sequence_logp(model, p, a) for p, a in zip(prompts, answers, strict=True))
    return total / sum(map(len, answers))


def by_hand(rewards, generations, baseline, constant):
    """Advantages from the definitions, one completion at a time."""
    advantages = []
    for i, reward in enumerate(rewards):
        first = i // generations * generations
        group = list(range(first, first + generations))
        if baseline == "leave_one_out":
            group.remove(i)
        subtracted = {
            "none": 0.0,
            "constant": constant,
            "mean": np.mean([rewards[j] for j in group]),
            "leave_one_out": np.mean([rewards[j] for j in group]) if group else 0.0,
        }[baseline]
        advantages.append(reward - subtracted)
    return advantages


CASES = {
    "none": {"num_generations": 1, "baseline": "none"},
    "constant": {"num_generations": 1, "baseline": "constant", "baseline_constant": 0.7},
    "mean": {"num_generations": 4, "baseline": "mean"},
    "leave_one_out": {"num_generations": 4},
    "pairs": {"num_generations": 2},
    "normalised": {"num_generations": 2, "normalize_advantages": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_definition(case, make_trainer, make_policy, fixed, gradients):
    options = CASES[case]
    trainer = make_trainer("reinforce", rewards=letters, **PLAIN, **options)
    fixed(trainer)
    (found,) = gradients(trainer)
    rollout = trainer.rollout
    scores = rollout.rewards.tolist()
    assert scores == pytest.approx(
        letters(None, trainer._tokenizer.batch_decode(rollout.completion_ids, True))
    )
    advantages = by_hand(
        scores, options["num_generations"], trainer.args.baseline, trainer.args.baseline_constant
    )
    if case == "normalised":
        advantages = (np.array(advantages) - np.mean(advantages)) / (np.std(advantages) + 1e-4)
    assert np.std(advantages) > 0.05
    model = make_policy()
    pairs = zip(rollout.prompt_ids, rollout.completion_ids, advantages, strict=True)
    loss = -sum(advantage * sequence_logp(model, p, c) for p, c, advantage in pairs) / 16
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_reward_is_the_score_minus_beta_times_the_kl(make_trainer):
    trainer = make_trainer(
        "reinforce", rewards=letters, beta=0.3, learning_rate=1e-2, **PLAIN | {"max_steps": 2}
    )
    trainer.train()
    rollout = trainer.rollout
    kl = ((rollout.logps - rollout.ref_logps) * rollout.mask).sum(1)
    assert kl.abs().max() > 0.1
    texts = trainer._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    expected = torch.tensor(letters(None, texts)) - 0.3 * kl
    torch.testing.assert_close(rollout.rewards, expected)
    log = trainer.state.log_history[1]
    assert log["kl/sequence_k1"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert log["reward/mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    tokens = rollout.mask.sum().item()
    assert log["kl/per_token"] == pytest.approx(kl.sum().item() / tokens, rel=1e-4)


@pytest.mark.parametrize("conversational", [False, True])
def test_the_likelihood_of_the_answers_is_added(
    conversational, make_trainer, make_policy, fixed, gradients, prompts, words
):
    data = {"prompt": prompts[:8], "completion": ["tea", "sea please"] * 4}
    if conversational:
        data = {
            "prompt": [[{"role": "user", "content": text}] for text in data["prompt"]],
            "completion": [[{"role": "assistant", "content": t}] for t in data["completion"]],
        }

    def gradient(**options):
        trainer = make_trainer(
            "reinforce",
            rewards=lambda prompts, completions, **columns: np.arange(16.0),
            data=Dataset.from_dict(data),
            num_generations=2,
            **PLAIN,
            **options,
        )
        fixed(trainer)
        (step,) = gradients(trainer)
        return step, trainer.rollout

    plain, _ = gradient()
    mixed, rollout = gradient(mle_coefficient=0.6)
    answers = {
        tuple(prompt): words.decode(answer)
        for prompt, answer in zip(rollout.prompt_ids, rollout.answer_ids, strict=True)
    }
    assert len(answers) == 8 and set(answers.values()) == {"tea <eos>", "sea please <eos>"}
    model = make_policy()
    likelihood(model, rollout.prompt_ids, rollout.answer_ids).backward()
    for name, parameter in model.named_parameters():
        expected = plain[name] + 0.6 * parameter.grad
        torch.testing.assert_close(mixed[name], expected, rtol=1e-4, atol=1e-5)
        assert parameter.grad.norm() > 1e-4


def test_ptx_is_added_where_there_are_no_answers(
    make_trainer, make_policy, fixed, gradients, words
):
    texts = ["mention tea : tea please", "sea so"]

    def gradient(**options):
        trainer = make_trainer("reinforce", rewards=letters, **PLAIN, **options)
        fixed(trainer)
        return gradients(trainer)[0]

    plain = gradient()
    mixed = gradient(
        ptx_coefficient=0.6,
        ptx_batch_size=2,
        trainer_options={"ptx_dataset": Dataset.from_dict({"text": texts})},
    )
    rows = [[*words(text)["input_ids"], words.eos_token_id] for text in texts]
    model = make_policy()
    likelihood(model, [row[:1] for row in rows], [row[1:] for row in rows]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            mixed[name], plain[name] + 0.6 * parameter.grad, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_the_score_rises(kind, make_trainer):
    def please(prompts, completions, **columns):
        return [float("please" in completion.split()) for completion in completions]

    trainer = make_trainer(
        kind,
        rewards=please,
        per_device_train_batch_size=32,
        num_iterations=2,
        max_steps=40,
        learning_rate=3e-3,
        missing_eos_penalty=0.0,
        beta=0.01,
    )
    trainer.train()
    logs = [line["reward/score"] for line in trainer.state.log_history if "reward/score" in line]
    assert len(logs) == 20 and logs[0] < 0.5
    assert np.mean(logs[-3:]) > logs[0] + 0.4


def test_an_evaluation_may_draw_one_completion_each(make_trainer, prompts):
    trainer = make_trainer(
        "reinforce",
        rewards=letters,
        num_generations_eval=1,
        per_device_eval_batch_size=3,
        trainer_options={"eval_dataset": Dataset.from_dict({"prompt": prompts[:6]})},
    )
    found = trainer.evaluate()
    assert np.isfinite(found["eval_loss"])


def test_there_is_no_value_model_anywhere(make_trainer, make_reward, tmp_path):
    trainer = make_trainer(
        "reinforce", rewards=make_reward(), max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert not [path for path in checkpoint.iterdir() if "value" in path.name]
    _, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert not [name for name in trainer.state.log_history[0] if name.startswith("value/")]


REFUSED = {
    "baseline leave_one_out compares": {"num_generations": 1},
    "baseline mean compares": {"num_generations": 1, "baseline": "mean"},
    "mle_coefficient must be at least 0": {"mle_coefficient": -1.0},
    "exclude each other": {"mle_coefficient": 0.1, "ptx_coefficient": 0.1},
    "no column `completion`, only prompt": {"mle_coefficient": 0.1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_cannot_work_are_refused(message, make_trainer):
    with pytest.raises(InputError, match=message) as refused:
        make_trainer("reinforce", **REFUSED[message])
    assert "\n" not in str(refused.value)
