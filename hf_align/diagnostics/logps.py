"""Scores completions with the policy and the reference: sequence KL, entropy, log-probabilities.

`score_samples` and `token_log_ratios` measure sampled tokens, `pair_logps` given texts as TRL's DPO
tokenises them, and `answer_logps` the tokens that may follow a question.
A forward pass takes as few completions as its (B, T, V) logits leave room for, and the float32
log-softmax a slice of time steps at a time. Torch is imported on use; results are numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from hf_align.types import InputError, Text


class TokenSamples(Protocol):
    """Sampled tokens: N completions of G prompts (what `sample_completions` returns)."""

    prompt_index: np.ndarray
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]


@dataclass(frozen=True)
class SampleScores:
    """Per completion, all (N,), summed over its tokens including EOS unless said otherwise.

    Attributes:
        k1: log pi(y|x) - log ref(y|x), nats.
        rao_blackwell: Rao-Blackwell sequence KL, nats.
        entropy: Mean entropy of the policy per token, nats.
        reference_nll: Mean -log ref per token, nats.
        logp: log pi(y|x), nats.
        reference_logp: log ref(y|x), nats.
        length: Tokens.
    """

    k1: np.ndarray
    rao_blackwell: np.ndarray
    entropy: np.ndarray
    reference_nll: np.ndarray
    logp: np.ndarray
    reference_logp: np.ndarray
    length: np.ndarray


def score_samples(
    policy,
    reference,
    samples: TokenSamples,
    *,
    batch_size: int = 16,
    time_chunk: int = 64,
    temperature: float = 1.0,
) -> SampleScores:
    """Scores the completions the policy sampled, by the policy and by the reference.

    Both models' logits are divided by the temperature, so at a temperature other than 1 the KL is
    between the two tempered distributions. Identical models have KL exactly 0.

    Args:
        policy: The model that sampled: `transformers` causal LM or a PEFT model around one.
        reference: The reference model, or None for a PEFT policy: then the policy without its
            adapter.
        samples: What the policy sampled.
        batch_size: Completions per forward pass, at most (see `MAX_LOGITS`).
        time_chunk: Time steps whose (batch_size, time_chunk, V) float32 log-softmax is held at
            once.
        temperature: The temperature that was sampled at.

    Raises:
        InputError: If `reference` is None and the policy has no adapter to disable.
        ValueError: If a prompt or completion is empty or the vocabularies differ in size.
    """
    lengths = np.array([len(ids) for ids in samples.completion_ids], dtype=np.int64)
    results = np.empty((4, len(lengths)))
    for rows, scores in _scored(policy, reference, samples, batch_size, time_chunk, temperature):
        results[:, rows] = scores.sum(axis=2)
    logp, ref_logp, sequence_kl, entropy = results
    return SampleScores(
        k1=logp - ref_logp,
        rao_blackwell=sequence_kl,
        entropy=entropy / lengths,
        reference_nll=-ref_logp / lengths,
        logp=logp,
        reference_logp=ref_logp,
        length=lengths,
    )


def token_log_ratios(
    policy, reference, samples: TokenSamples, *, batch_size: int = 16, time_chunk: int = 64
) -> list[np.ndarray]:
    """log pi - log ref of every token, nats: per completion an array that sums to its `k1`.

    Arguments and errors as `score_samples`, at temperature 1.
    """
    ratios: list[np.ndarray] = [np.empty(0)] * len(samples.completion_ids)
    for rows, scores in _scored(policy, reference, samples, batch_size, time_chunk, 1.0):
        for row, found in zip(rows, scores[0] - scores[1], strict=True):
            ratios[row] = found[: len(samples.completion_ids[row])]
    return ratios


def _scored(
    policy, reference, samples: TokenSamples, batch_size: int, time_chunk: int, temperature: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (B,) and, (4, B, T), what `_token_scores` says of their tokens, batch by batch."""
    import torch

    prompts = [samples.prompt_ids[i] for i in samples.prompt_index]
    _check_nonempty(prompts, samples.completion_ids)
    disabled_adapter = _reference_context(policy, reference)
    with _evaluation_mode(policy), _evaluation_mode(reference), torch.no_grad():
        batches = _length_sorted_batches(
            prompts, samples.completion_ids, batch_size, _vocabulary(policy)
        )
        for rows in batches:
            batch = _padded([prompts[i] for i in rows], [samples.completion_ids[i] for i in rows])
            logits = _completion_logits(policy, batch)
            with disabled_adapter():
                ref_logits = _completion_logits(policy if reference is None else reference, batch)
            if ref_logits.shape != logits.shape:
                raise ValueError(
                    f"the policy has {logits.shape[-1]} tokens and the reference "
                    f"{ref_logits.shape[-1]}, expected the same vocabulary"
                )
            yield rows, _token_scores(logits, ref_logits, batch, time_chunk, temperature)


def pair_logps(
    model,
    tokenizer,
    prompts: list[Text],
    completions: list[Text],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    time_chunk: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probability of given completions, tokenised as TRL's `DPOTrainer` does.

    Text: tokens(prompt + completion + EOS) after their common prefix with tokens(prompt).
        Conversations: the chat
    template of prompt + completion after its common prefix with the template of the prompt and a
    generation prompt. (TRL takes the shorter prefix of chosen and rejected; the two differ only
    where tokens merge across the boundary.)

    Args:
        model: `transformers` causal LM or a PEFT model around one.
        tokenizer: Its tokenizer.
        prompts: N texts or conversations.
        completions: N texts or conversations.
        batch_size: Completions per forward pass.
        max_length: Longest prompt + completion in tokens; the end is cut off (TRL's `keep_start`).
        time_chunk: Time steps whose float32 log-softmax is held at once.

    Returns:
        (N,) nats and (N,) numbers of completion tokens summed over. A row whose prompt fills
        `max_length` has 0 tokens; TRL drops such pairs.

    Raises:
        ValueError: If the numbers of prompts and completions differ.
    """
    if len(prompts) != len(completions):
        raise ValueError(f"got {len(prompts)} prompts and {len(completions)} completions")
    pairs = [
        _pair_tokens(tokenizer, prompt, completion, max_length)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    lengths = np.array([len(completion_ids) for _, completion_ids in pairs], dtype=np.int64)
    logps = np.zeros(len(pairs))
    scored = np.flatnonzero(lengths)
    prompt_ids = [pairs[i][0] for i in scored]
    completion_ids = [pairs[i][1] for i in scored]
    with _evaluation_mode(model):
        vocabulary = _vocabulary(model)
        for rows in _length_sorted_batches(prompt_ids, completion_ids, batch_size, vocabulary):
            batch = _padded([prompt_ids[i] for i in rows], [completion_ids[i] for i in rows])
            logps[scored[rows]] = _summed_logps(model, batch, time_chunk)
    return logps, lengths


def answer_logps(
    model, questions: list[list[int]], answers: list[int], *, batch_size: int = 16
) -> np.ndarray:
    """Log-probability of each candidate for the token that follows each question.

    Args:
        model: `transformers` causal LM or a PEFT model around one.
        questions: Token ids of N questions, none empty.
        answers: Token ids of the K candidates.
        batch_size: Questions per forward pass.

    Returns:
        (N, K) nats.

    Raises:
        ValueError: If a question has no tokens.
    """
    import torch

    # The first candidate stands in for the answer: what predicts it sees the question alone.
    following = [answers[:1] for _ in questions]
    _check_nonempty(questions, following)
    result = np.empty((len(questions), len(answers)))
    with _evaluation_mode(model), torch.no_grad():
        batches = _length_sorted_batches(questions, following, batch_size, _vocabulary(model))
        for rows in batches:
            batch = _padded([questions[i] for i in rows], [following[i] for i in rows])
            logits = _completion_logits(model, batch)[:, 0].float()
            logps = torch.log_softmax(logits, dim=-1)[:, answers]
            result[rows] = logps.cpu().numpy().astype(np.float64)
    return result


def _summed_logps(model, batch: _Batch, time_chunk: int) -> np.ndarray:
    """(B,) log-probability of each row's completion, nats."""
    import torch

    with torch.no_grad():
        logits = _completion_logits(model, batch)
        targets, mask = _targets(batch, logits.device)
        chunks = [
            torch.log_softmax(logits[:, start : start + time_chunk].float(), dim=-1)
            .gather(-1, targets[:, start : start + time_chunk, None])
            .squeeze(-1)
            for start in range(0, targets.shape[1], time_chunk)
        ]
        token_logps = torch.cat(chunks, dim=1).cpu().numpy().astype(np.float64)
    return np.where(mask, token_logps, 0.0).sum(axis=1)


class _Batch(NamedTuple):
    """Model inputs (B, P + T) and the number T of completion columns, which are the last."""

    inputs: dict[str, np.ndarray]
    num_steps: int


def _token_scores(logits, ref_logits, batch: _Batch, time_chunk: int, temperature: float):
    """(4, B, T) per token, 0 on padding: log pi, log ref, the step's KL, the step's entropy."""
    import torch

    targets, mask = _targets(batch, logits.device)
    ref_logits = ref_logits.to(logits.device)
    chunks = []
    for start in range(0, targets.shape[1], time_chunk):
        steps = slice(start, start + time_chunk)
        log_probs = torch.log_softmax(logits[:, steps].float() / temperature, dim=-1)
        ref_log_probs = torch.log_softmax(ref_logits[:, steps].float() / temperature, dim=-1)
        token = targets[:, steps, None]
        # A token the policy cannot emit (-inf) adds nothing, also where the reference cannot.
        probs = log_probs.exp()
        emitted = probs > 0
        step_kl = (probs * (log_probs - ref_log_probs)).where(emitted, 0.0).sum(-1)
        step_entropy = -(probs * log_probs).where(emitted, 0.0).sum(-1)
        logp, ref_logp = (a.gather(-1, token).squeeze(-1) for a in (log_probs, ref_log_probs))
        chunks.append(torch.stack([logp, ref_logp, step_kl, step_entropy]))
    return np.where(mask, torch.cat(chunks, dim=2).cpu().numpy().astype(np.float64), 0.0)


def _completion_logits(model, batch: _Batch):
    """(B, T, V) logits that predict the T completion columns."""
    import torch

    tensors = {key: torch.from_numpy(a).to(model.device) for key, a in batch.inputs.items()}
    output = model(**tensors, logits_to_keep=batch.num_steps + 1, use_cache=False)
    return output.logits[:, :-1]


def _vocabulary(model) -> int:
    return model.config.get_text_config().vocab_size


def _targets(batch: _Batch, device):
    """Completion tokens (B, T) on the device, and their mask (B, T) as a boolean numpy array."""
    import torch

    targets = torch.from_numpy(batch.inputs["input_ids"][:, -batch.num_steps :]).to(device)
    return targets, batch.inputs["attention_mask"][:, -batch.num_steps :].astype(bool)


def _padded(prompts: list[list[int]], completions: list[list[int]]) -> _Batch:
    """Prompts padded on the left, completions on the right, so that both meet in one column.

    Padding takes id 0: it is masked, so any id of the vocabulary does.
    """
    width, num_steps = max(map(len, prompts)), max(map(len, completions))
    input_ids = np.zeros((len(prompts), width + num_steps), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        span = slice(width - len(prompt), width + len(completion))
        input_ids[row, span] = prompt + completion
        attention_mask[row, span] = 1
    # Absolute positions must start at each row's first real token, as they did in sampling.
    position_ids = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return _Batch({**inputs, "position_ids": position_ids}, num_steps)


MAX_LOGITS = 2**28
"""Logits of one forward pass: 1 GiB in float32, six completions of 256 tokens at V = 152k."""


def _length_sorted_batches(
    prompts: list[list[int]], completions: list[list[int]], batch_size: int, vocabulary: int
) -> Iterator[np.ndarray]:
    """Row indices, longest first so that a memory shortage shows at once.

    At most `batch_size` rows, and fewer where their logits would exceed `MAX_LOGITS`.
    """
    totals = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    order = np.argsort(totals, kind="stable")[::-1]
    start = 0
    while start < len(order):
        rows = order[start : start + batch_size]
        longest = np.maximum.accumulate([len(completions[i]) for i in rows]) + 1
        fitting = np.arange(1, len(rows) + 1) * longest * vocabulary <= MAX_LOGITS
        rows = rows[: max(1, int(fitting.sum()))]
        yield rows
        start += len(rows)


def _pair_tokens(
    tokenizer, prompt: Text, completion: Text, max_length: int | None
) -> tuple[list[int], list[int]]:
    """Prompt and completion tokens of one row."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise InputError("prompt and completion must both be texts or both be conversations")
    if isinstance(prompt, str):
        if not completion.endswith(tokenizer.eos_token):
            completion += tokenizer.eos_token
        prompt_ids = tokenizer(prompt)["input_ids"]
        all_ids = tokenizer(prompt + completion)["input_ids"]
    else:
        prompt_ids, all_ids = (
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=opened, tokenize=True, return_dict=True
            )["input_ids"]
            for messages, opened in ((prompt, True), (prompt + completion, False))
        )
    start = 0
    while start < min(len(prompt_ids), len(all_ids)) and prompt_ids[start] == all_ids[start]:
        start += 1
    # Nothing predicts the first token of an empty prompt: context, as in TRL's shifted labels.
    start = max(start, 1)
    return all_ids[:start], all_ids[start:max_length]


def _check_nonempty(prompts: list[list[int]], completions: list[list[int]]) -> None:
    for kind, rows in (("prompt", prompts), ("completion", completions)):
        empty = [i for i, ids in enumerate(rows) if not ids]
        if empty:
            raise ValueError(f"the {kind} of sample {empty[0]} has no tokens ({len(empty)} such)")


def _reference_context(policy, reference):
    """What to enter while the reference is scored: the policy's disabled adapter, or nothing."""
    if reference is not None:
        return nullcontext
    from peft import PeftModel

    if not isinstance(policy, PeftModel):
        raise InputError(
            f"the policy ({type(policy).__name__}) has no adapter to disable; "
            "give a reference model"
        )
    return policy.disable_adapter


@contextmanager
def _evaluation_mode(model) -> Iterator[None]:
    """Dropout off for a while; every module's own training flag is restored. None is fine."""
    in_training = [] if model is None else [m for m in model.modules() if m.training]
    try:
        for module in in_training:
            module.training = False
        yield
    finally:
        for module in in_training:
            module.training = True
