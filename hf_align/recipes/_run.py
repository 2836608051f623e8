"""Starts and finishes a run: the output directory, its records, the saved model and the closing
table.

Everything that a later stage reads is written here, each file atomically (temporary name, then
rename).
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_align.files import check_writable, write_text
from hf_align.hub import ancestors, model_card
from hf_align.hub.secrets import without_secrets
from hf_align.recipes._closing import closing_samples, closing_table, next_command, wrapped
from hf_align.recipes._parser import Choices
from hf_align.recipes._resuming import SAVING, check_same_run, resume_point
from hf_align.recipes._tracking import NO_TELEMETRY
from hf_align.trainers.best import BEST
from hf_align.types import InputError

_SECRETS = ("hub_token", "push_to_hub_token", "token")
_PACKAGES = ("hf_align", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def recipe(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], None]:
    """Makes one line of what people can mend; exit 2 for a mistake, 1 if the world is at fault."""

    @functools.wraps(main)
    def wrapped(args: list[str] | None = None) -> None:
        # Nothing leaves the machine unless asked.
        for name, value in NO_TELEMETRY.items():
            os.environ.setdefault(name, value)
        if not is_main_process():
            _hide_progress()
        try:
            main(args)
        except InputError as error:
            _stop(f"error: {error}", 2)
        except OSError as error:
            _stop(f"error: {' '.join(str(error).split())}", 1)
        except KeyboardInterrupt as error:
            how = str(error) or _ways_on(main.__globals__["make_parser"]().options)
            _stop("\nstopped" + (how and f"; {how}"), 130)

    return wrapped


def _ways_on(options: Container[str]) -> str:
    """What a recipe with these options can do after Ctrl-C."""
    ways = {
        "resume_from_checkpoint": "add --resume_from_checkpoint to go on from the last checkpoint",
        "overwrite": "--overwrite to start again",
    }
    return ", or ".join(way for option, way in ways.items() if option in options)


def _stop(message: str, code: int) -> None:
    # A mistake is every process's, so one of each machine tells it; the world may fail any of them.
    rank = os.environ.get("RANK", "0")
    if code == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
        for bar in list(tqdm._instances):
            bar.close()  # otherwise the message goes on the bar's line
        print(message if rank == "0" else f"process {rank}: {message}", file=sys.stderr)
    raise SystemExit(code)


def _hide_progress() -> None:
    """Switches off the bars of the Hugging Face libraries: one process shows them."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def is_main_process() -> bool:
    """Whether this process writes files and prints (rank 0, or the only one)."""
    return os.environ.get("RANK", "0") == "0"


@dataclass
class Run:
    """A run directory in the making.

    Attributes:
        recipe: Name of the recipe.
        path: The directory.
        resume: Checkpoint to resume from, if any; of an ensemble the folder of its members.
        record: What `run.json` will hold.
        warnings: Lines that the report repeats.
    """

    recipe: str
    path: Path
    resume: Path | None
    record: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Shows a warning now and repeats it in the report."""
        self.warnings.append(message)
        if is_main_process():
            tqdm.write(f"warning: {message}", file=sys.stderr)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file of the run directory atomically."""
        if is_main_process():
            write_text(self.path / name, json.dumps(content, indent=2, default=str) + "\n")


def check_output(choices: Choices) -> Run:
    """Settles where the run goes, without writing anything there.

    Raises:
        InputError: The directory holds something and neither --resume_from_checkpoint nor
            --overwrite was given; or there is nothing to resume; or a token was given as an option.
        OSError: The directory cannot be written.
    """
    for name in _SECRETS:
        if choices.get(name):
            raise InputError(
                f"{name} would be written into the run; set HF_TOKEN or run `hf auth login` instead"
            )
    path = Path(choices.get("output_dir") or f"outputs/{choices.recipe}")
    run = Run(choices.recipe, path, None)
    if not is_main_process():
        run.resume = resume_point(choices, path)
        return run
    if path.exists() and not path.is_dir():
        raise InputError(f"output_dir {path} is a file; name a folder")
    run.resume = resume_point(choices, path)
    occupied = path.is_dir() and any(path.iterdir())
    if occupied and run.resume is None:
        if not choices.get("overwrite"):
            raise InputError(
                f"output_dir {path} is not empty; name another, or pass --overwrite, or "
                "--resume_from_checkpoint to go on with the run in it"
            )
        if not (path / "run.json").is_file():
            raise InputError(f"output_dir {path} holds no run (no run.json); --overwrite leaves it")
    check_writable("output_dir", path)
    return run


def begin_run(run: Run, choices: Choices, config: dict[str, Any], lineage: dict[str, Any]) -> None:
    """Creates the directory and writes `run.json` and `lineage.json`, before the first step.

    The lineage is completed by those of its own sources; no token gets into either file.
    """
    earlier, problems = ancestors(lineage) if is_main_process() else ([], [])
    lineage = lineage | {"ancestors": earlier} if earlier else lineage
    record = {
        "schema": 1,
        "recipe": run.recipe,
        "name": run.path.resolve().name,
        "status": "running",
        "command": shlex.join(["python", "-m", f"hf_align.recipes.{run.recipe}", *choices.command]),
        "seed": config.get("seed"),
        "config": {
            key: ("<hidden>" if key in _SECRETS and value else value)
            for key, value in config.items()
        },
        "versions": {"python": sys.version.split()[0]}
        | {package: version(package) for package in _PACKAGES},
        "lineage": lineage,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    run.record = without_secrets(record)
    if not is_main_process():
        return
    for problem in problems:
        run.warn(problem)
    if run.resume is not None:
        check_same_run(run.path, run.record)
    if run.resume is None and run.path.is_dir():
        for entry in run.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_json("run.json", run.record)
    run.write_json("lineage.json", run.record["lineage"])


def was_written_by(folder: Path, recipe: str) -> bool:
    """Whether a folder's `run.json` says that this recipe wrote it, so that it may replace it."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("recipe") == recipe


def save_model(run: Run, trainer: Any, tokenizer: Any, merge_adapter: bool = False) -> None:
    """Saves the policy and its tokenizer at the top of the run directory.

    They are written to a folder beside and moved in file by file, and the trainer's pickled
    arguments stay out, so a full disk leaves the checkpoints as they were and no half-written
    model.

    Raises:
        OSError: The disk is full, or the directory went away.
    """
    partial = write_beside(run, trainer, tokenizer, merge_adapter)
    if is_main_process():
        move_in(partial, run.path)


def write_beside(run: Run, trainer: Any, tokenizer: Any, merge_adapter: bool = False) -> Path:
    """Writes the model and its tokenizer into a folder of the run directory, for `move_in`.

    Raises:
        OSError: The disk is full, or the directory went away.
    """
    partial = run.path / SAVING
    if is_main_process():
        shutil.rmtree(partial, ignore_errors=True)  # left over by a killed process
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:
        # Checkpoints may stay sharded, but of a sharded model the trainer would save no weights.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if merge_adapter:
        model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        if is_main_process():
            _write_model(partial, lambda: model.save_pretrained(partial))
    else:
        _write_model(partial, lambda: trainer.save_model(str(partial)))
    trainer.accelerator.wait_for_everyone()
    if is_main_process():
        _write_model(partial, lambda: tokenizer.save_pretrained(partial))
    return partial


def move_in(partial: Path, path: Path) -> None:
    """Moves a model written beside into its place, without the trainer's pickle and card."""
    for file in sorted(partial.iterdir()):
        if file.name in ("training_args.bin", "README.md"):
            file.unlink()
        else:
            os.replace(file, path / file.name)
    partial.rmdir()


def _write_model(partial: Path, write: Callable[[], Any]) -> None:
    try:
        with checkpoints_stay(partial.parent):
            write()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# How safetensors and torch report a full disk: as exceptions of their own, not as an OSError.
_DISK_SIGNS = ("os error", "no space left", "iostream error", "inline_container")


@contextmanager
def checkpoints_stay(folder: Path) -> Iterator[None]:
    """Around training and saving: a full disk is one line that says what is left.

    Raises:
        InputError: A reward failed in an audit.
        OSError: The disk is full, or the directory went away.
    """
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; the checkpoints in {folder} stay: mend this, then run again with "
            "--resume_from_checkpoint"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) or any(sign in reason.lower() for sign in _DISK_SIGNS):
            raise OSError(
                f"the run in {folder} could not be written ({reason}); its last complete "
                "checkpoint is intact: make room, then run again with --resume_from_checkpoint"
            ) from error
        raise


@contextmanager
def saved_model_stays(run: Run) -> Iterator[None]:
    """Around the evaluation: says where the model is if a reward fails there.

    Raises:
        InputError: The reward's own message, with the way on.
    """
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; the trained model is saved in {run.path}: mend this, then evaluate it with "
            "the same command and --resume_from_checkpoint"
        ) from error


def finish_run(run: Run, report: dict[str, Any], body: str) -> None:
    """Marks the run finished, writes the card, and prints table, verdict and next command."""
    if not is_main_process():
        return
    run.record |= {
        "status": "finished",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    run.write_json("run.json", run.record)
    write_text(run.path / "README.md", model_card(run.record, report, body))
    print(closing_table(report))
    if report["samples"]:
        print(closing_samples(report))
    print("\n" + wrapped(report["verdict"]["text"]))
    for line in report["warnings"]:
        print(wrapped(f"warning: {line}"))
    print(f"\nmodel, report and card: {run.path}")
    if report.get("best_audited_step"):
        print(f"best audited checkpoint: step {report['best_audited_step']}, {run.path / BEST}")
    print(f"next: {next_command(run.record, run.path, report)}")
