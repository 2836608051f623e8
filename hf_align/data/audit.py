"""How a dataset meets a tokenizer and a maximum length: what a trainer would cut, drop or render.

The texts are rendered as TRL's trainers render them: chat template for conversations, plain
concatenation plus EOS otherwise. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_align.data.layouts import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_BATCH = 1_000
_EXAMPLES = 3
_RANKED = "completion "  # a ranking is rendered as "completion 1", "completion 2", …
_FIGURES = (
    *("prompt_too_long", "truncated", "shortest_prompt", "tokens", "sequence_tokens"),
    *("unrenderable", "template_error", "unknown_tokens"),
)


def audit_with_tokenizer(
    splits: Mapping[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    task: Task,
) -> dict[str, Any]:
    """Token lengths and what `max_length` does to them, per split.

    Args:
        splits: Normalised splits, from `load_data`.
        tokenizer: The policy's.
        max_length: The trainer's `max_length` in tokens; None for no limit.
        task: What the splits were loaded for.

    Returns:
        `tokenizer` (special tokens, template), `max_length`, `conversational`, `examples` (rendered
        rows), `problems` (sentences), and `splits`, for each split:
        `rows`;
        `prompt_too_long`: rows whose prompt alone fills `max_length` (DPO and SFT drop them);
        `truncated`: further rows with a sequence (prompt + completion) over `max_length` (DPO and
        SFT cut them, the reward trainers drop them; of a ranking the longest completion counts);
        `unrenderable`: rows that the chat template refuses, with the first `template_error`;
        `shortest_prompt`, `tokens` (statistics per column), `sequence_tokens`, `unknown_tokens`.
        The figures are None where there is no chat template to render conversations with.
    """
    facts = _tokenizer_facts(tokenizer)
    conversational = any(_is_conversational(split) for split in splits.values())
    problems = _tokenizer_problems(facts, conversational, task)
    renderable = facts["chat_template"] or not conversational
    audit: dict[str, Any] = {
        "tokenizer": facts,
        "max_length": max_length,
        "conversational": conversational,
        "splits": {},
        "examples": [],
        "problems": problems,
    }
    for name, split in splits.items():
        if not renderable:
            audit["splits"][name] = {"rows": len(split), **dict.fromkeys(_FIGURES)}
            continue
        figures, examples = _audit_split(split, tokenizer, max_length)
        audit["splits"][name] = figures
        audit["examples"] = (audit["examples"] + examples)[:_EXAMPLES]
        problems += _split_problems(name, figures, max_length, task)
    return audit


def _is_conversational(split: datasets.Dataset) -> bool:
    if "messages" in split.column_names:
        return True
    return (
        "prompt" in split.column_names and len(split) > 0 and isinstance(split[0]["prompt"], list)
    )


def _tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    limit = tokenizer.model_max_length
    return {
        "name": tokenizer.name_or_path,
        "vocabulary": len(tokenizer),
        # transformers writes "no limit" as 1e30
        "model_max_length": limit if limit < 1e9 else None,
        "chat_template": bool(tokenizer.chat_template),
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "special_tokens": list(tokenizer.all_special_tokens),
    }


def _tokenizer_problems(facts: Mapping[str, Any], conversational: bool, task: Task) -> list[str]:
    problems = []
    if conversational and not facts["chat_template"]:
        problems.append(
            "the dataset is conversational, but the tokenizer has no chat template: choose an "
            "instruction-tuned model, or set a template"
        )
    if not facts["eos_token"]:
        problems.append("the tokenizer has no EOS token: completions cannot end")
    if not facts["pad_token"]:
        problems.append("the tokenizer has no padding token: name one with --pad_token")
    elif facts["pad_token"] == facts["eos_token"] and task != "prompt":
        problems.append("padding token and EOS are the same: code that masks padding may mask EOS")
    return problems


def _split_problems(
    name: str, figures: Mapping[str, Any], max_length: int | None, task: Task
) -> list[str]:
    rows = figures["rows"]
    problems = []
    if figures["unrenderable"]:
        problems.append(
            f"{name}: the chat template refuses {figures['unrenderable']} of {rows} rows "
            f"({figures['template_error']})"
        )
    if figures["prompt_too_long"]:
        problems.append(
            f"{name}: {figures['prompt_too_long']} of {rows} prompts fill max_length "
            f"{max_length}: no completion token is left to learn from"
        )
    if figures["truncated"] and task != "prompt":
        problems.append(
            f"{name}: {figures['truncated']} of {rows} rows are longer than max_length {max_length}"
        )
    return problems


def _audit_split(
    split: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    lengths: dict[str, list[int]] = {}
    examples: list[dict[str, str]] = []
    unrenderable = unknown = 0
    template_error = None
    # A template writes the special tokens itself; plain text gets the tokenizer's own.
    plain = not _is_conversational(split)
    for start in range(0, len(split), _BATCH):
        rows = split.select(range(start, min(start + _BATCH, len(split)))).to_list()
        rendered, refused, error = _render(rows, tokenizer)
        unrenderable += refused
        template_error = template_error or error
        examples += rendered[: _EXAMPLES - len(examples)]
        texts = [text for row in rendered for text in row.values()]
        if not texts:
            continue
        ids = tokenizer(texts, add_special_tokens=plain, verbose=False)["input_ids"]
        if tokenizer.unk_token_id is not None:
            unknown += sum(sequence.count(tokenizer.unk_token_id) for sequence in ids)
        counts = iter(map(len, ids))
        for row in rendered:
            for column, length in _row_lengths({name: next(counts) for name in row}).items():
                lengths.setdefault(column, []).append(length)
    figures = {
        "rows": len(split),
        **_length_figures(lengths, max_length),
        "unrenderable": unrenderable,
        "template_error": template_error,
        "unknown_tokens": unknown,
    }
    return figures, examples


def _row_lengths(lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Tokens per column; of a ranking's completions the longest, which decides whether it fits."""
    ranked = {name: length for name, length in lengths.items() if name.startswith(_RANKED)}
    if not ranked:
        return lengths
    return {"prompt": lengths["prompt"], "longest completion": max(ranked.values())}


def _length_figures(lengths: Mapping[str, list[int]], max_length: int | None) -> dict[str, Any]:
    """Statistics and counts from tokens per row; `lengths` of completions include the prompt's."""
    prompts = lengths.get("prompt")
    sequences = [max(row) for row in zip(*lengths.values(), strict=True)]
    limit = float("inf") if max_length is None else max_length
    full = [prompts is not None and prompts[i] >= limit for i in range(len(sequences))]
    tokens = {}
    for column, values in lengths.items():
        if column != "prompt" and prompts is not None:
            values = [max(v - p, 0) for v, p in zip(values, prompts, strict=True)]
        tokens[column] = _summary(values)
    return {
        "prompt_too_long": sum(full),
        "truncated": sum(n > limit and not cut for n, cut in zip(sequences, full, strict=True)),
        "shortest_prompt": min(prompts) if prompts else None,
        "tokens": tokens,
        "sequence_tokens": _summary(sequences) if sequences else None,
    }


def _render(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, str]], int, str | None]:
    """Each row's texts as the model sees them: (rendered rows, how many were refused, why)."""
    from jinja2.exceptions import TemplateError

    rendered, refused, reason = [], 0, None
    for row in rows:
        try:
            rendered.append(_render_row(row, tokenizer))
        except TemplateError as error:
            refused += 1
            reason = reason or str(error)
    return rendered, refused, reason


def _render_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    template: Callable[..., Any] = tokenizer.apply_chat_template
    eos = tokenizer.eos_token or ""
    if "messages" in row:
        return {"messages": template(row["messages"], tokenize=False)}
    if "text" in row:
        return {"text": _with_eos(row["text"], eos)}
    prompt = row["prompt"]
    answers = {name: row[name] for name in ("chosen", "rejected", "completion") if name in row}
    answers |= {f"{_RANKED}{n}": text for n, text in enumerate(row.get("completions", ()), start=1)}
    if isinstance(prompt, str):
        return {"prompt": prompt, **{k: prompt + _with_eos(v, eos) for k, v in answers.items()}}
    return {
        "prompt": template(prompt, tokenize=False, add_generation_prompt=True),
        **{name: template(prompt + turns, tokenize=False) for name, turns in answers.items()},
    }


def _with_eos(text: str, eos: str) -> str:
    return text if text.endswith(eos) else text + eos


def _summary(lengths: list[int]) -> dict[str, float]:
    values = np.asarray(lengths, dtype=float)
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
    }
