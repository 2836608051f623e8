"""The report of online rounds: numbers and figures by round, the best one's policy, the card."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import JudgeArguments, OnlineArguments
from hf_align.diagnostics.markdown import Cell, Table
from hf_align.diagnostics.online_plots import along_kl_figure, rounds_figure
from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.plots import save_figure
from hf_align.diagnostics.report import build_report, report_markdown, write_report
from hf_align.diagnostics.study import at_kl
from hf_align.files import check_writable, replacing, write_text
from hf_align.hub import ancestors, model_card
from hf_align.hub.secrets import without_secrets
from hf_align.recipes._closing import closing_table, wrapped
from hf_align.recipes._online_publishing import published_pairs
from hf_align.recipes._online_rounds import Round, best_round, gain_over
from hf_align.recipes._online_stages import PROMPTS, place
from hf_align.recipes._parser import Choices
from hf_align.recipes._run import was_written_by
from hf_align.types import Estimate, InputError

_PACKAGES = ("hf_align", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
_KLS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
_RECORDS = ("run.json", "lineage.json", "audits.json")
_PANELS = (
    ("Gold gain", {"gold, policy less reference": "gold/gain"}),
    ("Proxy gain", {"proxy, policy less reference": "proxy/gain"}),
)


def check_output(options: OnlineArguments) -> Path:
    """The folder of the rounds.

    Raises:
        InputError: It is a file, or holds something that no online run wrote.
        OSError: It cannot be written.
    """
    path = Path(options.output_dir)
    if path.exists() and not path.is_dir():
        raise InputError(f"output_dir {path} is a file; name a folder")
    begun = any((path / one).is_file() for one in (f"{PROMPTS}.log", f"{PROMPTS}/run.json"))
    begun = begun or was_written_by(path, "online")
    if path.is_dir() and any(path.iterdir()) and not begun:
        raise InputError(f"output_dir {path} holds something else than rounds; name another")
    check_writable("output_dir", path)
    return path


def write(
    choices: Choices,
    options: OnlineArguments,
    judging: JudgeArguments,
    folder: Path,
    done: Sequence[Round],
    stop: str | None,
    started: str,
) -> dict[str, Any]:
    """Writes `report/`, the best policy so far, the records and the card; returns the report.

    Without a reason to stop the run is recorded as going on.
    """
    best = best_round(done)
    figures = _figures(done)
    for name, figure in figures.items():
        save_figure(figure, folder / "report" / f"{name}.png")
    report = build_report(
        recipe="online",
        policy=folder.resolve().name,
        reference=best.report["reference"],
        verdict=_verdict(best, done, stop),
        metrics=_metrics(best),
        figures=[f"{name}.png" for name in figures],
        samples=best.report["samples"],
        tables=[table for table in (_rounds_table(done), _kl_table(done)) if table is not None],
        warnings=best.report["warnings"],
        evaluation=best.report["evaluation"] | {"annotators": _annotators(options, judging)},
    )
    report |= {"stopped": stop, "best_round": best.number, "rounds": [_facts(one) for one in done]}
    write_report(report, folder / "report")
    record = _record(choices, options, judging, folder, best, started)
    record["status"] = "running" if stop is None else "finished"
    _ship(folder / place(best.number, "ppo"), folder)
    write_text(folder / "lineage.json", json.dumps(record["lineage"], indent=2) + "\n")
    write_text(folder / "run.json", json.dumps(record, indent=2) + "\n")
    body = report_markdown(report, figures_in="report/")
    write_text(folder / "README.md", model_card(record, report, body))
    return report


def round_line(report: dict[str, Any]) -> str:
    """What the terminal shows after a round."""
    number, *cells = report["tables"][0]["rows"][-1]
    named = zip(report["tables"][0]["columns"][1:], cells, strict=True)
    told = (f"{name} {_cell(cell)}" for name, cell in named if cell is not None)
    return wrapped(f"round {number}: {'; '.join(told)}")


def closing_page(report: dict[str, Any], folder: Path) -> str:
    """What the terminal shows at the end: the shipped policy, and why the rounds ended."""
    lines = ["", closing_table(report), "", wrapped(report["verdict"]["text"])]
    lines += [wrapped(f"warning: {line}") for line in report["warnings"]]
    return "\n".join([*lines, "", f"policy, report and card: {folder}"])


def _cell(cell: Any) -> str:
    if isinstance(cell, dict):
        interval = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
        return f"{cell['value']:.2f}{interval}"
    return str(cell)


def _verdict(best: Round, done: Sequence[Round], stop: str | None) -> Verdict:
    found = best.report["verdict"]
    which = f"Round {best.number} of {len(done)} is shipped"
    which += ", which has the most gold" if best.gold is not None else ""
    return Verdict(found["label"], f"{found['text']} {which}; {stop or 'more rounds follow'}.")


def _metrics(best: Round) -> dict[str, Estimate]:
    metrics = {name: Estimate(**entry) for name, entry in best.report["metrics"].items()}
    newest = best.accuracy.get("new", {})
    return metrics | {f"accuracy/{by}": estimate for by, estimate in newest.items()}


def _facts(one: Round) -> dict[str, Any]:
    """A round as `report.json` keeps it."""
    return {
        "round": one.number,
        "pairs_by": one.policy,
        "pairs": one.pairs,
        "trained_on": one.trained_on,
        "verdict": one.report["verdict"],
        "metrics": one.report["metrics"],
        "accuracy": {
            name: {by: estimate.to_dict() for by, estimate in found.items()}
            for name, found in one.accuracy.items()
        },
    }


# ---------------------------------------------------------------------------- tables and figures


def _rounds_table(done: Sequence[Round]) -> Table:
    columns = {
        "pairs of": lambda one: one.policy,
        "compared": lambda one: one.pairs,
        "trained on": lambda one: one.trained_on,
        "gold gain": lambda one: one.metric("gold/gain"),
        "less the round before": lambda one: _over_previous(one, done),
        "KL, nats": lambda one: one.metric("kl/sequence"),
        "proxy gain": lambda one: one.metric("proxy/gain"),
        "verdict": lambda one: one.report["verdict"]["label"],
        "old proxy, labels": lambda one: one.accuracy.get("old", {}).get("label"),
        "old proxy, gold": lambda one: one.accuracy.get("old", {}).get("gold"),
        "new proxy, labels": lambda one: one.accuracy.get("new", {}).get("label"),
        "new proxy, gold": lambda one: one.accuracy.get("new", {}).get("gold"),
    }
    rows: list[list[Cell]] = [
        [str(one.number), *(value(one) for value in columns.values())] for one in done
    ]
    shown = [i for i in range(len(columns) + 1) if any(row[i] is not None for row in rows)]
    names = ["round", *columns]
    return Table(
        "Rounds",
        [names[i] for i in shown],
        [[row[i] for i in shown] for row in rows],
        "Accuracies are on the round's own pairs: of the reward model of the round before on all, "
        "of the new one on those that it was not trained on. Gold less the round before is on the "
        "audit prompts.",
    )


def _over_previous(one: Round, done: Sequence[Round]) -> Estimate | None:
    return gain_over(one, done[one.number - 2]) if one.number > 1 else None


def _kl_table(done: Sequence[Round]) -> Table | None:
    curves = {one.number: one.curve for one in done if one.gold is not None}
    if not curves:
        return None
    rows: list[list[Cell]] = []
    for number, curve in curves.items():
        found = at_kl(curve, _KLS)
        rows.append([str(number), *(None if np.isnan(v) else round(float(v), 2) for v in found)])
    columns = ["round", *(f"KL {kl:g}" for kl in _KLS)]
    note = "Mean gold on the audit prompts along each policy's training; a dash beyond its end."
    return Table("Gold at equal KL", columns, rows, note)


def _figures(done: Sequence[Round]) -> dict[str, object]:
    panels = []
    for label, series in _PANELS:
        found = {name: _by_round(done, metric) for name, metric in series.items()}
        panels.append((label, {name: one for name, one in found.items() if one}))
    by = (
        "gold"
        if any("gold" in found for one in done for found in one.accuracy.values())
        else "label"
    )
    accuracy = {
        f"{name} reward model": {
            one.number: one.accuracy[name][by] for one in done if by in one.accuracy.get(name, {})
        }
        for name in ("old", "new")
    }
    label = "Accuracy on the\nround's pairs, by " + ("gold" if by == "gold" else "label")
    panels.append((label, {name: one for name, one in accuracy.items() if one}))
    figures = {}
    panels = [(label, series) for label, series in panels if series]
    if panels:
        figures["rounds"] = rounds_figure(panels)
    curves = {f"round {one.number}": one.curve for one in done if one.gold is not None}
    if curves:
        figures["gold_against_kl"] = along_kl_figure(curves)
    return figures


def _by_round(done: Sequence[Round], metric: str) -> dict[int, Estimate]:
    found = {one.number: one.metric(metric) for one in done}
    return {number: estimate for number, estimate in found.items() if estimate is not None}


# ------------------------------------------------------------------------------------- the folder


def _annotators(options: OnlineArguments, judging: JudgeArguments) -> str:
    if options.annotators == "people":
        return "people"
    number = max(len(judging.annotator_temperatures or []), len(judging.annotator_flip_rates or []))
    judge = ", ".join(judging.judge or [])
    return f"{number} simulated ones, judge {judge}" if number else judge


def _record(
    choices: Choices,
    options: OnlineArguments,
    judging: JudgeArguments,
    folder: Path,
    best: Round,
    started: str,
) -> dict[str, Any]:
    """The content of `run.json`; what went in is what went into the shipped policy, and so on."""
    last = json.loads((folder / place(best.number, "ppo") / "run.json").read_text("utf-8"))
    kept = ("model", "reference", "gold_reward", "reward_models", "data")
    lineage = {role: last["lineage"][role] for role in kept if role in last["lineage"]}
    lineage |= {"ancestors": ancestors(lineage)[0]}
    lineage["data"] = [*lineage["data"], *published_pairs(folder, best.number)]
    config = asdict(options) | asdict(judging)
    config |= {name: last["config"].get(name) for name in ("use_peft", "merge_adapter")}
    record = {
        "schema": 1,
        "recipe": "online",
        "name": folder.resolve().name,
        "status": "",
        "command": shlex.join(["python", "-m", "hf_align.recipes.online", *choices.command]),
        "seed": options.seed,
        "config": {key: value for key, value in config.items() if key != "output_dir"},
        "versions": {"python": sys.version.split()[0]}
        | {name: version(name) for name in _PACKAGES},
        "lineage": lineage,
        "started": started,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return without_secrets(record)


def _ship(policy: Path, folder: Path) -> None:
    """Copies a policy to the top of the folder, file by file."""
    for file in sorted({file for pattern in _MODEL_FILES for file in policy.glob(pattern)}):
        if file.name not in _RECORDS:
            with replacing(folder / file.name) as partial:
                shutil.copyfile(file, partial)
