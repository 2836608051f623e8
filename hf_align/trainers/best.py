"""The best audited checkpoint of a run, kept as a model folder while the run goes on.

Best means the largest mean gold, smoothed over neighbouring audits so that a lucky audit is not
taken for progress. A checkpoint's smoothed gold changes only until its successor is audited, so two
folders suffice: the best of those that are settled, and the newest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hf_align.diagnostics.overoptimization import smoothed
from hf_align.files import write_text

BEST = "best"
"""The folder of the best audited checkpoint, within the run's."""

AUDIT_FILE = "audit.json"
"""The file in it that says which one it is: `{"step", "kl", "gold"}`."""


class BestCheckpoint:
    """Keeps the best of all audited checkpoints, the base policy included, which needs no copy.

    Args:
        folder: Where `best` is to be; beside it is `.newest` while the run goes on.

    Attributes:
        path: The folder of the best checkpoint; there is none while the base policy is the best.
    """

    def __init__(self, folder: Path):
        self.path = folder / BEST
        self._newest, self._partial = folder / ".newest", folder / ".newest-partial"

    @property
    def step(self) -> int:
        """The step of the best checkpoint; 0 for the base policy."""
        return self._steps().get(self.path, 0)

    def forget(self, after: int = -1) -> None:
        """Removes what was kept of steps after a given one, and what a killed process left."""
        shutil.rmtree(self._partial, ignore_errors=True)
        for folder in (self.path, self._newest):
            if folder.is_dir() and self._steps().get(folder, after + 1) > after:
                shutil.rmtree(folder)

    def update(
        self,
        steps: Sequence[int],
        gold: Sequence[float],
        kl: float,
        save: Callable[[Path], None],
        eligible: bool = True,
    ) -> None:
        """Settles the checkpoint before the newest, and keeps the newest until its successor comes.

        Args:
            steps: (C,) the audited steps so far, the base's first.
            gold: (C,) mean gold of each.
            kl: Sequence KL of the newest, for its file.
            save: Writes the policy, as it is now, into a folder.
            eligible: Whether the newest may become the best; else it is not written.
        """
        self.settle(steps, gold, among=steps[:-1])
        if not eligible:
            return
        shutil.rmtree(self._partial, ignore_errors=True)
        save(self._partial)
        found = {"step": steps[-1], "kl": kl, "gold": gold[-1]}
        write_text(self._partial / AUDIT_FILE, json.dumps(found) + "\n")
        self._partial.replace(self._newest)

    def settle(
        self, steps: Sequence[int], gold: Sequence[float], among: Sequence[int] | None = None
    ) -> None:
        """Leaves the best of what is kept in its folder, and nothing else.

        Args:
            steps: (C,) the audited steps.
            gold: (C,) mean gold of each.
            among: The steps that take part; all if left out.
        """
        smooth = smoothed(np.asarray(gold, dtype=np.float64)).tolist()
        values = dict(zip(steps, smooth, strict=True))
        kept = self._steps()
        # The base comes first, and of equals the first wins.
        contenders = {steps[0], *(set(kept.values()) & set(steps if among is None else among))}
        winner = max(sorted(contenders), key=values.__getitem__)
        for folder, step in kept.items():
            if step != winner:
                shutil.rmtree(folder)
        if kept.get(self._newest) == winner:
            self._newest.replace(self.path)

    def _steps(self) -> dict[Path, int]:
        """The steps of the folders that are there, the best one's first."""
        steps = {}
        for folder in (self.path, self._newest):
            file = folder / AUDIT_FILE
            if file.is_file():
                steps[folder] = json.loads(file.read_text(encoding="utf-8"))["step"]
        return steps
