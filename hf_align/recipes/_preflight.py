"""Everything about a run that can be settled before a model's weights load.

Device and precision, learning rate, lengths, loss names, tokenizer and template: whatever the user
left open gets a default that fits, and whatever cannot work is refused in one line.
"""

from __future__ import annotations

from typing import Any

from hf_align.recipes._parser import Choices
from hf_align.types import InputError

# A LoRA update moves the policy less than the same step on all weights: ten times TRL's default.
_LORA_FACTOR = 10


def check_combinations(choices: Choices) -> None:
    """Refuses combinations that TRL accepts and ignores, or refuses only after loading a model.

    Raises:
        InputError: Names both options and what to do.
    """
    losses = choices.get("loss_type", ["sigmoid"])
    smoothing = choices.get("label_smoothing", 0.0)
    if "exo_pair" in losses and smoothing <= 0:
        raise InputError("loss_type exo_pair needs label_smoothing above 0; its paper uses 1e-3")
    if smoothing and not {"robust", "exo_pair"} & set(losses):
        raise InputError(
            f"label_smoothing {smoothing} has no effect on loss_type {' '.join(losses)}; "
            "use --loss_type robust, which is the smoothed loss"
        )
    if choices.get("padding_free") and choices.recipe == "dpo":
        raise InputError("padding_free has no effect in TRL 1.16's DPO; leave it out")
    if choices.get("precompute_ref_log_probs") and choices.get("sync_ref_model"):
        raise InputError(
            "precompute_ref_log_probs and sync_ref_model exclude each other: a moving reference "
            "cannot be computed beforehand"
        )
    if choices.get("load_in_4bit") and choices.get("load_in_8bit"):
        raise InputError("load_in_4bit and load_in_8bit exclude each other; choose one")
    if (choices.get("load_in_4bit") or choices.get("load_in_8bit")) and not choices.get("use_peft"):
        raise InputError("a quantised model cannot be trained whole; add --use_peft")
    if choices.get("push_to_hub"):
        raise InputError(
            "push_to_hub: recipes write to output_dir only; publish the finished run with "
            "`hf upload ORG/NAME OUTPUT_DIR --private`"
        )
    for name in ("learning_rate", "beta"):
        if choices.get(name, 1.0) <= 0:
            raise InputError(f"{name} must be above 0; got {choices.get(name)}")


def trainer_defaults(choices: Choices, output_dir: str) -> dict[str, Any]:
    """Defaults for what the user left open, given the machine.

    Raises:
        InputError: A precision or a quantisation that this machine cannot do.
    """
    import torch

    gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "output_dir": output_dir,
        "report_to": "none",
        "save_total_limit": 2,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": gpu and torch.cuda.is_bf16_supported() and not choices.get("fp16", False),
    }
    if not gpu:
        defaults["gradient_checkpointing"] = False
        defaults["dataloader_pin_memory"] = False
    if choices.get("bf16") and not gpu and not _cpu_has_bfloat16():
        raise InputError(
            "bf16: there is no GPU, and this CPU has no bfloat16 instructions; leave it out"
        )
    if choices.get("fp16") and not gpu:
        raise InputError("fp16 needs a GPU; leave it out")
    if (choices.get("load_in_4bit") or choices.get("load_in_8bit")) and not gpu:
        raise InputError("load_in_4bit and load_in_8bit need an NVIDIA GPU; leave them out")
    return defaults


def _cpu_has_bfloat16() -> bool:
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def scaled_learning_rate(choices: Choices, full: float) -> dict[str, float]:
    """The learning rate where none was named: `full` for all weights, ten times that for LoRA."""
    factor = _LORA_FACTOR if choices.get("use_peft") else 1
    return {"learning_rate": full * factor}


def fit_length(choices: Choices, max_positions: int | None) -> dict[str, int]:
    """`max_length` where the user named none: TRL's 1024, or what the model can take.

    Raises:
        InputError: The user asked for more than the model's positions.
    """
    asked = choices.get("max_length")
    if asked is None:
        return {"max_length": min(1024, max_positions or 1024)}
    if max_positions is not None and asked > max_positions:
        raise InputError(
            f"max_length {asked} exceeds the model's {max_positions} positions; "
            f"use --max_length {max_positions} or less"
        )
    return {}


def check_tokenizer(
    tokenizer: Any, name: str, conversational: bool, has_template_path: bool
) -> None:
    """Refuses a tokenizer that would corrupt training without a word.

    Raises:
        InputError: No pad token, no EOS token, or no chat template for conversational data.
    """
    if tokenizer.eos_token is None:
        raise InputError(f"model {name}: its tokenizer has no EOS token, so completions cannot end")
    if tokenizer.pad_token is None:
        raise InputError(
            f"model {name}: its tokenizer has no pad token; name one of its tokens with "
            f"--pad_token '{tokenizer.eos_token}'"
        )
    if conversational and tokenizer.chat_template is None and not has_template_path:
        raise InputError(
            f"model {name} has no chat template, and the data are conversations; run "
            "`hf_align.recipes.sft --chat_template_path MODEL_OR_FILE` first, or choose a chat model"
        )


def check_lengths(audit: dict[str, Any], max_length: int) -> list[str]:
    """What `max_length` cuts or drops, as warnings, from the data layer's token audit.

    Raises:
        InputError: No prompt of a split leaves room for a completion.
    """
    for split, counts in audit["splits"].items():
        if counts["rows"] and counts.get("prompt_fills_max_length") == counts["rows"]:
            median = counts["tokens"]["prompt"]["median"]
            raise InputError(
                f"max_length {max_length} is below every prompt of the {split} split (half of them "
                f"have {median:.0f} tokens or more); raise --max_length"
            )
    return list(audit["problems"])
