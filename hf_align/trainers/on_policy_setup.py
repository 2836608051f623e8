"""What an on-policy trainer is built from: policy, reference, rewards, shaping, controller."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_align.rewards import RewardModel, Shaping, check_horizon, checked_scores, make_controller
from hf_align.trainers.on_policy_config import OnPolicyConfig
from hf_align.trainers.value_models import is_value_parameter
from hf_align.types import InputError

# Fields of TRL's configuration that reshape the distribution that completions are drawn from.
_RESHAPING = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}


def check_data(dataset: Any, args: OnPolicyConfig) -> None:
    """Refuses data that no rollout can be made from.

    Raises:
        InputError: No `prompt` column, images, or fewer prompts than one rollout takes.
    """
    if dataset is None:
        raise InputError("train_dataset is missing; give a dataset with a column `prompt`")
    columns = getattr(dataset, "column_names", None)
    if columns is not None and "prompt" not in columns:
        raise InputError(f"train_dataset has no column `prompt`; it has {', '.join(columns)}")
    if columns is not None and {"image", "images"} & set(columns):
        raise InputError("train_dataset has images, and on-policy training takes text only")
    try:
        size = len(dataset)
    except TypeError as error:
        if args.max_steps <= 0:
            raise InputError("train_dataset is a stream without an end; give max_steps") from error
        return
    needed = args.generation_batch_size // args.num_generations
    if size < needed:
        raise InputError(
            f"train_dataset has {size} prompts, and a rollout takes {needed} "
            f"(generation_batch_size {args.generation_batch_size} / num_generations "
            f"{args.num_generations}); lower num_mini_batches or per_device_train_batch_size"
        )


def check_sampling(args: OnPolicyConfig) -> None:
    """Refuses settings under which completions are not drawn from the policy that is trained.

    Raises:
        InputError: Names the option.
    """
    for name, plain in _RESHAPING.items():
        value = getattr(args, name)
        if value != plain and not (name == "top_k" and value in (-1, None)):
            raise InputError(
                f"{name} {value} draws from another distribution than the policy, so ratios and KL "
                f"would be wrong; leave it out, or use temperature"
            )


def load_policy(model: Any, args: OnPolicyConfig, quantization_config: Any = None) -> Any:
    """The policy: an instance as it is, a path or id loaded in float32 unless args differ."""
    if not isinstance(model, str):
        return model
    from transformers import AutoModelForCausalLM

    kwargs = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code}
    kwargs |= args.model_init_kwargs or {}
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if isinstance(kwargs["dtype"], str) and kwargs["dtype"] != "auto":
        kwargs["dtype"] = getattr(torch, kwargs["dtype"])
    return AutoModelForCausalLM.from_pretrained(model, **kwargs)


def reference_of(policy: Any, given: Any, peft_config: Any) -> Any:
    """The reference model: the one given, or a frozen copy of the policy as it is now.

    None for LoRA, whose reference is itself without the adapter. A copy of the instance, because
    what its configuration names may be another revision, or nothing.

    Raises:
        InputError: A reference was given beside an adapter.
    """
    from peft import PeftModel

    if peft_config is not None or isinstance(policy, PeftModel):
        if given is not None:
            raise InputError("ref_model is not used with an adapter: the reference is the base")
        return None
    if given is None:
        if any(parameter.numel() == 0 for parameter in policy.parameters()):
            raise InputError(
                "the policy is sharded at load time and cannot be copied; give ref_model"
            )
        given = copy.deepcopy(policy)
    return given.eval().requires_grad_(False)


def reward_functions(
    rewards: Any, tokenizers: Any, args: OnPolicyConfig
) -> tuple[list[Callable], list[RewardModel]]:
    """Every reward as a checked function of TRL's signature, and the reward models among them.

    Sequence-classification models, by path, id or instance, become `RewardModel`, which scores the
    tokens that such a model was trained on: TRL's own path leaves the end token out.

    Raises:
        InputError: No reward, or a model without its tokenizer.
    """
    rewards = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    tokenizers = tokenizers if isinstance(tokenizers, list) else [tokenizers] * len(rewards)
    if not rewards:
        raise InputError("reward_funcs is empty; give a reward model or function")
    if len(tokenizers) != len(rewards):
        raise InputError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(rewards)} rewards"
        )
    weights = args.reward_weights
    if weights is not None and len(weights) != len(rewards):
        raise InputError(f"reward_weights has {len(weights)} entries for {len(rewards)} rewards")
    functions, models = [], []
    for reward, tokenizer in zip(rewards, tokenizers, strict=True):
        if isinstance(reward, str | Path):
            reward = RewardModel(reward, option="reward")
        elif isinstance(reward, nn.Module):
            reward = _from_module(reward, tokenizer)
        if isinstance(reward, RewardModel):
            models.append(reward)
        elif not callable(reward):
            raise InputError(f"a reward must be a model, its id, or a function; got {reward!r}")
        functions.append(checked(reward))
    return functions, models


def _from_module(model: Any, tokenizer: Any) -> RewardModel:
    if tokenizer is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    name = Path(model.config._name_or_path).name or "reward"
    return RewardModel.from_members([(model.eval(), tokenizer)], name=name)


def checked(reward: Callable) -> Callable:
    """The reward with its result checked: one finite number (or None) per completion.

    None, TRL's way of saying "not mine", is kept as it is where other rewards may score the row.
    """
    name = getattr(reward, "__name__", type(reward).__name__)

    def check(scores: Any, completions: Sequence[Any]) -> list[float | None]:
        try:
            if isinstance(scores, torch.Tensor):
                scores = scores.detach().flatten().tolist()
            scores = [None if score is None else float(score) for score in scores]
        except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor without data
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"reward {name} must return a list with one number per completion ({reason})"
            ) from error
        filled = checked_scores([0.0 if s is None else s for s in scores], len(completions), name)
        return [None if s is None else f for s, f in zip(scores, filled, strict=True)]

    def failed(error: Exception) -> InputError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return InputError(f"reward {name} raised {what} ({Path(last.filename).name} {last.lineno})")

    if is_async_callable(reward):

        async def score_later(prompts, completions, **columns):
            try:
                scores = await reward(prompts=prompts, completions=completions, **columns)
            except InputError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise failed(error) from error
            return check(scores, completions)

        score_later.__name__ = name
        return score_later

    def score(prompts, completions, **columns):
        try:
            scores = reward(prompts=prompts, completions=completions, **columns)
        except InputError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise failed(error) from error
        return check(scores, completions)

    score.__name__ = name
    return score


def is_async_callable(function: Callable) -> bool:
    """Whether calling it gives a coroutine, for functions and for instances that are called."""
    own = type(function).__call__ if callable(function) else None
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own)


def shaping_of(args: OnPolicyConfig) -> Shaping:
    """The reward shaping that the options describe."""
    return Shaping(
        transform=args.score_transform,
        normalise=args.normalise_scores,
        normalise_mean=args.centre_scores,
        clip=args.score_clip,
        length_coefficient=args.length_coefficient,
        free_length=args.free_length,
        missing_eos_penalty=args.missing_eos_penalty or None,
        missing_eos_mode=args.missing_eos_mode,
    )


def num_rollouts(args: OnPolicyConfig, dataset: Any) -> int:
    """How many rollouts the run will make."""
    steps_each = args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps
    if args.max_steps > 0:
        return max(1, -(-args.max_steps // steps_each))
    prompts = args.generation_batch_size // args.num_generations
    return max(1, int(len(dataset) // prompts * args.num_train_epochs))


def controller_of(args: OnPolicyConfig, num_rollouts: int) -> Any:
    """The KL controller that the options describe.

    Raises:
        InputError: Its numbers do not fit, such as a horizon shorter than a fifth of a rollout.
    """
    if args.kl_controller == "adaptive":
        check_horizon(args.kl_horizon, args.generation_batch_size)
    return make_controller(
        args.kl_controller,
        args.beta,
        target=args.kl_target,
        horizon=args.kl_horizon,
        budget=args.kl_target,
        end=args.beta_end or 0.0,
        num_updates=num_rollouts,
    )


def load_tokenizer(policy: Any, args: OnPolicyConfig) -> Any:
    """The tokenizer that belongs to the policy, padding on the left."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        policy.config._name_or_path, padding_side="left", trust_remote_code=args.trust_remote_code
    )


def disable_dropout(model: nn.Module, args: OnPolicyConfig) -> None:
    """Makes a model deterministic in training mode, where the options say so.

    Most attentions hold their rate as a number of their own (`attention_dropout`), not as a module.
    """
    if not args.disable_dropout:
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def prepared(trainer: Any, reference: Any) -> Any:
    """The reference on the trainer's devices, sharded as the policy is."""
    if trainer.is_deepspeed_enabled:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(reference, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        from trl.models import prepare_fsdp

        return prepare_fsdp(reference, trainer.accelerator)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def keep_value_model_from_vllm(generation: Any) -> None:
    """Pushes the policy's weights alone to vLLM, which knows no value model."""
    every = generation._iter_named_params

    def policy_only():
        return ((name, tensor) for name, tensor in every() if not is_value_parameter(name))

    generation._iter_named_params = policy_only
