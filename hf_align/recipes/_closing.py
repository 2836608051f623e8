"""The last lines a run prints: its metrics as a table, a few samples, and what to try next."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any

# Cross-checks and details: in the report, not on the screen.
_DETAILS = ("kl/sequence_k1", "kl/consistency_z", "kl/per_token", "policy/", "length/ended")


def closing_table(report: dict[str, Any]) -> str:
    """The report's main metrics as text: name, value, 95 % interval, number of prompts."""
    rows = [("metric", "value", "95 % interval", "prompts")]
    for name, entry in report["metrics"].items():
        if name.startswith(_DETAILS):
            continue
        low, high = entry["low"], entry["high"]
        interval = "" if low is None else f"[{_three(low)}, {_three(high)}]"
        rows.append((name, _three(entry["value"]), interval, str(entry["n"])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {interval:<{widths[2]}}  {n:>{widths[3]}}"
        for name, value, interval, n in rows
    )


def _three(value: float) -> str:
    """Three decimals, and no minus before zeros."""
    return f"{round(value, 3) + 0.0:.3f}"


def wrapped(text: str) -> str:
    """A sentence over several lines of a terminal."""
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False)


def closing_samples(report: dict[str, Any], count: int = 3) -> str:
    """The first samples as text, gold in front; the report has more of them."""
    lines = []
    for row in report["samples"][:count]:
        lines += ["", _shortened(row["prompt"], 96)]
        for side in ("reference", "policy"):
            gold = f"{row[f'{side}_gold']:>6.2f}  " if f"{side}_gold" in row else "  "
            lines.append(f"  {side:<9} {gold}{_shortened(row[side], 80) or '(empty)'}")
    return "\n".join(lines)


def _shortened(text: str, width: int) -> str:
    """One printable line: control characters escaped, the middle of a long text left out."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    half = (width - 3) // 2
    return line if len(line) <= width else f"{line[:half]} … {line[-half:]}"


def next_command(record: dict[str, Any], path: Path, report: dict[str, Any]) -> str:
    """What to try after a run: its record, its directory and its report tell."""
    if report["verdict"]["label"] == "OVER-OPTIMISED":
        peak = report["peak_step"]
        earlier = f"--max_steps {peak}, where gold peaked" if peak else "a smaller learning rate"
        return f"the same with {earlier}, or with a larger beta, and another --output_dir"
    config = record["config"]
    on_testbed = config["dataset_name"] == "testbed"
    python = python_command()
    if record["recipe"] == "sft" and config["use_peft"] and not config["merge_adapter"]:
        return "the same with --merge_adapter, which saves one model that dpo can start from"
    if record["recipe"] == "sft":
        data = "" if on_testbed else " --dataset_name PAIRS"
        return f"{python} -m hf_align.recipes.dpo --model_name_or_path {path}{data}"
    if record["recipe"] == "reward" and config["num_members"] == 1:
        where = "" if on_testbed else " (and your own options)"
        loss = "" if config["loss"] == "pairwise" else f" --loss {config['loss']}"
        return (
            f"{python} -m hf_align.recipes.reward{loss} --num_members 4 --member_data bootstrap "
            f"--output_dir outputs/reward-ensemble{where}"
        )
    if record["recipe"] == "reward":
        return f"{python} -m hf_align.recipes.dpo --gold_reward {path}, which judges by it"
    if record["recipe"] == "expert_iteration":
        where = "testbed" if on_testbed else config["model_name_or_path"]
        data = " --dataset_name testbed" if on_testbed else " (and your data and rewards)"
        return f"{python} -m hf_align.recipes.compare {path} --reference {where}{data}"
    if on_testbed and record["recipe"] in ("ppo", "rloo"):
        # Without a penalty the proxy keeps rising while gold falls far below the reference.
        return (
            f"{python} -m hf_align.recipes.{record['recipe']} --beta 0 --learning_rate 2e-4 "
            "--lr_scheduler_type constant --max_steps 600 "
            f"--output_dir outputs/{record['recipe']}-too-far"
        )
    if on_testbed:
        # Little data, a small beta and no decay: the report then shows gold rise, peak and fall.
        return (
            f"{python} -m hf_align.recipes.dpo --beta 0.02 --max_train_samples 1000 "
            "--max_steps 180 --lr_scheduler_type constant --audit_steps 10 "
            "--output_dir outputs/dpo-too-far"
        )
    if config["gold_reward"] is None:
        return "the same with --gold_reward FUNCTION_OR_MODEL, so that the report can judge"
    return "the same with --push_to_hub --hub_model_id ORG/NAME, which is private"


def python_command() -> str:
    """How to call the interpreter that has this library, from here."""
    path = os.path.relpath(sys.executable)
    return "python" if path.startswith("..") else path
