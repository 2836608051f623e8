"""What one update of the on-policy trainers does to policy and value model, and what it may not."""

import pytest
import torch
from datasets import Dataset

from hf_align.trainers.value_models import is_value_parameter

EXACT = {"optim": "sgd", "learning_rate": 3e-3, "max_grad_norm": 0.0}
"""Steps that are proportional to the gradient, so that equal gradients give equal weights."""


def weights_of(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def assert_same(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-4, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def size_of(values, chosen):
    return torch.stack([v.norm() for n, v in values.items() if chosen(n)]).norm().item()


def policy_only(name):
    return not is_value_parameter(name)


# -- what moves --------------------------------------------------------------------------------


@pytest.mark.parametrize("value_model", ["reward", "policy", "shared"])
def test_every_weight_of_policy_and_value_model_moves(value_model, make_trainer, make_reward):
    # From a head of zeros the trunk below it gets its first gradient at the second step.
    steps = 2 if value_model == "policy" else 1
    trainer = make_trainer(rewards=make_reward(), value_model=value_model, max_steps=steps)
    before, reference = weights_of(trainer), list(trainer.reference.parameters())
    kept = [p.clone() for p in reference]
    trainer.train()
    moved = {n for n, value in weights_of(trainer).items() if not torch.equal(value, before[n])}
    assert moved == before.keys()
    assert any(map(is_value_parameter, moved)) and any(map(policy_only, moved))
    assert all(torch.equal(p, q) for p, q in zip(reference, kept, strict=True))


def test_the_value_model_starts_as_the_reward_model(make_trainer, make_reward):
    reward = make_reward()
    reward.members[0][0].config.reward_offset = 0.75
    trainer = make_trainer(rewards=reward, value_model="auto", max_steps=1, learning_rate=0.0)
    trainer.train()
    rollout = trainer.rollout
    model = reward.members[0][0]
    for row, (prompt, completion) in enumerate(
        zip(rollout.prompt_ids, rollout.completion_ids, strict=True)
    ):
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            states = model.model(input_ids=ids).last_hidden_state[0]
            expected = model.score(states)[len(prompt) - 1 : -1, 0] - 0.75
        found = rollout.values[row, : len(completion)]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_the_value_model_alone_learns_in_its_warm_up(make_trainer, after_each_step):
    texts = Dataset.from_dict({"text": ["tea rain please"] * 4})
    trainer = make_trainer(
        value_model="policy",
        value_warmup_steps=2,
        entropy_coefficient=0.1,
        ptx_coefficient=0.1,
        max_steps=3,
        trainer_options={"ptx_dataset": texts},
    )
    before, after = weights_of(trainer), after_each_step(trainer)
    trainer.train()
    for name, weight in before.items():
        if policy_only(name):
            assert torch.equal(after.weights[1][name], weight), name
            assert not torch.equal(after.weights[2][name], weight), name
    assert not torch.equal(
        after.weights[1]["value_model.head.weight"], before["value_model.head.weight"]
    )


def test_the_score_is_paid_on_the_last_real_token(make_trainer, fixed, words):
    """With γ = λ = 1 and β = 0 the return of every token is the completion's own score."""
    scores = []

    def reward(prompts, completions, **columns):
        scores[:] = [float(len(completion)) for completion in completions]
        return scores

    trainer = make_trainer(
        rewards=reward,
        beta=0.0,
        gae_lambda=1.0,
        score_clip=None,
        missing_eos_penalty=3.0,
        max_steps=1,
    )
    fixed(trainer)
    trainer.train()
    rollout = trainer.rollout
    ended = [ids[-1] == words.eos_token_id for ids in rollout.completion_ids]
    assert 0 < sum(ended) < len(ended) and len({len(i) for i in rollout.completion_ids}) > 2
    for row, score in enumerate(scores):
        length = len(rollout.completion_ids[row])
        expected = torch.full((length,), score - 3.0 * (not ended[row]))
        torch.testing.assert_close(rollout.returns[row, :length], expected)
        assert not rollout.returns[row, length:].any()


# -- gradients ---------------------------------------------------------------------------------


def gradient_of(trainer, fixed, gradients):
    fixed(trainer)
    (step,) = gradients(trainer)
    return step


def test_ptx_adds_its_own_gradient_to_the_steps(make_trainer, make_policy, fixed, gradients, words):
    rows = [{"prompt": p, "completion": c} for p, c in (("mention tea :", "tea"), (":", "sea so"))]
    data = Dataset.from_list(rows)
    options = {"max_grad_norm": 0.0, "max_steps": 1, "per_device_train_batch_size": 8}
    for slices in (1, 2):
        options["gradient_accumulation_steps"] = slices
        plain = gradient_of(make_trainer(**options), fixed, gradients)
        mixed = gradient_of(
            make_trainer(
                ptx_coefficient=0.7,
                ptx_batch_size=2,
                trainer_options={"ptx_dataset": data},
                **options,
            ),
            fixed,
            gradients,
        )
        language = likelihood_gradient(make_policy(), rows, words)
        for name, found in mixed.items():
            expected = plain[name] + (0.7 * language[name] if name in language else 0.0)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert size_of(language, policy_only) > 0.1


def likelihood_gradient(model, rows, words):
    """Of the mean negative log-likelihood per token of answers and their end tokens."""
    total, count = 0.0, 0
    for row in rows:
        context = words(row["prompt"])["input_ids"]
        ids = torch.tensor([[*context, *words(row["completion"])["input_ids"], words.eos_token_id]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        picked = logps.gather(1, ids[0, 1:, None])[len(context) - 1 :]
        total, count = total - picked.sum(), count + len(picked)
    (total / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_gradients_do_not_depend_on_the_passes(kind, make_trainer, make_reward, fixed, gradients):
    def steps(**options):
        trainer = make_trainer(kind, rewards=make_reward(), num_iterations=2, **EXACT, **options)
        fixed(trainer)
        found = gradients(trainer)
        return [*found, weights_of(trainer)]

    whole = steps()
    assert len(whole) == 3 and size_of(whole[0], policy_only) > 0.1
    cuts = [
        {"max_tokens_per_forward": 40},
        {"max_tokens_per_forward": 1},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
    ]
    for options in cuts:
        for ours, theirs in zip(steps(**options), whole, strict=True):
            assert_same(ours, theirs, tolerance=1e-5)


def test_halves_that_are_accumulated_make_the_same_minibatches(make_trainer, fixed):
    """Two optimizer steps per rollout: each must hold the same rows in both ways of slicing."""

    def train(**options):
        trainer = make_trainer(
            num_mini_batches=2, num_iterations=2, max_steps=4, **EXACT, **options
        )
        fixed(trainer)
        rows, update = [], trainer._update
        trainer._update = lambda model, r, place: rows.append(list(r)) or update(model, r, place)
        trainer.train()
        return trainer, rows

    whole, rows = train()
    halves, parts = train(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)] == rows
    assert sorted(rows[0] + rows[1]) == list(range(32)) and rows[0] != rows[2]
    assert_same(weights_of(halves), weights_of(whole))


@pytest.mark.parametrize("whitened", [True, False])
def test_the_first_gradient_is_that_of_the_definition(
    whitened, make_trainer, make_policy, make_reward, fixed, gradients
):
    """GAE, whitening and both losses written out token by token; at ratio 1 no clip is active."""
    trainer = make_trainer(
        rewards=make_reward(),
        beta=0.2,
        gamma=0.97,
        gae_lambda=0.9,
        whiten_advantages=whitened,
        missing_eos_penalty=0.0,
        max_grad_norm=0.0,
        max_steps=1,
        trainer_options={"ref_model": make_policy(seed=5)},
    )
    found = gradient_of(trainer, fixed, gradients)
    rollout, prompts = trainer.rollout, trainer.rollout.prompt_ids
    policy, reference, value = make_policy(), make_policy(seed=5), make_reward().members[0][0]
    decode = trainer._tokenizer.batch_decode
    scores = make_reward().score(decode(prompts), decode(rollout.completion_ids, True))
    logps, values, advantages, returns = [], [], [], []
    for prompt, completion, score in zip(prompts, rollout.completion_ids, scores, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        logits = [model(ids).logits[0, len(prompt) - 1 : -1] for model in (policy, reference)]
        own, other = (x.log_softmax(-1)[range(len(completion)), completion] for x in logits)
        states = value.model(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
        guess = value.score(states)[:, 0]
        running, following = 0.0, 0.0
        for t in reversed(range(len(completion))):
            paid = -0.2 * (own[t] - other[t]).item() + score * (t == len(completion) - 1)
            delta = paid + 0.97 * following - guess[t].item()
            running, following = delta + 0.97 * 0.9 * running, guess[t].item()
            logps.append(own[t])
            values.append(guess[t])
            advantages.append(running)
            returns.append(running + guess[t].item())
    advantages, returns = torch.tensor(advantages), torch.tensor(returns)
    if whitened:
        advantages = (advantages - advantages.mean()) / advantages.std(unbiased=False)
    (-(torch.stack(logps) * advantages).mean()).backward()
    (0.1 * 0.5 * (torch.stack(values) - returns).square().mean()).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=2e-5)
    for name, parameter in value.model.named_parameters():
        mine = found[f"value_model.backbone.{name}"]
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=2e-5)
    mine = found["value_model.head.weight"]
    torch.testing.assert_close(mine, value.score.weight.grad, rtol=1e-3, atol=2e-5)


def test_each_step_is_a_mean_over_its_own_tokens(make_trainer, fixed, gradients):
    def steps(size, **options):
        options = {"max_grad_norm": 0.0, "learning_rate": 0.0, "num_iterations": 1} | options
        trainer = make_trainer(per_device_train_batch_size=size, **options)
        fixed(trainer)
        found = gradients(trainer)
        tokens = [sum(len(trainer.rollout.completion_ids[r]) for r in s) for s in trainer._slices]
        return found, tokens

    (whole,), _ = steps(32, max_steps=1)
    parts, tokens = steps(8, num_mini_batches=4, max_steps=4)
    assert len(set(tokens)) > 1
    for name, expected in whole.items():
        found = sum(n * step[name] for n, step in zip(tokens, parts, strict=True)) / sum(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_truncated_completions_can_be_left_out(kind, make_trainer, fixed, gradients, words):
    def gradient(bonus, masked):
        def reward(prompts, completions, completion_ids, **columns):
            ended = [ids[-1] == words.eos_token_id for ids in completion_ids]
            scores = [float(len(set(completion))) for completion in completions]
            return [s + bonus * (not e) for s, e in zip(scores, ended, strict=True)]

        options = {"baseline": "none", "num_generations": 1} if kind == "reinforce" else {}
        trainer = make_trainer(
            kind,
            rewards=reward,
            mask_truncated_completions=masked,
            score_clip=None,
            max_grad_norm=0.0,
            max_steps=1,
            **options,
        )
        step = gradient_of(trainer, fixed, gradients)
        ended = [ids[-1] == words.eos_token_id for ids in trainer.rollout.completion_ids]
        assert 0 < sum(ended) < len(ended)
        assert (trainer.rollout.mask.sum(1) > 0).tolist() == (ended if masked else [True] * 16)
        return step

    assert_same(gradient(50.0, masked=True), gradient(0.0, masked=True))
    with pytest.raises(AssertionError):
        assert_same(gradient(50.0, masked=False), gradient(0.0, masked=False))


def test_a_rollout_without_any_ended_completion_moves_nothing(make_trainer, words):
    trainer = make_trainer(mask_truncated_completions=True, max_steps=2)

    def draw(prompts, mode, index):
        ids = [[9] * 8 for _ in prompts]
        return trainer._tokenized(prompts), ids, words.batch_decode(ids), None, None

    trainer._draw = draw
    before = weights_of(trainer)
    trainer.train()
    assert_same(weights_of(trainer), before, tolerance=0.0)


def test_dropout_is_off_unless_asked_for(make_trainer, make_policy, words):
    def gap(**options):
        trainer = make_trainer(policy=make_policy(attention_dropout=0.5), max_steps=1, **options)
        trainer.train()
        return trainer.first_ratio_gap

    assert gap() < 1e-5
    with pytest.warns(UserWarning, match="ratios differ"):
        assert gap(disable_dropout=False) > 1e-2


# -- two networks ------------------------------------------------------------------------------


def test_a_large_value_gradient_does_not_scale_the_policys_away(
    make_trainer, make_reward, fixed, gradients
):
    def sizes(**options):
        trainer = make_trainer(rewards=make_reward(), value_coefficient=1e4, max_steps=1, **options)
        unscaled, unscale = [], trainer.accelerator.unscale_gradients
        trainer.accelerator.unscale_gradients = lambda *a: unscaled.append(1) or unscale(*a)
        step = gradient_of(trainer, fixed, gradients)
        # A gradient scaler refuses to be asked twice in one step.
        assert len(unscaled) <= 1
        return size_of(step, policy_only), size_of(step, is_value_parameter)

    free = sizes(max_grad_norm=0.0)
    assert free[0] > 0.1 and free[1] > 1e3
    assert sizes(max_grad_norm=0.1) == pytest.approx((0.1, 0.1), rel=1e-3)
    # A limit above the policy's own norm leaves the policy's gradient as it is.
    assert sizes(max_grad_norm=100.0) == pytest.approx((free[0], 100.0), rel=1e-3)


@pytest.mark.parametrize("value_model", ["policy", "shared"])
def test_the_value_model_can_have_a_learning_rate_of_its_own(value_model, make_trainer):
    trainer = make_trainer(
        value_model=value_model, value_learning_rate=0.5, weight_decay=0.1, max_steps=1
    )
    trainer.train()
    rates, names = {}, {id(p): name for name, p in trainer.model.named_parameters()}
    decays = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in rates
            rates[name], decays[name] = group["lr"], group["weight_decay"]
    assert rates == {n: 0.5 if is_value_parameter(n) else 1e-3 for n in names.values()}
    assert set(decays.values()) == {0.0, 0.1}  # the parent's split is kept
    assert decays["model.norm.weight"] == 0.0


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_the_entropy_bonus_raises_entropy(kind, make_trainer):
    def entropies(coefficient):
        trainer = make_trainer(
            kind,
            rewards=lambda prompts, completions, **columns: [0.0] * len(prompts),
            beta=0.0,
            missing_eos_penalty=0.0,
            entropy_coefficient=coefficient,
            num_iterations=1,
            max_steps=12,
            learning_rate=5e-3,
        )
        before = weights_of(trainer)
        trainer.train()
        same = all(torch.equal(before[n], w) for n, w in weights_of(trainer).items())
        return same, [line["policy/entropy"] for line in trainer.state.log_history[:-1]]

    same, _ = entropies(0.0)
    assert same  # nothing else pulls at the policy
    same, curve = entropies(0.1)
    assert not same and sum(curve[-3:]) > sum(curve[:3]) + 0.3
