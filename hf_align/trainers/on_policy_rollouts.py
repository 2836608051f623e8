"""Rollouts: draws completions, scores them under policy, reference and value, shapes the reward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from hf_align.rewards import shape_scores, transformed_scores
from hf_align.sampling.decoding import can_draw, draw
from hf_align.trainers.language_loss import prompt_tokens
from hf_align.trainers.policy_losses import token_kl
from hf_align.trainers.rollout import Rollout, completion_mask, padded, passes, rows_of
from hf_align.types import InputError

# A forward pass costs about as much as so many more tokens in one that is made anyway.
_PASS_OVERHEAD = {"cpu": 64}
_PASS_OVERHEAD_GPU = 4096

# Streams of random numbers: training, evaluation and the reference draw from different ones.
_TRAIN, _EVAL, _REFERENCE = 0, 1, 2


class Rollouts:
    """The half of an on-policy trainer that happens before the first update of a rollout."""

    def _roll_out(self, inputs: list[dict[str, Any]], mode: str) -> Rollout:
        """Completions of the given prompts with everything the loss needs.

        Raises:
            InputError: A reward failed, or a prompt leaves no room for a completion.
        """
        prompts = [row["prompt"] for row in inputs]
        index = self._step // self._cycle
        if mode == "eval":
            index, self._num_evaluated = self._num_evaluated, self._num_evaluated + 1
        with self._timed("generate", mode):
            drawn = self._draw(prompts, mode, index)
        prompt_ids, completion_ids, completions, logps, values = drawn
        mask = completion_mask(completion_ids, self.accelerator.device)
        rollout = Rollout(prompt_ids, completion_ids, mask, logps, mask, values=values)
        with self._timed("score", mode):
            self._score_tokens(rollout)
        with self._timed("reward", mode):
            scores = self._scores(inputs, prompts, completions, completion_ids, mode)
            references = self._reference_scores(inputs, prompts, index)
        self._keep_user_logs(mode)
        self._finish(rollout, scores, references, mode)
        if mode == "train" and self.args.log_completions:
            self._keep_completions(prompts, completions, scores)
        return rollout

    # -- drawing ----------------------------------------------------------------------------------

    def _draw(self, prompts: list[Any], mode: str, index: int) -> tuple:
        """Ids of prompts and completions, texts, and log-probabilities and values if known."""
        device = self.accelerator.device
        prompt_ids = self._tokenized(prompts)
        self._check_room(prompt_ids)
        if not self._draws_itself(max(map(len, prompt_ids))):
            prompt_ids, completion_ids, completions = self._generate(prompts)
            return list(prompt_ids), list(completion_ids), completions, None, None
        exact = self._is_exact()
        head = getattr(self.causal_model, "value_head", None) if exact else None
        stream = _TRAIN if mode == "train" else _EVAL
        with self.accelerator.autocast():
            drawn = draw(
                self.model,
                prompt_ids,
                max_new_tokens=self.max_completion_length,
                temperature=self.temperature,
                end_ids=self.eos_token_ids,
                generator=self._generator(stream, index),
                with_logps=exact,
                value_head=head,
            )
        ids = drawn.completion_ids
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        if isinstance(prompts[0], str):
            completions = texts
        else:
            completions = [[{"role": "assistant", "content": text}] for text in texts]
        width = max(map(len, ids))
        logps = rows_of(drawn.logps, width, device) if exact else None
        values = rows_of(drawn.values, width, device) if head is not None else None
        return prompt_ids, ids, completions, logps, values

    def _draws_itself(self, longest_prompt: int) -> bool:
        """Whether our own loop can draw; TRL's engines draw otherwise."""
        args = self.args
        engine = args.use_vllm or args.use_transformers_continuous_batching
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if engine or sharded or args.generation_kwargs or args.cache_implementation:
            return False
        return can_draw(self.model, longest_prompt + self.max_completion_length)

    def _is_exact(self) -> bool:
        """Whether drawing and scoring round alike, so that the loop's log-probabilities serve."""
        half = self.args.bf16 or self.args.fp16
        return not half and self.causal_model.dtype == torch.float32

    def _generator(self, stream: int, index: int) -> torch.Generator:
        """Random numbers that depend on seed, stream, rollout and process alone."""
        entropy = [self.args.seed, stream, index, self.accelerator.process_index]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(self.accelerator.device).manual_seed(seed)

    def _tokenized(self, prompts: list[Any]) -> list[list[int]]:
        if isinstance(prompts[0], str):
            return [list(ids) for ids in self.processing_class(text=prompts)["input_ids"]]
        encoded = self.processing_class.apply_chat_template(
            conversation=prompts,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **self.chat_template_kwargs,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def _check_room(self, prompt_ids: list[list[int]]) -> None:
        positions = getattr(
            self.causal_model.config.get_text_config(), "max_position_embeddings", None
        )
        longest = max(map(len, prompt_ids))
        if positions is not None and longest + self.max_completion_length > positions:
            raise InputError(
                f"a prompt has {longest} tokens; with max_completion_length "
                f"{self.max_completion_length} it exceeds the model's {positions} positions: "
                "leave such prompts out, or lower max_completion_length"
            )
        if min(map(len, prompt_ids)) == 0:
            raise InputError("a prompt has no tokens; leave empty prompts out")

    # -- scoring ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Evaluation mode without gradients; checkpointing would switch the cache off."""
        in_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(in_training)

    def _parts(self, rows: list[int], rollout: Rollout | None = None) -> list[list[int]]:
        """The rows in forward passes by length; as many on each process of a sharded model."""
        lengths = (rollout or self.rollout).lengths
        overhead = _PASS_OVERHEAD.get(self.accelerator.device.type, _PASS_OVERHEAD_GPU)
        limit = self.args.max_tokens_per_forward
        parts = list(passes(lengths, rows, overhead, limit))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            count = torch.tensor(len(parts), device=self.accelerator.device)
            most = int(self.accelerator.gather(count.view(1)).max())
            parts = list(passes(lengths, rows, overhead, limit, min(most, len(rows))))
        return parts

    def _score_tokens(self, rollout: Rollout) -> None:
        """Log-probabilities under policy and reference, and values, where still unknown."""
        wanted = "policy" if rollout.logps is None else None
        if self._has_value_model() and rollout.values is None:
            wanted = "both" if wanted else "value"
        parts = self._parts(list(range(len(rollout))), rollout)
        with self._scoring():
            if wanted:
                logps, values = self._pass(self.model, rollout, parts, wanted)
                rollout.logps = rollout.logps if logps is None else logps
                rollout.values = rollout.values if values is None else values
            with self._as_reference() as reference:
                rollout.ref_logps, _ = self._pass(reference, rollout, parts, "policy")

    def _tokens(self, rollout: Rollout, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and the mask of completion tokens of some rows, on the device."""
        return padded(
            [rollout.prompt_ids[row] for row in rows],
            [rollout.completion_ids[row] for row in rows],
            self._tokenizer.pad_token_id,
            self.accelerator.device,
        )

    def _has_value_model(self) -> bool:
        return hasattr(self.causal_model, "value_model") or hasattr(self.causal_model, "value_head")

    def _pass(
        self, model: Any, rollout: Rollout, parts: list[list[int]], wanted: str
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(B, T) log-probabilities and values, each None where not wanted."""
        device = self.accelerator.device
        filled: dict[int, torch.Tensor] = {}
        for rows in parts:
            ids, mask = self._tokens(rollout, rows)
            with self.accelerator.autocast():
                output = model(input_ids=ids, score_mask=mask, parts=wanted)
            where = torch.tensor(rows, device=device)
            lengths = [len(rollout.completion_ids[row]) for row in rows]
            for place, flat in ((0, output[0]), (1, output[2])):
                if flat is not None:
                    table = filled.setdefault(place, torch.zeros_like(rollout.mask))
                    table[where] = rows_of(flat.split(lengths), table.shape[1], device)
        return filled.get(0), filled.get(1)

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[Any]:
        """The reference model: its own weights, or the policy's without what it has learnt."""
        if self.reference is not None:
            yield self.reference
        elif "ref" in self.model.peft_config:
            # TRL keeps a trained adapter's start under this name.
            self.model.set_adapter("ref")
            try:
                yield self.model
            finally:
                self.model.set_adapter("default")
        else:
            with self.model.disable_adapter():
                yield self.model

    # -- rewards ----------------------------------------------------------------------------------

    def _scores(self, inputs, prompts, completions, completion_ids, mode=None) -> np.ndarray:
        """(N,) weighted scores of all processes' completions; each reward's mean goes to `mode`."""
        table = self._calculate_rewards(inputs, prompts, completions, completion_ids)
        unscored = torch.isnan(table).all(dim=1)
        if unscored.any():
            raise InputError(
                f"no reward scored {int(unscored.sum())} of {len(table)} completions; each needs "
                "a number from at least one"
            )
        for name, column in zip(self.reward_func_names, table.T, strict=True):
            if mode is not None and len(self.reward_func_names) > 1:
                self._metrics[mode][f"reward/score/{name}"].append(column.nanmean().item())
        weights = self.reward_weights.to(table.device)
        return (table * weights).nansum(dim=1).double().cpu().numpy()

    def _reference_scores(self, inputs, prompts, index: int) -> np.ndarray | None:
        """(N, M) scores of reference completions, given or drawn, where shaping needs them."""
        if not self.shaping.needs_reference:
            return None
        if "completion" in inputs[0]:
            answers = [row["completion"] for row in inputs]
            ids = [prompt_tokens(a, self._tokenizer) if isinstance(a, str) else [] for a in answers]
            return self._scores(inputs, prompts, answers, ids)[:, None]
        count = self.args.num_reference_samples
        every = [ids for ids in self._tokenized(prompts) for _ in range(count)]
        if not self._draws_itself(max(map(len, every))):
            raise InputError(
                f"score_transform {self.args.score_transform} compares with completions of the "
                "reference, which this model or engine cannot draw here; give the data a column "
                "`completion`"
            )
        with self._scoring(), self._as_reference() as reference, self.accelerator.autocast():
            drawn = draw(
                self.accelerator.unwrap_model(reference),
                every,
                max_new_tokens=self.max_completion_length,
                temperature=self.temperature,
                end_ids=self.eos_token_ids,
                generator=self._generator(_REFERENCE, index),
                with_logps=False,
            )
        texts = self.processing_class.batch_decode(drawn.completion_ids, skip_special_tokens=True)
        answers = texts
        if not isinstance(prompts[0], str):
            answers = [[{"role": "assistant", "content": text}] for text in texts]
        repeated = [row for row in inputs for _ in range(count)]
        asked = [row["prompt"] for row in repeated]
        scores = self._scores(repeated, asked, answers, drawn.completion_ids)
        return scores.reshape(-1, count)

    def _finish(
        self, rollout: Rollout, scores: np.ndarray, references: np.ndarray | None, mode: str
    ) -> None:
        """Shapes the scores, sets advantages, moves the controller and records what was seen."""
        inside = rollout.mask.clone()
        kl = token_kl(rollout.logps, rollout.ref_logps, self.args.kl_estimator) * inside
        k1 = (rollout.logps - rollout.ref_logps) * inside
        ends = set(self.eos_token_ids)
        ended = [ids[-1] in ends for ids in rollout.completion_ids]
        ended = torch.tensor(ended, dtype=torch.float32, device=inside.device)
        if self.mask_truncated_completions:
            rollout.mask = rollout.mask * ended.unsqueeze(1)
        seen = [k1.sum(1), kl.sum(1), inside.sum(1), ended, (-rollout.logps * inside).sum(1)]
        seen = self.accelerator.gather(torch.stack(seen, dim=1)).double().cpu().numpy()
        sequence_k1, penalised, lengths, all_ended, surprise = seen.T
        batch = (self.shaping, scores, lengths, all_ended.astype(bool), references)
        if mode == "train" and self.shaping.normalise == "running":
            self.moments.update(transformed_scores(*batch, shapers=self.shapers))
        shaped = shape_scores(*batch, moments=self.moments, shapers=self.shapers)
        beta = self.controller.value
        metrics = {
            "kl/sequence_k1": sequence_k1.mean(),
            "kl/per_token": sequence_k1.sum() / lengths.sum(),
            "kl/coefficient": beta,
            "reward/score": scores.mean(),
            "reward/shaped": shaped.mean(),
            "reward/penalty": beta * penalised.mean(),
            "reward/mean": (shaped - beta * penalised).mean(),
            "length/mean": lengths.mean(),
            "length/without_eos": 1.0 - all_ended.mean(),
            # The mean surprise of what a policy draws is its entropy.
            "policy/entropy": surprise.sum() / lengths.sum(),
        }
        rollout.rewards = self._local(shaped - beta * penalised, len(rollout))
        metrics |= self._assign_advantages(rollout, shaped, kl, mode)
        for name, value in metrics.items():
            self._metrics[mode][name].append(float(value))
        if mode == "train":
            self._clock["tokens"] = float(lengths.sum())
            self.state.num_input_tokens_seen += int(lengths.sum())
            self.controller.update(float(sequence_k1.mean()), len(scores))
            self._check_limit(float(sequence_k1.mean()))

    def _local(self, values: np.ndarray, size: int) -> torch.Tensor:
        """This process's part of numbers that all processes share, as float32."""
        start = self.accelerator.process_index * size
        part = torch.from_numpy(np.asarray(values[start : start + size], dtype=np.float32))
        return part.to(self.accelerator.device)

    def _check_limit(self, kl: float) -> None:
        """Ends the run before another step where the policy has gone too far."""
        limit = self.args.kl_limit
        if limit is not None and kl > limit and self.stop_reason is None:
            self._leaving, self._stop_kl = True, kl
            self.stop_reason = (
                f"step {self.state.global_step}: the sequence KL to the reference is {kl:.2f} "
                f"nats, above kl_limit {limit}; the policy that reached it is kept and training "
                "ends here"
            )

    def _keep_user_logs(self, mode: str) -> None:
        """Takes over what reward functions logged through TRL's `log_metric` and `log_extra`."""
        logged = gather_object([dict(self._pending_metrics)])
        for name in sorted({name for metrics in logged for name in metrics}):
            values = [value for metrics in logged for value in metrics.get(name, [])]
            self._metrics[mode][name].append(sum(values) / len(values))
        self._pending_metrics.clear()
        for name, values in self._pending_extra_logs.items():
            self._logs["extra"][name].extend(values)
        self._pending_extra_logs.clear()

    def _keep_completions(self, prompts, completions, scores: np.ndarray) -> None:
        """Hands the rollout to TRL's table of completions."""
        self._logs["prompt"].extend(gather_object(prompts))
        self._logs["completion"].extend(gather_object(completions))
        self._logs["rewards"]["score"].extend(scores.tolist())
        self._logs["advantages"].extend([float("nan")] * len(scores))
