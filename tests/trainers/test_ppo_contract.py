"""What the on-policy trainers rely on in TRL, and that its oldest and newest versions keep it.

Run under the oldest admitted TRL too: `PYTHONPATH=. <its python> -m pytest <this file>`.
"""

import ast
import inspect
import textwrap
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import RLOOConfig, RLOOTrainer

from hf_align.trainers import on_policy_rollouts
from hf_align.trainers.on_policy_config import PPOConfig
from hf_align.types import InputError

KINDS = ("ppo", "reinforce")
PLAIN = {"use_cpu": True, "bf16": False, "report_to": "none"}


@pytest.fixture(params=["our loop", "TRL's generate"])
def engine(request, monkeypatch):
    """Both ways of drawing completions."""
    if request.param == "TRL's generate":
        monkeypatch.setattr(on_policy_rollouts, "can_draw", lambda *args: False)
    return request.param


def test_the_two_internal_methods_have_the_signatures_that_are_called():
    assert list(inspect.signature(RLOOTrainer._generate).parameters) == ["self", "prompts"]
    assert list(inspect.signature(RLOOTrainer._calculate_rewards).parameters) == [
        *("self", "inputs", "prompts", "completions", "completion_ids_list"),
    ]


def test_generate_returns_ids_and_texts_of_each_prompt(make_trainer, prompts, words):
    trainer = make_trainer()
    trainer.model.train()
    given = prompts[:3]
    prompt_ids, completion_ids, completions = trainer._generate(list(given))
    assert [list(ids) for ids in prompt_ids] == words(given)["input_ids"]
    assert len(completion_ids) == len(completions) == 3
    for ids, text in zip(completion_ids, completions, strict=True):
        assert 1 <= len(ids) <= 8
        end = words.eos_token_id
        assert end not in ids[:-1] and (ids[-1] == end or len(ids) == 8)
        assert text == words.decode(ids, skip_special_tokens=True)


def test_rewards_are_a_table_with_nan_where_a_function_gives_none(make_trainer):
    def even(prompts, completions, column, **columns):
        return [float(c) if c % 2 == 0 else None for c in column]

    trainer = make_trainer(rewards=[even, lambda prompts, completions, **c: [7.0] * len(prompts)])
    inputs = [{"prompt": "mention tea :", "column": index} for index in range(3)]
    prompts = [row["prompt"] for row in inputs]
    table = trainer._calculate_rewards(inputs, prompts, ["tea", "sea", "rain"], [[11], [12], [13]])
    expected = torch.tensor([[0.0, 7.0], [torch.nan, 7.0], [2.0, 7.0]])
    torch.testing.assert_close(table.cpu(), expected, equal_nan=True)


def test_the_check_of_two_completions_comes_last_in_the_configuration(tmp_path):
    source = textwrap.dedent(inspect.getsource(RLOOConfig.__post_init__))
    last = ast.parse(source).body[0].body[-1]
    # Nothing is derived after it, so that catching its error leaves nothing undone.
    assert isinstance(last, ast.If) and isinstance(last.body[-1], ast.Raise)
    assert "at least 2 generations" in ast.unparse(last)
    with pytest.raises(ValueError, match="at least 2 generations"):
        RLOOConfig(str(tmp_path), num_generations=1, **PLAIN)


def test_one_completion_per_prompt_leaves_no_field_underived(tmp_path):
    options = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, **PLAIN}
    one = PPOConfig(str(tmp_path), num_generations=1, **options)
    two = PPOConfig(str(tmp_path), num_generations=2, **options)
    plain = RLOOConfig(str(tmp_path), num_generations=2, **options)
    assert vars(one).keys() == vars(two).keys() >= vars(plain).keys()
    different = {name for name in vars(plain) if vars(one)[name] != vars(two)[name]}
    assert different - {"distributed_state"} == {"num_generations"}  # that one has no equality
    assert (one.steps_per_generation, one.generation_batch_size) == (2, 12)


def test_other_errors_of_the_parent_configuration_are_not_swallowed(tmp_path):
    with pytest.raises(ValueError, match="auto_find_batch_size"):
        PPOConfig(str(tmp_path), auto_find_batch_size=True, **PLAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_start_from_the_policy_that_wrote_them(kind, engine, make_trainer, make_reward):
    trainer = make_trainer(kind, rewards=make_reward(), num_iterations=2, max_steps=4)
    gaps, rolled_out, check = [], [], trainer._check_first_ratio
    roll_out = trainer._roll_out

    def spy(log_ratio):
        if trainer._step % trainer._cycle == 0:
            gaps.append(float(log_ratio.detach().abs().max()))
        check(log_ratio)

    def count(inputs, mode):
        rolled_out.append(trainer._step)
        return roll_out(inputs, mode)

    trainer._check_first_ratio, trainer._roll_out = spy, count
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*first update's ratios.*")
        trainer.train()
    assert rolled_out == [0, 2] and len(gaps) == 2
    # REINFORCE adds the differences of up to 8 tokens.
    assert max(gaps) < 1e-5 and trainer.first_ratio_gap == gaps[0]
    first = trainer.state.log_history[0]
    assert first["kl/sequence_k1"] == pytest.approx(0.0, abs=1e-5)
    assert first["policy/clip_fraction"] == 0.0
    assert first["policy/update_kl"] == pytest.approx(0.0, abs=1e-6)
    later = trainer.state.log_history[2]
    assert abs(later["kl/sequence_k1"]) > 1e-3  # two steps later it is another policy


def test_a_scorer_that_disagrees_with_the_sampler_is_told(make_trainer):
    trainer = make_trainer(max_steps=1)
    draw = trainer._draw

    def warmer(*args):
        *drawn, logps, values = draw(*args)
        return *drawn, logps / 0.7, values

    trainer._draw = warmer
    with pytest.warns(UserWarning, match="first update's ratios differ from 1"):
        trainer.train()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_logps_are_of_the_tempered_distribution(temperature, engine, make_trainer, make_policy):
    trainer = make_trainer(policy=make_policy(), temperature=temperature, max_steps=1)
    trainer.train()
    expect_rollout_logps(trainer.rollout, make_policy(), temperature)
    assert trainer.first_ratio_gap < 1e-5


def expect_rollout_logps(rollout, model, temperature=1.0):
    """Rollout against an independent forward pass of each sequence, without any padding."""
    for row, (prompt, completion) in enumerate(
        zip(rollout.prompt_ids, rollout.completion_ids, strict=True)
    ):
        ids = torch.tensor([[*prompt, *completion]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        found = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        given = rollout.logps[row, : len(completion)]
        torch.testing.assert_close(given, found, rtol=0, atol=2e-5)
        reference = rollout.ref_logps[row, : len(completion)]
        torch.testing.assert_close(reference, found, rtol=0, atol=2e-5)
        assert not rollout.mask[row, len(completion) :].any()


FAMILIES = {
    # Positions are learnt: padding on the left without position ids was off by nats.
    "gpt2": {"n_positions": 64},
    # Logits are divided, multiplied, or soft-capped between head and loss.
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16, "sliding_window": 64},
}


def tiny_family(family, tokenizer):
    from transformers import AutoConfig

    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    if family == "gpt2":
        shape = {"n_embd": 32, "n_head": 2, "n_layer": 2}
    else:
        shape |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **shape,
        **FAMILIES[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_scored_by_their_own_logits(family, engine, make_trainer, words):
    trainer = make_trainer(policy=tiny_family(family, words), max_steps=1, value_model="shared")
    trainer.train()
    assert len({len(ids) for ids in trainer.rollout.prompt_ids}) > 1
    expect_rollout_logps(trainer.rollout, tiny_family(family, words))
    assert trainer.first_ratio_gap < 2e-5


def test_the_reference_is_the_instance_wherever_its_configuration_points(make_trainer, make_policy):
    policy = make_policy()
    policy.config._name_or_path = "nobody/no-such-model"
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.3)
    kept = {name: value.clone() for name, value in policy.state_dict().items()}
    trainer = make_trainer(policy=policy, max_steps=3, num_iterations=1, learning_rate=1e-2)
    trainer.train()
    assert trainer.state.log_history[0]["kl/sequence_k1"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.state.log_history[2]["kl/sequence_k1"] > 1e-2
    # What the reference says is what the policy said before: nothing in it is bound to the policy.
    other = make_policy()
    other.load_state_dict(kept)
    ids = torch.tensor([[6, 8, 9, 10]])
    with torch.no_grad():
        torch.testing.assert_close(trainer.reference(ids).logits, other(ids).logits)
        assert (trainer.model(ids).logits - other(ids).logits).abs().max() > 1e-2
    sampled = [
        m.generate(ids, do_sample=False, max_new_tokens=4) for m in (trainer.reference, other)
    ]
    assert torch.equal(*sampled)


def test_a_policy_sharded_at_load_time_is_not_copied(make_trainer, make_policy):
    policy = make_policy()
    policy.model.norm.weight.data = torch.empty(0)
    with pytest.raises(InputError, match="give ref_model"):
        make_trainer(policy=policy)


def test_a_given_reference_is_used(make_trainer, make_policy):
    trainer = make_trainer(max_steps=1, trainer_options={"ref_model": make_policy(seed=5)})
    trainer.train()
    assert trainer.state.log_history[0]["kl/sequence_k1"] > 0.1
    assert not any(p.requires_grad for p in trainer.reference.parameters())


def test_every_weight_gets_a_gradient_so_unused_ones_are_not_looked_for(make_trainer):
    assert make_trainer().args.ddp_find_unused_parameters is False


def test_trls_defaults_run_on_a_cpu(make_trainer, make_reward):
    # TRL's configuration computes in bfloat16 and checkpoints activations unless told otherwise.
    trainer = make_trainer(
        rewards=make_reward(), bf16=None, gradient_checkpointing=True, max_steps=2
    )
    assert trainer.args.bf16
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.first_ratio_gap < 0.3
    assert all(not torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_accumulation_and_minibatches_multiply(make_trainer):
    """16 slices per rollout, used twice, 4 to a step: 8 steps a rollout, so 32 for four."""
    trainer = make_trainer(
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        num_mini_batches=4,
        num_iterations=2,
        max_steps=-1,
        num_train_epochs=2,
    )
    indices, roll_out = [], trainer._roll_out
    trainer._roll_out = lambda inputs, mode: indices.append(len(inputs)) or roll_out(inputs, mode)
    trainer.train()
    assert indices == [16] * 4 and trainer.state.global_step == 32
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {32}


def test_vllm_gets_the_policys_weights_alone(make_trainer):
    from hf_align.trainers.on_policy_setup import keep_value_model_from_vllm

    class Generation:
        def _iter_named_params(self):
            return iter(trainer.model.named_parameters())

    for value in ("shared", "policy"):
        trainer = make_trainer(value_model=value)
        generation, expected = Generation(), set()
        keep_value_model_from_vllm(generation)
        expected = {name for name, _ in make_trainer("reinforce").model.named_parameters()}
        assert {name for name, _ in generation._iter_named_params()} == expected
        assert len(dict(trainer.model.named_parameters())) > len(expected)
