"""Runs the stages of a study in warm worker processes: each a recipe that writes its own folder.

A stage starts when those it needs are finished. The same command again keeps what is finished and
was made with the same options, and goes on with what was stopped, from its checkpoint if it left
one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_align.recipes._resuming import ROUND, is_saved, newest_checkpoint
from hf_align.types import InputError

FLAGS = ("--resume_from_checkpoint", "--overwrite")
"""What a stage is started with to go on, or to be made again: no part of what was asked for."""

_LAST_WORDS = 4096  # bytes at the end of a log in which a failed stage's message is looked for


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        name: Its folder within the study's; the log lies beside, `<name>.log`.
        recipe: Module of `hf_align.recipes` whose `main` does it, or any module by its dotted name.
        options: The command line, without --output_dir.
        needs: Names of stages, earlier in the list, whose folders it reads.
    """

    name: str
    recipe: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def run_stages(stages: Sequence[Stage], folder: Path, num_workers: int | None = None) -> None:
    """Runs what is not finished yet, the earliest in the list first, with one bar for all.

    Every worker computes with one thread and stays alive, so that it imports torch once. If this
    process ends, however it does, its workers end too.

    Args:
        stages: What to run, needs before those who need them.
        folder: Where the stages' folders are.
        num_workers: Stages at a time; as many as there are cores if left out.

    Raises:
        InputError: A stage was given something it cannot use; one line with its name, message and
            log.
        OSError: A stage failed otherwise; the same.
    """
    _check(stages)
    done, waiting = set(), {}
    for stage in stages:
        if _is_up_to_date(stage, folder, done):
            done.add(stage.name)
        else:
            waiting[stage.name] = stage
    if not waiting:
        return
    at_once = max(1, min(num_workers or os.cpu_count() or 1, len(waiting)))
    running: dict[Future, tuple[Stage, float]] = {}
    with (
        tqdm(total=len(stages), initial=len(done), unit="stage", file=sys.stderr) as bar,
        _workers(at_once) as pool,
    ):
        while waiting or running:
            ready = [s for s in waiting.values() if done.issuperset(s.needs)]
            for stage in ready[: at_once - len(running)]:
                del waiting[stage.name]
                running[_start(pool, stage, folder)] = stage, time.monotonic()
            bar.set_postfix_str(", ".join(stage.name for stage, _ in running.values()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage, began = running.pop(future)
                _check_outcome(stage, folder, future)
                done.add(stage.name)
                bar.write(f"{stage.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
                bar.update()


def state_of(stage: Stage, folder: Path) -> str:
    """ "finished" or "stopped" (it left something to go on from), both with the same options; or
    "absent".
    """
    path = folder / stage.name
    record = _record(path)
    if record is None or not _asked_for(record, stage, folder):
        return "absent"
    if record["status"] == "finished":
        return "finished"
    parts = (*path.glob("member-*"), *path.glob(f"{ROUND}*"))
    members = any(is_saved(one) or newest_checkpoint(one) for one in parts)
    return "stopped" if members or newest_checkpoint(path) else "absent"


def log_of(stage: Stage, folder: Path) -> Path:
    """What the stage printed."""
    return (folder / stage.name).with_name(Path(stage.name).name + ".log")


# --------------------------------------------------------------------------------- what is finished


def _check(stages: Sequence[Stage]) -> None:
    seen: set[str] = set()
    for stage in stages:
        if stage.name in seen or not seen.issuperset(stage.needs):
            raise ValueError(f"stage {stage.name} is named twice, or needs a stage that is not")
        seen.add(stage.name)


def _is_up_to_date(stage: Stage, folder: Path, done: set[str]) -> bool:
    return (
        state_of(stage, folder) == "finished"
        and done.issuperset(stage.needs)
        and not _is_outdated(stage, folder)
    )


def _is_outdated(stage: Stage, folder: Path) -> bool:
    """Whether something that it read was made again after it began."""
    record = _record(folder / stage.name) or {}
    needed = (_record(folder / name) or {} for name in stage.needs)
    return any(one.get("finished", "") > record.get("started", "") for one in needed)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"status", "command"} <= record.keys() else None


def _asked_for(record: dict[str, Any], stage: Stage, folder: Path) -> bool:
    """Whether a run's command is the stage's, wherever the study's folder lay at that time."""
    _, _, module, *words = shlex.split(record["command"])
    if len(words) < 2 or not words[1].endswith(stage.name):
        return False
    then, now = words[1].removesuffix(stage.name), str(folder / stage.name)
    options = [word for word in words[2:] if word not in FLAGS]
    if then:
        options = [word.replace(then, now.removesuffix(stage.name)) for word in options]
    return module == _module(stage) and options == list(stage.options)


def _module(stage: Stage) -> str:
    return stage.recipe if "." in stage.recipe else f"hf_align.recipes.{stage.recipe}"


# ------------------------------------------------------------------------------------- the workers


@contextlib.contextmanager
def _workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once where the block ends with an error."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_prepare_worker)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("the same command goes on") from error
        raise
    finally:
        pool.shutdown()


def _prepare_worker() -> None:
    """One thread; Ctrl-C is the parent's affair; and without a parent there is nothing to do."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when a recipe imports it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _start(pool: ProcessPoolExecutor, stage: Stage, folder: Path) -> Future:
    path, log = folder / stage.name, log_of(stage, folder)
    args = ["--output_dir", str(path), *stage.options]
    goes_on = state_of(stage, folder) == "stopped" and not _is_outdated(stage, folder)
    if goes_on:
        args.append("--resume_from_checkpoint")
    elif path.is_dir() and any(path.iterdir()):
        args.append("--overwrite")
    log.parent.mkdir(parents=True, exist_ok=True)
    return pool.submit(_work, _module(stage), args, str(log), goes_on)


def _work(module: str, args: list[str], log: str, goes_on: bool) -> int:
    """In a worker: the recipe's exit code. All that it prints goes to the log."""
    with open(log, "a" if goes_on else "w", encoding="utf-8") as stream:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):  # not sys.stdout: loggers hold on to the stream they began with
            os.dup2(stream.fileno(), descriptor)
    try:
        importlib.import_module(module).main(args)
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _check_outcome(stage: Stage, folder: Path, future: Future) -> None:
    log = log_of(stage, folder)
    try:
        code = future.result()
    except BrokenProcessPool as error:
        raise OSError(
            f"stage {stage.name}: its process was killed, for lack of memory perhaps (log: {log}); "
            "the same command goes on"
        ) from error
    if code:
        kind = InputError if code == 2 else OSError
        raise kind(f"stage {stage.name}: {_last_words(log)} (log: {log}); the same command goes on")


def _last_words(log: Path) -> str:
    text = log.read_bytes()[-_LAST_WORDS:].decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"
