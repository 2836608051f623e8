"""Trains the runs that a comparison on the testbed needs, each in a folder of its own.

Runs that are finished are used as they are, and one that was stopped goes on from its newest
checkpoint, so the same command resumes the sweep.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from tqdm.auto import tqdm

from hf_align.recipes._resuming import newest_checkpoint

_PPO_TOO_FAR = ("--beta", "0", "--learning_rate", "2e-4", "--lr_scheduler_type", "constant")
_DPO_TOO_FAR = ("--beta", "0.02", "--max_train_samples", "1000", "--max_steps", "180")

SWEEP = {
    "ppo": ("ppo",),
    "ppo-without-penalty": ("ppo", *_PPO_TOO_FAR, "--max_steps", "600", "--audit_steps", "30"),
    "rloo": ("rloo",),
    "dpo": ("dpo", "--audit_steps", "15", "--num_audit_prompts", "520"),
    "dpo-too-far": (
        *("dpo", *_DPO_TOO_FAR, "--lr_scheduler_type", "constant"),
        *("--audit_steps", "10", "--num_audit_prompts", "520"),
    ),
}
"""`{folder: (recipe, options...)}`: with and without a KL penalty, on-policy and on pairs."""


def train_sweep(folder: Path, sweep: dict[str, tuple[str, ...]] = SWEEP) -> list[str]:
    """Trains what is missing and returns the run directories.

    Args:
        folder: Where the runs are, one directory each.
        sweep: What to train.

    Raises:
        SystemExit: A run failed or was stopped; its own message has been printed.
    """
    for i, (name, (recipe, *options)) in enumerate(sweep.items()):
        path = folder / name
        state = _state(path)
        tqdm.write(f"\nsweep {i + 1}/{len(sweep)}: {name} ({_WORDS[state]})", file=sys.stderr)
        if state == "finished":
            continue
        args = ["--output_dir", str(path), *options]
        if state == "stopped":
            args.append("--resume_from_checkpoint")
        elif path.is_dir() and any(path.iterdir()):
            args.append("--overwrite")
        importlib.import_module(f"hf_align.recipes.{recipe}").main(args)
    return [str(folder / name) for name in sweep]


_WORDS = {"finished": "already there", "stopped": "goes on", "absent": "training"}


def _state(path: Path) -> str:
    """ "finished", "stopped" where a checkpoint is left to go on from, or "absent"."""
    file = path / "run.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["status"] == "finished":
        return "finished"
    return "absent" if newest_checkpoint(path) is None else "stopped"
