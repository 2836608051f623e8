"""From options to a trained model: settled arguments, models, callbacks, the step-0 check."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hf_align.configs import EvaluationArguments
from hf_align.data import LoadedData, audit_with_tokenizer
from hf_align.diagnostics.overoptimization import MIN_PROMPTS
from hf_align.recipes._evaluation import AUDIT_STREAM, Evaluator
from hf_align.recipes._inputs import Gold, max_new_tokens, try_gold
from hf_align.recipes._models import load_tokenizer_and_config
from hf_align.recipes._parser import Choices
from hf_align.recipes._preflight import (
    check_answers,
    check_lengths,
    check_tokenizer,
    fit_length,
    read_template,
    scaled_learning_rate,
    trainer_defaults,
)
from hf_align.recipes._run import Run, checkpoints_stay
from hf_align.types import InputError, RewardFn, Text


@dataclass
class Setup:
    """What a trainer is built from.

    Attributes:
        args: TRL's configuration, complete.
        model_args: TRL's model options.
        tokenizer: The tokenizer, checked.
        max_positions: Longest sequence that the model takes, if it has a limit.
        warnings: What the preflight found worth saying.
    """

    args: Any
    model_args: Any
    tokenizer: Any
    max_positions: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for loading the model's weights."""
        from trl import get_quantization_config

        kwargs: dict[str, Any] = {"trust_remote_code": self.args.trust_remote_code}
        if self.model_args.attn_implementation is not None:
            kwargs["attn_implementation"] = self.model_args.attn_implementation
        quantization = get_quantization_config(self.model_args)
        if quantization is not None:
            kwargs["quantization_config"] = quantization
        return kwargs


def settle(
    choices: Choices,
    run: Run,
    config_class: type,
    data: LoadedData,
    source: dict[str, Any] | None,
    scratch: tuple[Any, Any] | None = None,
    *,
    full_learning_rate: float,
) -> Setup:
    """Settles the trainer's arguments and the tokenizer, before any weights load.

    Args:
        choices: The user's options.
        run: The run.
        config_class: TRL's configuration class.
        data: The normalised data.
        source: Where the model is; None for a model made from scratch.
        scratch: Model and tokenizer made from scratch.
        full_learning_rate: Default for training all weights.

    Raises:
        InputError: Anything that cannot work on this machine, with this model, on these data.
    """
    from trl import ModelConfig

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    if scratch is not None:
        model, tokenizer = scratch
        max_positions = model.config.max_position_embeddings
    else:
        trust = choices.get("trust_remote_code", False)
        tokenizer, text_config = load_tokenizer_and_config(source, trust)
        max_positions = getattr(text_config, "max_position_embeddings", None)
    for option, value in choices.withhold("pad_token", "chat_template_path").items():
        if option == "pad_token":
            tokenizer.pad_token = value
        elif value is not None:
            tokenizer.chat_template = read_template(value, tokenizer)
    name = source["name"] if source else "made from scratch"
    check_tokenizer(tokenizer, name, data.report.conversational)
    defaults = trainer_defaults(choices, str(run.path))
    defaults |= scaled_learning_rate(choices, full_learning_rate)
    cut = "max_length" in config_class.__dataclass_fields__
    if cut:
        defaults |= fit_length(choices, max_positions)
    # Every weight gets a gradient, so DDP need not walk the graph at each step to find that out.
    defaults["ddp_find_unused_parameters"] = False
    args = choices.build(config_class, defaults)
    # A frozen base needs no float32 copy; weights that train do.
    model_defaults = {"dtype": "bfloat16"} if choices.get("use_peft") and args.bf16 else {}
    args.resume_from_checkpoint = str(run.resume) if run.resume else None
    setup = Setup(args, choices.build(ModelConfig, model_defaults), tokenizer, max_positions)
    if cut:
        audit = audit_with_tokenizer(data.splits, tokenizer, args.max_length, data.report.task)
        setup.warnings = check_lengths(audit, args.max_length)
        setup.warnings += check_answers(tokenizer, data.splits["train"][0])
    run.warnings += setup.warnings
    return setup


def resolved_config(choices: Choices, setup: Setup, own: tuple[type, ...]) -> dict[str, Any]:
    """Every option with the value it ended up with, JSON-ready, for `run.json`."""
    config = setup.args.to_dict() | vars(setup.model_args) | choices.withheld
    for cls in own:
        config |= vars(choices.build(cls))
    return json.loads(json.dumps(config, default=str))


def make_evaluator(
    choices: Choices,
    run: Run,
    setup: Setup,
    prompts: tuple[list[Text], list[Text]],
    load_gold: Callable[[str], Gold | None],
    proxy: Gold | None = None,
    columns: dict[str, dict[str, Any]] | None = None,
) -> Evaluator:
    """The evaluator that the options describe, with its gold reward loaded.

    `proxy` is the reward that training optimises, where there is one, and `columns` what rewards
    read beside prompts and completions: `{column: {repr(prompt): value}}`.

    Prompts that leave no room for a completion within the model's positions are left out, and said
    so.
    """
    args = choices.build(EvaluationArguments)
    longest = max_new_tokens(choices)
    if "eval_max_new_tokens" not in choices.values and setup.max_positions:
        # The user left it open: half of a short context is for the answer.
        longest = min(longest, setup.max_positions // 2)
    room = (setup.max_positions or 10**9) - longest
    fitting = [[p for p in part if num_tokens(setup.tokenizer, p) <= room] for part in prompts]
    if any(part and len(fits) < 2 for part, fits in zip(prompts, fitting, strict=True)):
        raise InputError(
            f"eval_max_new_tokens {longest} leaves room for fewer than two held-out prompts in the "
            f"model's {setup.max_positions} positions; lower --eval_max_new_tokens"
        )
    left_out = sum(map(len, prompts)) - sum(map(len, fitting))
    if left_out:
        run.warn(
            f"{left_out} held-out prompts are not answered: with eval_max_new_tokens {longest} "
            f"they exceed the model's {setup.max_positions} positions"
        )
    if args.stop_when_gold_falls and len(fitting[1]) < MIN_PROMPTS:
        raise InputError(
            f"stop_when_gold_falls tests over audit prompts and has {len(fitting[1])}; it needs "
            f"{MIN_PROMPTS}: raise --num_audit_prompts, or hold out more"
        )
    gold = load_gold(str(setup.args.device))
    try_gold(gold, fitting[0])
    columns = columns or {}
    try_gold(proxy, fitting[0], columns)
    return Evaluator(
        tokenizer=setup.tokenizer,
        prompts=fitting[0],
        audit_prompts=fitting[1],
        gold=gold,
        proxy=proxy,
        columns=columns,
        num_samples=args.num_eval_samples,
        max_new_tokens=longest,
        batch_size=args.eval_generation_batch_size,
        seed=setup.args.seed,
    )


def num_tokens(tokenizer: Any, prompt: Text) -> int:
    """Tokens of a prompt as a policy reads it, a conversation with its generation prompt."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def run_trainer(
    run: Run, choices: Choices, trainer: Any, evaluator: Evaluator, reference: Any
) -> None:
    """Trains with our callbacks (metrics file, audits, progress), resuming where asked.

    The evaluator learns what the audits found.
    """
    from transformers import PrinterCallback, ProgressCallback
    from transformers.utils import logging as transformers_logging

    from hf_align.trainers.callbacks import AlreadyTrained, MetricsFile, NoExtraStep, Progress

    for noisy in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(noisy)
    # TRL writes its own card with every checkpoint; ours is written with the report.
    trainer.create_model_card = lambda *args, **kwargs: None
    trainer.add_callback(MetricsFile(run.path / "metrics.jsonl"))
    diagnostics = None
    if choices.build(EvaluationArguments).audit_steps:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            run.warn(
                "audit_steps: a sharded policy cannot be sampled; it is evaluated at the end only"
            )
        else:
            diagnostics = _audits(run, choices, evaluator, reference).attach(trainer)
    trainer.add_callback(NoExtraStep())
    trainer.add_callback(Progress())
    # A bar per checkpoint would break the training's own bar.
    transformers_logging.disable_progress_bar()
    with checkpoints_stay(run.path), suppress(AlreadyTrained):
        if trainer.args.resume_from_checkpoint is None:
            trainer.train()
        else:
            trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if diagnostics is not None:
        evaluator.audits, evaluator.best_step = diagnostics.audits, diagnostics.best_step


def _audits(run: Run, choices: Choices, evaluator: Evaluator, reference: Any) -> Any:
    """The audits that the options describe, on prompts apart from the report's."""
    from hf_align.trainers.diagnostics import DiagnosticsCallback

    args = choices.build(EvaluationArguments)
    return DiagnosticsCallback(
        evaluator.audit_prompts,
        evaluator.tokenizer,
        reference=reference,
        every=args.audit_steps,
        gold=_function(evaluator.gold),
        proxy=_function(evaluator.proxy),
        columns=evaluator.columns_of(evaluator.audit_prompts),
        max_new_tokens=evaluator.max_new_tokens,
        batch_size=evaluator.batch_size,
        seed=1000 * evaluator.seed + AUDIT_STREAM,
        keep_best=args.keep_best,
        kl_budget=args.kl_budget,
        stop_when_gold_falls=args.stop_when_gold_falls,
        output_dir=run.path,
        tell=run.warn,
    )


def _function(reward: Gold | None) -> RewardFn | None:
    """A reward as a function by the name that messages call it."""
    if reward is None:
        return None

    def score(prompts: list[Text], completions: list[Text], **columns: object) -> list[float]:
        return reward.reward(prompts=prompts, completions=completions, **columns)

    score.__name__ = reward.name
    return score
