"""What the online rounds have come to: a round's numbers, whether to stop, who is waited for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import OnlineArguments
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.report import load_report
from hf_align.feedback import Store, missing_votes, progress
from hf_align.recipes._closing import python_command
from hf_align.recipes._collect import STORE
from hf_align.recipes._online_parts import ACCURACY
from hf_align.recipes._online_stages import VOTES, place
from hf_align.records import read_record
from hf_align.statistics import clustered_difference
from hf_align.types import Estimate, InputError

AUDITS = "audits.json"


@dataclass(frozen=True)
class Round:
    """One finished round.

    Attributes:
        number: From 1.
        policy: Who wrote the round's pairs.
        pairs: How many were compared.
        trained_on: Pairs that its reward model was trained on, older ones included.
        report: The `report.json` of its policy.
        accuracy: By `old` and `new` reward model, accuracy on its pairs by `label` and `gold`.
        curve: Gold and proxy along the policy's training; None without audits.
    """

    number: int
    policy: str
    pairs: int
    trained_on: int
    report: dict[str, Any]
    accuracy: dict[str, dict[str, Estimate]]
    curve: Curve | None

    def metric(self, name: str) -> Estimate | None:
        """A metric of the policy's report."""
        entry = self.report["metrics"].get(name)
        return None if entry is None else Estimate(**entry)

    @property
    def gold(self) -> np.ndarray | None:
        """(G,) gold of the policy per audit prompt, the same prompts in every round."""
        return None if self.curve is None or self.curve.gold is None else self.curve.gold[-1]


def read_round(folder: Path, number: int) -> Round:
    """The numbers of a finished round.

    Raises:
        InputError: A file of it is damaged; names it.
    """
    where = folder / "rounds" / str(number)
    try:
        lineage = read_record(where / "pairs" / "lineage.json", "lineage")
        counts = read_record(where / "mix" / "report" / "report.json", "report")["pairs"]
        accuracy = read_record(where / "accuracy" / ACCURACY, "accuracy")
        report = load_report(where / "ppo" / "report")
        return Round(
            number,
            _policy_name(lineage),
            accuracy["pairs"],
            sum(count for name, count in counts.items() if name.endswith("train")),
            report,
            {
                name: {by: Estimate(**entry) for by, entry in accuracy[name].items()}
                for name in ("old", "new")
                if name in accuracy
            },
            _curve(where / "ppo" / AUDITS),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where} is damaged ({' '.join(str(error).split())}); delete it, and the same command "
            "makes it again"
        ) from error


def _policy_name(lineage: dict[str, Any]) -> str:
    name = Path(str(lineage["model"]["name"]))
    return f"round {name.parent.name}'s" if name.name == "ppo" else name.name


def _curve(file: Path) -> Curve | None:
    audits = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if len(audits) < 2:
        return None
    rewards = {
        name: np.array([audit[name] for audit in audits])
        for name in ("gold", "proxy")
        if name in audits[0]
    }
    kls = np.maximum([audit["kl"] for audit in audits], 0.0)
    return Curve(np.array([audit["step"] for audit in audits]), np.sqrt(kls), **rewards)


def gain_over(later: Round, earlier: Round) -> Estimate | None:
    """Gold of a round's policy less that of another's, paired by prompt; None without gold."""
    if later.gold is None or earlier.gold is None or later.gold.shape != earlier.gold.shape:
        return None
    return clustered_difference(later.gold, earlier.gold, np.arange(later.gold.size))


def stop_reason(done: Sequence[Round], options: OnlineArguments) -> str | None:
    """Why no further round is run, in a sentence; None where one is.

    Args:
        done: The rounds so far, at least one.
        options: The criteria.
    """
    last = done[-1]
    kl, gain = last.metric("kl/sequence"), last.metric("gold/gain")
    head = f"stopped after round {last.number}"
    if options.max_kl is not None and kl is not None and kl.value > options.max_kl:
        return f"{head}: its policy is {kl.value:.2f} nats away, above max_kl {options.max_kl:g}"
    target = options.target_gold_gain
    if target is not None and gain is not None and _low(gain) > target:
        return f"{head}: gold rose by {_shown(gain)}, above target_gold_gain {target:g}"
    rise = gain_over(last, done[-2]) if len(done) > 1 else None
    if options.stop_when_gold_stalls and rise is not None and _low(rise) <= 0:
        return f"{head}: its gold less that of the round before is {_shown(rise)}, not above 0"
    if last.number >= options.rounds:
        return f"ended after round {last.number}, the last of --rounds {options.rounds}"
    return None


def best_round(done: Sequence[Round]) -> Round:
    """The round whose policy has the most gold on the audit prompts; the last one without gold."""
    if any(one.gold is None for one in done):
        return done[-1]
    return max(done, key=lambda one: float(one.gold.mean()))


def _low(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _shown(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def wait_for_people(folder: Path, number: int) -> str | None:
    """What to print where votes of a round are still missing; None where all are there.

    An item that too many skipped is not waited for. Once a round's votes were taken, later ones do
    not change it.
    """
    home = folder / place(number, VOTES)
    if (folder / place(number, "pairs") / "run.json").is_file():
        return None
    store = Store(home / STORE)
    try:
        missing, done = missing_votes(store, VOTES), progress(store, VOTES)
    finally:
        store.close()
    if not missing:
        return None
    return (
        f"round {number} waits for people: {missing} of {done.wanted} votes on {done.items} pairs "
        f"are missing\n  {python_command()} -m hf_align.recipes.collect serve "
        f"--output_dir {shlex.quote(str(home))}\n"
        "lets them vote; once all are there, the same command goes on"
    )
