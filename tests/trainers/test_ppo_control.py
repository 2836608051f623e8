"""KL control of the on-policy trainers: controllers, leaving a rollout early, ending the run."""

import pytest
import torch


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_a_policy_that_moved_too_far_leaves_the_rollout_untouched(
    kind, make_trainer, after_each_step
):
    trainer = make_trainer(
        kind,
        update_kl_limit=1e-4,
        num_iterations=4,
        max_steps=8,
        learning_rate=1e-2,
        weight_decay=0.1,
    )
    after = after_each_step(trainer)
    trainer.train()
    logs = trainer.state.log_history
    # The first step sees the policy that wrote the rollout; the second sees that it has moved.
    assert [i for i, line in enumerate(logs) if line.get("policy/left_rollout")] == [1, 5]
    for skipped in (1, 2, 3, 5, 6, 7):
        assert_equal(after.weights[skipped], after.weights[skipped - 1])
        for ours, theirs in zip(after.moments[skipped], after.moments[skipped - 1], strict=True):
            assert_equal(ours, theirs)
    for name, weight in after.weights[4].items():
        assert not torch.equal(weight, after.weights[3][name]), name


@pytest.mark.parametrize("kind", ["ppo", "reinforce"])
def test_the_run_ends_within_a_rollout_of_the_kl_limit(
    kind, make_trainer, after_each_step, tmp_path
):
    trainer = make_trainer(
        kind,
        kl_limit=0.05,
        learning_rate=1e-2,
        num_iterations=2,
        max_steps=40,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    after = after_each_step(trainer)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "kl/sequence_k1" in line]
    kls = [line["kl/sequence_k1"] for line in logs]
    assert all(kl <= 0.05 for kl in kls[:-1]) and kls[-1] > 0.05
    step = trainer.state.global_step
    assert step == logs[-1]["step"] < 40
    assert (
        "above kl_limit 0.05" in trainer.stop_reason and f"step {step - 1}" in trainer.stop_reason
    )
    # Every slice of the last step was taken, and none of them moved the policy.
    assert trainer._step == 2 * step
    assert_equal(after.weights[-1], after.weights[-2])
    assert (tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").is_file()


def test_controllers_move_as_they_say_and_are_logged(make_trainer):
    def betas(**options):
        trainer = make_trainer(
            num_iterations=1, max_steps=6, learning_rate=1e-2, beta=0.1, **options
        )
        trainer.train()
        logs = trainer.state.log_history[:-1]
        assert trainer.args.beta == 0.1
        return [line["kl/coefficient"] for line in logs], [line["kl/sequence_k1"] for line in logs]

    assert betas()[0] == [0.1] * 6
    scheduled, _ = betas(kl_controller="scheduled", beta_end=0.0)
    assert scheduled == pytest.approx([0.1 * (1 - i / 6) for i in range(6)])
    # Ziegler's equation, written out; a rollout is 16 completions.
    adaptive, kls = betas(kl_controller="adaptive", kl_target=0.05, kl_horizon=64)
    expected = [0.1]
    for kl in kls[:-1]:
        expected.append(expected[-1] * (1 + min(max(kl / 0.05 - 1, -0.2), 0.2) * 16 / 64))
    assert adaptive == pytest.approx(expected) and len(set(adaptive)) == 6
    budget, kls = betas(kl_controller="budget", kl_target=100.0)
    assert budget == sorted(budget, reverse=True) and budget[-1] < 0.1


def test_a_huge_beta_holds_the_policy_that_beta_zero_lets_go(make_trainer):
    def kl(beta):
        trainer = make_trainer(
            beta=beta,
            whiten_advantages=False,
            per_device_train_batch_size=32,
            max_steps=40,
            num_iterations=1,
            learning_rate=1e-3,
        )
        trainer.train()
        logs = [line for line in trainer.state.log_history if "kl/sequence_k1" in line]
        return sum(line["kl/sequence_k1"] for line in logs[-5:]) / 5

    free, held = kl(0.0), kl(100.0)
    assert free > 1.0
    assert held < free / 8
