"""What an explorer's page may ask of the server, and what it gets back.

One request is one JSON text with an `action`; the reply is HTML to show and numbers to draw with.
Nothing is stored and nobody is known, so every request can be sent again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_align.diagnostics.explorer import Shifts, at_distance, reading_order, shifts
from hf_align.diagnostics.what_if import fit_curve, what_if
from hf_align.feedback import Refused
from hf_align.types import Estimate, InputError
from hf_align.ui import explorer_views as views
from hf_align.ui.annotating import Reply, parsed
from hf_align.ui.explorer_runs import OpenRun, Shelf
from hf_align.ui.rate_limits import RateLimit

MOST_RUNS = 6
"""Runs in one chart: as many as there are markers that can be told apart."""

_PATIENCE = 1.5  # seconds that a page waits for runs before it is told which are still opened
_ORDERS = ("prompts", "over_optimised", "farthest")


class Exploring:
    """An explorer's answers.

    Args:
        shelf: Its runs.
        limit: How often one address may ask.
    """

    def __init__(self, shelf: Shelf, limit: RateLimit | None = None) -> None:
        self.shelf = shelf
        self._limit = limit or RateLimit(20.0, 200)
        self._actions: dict[str, Callable[[Mapping[str, Any]], Reply]] = {
            "add": self._add,
            "chart": self._chart,
            "equal": self._equal,
            "read": self._read,
            "best": self._best,
            "what-if": self._what_if,
        }

    def act(self, address: str, payload: str) -> Reply:
        """Answers one request of a page.

        Args:
            address: Whose requests are counted together.
            payload: The JSON text.
        """
        try:
            self._limit.take(address)
            body = parsed(payload)
            action = self._actions.get(str(body.get("action")))
            if action is None:
                raise InputError("this page is of another version; reload it")
            return action(body)
        except Refused as refusal:
            return {"error": str(refusal), "code": "retry"}
        except (InputError, OSError) as error:
            return {"error": self.shelf.reason(error), "code": "input"}

    # ------------------------------------------------------------------------------------ the runs

    def _add(self, body: Mapping[str, Any]) -> Reply:
        name = body.get("name")
        if not isinstance(name, str):
            raise InputError("give the Hub id of a published run")
        return {"code": "added", "run": self.shelf.add(name)}

    def _chart(self, body: Mapping[str, Any]) -> Reply:
        """Everything that depends on which runs are picked."""
        runs, problems, pending = self.shelf.opened(_keys(body), _PATIENCE)
        reply: Reply = {
            "code": "chart",
            "pending": pending,
            "problems": views.problems_view(problems),
            "html": views.charts_view(runs) if runs else "",
            "notes": views.notes_view(mixtures(runs)),
            "verdicts": views.verdicts_view(runs) if runs else "",
            "curves": {run.key: _points(run) for run in runs if run.curve is not None},
        }
        reply["pools"] = {run.key: len(run.selected) for run in runs if run.selected}
        return reply

    def _equal(self, body: Mapping[str, Any]) -> Reply:
        """All picked runs at the KL where one of them stands."""
        runs, _, _ = self.shelf.opened(_keys(body), _PATIENCE)
        walked = self.shelf.get(_text(body, "run"))
        if walked.curve is None:
            raise InputError(f"{walked.key}: {walked.problem}")
        index = int(_number(body, "index", 0, len(walked.curve.steps) - 1))
        distance = float(walked.curve.sqrt_kl[index])
        found = [None if run.curve is None else at_distance(run.curve, distance) for run in runs]
        return {"code": "equal", "html": views.equal_view(runs, found, distance**2)}

    # --------------------------------------------------------------------------- reading along one

    def _read(self, body: Mapping[str, Any]) -> Reply:
        """One prompt at one step, beside the reference."""
        run = self.shelf.get(_text(body, "run"))
        if run.curve is None:
            raise InputError(f"{run.key}: {run.problem}")
        if run.is_selection:
            return _nothing("What best-of-n chose is further down.")
        index = int(_number(body, "index", 0, len(run.curve.steps) - 1))
        step, order = int(run.curve.steps[index]), body.get("order")
        sides = [self.shelf.samples(run, each) for each in (step, 0)]
        policy, reference = sides
        if policy is None or reference is None:
            return _from_report(run, policy is None and reference is not None, body, step)
        found = shifts(policy, reference)
        rows = reading_order(found, order if order in _ORDERS else "prompts", len(policy))
        place = int(_number(body, "row", -math.inf, math.inf)) % len(rows)
        row = int(rows[place])
        html = views.samples_view(
            policy.prompts[row],
            [
                ("Reference", reference.completions[row], views.facts_of(reference, row)),
                (
                    f"Policy at step {step}, KL {run.curve.sqrt_kl[index] ** 2:.3g} nats",
                    policy.completions[row],
                    views.facts_of(policy, row, found),
                ),
            ],
            _flag(found, row),
        )
        note = views.order_note(found, len(rows))
        return {"code": "read", "html": html, "row": place, "rows": len(rows), "note": note}

    # ---------------------------------------------------------------------------------- best-of-n

    def _best(self, body: Mapping[str, Any]) -> Reply:
        """What the best of n is worth, and which one it is for a prompt."""
        run = self.shelf.get(_text(body, "run"))
        if not run.selected:
            raise InputError(f"{run.key} is no best-of-n run")
        most = len(run.selected)
        n = int(_number(body, "n", 1, most))
        html = views.selection_view(run.selected, n)
        reply: Reply = {"code": "best", "n": n, "most": most, "rows": 0, "row": 0}
        try:
            pool = self.shelf.samples(run, -1)
        except InputError as error:
            return {**reply, "html": html + views.notes_view([self.shelf.reason(error)])}
        if pool is None or pool.proxy is None or len(pool) % most:
            missing = "This run kept no pool of completions, so there is none to read."
            return {**reply, "html": html + views.notes_view([missing])}
        prompts = len(pool) // most
        place = int(_number(body, "row", -math.inf, math.inf)) % prompts
        rows = slice(place * most, (place + 1) * most)
        winner = int(np.argmax(pool.proxy[rows][:n]))
        html += views.pool_view(pool, rows, n, winner)
        return {**reply, "html": html, "rows": prompts, "row": place}

    # ------------------------------------------------------------------------------------ what if

    def _what_if(self, body: Mapping[str, Any]) -> Reply:
        """Where another KL coefficient would have left a run."""
        run = self.shelf.get(_text(body, "run"))
        if run.curve is None or run.is_selection:
            why = run.problem or "best-of-n has no KL coefficient; pick a trained run"
            raise InputError(f"{run.key}: {why}")
        beta = _number(body, "beta", 0.0, 1e6)
        others, _, _ = self.shelf.opened(_keys(body), 0.0)
        happened = [entry for other in others if (entry := penalised(other)) is not None]
        html = views.what_if_view(run, what_if(run.curve, beta), fit_curve(run.curve), happened)
        return {"code": "what-if", "html": html}


def penalised(run: OpenRun) -> tuple[str, float, Estimate | None, Estimate | None] | None:
    """Name, coefficient, KL and gold gain of a run that a fixed penalty held; None for others."""
    config = run.run.record.get("config")
    if run.run.record["recipe"] not in ("ppo", "rloo") or not isinstance(config, dict):
        return None
    beta = config.get("beta")
    fixed = config.get("kl_controller", "fixed") in (None, "fixed")
    if not isinstance(beta, int | float) or not 0 < beta < 1e6 or not fixed:
        return None
    metrics = {} if run.run.report is None else run.run.report["metrics"]
    kl, gold = (
        Estimate(**metrics[name]) if name in metrics else None
        for name in ("kl/sequence", "gold/gain")
    )
    return run.key, float(beta), kl, gold


def mixtures(runs: list[OpenRun]) -> list[str]:
    """What keeps the lines of these runs from being compared, in sentences."""
    notes = []
    references = {_identity(run): run.key for run in runs if _identity(run)}
    if len(references) > 1:
        notes.append(
            "These runs have different references, and a KL is a distance from one: their places "
            "along the axis cannot be compared."
        )
    for name in ("gold", "proxy"):
        named = {
            str(run.run.report["evaluation"][name])[:60]: run.key
            for run in runs
            if run.run.report is not None and name in run.run.report["evaluation"]
        }
        if len(named) > 1:
            notes.append(
                f"These runs were scored by different {name}s ({', '.join(named)}): their heights "
                f"in the {name} chart cannot be compared."
            )
    return notes


def _identity(run: OpenRun) -> str | None:
    reference = run.run.lineage.get("reference")
    if not isinstance(reference, dict):
        return None
    return str(reference.get("sha256") or reference.get("revision") or "") or None


def _points(run: OpenRun) -> Reply:
    """A curve's numbers, for the slider and the cursor."""

    def values(gains: list[Estimate] | None) -> list[float] | None:
        return None if gains is None else [round(gain.value, 4) for gain in gains]

    return {
        "d": run.curve.sqrt_kl.round(5).tolist(),
        "steps": [int(step) for step in run.curve.steps],
        "gold": values(run.gold),
        "proxy": values(run.proxy),
        "counted": "n" if run.is_selection else "step",
        "trained": not run.is_selection,
    }


def _flag(found: Shifts, row: int) -> str:
    flagged = found.over_optimised
    if flagged is None or not flagged[row]:
        return ""
    return (
        f"▼ Over-optimised here: the proxy rose by {found.proxy[row]:.2f} while gold fell by "
        f"{-found.gold[row]:.2f}."
    )


def _from_report(run: OpenRun, only_this_step: bool, body: Mapping[str, Any], step: int) -> Reply:
    """What can be read of a run that kept no completions of an audit: its report's samples."""
    kept = "no completions of this audit" if only_this_step else "no completions of its audits"
    note = f"This run kept {kept}"
    samples = [] if run.run.report is None else run.run.report["samples"]
    if only_this_step or not samples:
        return _nothing(f"{note}, so there is nothing to read at step {step}.")
    place = int(_number(body, "row", -math.inf, math.inf)) % len(samples)
    row = samples[place]
    sides = [
        (title, _words(row[side]), _report_facts(row, side))
        for side, title in (("reference", "Reference"), ("policy", "Shipped policy"))
    ]
    html = views.notes_view([f"{note}; these are its report's own samples, of the policy shipped."])
    html += views.samples_view(_words(row["prompt"]), sides)
    listed = f"{len(samples)} samples of the report"
    return {"code": "read", "html": html, "row": place, "rows": len(samples), "note": listed}


def _words(text: Any) -> str:
    if isinstance(text, list):
        return "\n\n".join(str(turn.get("content", "")) for turn in text)
    return str(text)


def _report_facts(row: Mapping[str, Any], side: str) -> list[tuple[str, str]]:
    named = ((name, row.get(f"{side}_{name}")) for name in ("gold", "proxy"))
    return [(name, f"{value:.2f}") for name, value in named if isinstance(value, int | float)]


def _nothing(why: str) -> Reply:
    return {"code": "read", "html": views.notes_view([why]), "row": 0, "rows": 0, "note": ""}


def _keys(body: Mapping[str, Any]) -> list[str]:
    keys = body.get("runs")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError("this page is of another version; reload it")
    if len(keys) > MOST_RUNS:
        raise InputError(f"at most {MOST_RUNS} runs at a time; take one out first")
    return keys


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError("this page is of another version; reload it")
    return value


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise InputError(f"{name} is no number of a usable size")
    if not low <= value <= high:
        raise InputError(f"{name} {value:g}: give {low:g} to {high:g}")
    return value
