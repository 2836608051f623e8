"""What a published run says of its model: verdict, distances, and how it was trained.

All of it is its author's: shown, and used to tell which tokens its model expects and what scale its
implicit reward has. A model without a run says nothing. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_align.arena.turns import Facts
from hf_align.hub.cards import shown_name
from hf_align.hub.loading import Home
from hf_align.loading import LoadedRun, load_run
from hf_align.records import one_line
from hf_align.types import Estimate, InputError

_ROLE = re.compile(r"(system|user|assistant): ")


@dataclass(frozen=True)
class RunFacts:
    """What is known of a model from its run.

    Attributes:
        facts: What is shown.
        beta: Scale of the implicit reward that it optimised; None where it optimised none.
        reference: What that reward is held against: its source, by commit or hash.
        parents: Sources that the model was trained from or against.
        chat: Whether its prompts were conversations; None where nobody says.
    """

    facts: Facts = Facts()
    beta: float | None = None
    reference: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[Mapping[str, Any], ...] = ()
    chat: bool | None = None


def read_facts(home: Home) -> RunFacts:
    """The facts of a model's own run; none where it has no run, or one that cannot be read."""
    link = None
    if home.revision is not None:
        from huggingface_hub import constants

        link = f"{constants.ENDPOINT}/{home.name}/tree/{home.revision}"
    try:
        run = load_run(home.name, home.revision)
    except (InputError, OSError):
        return RunFacts(Facts(link=link))  # a model may be anybody's
    config = run.record.get("config")
    config = config if isinstance(config, dict) else {}
    sources = {role: _source(run.lineage.get(role)) for role in ("model", "reference")}
    return RunFacts(
        facts=_shown(run, sources["model"], link),
        beta=_beta(run.record["recipe"], config),
        reference=sources["reference"] or sources["model"],
        parents=tuple(source for source in sources.values() if source.get("name")),
        chat=_is_chat(config, run.report),
    )


def is_same(recorded: Mapping[str, Any], source: Mapping[str, Any]) -> bool | None:
    """Whether a recorded source is a model's, by commit or hash; None where that cannot be told."""
    for mark in ("revision", "sha256"):
        if recorded.get(mark) and source.get(mark):
            return recorded[mark] == source[mark]
    return None


def _source(recorded: object) -> dict[str, str]:
    """What a stranger's record says of a source, as far as it is text."""
    known = recorded if isinstance(recorded, dict) else {}
    texts = {key: known.get(key) for key in ("name", "revision", "sha256")}
    return {key: one_line(text, 120) for key, text in texts.items() if isinstance(text, str)}


def _shown(run: LoadedRun, base: Mapping[str, Any], link: str | None) -> Facts:
    report = run.report or {"metrics": {}}
    metrics = {
        name: Estimate(one["value"], one["low"], one["high"], one["n"])
        for name, one in report["metrics"].items()
    }
    verdict = report.get("verdict", {})
    return Facts(
        recipe=one_line(run.record["recipe"], 40),
        verdict=one_line(verdict["label"], 40) if verdict else None,
        verdict_text=one_line(verdict["text"], 600) if verdict else None,
        kl=metrics.get("kl/sequence"),
        win_rate=metrics.get("gold/win_rate") or metrics.get("judge/win_rate"),
        gold_gain=metrics.get("gold/gain"),
        link=link,
        base=shown_name(dict(base)) if base.get("name") else None,
    )


def _beta(recipe: str, config: Mapping[str, Any]) -> float | None:
    beta = config.get("beta", 0.1)
    known = isinstance(beta, (int, float)) and not isinstance(beta, bool)
    return float(beta) if recipe == "dpo" and known else None


def _is_chat(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> bool | None:
    """Whether the run's prompts were conversations: by its data's name, or by what it shows."""
    if config.get("dataset_name") == "testbed":
        return config.get("dataset_config") == "conversational"
    samples = (report or {}).get("samples") or []
    return all(_ROLE.match(str(row["prompt"])) for row in samples) if samples else None
