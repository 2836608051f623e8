"""Loads what was published, or lies in a folder: a policy, a reward model, or a run with its
evidence.

    >>> model, tokenizer = load_policy("ORG/POLICY")
    >>> run = load_run("ORG/POLICY")
    >>> print(run)

A repo is resolved to one commit, and everything is read at it. Weights are safetensors, no code of
a repo runs unless it is trusted by name, and a report is data. Torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hf_align.diagnostics.explorer import curve_of_audits, curve_of_selection
from hf_align.diagnostics.findings import check_findings, findings_lines, findings_markdown
from hf_align.diagnostics.markdown import number
from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.report import check_report, report_markdown
from hf_align.diagnostics.sample_files import (
    POOL,
    ScoredCompletions,
    audit_file,
    audited_step,
    read_completions,
)
from hf_align.hub.cards import shown_name, sources
from hf_align.hub.lineage import checked_lineage
from hf_align.hub.loading import (
    ADAPTER_FILES,
    Home,
    ModelHome,
    check_model,
    find_home,
    find_model,
    is_adapter,
)
from hf_align.records import one_line, read_list, read_record
from hf_align.types import InputError

_RECORDS = ("run.json", "lineage.json", "report/report.json")
_SHOWN = ("kl/sequence", "gold/gain", "gold/win_rate", "proxy/gain", "accuracy/label")
_SHOWN = (*_SHOWN, "judge/win_rate", "length/gain", "calibration/ece_debiased")


def load_policy(
    name: str | Path,
    revision: str | None = None,
    *,
    dtype: Any = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model with its tokenizer; of an adapter, its base with it.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub repo; it is resolved to a commit once.
        dtype: Of the weights; None keeps the saved one.
        device: Where it runs; a GPU where there is one.
        trust_remote_code: Whether the repo's own code may run.

    Returns:
        `(model, tokenizer)`, the model in evaluation mode.

    Raises:
        InputError: It holds no whole model in safetensors, needs code of its own, or is an adapter
            whose base nobody has.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    home = find_model(name, revision, "policy", trust_remote_code)
    return _open(home, dtype, device, trust_remote_code)


def _open(
    found: ModelHome, dtype: Any, device: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from hf_align.weights import load_weights, readable

    home, whole = found.home, found.base or found.home
    trust = {"trust_remote_code": trust_remote_code}
    # An adapter trained on a longer vocabulary has a tokenizer of its own.
    has_own = found.base is None or "tokenizer_config.json" in home.sizes
    words = home if has_own else found.base
    with readable(words.name, "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(words.name, revision=words.revision, **trust)
    model = load_weights(whole.name, whole.revision, dtype or "auto", **trust)
    if found.base is not None:
        from peft import PeftModel

        folder = str(_adapter_folder(home))
        with readable(home.name, "its adapter cannot be loaded"):
            model = PeftModel.from_pretrained(model, folder, use_safetensors=True)
    return _on(model, device).eval(), tokenizer


def _adapter_folder(home: Home) -> Path:
    """Where an adapter's files are on this disk, with its tokenizer where it has one."""
    words = [path for path in home.sizes if path.startswith(("tokenizer", "special_tokens"))]
    return [home.file(name, None) for name in (*words, *ADAPTER_FILES)][-1].parent


def _on(model: Any, device: str | None) -> Any:
    """The model where it is to run: a GPU where there is one."""
    import torch

    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    return model if device is None else model.to(device)


def load_reward_model(
    name: str | Path,
    revision: str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int = 32,
) -> Any:
    """A reward model, or an ensemble of them, that scores completions; an adapter is merged into
    its base.

    Args:
        name: Folder or Hub id.
        revision: Branch, tag or commit of a Hub repo; it is resolved to a commit once.
        dtype: Of the weights, for example "float32"; None keeps the saved one.
        device: Where it runs; a GPU where there is one.
        batch_size: Completions scored at a time.

    Returns:
        A `RewardModel`.

    Raises:
        InputError: It is no reward model in safetensors, or an adapter whose base nobody has.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    return _open_reward(find_home(name, revision, "reward model"), dtype, device, batch_size)


def _open_reward(home: Home, dtype: str | None, device: str | None, batch_size: int) -> Any:
    from hf_align.rewards import RewardModel
    from hf_align.rewards.loading import load_adapted, read_ensemble

    if is_adapter(home):
        found = find_model(home.name, home.revision, "reward model")
        base = (found.base.name, found.base.revision)
        member = load_adapted(base, _adapter_folder(home), dtype, home.label)
        member = (_on(member[0], device), member[1])
        return RewardModel.from_members([member], name=home.name, batch_size=batch_size)
    home.file("ensemble.json")  # its size is checked before it is read
    ensemble = read_ensemble(home.name, home.revision, home.label)
    for folder in ensemble.members if ensemble else ("",):
        check_model(home, folder=folder)
    return RewardModel(home.name, home.revision, device=device, dtype=dtype, batch_size=batch_size)


@dataclass(frozen=True)
class LoadedRun:
    """A run of this library's recipes, with its evidence; `print` shows it.

    Attributes:
        source: What it is, `{"name", "revision", "sha256"}`; of a folder the name alone.
        record: Content of `run.json`: recipe, options, versions, command.
        lineage: What went in, by id and commit or content hash.
        report: Content of `report/report.json`; None where it has none. What it says is its
            author's: nothing was measured again.
    """

    source: dict[str, str | None]
    record: dict[str, Any]
    lineage: dict[str, Any]
    report: dict[str, Any] | None
    home: Home = field(repr=False)

    @property
    def verdict(self) -> str | None:
        """The label of its report's verdict, such as "NOT DETECTED"; None where it gives none, as
        `evaluate`, `annotate` and `hhh` do not.
        """
        return self.report["verdict"]["label"] if self._judges else None

    @property
    def _judges(self) -> bool:
        return self.report is not None and "verdict" in self.report

    @cached_property
    def curve(self) -> Curve | None:
        """Its audits, or of best-of-n its values for every n; None where it kept none.

        Raises:
            InputError: The file is damaged or too large.
            OSError: The Hub cannot be reached, or refuses.
        """
        selected = self.record["recipe"] == "best_of_n"
        path = "report/curve.json" if selected else "audits.json"
        found, label = self.home.file(path), f"{self.home.label}: {path}"
        if found is None:
            return None
        read = curve_of_selection if selected else curve_of_audits
        return read(read_list(found, label), label)

    @property
    def sampled_steps(self) -> frozenset[int]:
        """The audited steps whose completions it kept, as far as its list of files tells."""
        steps = (audited_step(path) for path in self.home.sizes)
        return frozenset(step for step in steps if step is not None)

    def audit_samples(self, step: int) -> ScoredCompletions | None:
        """The completions of one audit, step 0 being the reference's; None where it kept none.

        Raises:
            InputError: The file is damaged or too large.
            OSError: The Hub cannot be reached, or refuses.
        """
        return self._completions(audit_file(step))

    def pool(self) -> ScoredCompletions | None:
        """What best-of-n chose from, for its first prompts; None for other runs.

        Raises:
            InputError: The file is damaged or too large.
            OSError: The Hub cannot be reached, or refuses.
        """
        return self._completions(f"report/{POOL}")

    def _completions(self, path: str) -> ScoredCompletions | None:
        found = self.home.file(path)
        return None if found is None else read_completions(found, f"{self.home.label}: {path}")

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        if self.record["recipe"] == "reward":
            return _open_reward(self.home, None, None, 32), None
        found = find_model(self.home.name, self.home.revision, "run")
        return _open(found, None, None, False)

    @property
    def model(self) -> Any:
        """Its policy, or its `RewardModel`; loaded when first asked for."""
        return self._opened[0]

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer; of a reward model those of its members."""
        model, tokenizer = self._opened
        return [own for _, own in model.members] if tokenizer is None else tokenizer

    def to_markdown(self) -> str:
        """The report as Markdown, its texts inert: no HTML, links or pictures of its author's."""
        if self.report is None:
            raise InputError(f"{self.home.label} has no report to show")
        if not self._judges:
            return findings_markdown(self.report)
        return report_markdown({**self.report, "figures": []})

    def __str__(self) -> str:
        record, lines = self.record, []
        lines.append(f"{shown_name(self.source)}: a run of {one_line(record['recipe'], 40)}")
        if self.report is None:
            lines.append("no report: nothing is known of what it bought")
        elif not self._judges:
            lines += findings_lines(self.report)
        else:
            lines.append(one_line(self.report["verdict"]["text"], 600))
            lines += _metric_lines(self.report["metrics"])
            lines += [f"warning: {one_line(line)}" for line in self.report["warnings"]]
        for role, source in sources(self.lineage):
            lines.append(f"from {one_line(role.replace('_', ' '), 40)} {_shown_source(source)}")
        lines.append("as its author reports it; nothing was measured again")
        return "\n".join(lines)


def _shown_source(source: Mapping[str, Any]) -> str:
    texts = {key: source.get(key) for key in ("name", "revision", "sha256")}
    texts = {key: one_line(text, 120) if text else None for key, text in texts.items()}
    return shown_name(texts | {"name": texts["name"] or "unnamed"})


def _metric_lines(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name in (name for name in _SHOWN if name in metrics):
        low, high = metrics[name]["low"], metrics[name]["high"]
        interval = "" if low is None or high is None else f"  [{number(low)}, {number(high)}]"
        lines.append(f"  {name:<26} {number(metrics[name]['value']):>8}{interval}")
    return lines


def load_run(
    name: str | Path,
    revision: str | None = None,
    kind: Literal["model", "dataset"] = "model",
) -> LoadedRun:
    """A run with its records, report and lineage; its weights load when `model` is asked for.

    Args:
        name: Run directory, or Hub id of a published run.
        revision: Branch, tag or commit of a Hub repo; it is resolved to a commit once.
        kind: Of the repo; a comparison, or selected answers, are a dataset's.

    Raises:
        InputError: It holds no run, or its records are damaged, too large, or hold what no record
            of ours does.
        OSError: The Hub cannot be reached, or the repo is absent, private or gated.
    """
    home = find_home(name, revision, "run", kind)
    record, lineage, report = (_record_of(home, path) for path in _RECORDS)
    if record is None:
        raise InputError(f"{home.label} holds no run (no run.json); name a recipe's output")
    if not isinstance(record.get("recipe"), str):
        raise InputError(f"{home.label}: run.json names no recipe; it is no run of this library")
    if lineage is None:
        lineage = record.get("lineage")
    if report is not None:
        check = check_report if "verdict" in report else check_findings
        check(report, f"{home.label}: {_RECORDS[2]}")
    source = {"name": home.name, "revision": home.revision, "sha256": None}
    return LoadedRun(source, record, checked_lineage(lineage, home.label), report, home)


def _record_of(home: Home, path: str) -> dict[str, Any] | None:
    found = home.file(path)
    return None if found is None else read_record(found, f"{home.label}: {path}")
