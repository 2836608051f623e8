"""The runs that an explorer shows: each read once, in the background, and the reason where it
cannot be.

Opening a run takes its records, its report and its audits' numbers; completions are read one audit
at a time, when somebody looks at them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_align.diagnostics.explorer import Selected, gains, selected_points
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.sample_files import ScoredCompletions
from hf_align.loading import LoadedRun, load_run
from hf_align.types import Estimate, InputError

MOST_OTHERS = 16
"""Runs that visitors added and that are kept in memory."""

_FILES_KEPT = 24
_RETRY = 20.0  # seconds after which a run that could not be had is asked for again
_REASON = 400


@dataclass(frozen=True)
class Source:
    """Where a run is.

    Attributes:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub repo.
        kind: Of the repo: what best-of-n selected is a dataset's.
        on_hub: Whether the name is a Hub id whatever folder lies here.
    """

    name: str
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"
    on_hub: bool = False


@dataclass(frozen=True)
class OpenRun:
    """A run as the pages use it.

    Attributes:
        key: How requests call it.
        run: Its records and report.
        curve: Its audits, or of best-of-n its values for every n; None where it has none.
        gold: Gains of gold along the curve; None without gold.
        proxy: The same of the proxy.
        selected: Of best-of-n, what every n is worth; None for other runs.
        problem: Why there is no curve; empty where there is one.
    """

    key: str
    run: LoadedRun
    curve: Curve | None
    gold: list[Estimate] | None
    proxy: list[Estimate] | None
    selected: list[Selected] | None
    problem: str = ""

    @property
    def is_selection(self) -> bool:
        """Whether it is a best-of-n run, whose steps are numbers of completions."""
        return self.run.record["recipe"] == "best_of_n"


def open_run(key: str, source: Source) -> OpenRun:
    """Reads a run's summary: records, report and curve, and no completions.

    Raises:
        InputError: It is no run, or its records or report are damaged.
        OSError: It cannot be had.
    """
    if source.on_hub and Path(source.name).expanduser().exists():
        raise InputError(f"{key}: a folder of that name lies here, and the Hub's is meant")
    run = load_run(source.name, source.revision, source.kind)
    if run.record["recipe"] == "goodhart":
        raise InputError(f"{key} is a comparison of runs; name the runs that it compared")
    if run.report is not None and run.verdict is None:
        made = run.record["recipe"][:40]
        raise InputError(f"{key} is a run of {made}, which has no curve; name a policy's run")
    curve, problem = None, ""
    try:
        curve = run.curve
    except InputError as error:
        problem = str(error).replace(source.name, key)
    if curve is None and not problem:
        kept = "values for every n" if run.record["recipe"] == "best_of_n" else "audits"
        problem = f"it kept no {kept}, so it has no curve"
    selected = None
    if run.record["recipe"] == "best_of_n" and run.report is not None:
        selected = selected_points(run.report, f"{key}: report.json")
    values = [None if curve is None else getattr(curve, name) for name in ("gold", "proxy")]
    gold, proxy = (None if one is None else gains(one) for one in values)
    return OpenRun(key, run, curve, gold, proxy, selected, problem)


class Shelf:
    """All runs of an explorer.

    Args:
        sources: The runs that it was made for.
        allow_others: Whether visitors may add published runs by their Hub id. Whatever this
            process's token may read they could read then, so only where there is none, or where
            the visitors are its owner.
    """

    def __init__(self, sources: Sequence[Source], allow_others: bool = False) -> None:
        self.allow_others = allow_others
        self.keys = _distinct(sources)
        self._sources = dict(zip(self.keys, sources, strict=True))
        self._others: OrderedDict[str, Source] = OrderedDict()
        self._opening: dict[str, tuple[float, Future[OpenRun]]] = {}
        self._files: OrderedDict[tuple[str, int], ScoredCompletions | None] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="runs")

    def add(self, name: str) -> str:
        """Makes room for a published run and returns its key; whether it is there shows later.

        Raises:
            InputError: Others may not be added, or it is no Hub id.
        """
        name = name.strip().removeprefix("https://huggingface.co/").rstrip("/")
        if name in self._sources:
            return name
        if not self.allow_others:
            raise InputError("this explorer shows the runs that it was made for, and no others")
        kind: Literal["model", "dataset"] = "dataset" if name.startswith("datasets/") else "model"
        bare = name.removeprefix("datasets/")
        if not _is_hub_id(bare):
            raise InputError("give a Hub id of the form org/name, or datasets/org/name")
        with self._lock:
            self._others[name] = Source(bare, None, kind, on_hub=True)
            self._others.move_to_end(name)
            while len(self._others) > MOST_OTHERS:
                gone, _ = self._others.popitem(last=False)
                self._opening.pop(gone, None)
        return name

    def opened(
        self, keys: Sequence[str], patience: float
    ) -> tuple[list[OpenRun], dict[str, str], list[str]]:
        """The runs of these keys: those that are open, why others are not, and which still open.

        Args:
            keys: From `keys`, or of `add`.
            patience: Seconds to wait for those that are being opened.
        """
        tasks = {key: self._task(key) for key in dict.fromkeys(keys)}
        wait([task for task in tasks.values() if task is not None], timeout=patience)
        runs, problems, pending = [], {}, []
        for key, task in tasks.items():
            if task is None:
                problems[key] = "no such run here; add it again"
            elif not task.done():
                pending.append(key)
            elif isinstance(error := task.exception(), InputError | OSError):
                problems[key] = self.reason(error)
            else:
                runs.append(task.result())
        return runs, problems, pending

    def get(self, key: str) -> OpenRun:
        """One run, waited for.

        Raises:
            InputError: There is none, or it cannot be shown.
            OSError: It cannot be had.
        """
        task = self._task(key)
        if task is None:
            raise InputError("no such run here; add it again")
        return task.result()

    def reason(self, error: Exception) -> str:
        """What an error says, in a line without the folders of this machine."""
        text = " ".join(str(error).split())
        for key, source in self._sources.items():
            if not source.on_hub:
                text = text.replace(source.name, key)
        return text[:_REASON]

    def samples(self, run: OpenRun, step: int) -> ScoredCompletions | None:
        """The completions of one audit, or of the pool with -1; None where none is kept.

        Raises:
            InputError: The file is damaged.
            OSError: It cannot be had.
        """
        place = (run.key, step)
        with self._lock:
            if place in self._files:
                self._files.move_to_end(place)
                return self._files[place]
        found = run.run.pool() if step < 0 else run.run.audit_samples(step)
        with self._lock:
            self._files[place] = found
            while len(self._files) > _FILES_KEPT:
                self._files.popitem(last=False)
        return found

    def _task(self, key: str) -> Future[OpenRun] | None:
        with self._lock:
            source = self._sources.get(key) or self._others.get(key)
            if source is None:
                return None
            began, task = self._opening.get(key, (0.0, None))
            stale = task is not None and task.done() and task.exception() is not None
            if task is None or (stale and time.monotonic() - began > _RETRY):
                task = self._pool.submit(open_run, key, source)
                self._opening[key] = (time.monotonic(), task)
            return task


def _is_hub_id(name: str) -> bool:
    parts = name.split("/")
    plain = all(part and part.strip(".") and not set(part) - _ID for part in parts)
    return len(parts) == 2 and plain and len(name) <= 96


_ID = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def _distinct(sources: Sequence[Source]) -> list[str]:
    """What the runs are called: Hub ids as they are, folders by the end of their path."""
    keys: list[str] = []
    for source in sources:
        path = Path(source.name).expanduser()
        parts = path.resolve().parts if path.is_dir() else (source.name,)
        key = parts[-1]
        for start in range(len(parts) - 2, -1, -1):
            if key not in keys:
                break
            key = "/".join(parts[start:])
        if key in keys:
            raise InputError(f"run {source.name} is named twice; name each once")
        keys.append(key)
    return keys
