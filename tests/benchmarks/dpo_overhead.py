"""What our DPO recipe costs over TRL's own script: time of the training loop, pair by pair.

Both run in their own process on the same parquet files, model and options, alternating which goes
first, and must end at the same training loss. The ratio must be at most 1.03.

    python tests/benchmarks/dpo_overhead.py --pairs 8
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

LIMIT = 1.03
MODULES = {"ours": "hf_align.recipes.dpo", "trl": "trl.scripts.dpo"}
OURS_ONLY = (
    *("--audit_steps", "0", "--num_eval_prompts", "8", "--num_eval_samples", "1"),
    *("--eval_max_new_tokens", "26"),
)
# The activations of a step are tens of MB. By default glibc returns them to the kernel and faults
# them in again at each step, a third of the time and as luck has it; here neither side pays that.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}

# Runs a module as `python -m` does, with a clock from the 11th step to the end of Trainer.train and
# nothing else changed. The first ten steps go uncounted: our check before step 0 has by then warmed
# up what TRL's script warms up inside train().
WARM_UP = 10
# Other work on the machine only ever adds time, so the fastest ten steps in a row, with what comes
# between them, tell the most about the program.
BLOCK = 10
TIMED = f"""
import json, os, runpy, sys, time
import transformers
from transformers.trainer_callback import CallbackHandler
plain_train, plain_step = transformers.Trainer.train, transformers.Trainer.training_step
plain_event = CallbackHandler.call_event
marks, events = [], []
def event(self, *args, **kwargs):
    start = time.perf_counter()
    control = plain_event(self, *args, **kwargs)
    events.append(time.perf_counter() - start)
    return control
def step(self, *args, **kwargs):
    marks.append((time.perf_counter(), time.process_time()))
    return plain_step(self, *args, **kwargs)
def train(self, *args, **kwargs):
    output = plain_train(self, *args, **kwargs)
    marks.append((time.perf_counter(), time.process_time()))
    wall, cpu = (end - start for start, end in zip(marks[{WARM_UP}], marks[-1]))
    blocks = [b[0] - a[0] for a, b in zip(marks[{WARM_UP}:], marks[{WARM_UP} + {BLOCK}:])]
    spent = dict(wall=wall, cpu=cpu, block=min(blocks), steps=len(marks) - 1)
    spent |= dict(callbacks=sum(events), loss=output.training_loss)
    with open(os.environ["SPENT"], "w") as stream:
        json.dump(spent, stream)
    return output
transformers.Trainer.train, transformers.Trainer.training_step = train, step
CallbackHandler.call_event = event
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def shared_options(data: Path, model: Path, steps: int) -> list[str]:
    """The options that both programs get, everything that their defaults could differ in named."""
    return [
        *("--dataset_name", str(data), "--model_name_or_path", str(model)),
        *("--max_steps", str(steps), "--per_device_train_batch_size", "64", "--max_length", "64"),
        *("--learning_rate", "3e-4", "--beta", "0.1", "--seed", "42", "--logging_steps", "5"),
        *("--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none"),
        *("--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"),
        *("--dataloader_pin_memory", "false"),
    ]


def run_once(side: str, options: list[str], folder: Path) -> dict[str, float]:
    """One run of a side; returns the seconds of its loop, the steps and the loss."""
    spent = folder / "spent.json"
    spent.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, "-c", TIMED, MODULES[side], *options]
        command += ["--output_dir", f"{output}/run", *(OURS_ONLY if side == "ours" else ())]
        done = subprocess.run(
            command, env=os.environ | MALLOC | {"SPENT": str(spent)}, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(spent.read_text())


def interval(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the median ratio, pairs drawn with replacement."""
    generator = random.Random(0)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws)
    )
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def main() -> None:
    """Measures, prints, and exits with 1 where the recipe costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    from hf_align.testbed import build_testbed

    testbed = build_testbed()
    data = testbed.path / "preferences"
    options = shared_options(data, testbed.policy_path, args.steps)
    packages = ("hf_align", "trl", "transformers", "torch", "accelerate", "datasets")
    print("versions:", ", ".join(f"{name} {version(name)}" for name in packages))
    print(f"machine: {os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} thread(s) per run")
    for side, module in MODULES.items():
        own = OURS_ONLY if side == "ours" else ()
        print(f"{side}: python -m {module} {shlex.join([*options, *own])}")
    print(
        "\nseconds of the loop, ours / TRL's = ratio; wall and CPU of the whole loop, wall of the"
    )
    print(f"fastest {BLOCK} steps in a row\n")
    print(f"{'pair':>4} {'first':>5} {'wall':>22} {'cpu':>22} {'block':>22}")
    callbacks: dict[str, list[float]] = {side: [] for side in MODULES}
    ratios: dict[str, list[float]] = {"wall": [], "cpu": [], "block": []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(args.pairs):
            order = ("ours", "trl") if pair % 2 == 0 else ("trl", "ours")
            spent = {side: run_once(side, options, Path(folder)) for side in order}
            ours, trl = spent["ours"], spent["trl"]
            if abs(ours["loss"] - trl["loss"]) > 1e-6 or ours["steps"] != trl["steps"]:
                sys.exit(f"the two did not train alike: {ours} against {trl}")
            line = f"{pair + 1:>4} {order[0]:>5}"
            for clock, values in ratios.items():
                values.append(ours[clock] / trl[clock])
                line += f" {ours[clock]:>6.3f} / {trl[clock]:>5.3f} = {values[-1]:.3f}"
            print(line, flush=True)
            for side, values in callbacks.items():
                values.append(spent[side]["callbacks"] / spent[side]["steps"])
    print(f"\nboth ended at a training loss of {trl['loss']:.6f} after {trl['steps']} steps")
    for side, values in callbacks.items():
        print(f"callbacks of {side}: {1000 * statistics.median(values):.2f} ms a step")
    for clock, values in ratios.items():
        low, high = interval(values)
        print(f"{clock}: median ratio {statistics.median(values):.3f} [{low:.3f}, {high:.3f}]")
    if statistics.median(ratios["block"]) > LIMIT:
        sys.exit(f"block: over {LIMIT}")


if __name__ == "__main__":
    main()
