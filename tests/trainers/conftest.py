"""The on-policy trainers' tiny models as fixtures."""

import pytest
from tiny_trainers import (
    build_policy,
    build_prompts,
    build_reward,
    build_trainer,
    draw_fixed,
    word_tokenizer,
)


@pytest.fixture(scope="session")
def words():
    """The tokenizer of policy and reward model."""
    return word_tokenizer()


@pytest.fixture
def make_policy(words):
    """`build_policy` with the tokenizer filled in."""
    return lambda seed=0, **changes: build_policy(words, seed, **changes)


@pytest.fixture
def make_reward(words):
    """A `RewardModel` of a random Llama; `name` is what logs call it."""
    from hf_align.rewards import RewardModel

    def make(seed=1, tokenizer=words, name="tiny", **changes):
        model = build_reward(tokenizer, seed, **changes)
        return RewardModel.from_members([(model, tokenizer)], name=name)

    return make


@pytest.fixture
def make_trainer(words, tmp_path, quick_collections):
    """`build_trainer` in the test's folder: `make_trainer("ppo", max_steps=4)`."""

    def make(kind="ppo", folder=None, tokenizer=words, **options):
        return build_trainer(kind, folder or tmp_path / "run", tokenizer, **options)

    return make


@pytest.fixture(scope="session")
def prompts():
    """The prompts that trainers get unless a test gives others."""
    return build_prompts()


@pytest.fixture
def fixed():
    """`draw_fixed`: two trainers that draw so see the same completions."""
    return draw_fixed


@pytest.fixture
def after_each_step():
    """Has a trainer keep its weights and its optimizer's moments after every step."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self, trainer):
            self.trainer, self.weights, self.moments = trainer, [], []
            trainer.add_callback(self)

        def on_step_end(self, args, state, control, **kwargs):
            named = self.trainer.model.named_parameters()
            self.weights.append({name: p.detach().clone() for name, p in named})
            states = self.trainer.optimizer.optimizer.state.values()
            self.moments.append([{k: v.clone() for k, v in s.items()} for s in states])

    return Recorder


@pytest.fixture
def gradients():
    """Trains, and returns each optimizer step's gradients by parameter, as the optimizer sees them.

    Without `max_grad_norm=0` they have been clipped.
    """
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self):
            self.steps = []

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            named = model.named_parameters()
            self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})

    def train(trainer):
        recorder = Recorder()
        trainer.add_callback(recorder)
        trainer.train()
        return recorder.steps

    return train
