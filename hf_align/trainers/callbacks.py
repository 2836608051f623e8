"""Callbacks for any TRL trainer: `metrics.jsonl`, warnings worth reading, a quiet progress bar.

Torch-free in what they compute; they read the logs that the trainer makes. Audits are in
`diagnostics`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_align.types import InputError


class MetricsFile(TrainerCallback):
    """Appends one JSON line per log to `metrics.jsonl`: `{"step", "epoch", metric: value, ...}`.

    On resume, lines past the checkpoint's step are cut, and a last line that a killed process left
    half written, so the file tells one trajectory.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.path.exists():
            # What follows the last line break is half a line, or nothing.
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if self._is_kept(json.loads(line), state)]
            temporary = self.path.with_suffix(".partial")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(self.path)

    @staticmethod
    def _is_kept(line: dict[str, Any], state: Any) -> bool:
        # The summary that ends a training is written again by a resumed one that has steps left.
        over = "train_runtime" in line and state.global_step < state.max_steps
        return line["step"] <= state.global_step and not over

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            line = {"step": state.global_step} | (logs or {})
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class PreferenceWarnings(TrainerCallback):
    """Says when a preference run goes wrong in a way that its accuracy hides.

    Over the last three logs of `rewards/*` (which are β times the log-ratio to the reference):

    * the chosen completions have become less likely by more than `max_fall` nats (likelihood
      displacement: https://huggingface.co/papers/2410.08847);
    * the mean margin exceeds `saturation`, where the sigmoid's gradient is below 1 % and further
      steps only move the policy away from the reference.

    On resume the logs before the checkpoint are read again, so the report repeats their warnings.

    Args:
        beta: DPO's β.
        tell: Called with each warning, once per kind.
        max_fall: Nats of fall in log π(chosen) that count.
        saturation: Mean margin, in units of the implicit reward; None for losses without a sigmoid.
    """

    def __init__(
        self,
        beta: float,
        tell: Callable[[str], None],
        max_fall: float = 5.0,
        saturation: float | None = 5.0,
    ):
        self.beta, self.tell = beta, tell
        self.max_fall, self.saturation = max_fall, saturation
        self.recent: deque[dict[str, float]] = deque(maxlen=3)
        self.told: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        for log in state.log_history:
            self._read(log, log["step"])

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._read(logs or {}, state.global_step)

    def _read(self, logs: dict[str, float], step: int) -> None:
        if "rewards/chosen" not in logs:
            return
        self.recent.append(logs)
        if len(self.recent) < 3:
            return
        change = sum(log["rewards/chosen"] for log in self.recent) / 3 / self.beta
        if change < -self.max_fall:
            self._once(
                "displacement",
                f"step {step}: the chosen completions are {-change:.1f} nats less "
                "likely than under the reference, so any margin comes from rejected ones that fall "
                "faster; a larger beta, a smaller learning rate or `--loss_type sigmoid "
                "sft` holds them",
            )
        margin = sum(log["rewards/margins"] for log in self.recent) / 3
        if self.saturation is not None and margin > self.saturation:
            self._once(
                "saturation",
                f"step {step}: margins are saturated ({margin:.1f}); the loss has no "
                "gradient left to give, so stop earlier or raise beta",
            )

    def _once(self, kind: str, message: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            self.tell(message)


class AlreadyTrained(InputError):
    """The checkpoint that training resumes from is the last one: no step is left."""


class NoExtraStep(TrainerCallback):
    """Ends a training that resumes from its last step, where the trainer would take one more.

    By then the trainer holds the checkpoint's weights. Callbacks after it see nothing of it.

    Raises:
        AlreadyTrained: Through `trainer.train()`.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise AlreadyTrained(f"the run has taken its {state.max_steps} steps")


class Progress(TrainerCallback):
    """A progress bar that shows loss and margin instead of printing a dictionary per log."""

    _SHOWN: ClassVar = {
        "loss": "loss",
        "rewards/margins": "margin",
        "rewards/accuracies": "accuracy",
    }

    def __init__(self):
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or not logs:
            return
        shown = {name: f"{logs[key]:.3f}" for key, name in self._SHOWN.items() if key in logs}
        if shown:  # an audit's log has none of them
            self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
