"""Audits between the rounds of `expert_iteration`, and the best audited policy kept meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hf_align.configs import EvaluationArguments
from hf_align.diagnostics.sample_files import audit_file, forget_audits, write_completions
from hf_align.files import write_text
from hf_align.recipes._evaluation import AUDIT_STREAM, load_policy
from hf_align.recipes._expert_iteration import Job
from hf_align.recipes._parser import Choices
from hf_align.recipes._run import Run, checkpoints_stay
from hf_align.trainers.audit import Auditor
from hf_align.trainers.best import BestCheckpoint

AUDITS = "audits.json"
METRICS = "metrics.jsonl"


class RoundAudits:
    """Measures the policy after each round; a resumed run goes on with its audits.

    Without --audit_steps it measures nothing, and keeps the rounds' own figures all the same.

    Args:
        choices: The user's options.
        run: The run.
        job: What the rounds work with.
    """

    def __init__(self, choices: Choices, run: Run, job: Job):
        self.run, self.job = run, job
        self.options = choices.build(EvaluationArguments)
        self.best = BestCheckpoint(run.path)
        self.audits: list[dict[str, Any]] = []
        evaluator = job.evaluator
        self.keeps_best = bool(self.options.keep_best and evaluator.gold is not None)
        self.auditor: Auditor | None = None
        self.reference: Any = None
        if self.options.audit_steps:
            self.auditor = Auditor(
                prompts=evaluator.audit_prompts,
                tokenizer=evaluator.tokenizer,
                gold=None if evaluator.gold is None else evaluator.gold.reward,
                proxy=None if evaluator.proxy is None else evaluator.proxy.reward,
                columns=evaluator.columns_of(evaluator.audit_prompts),
                max_new_tokens=evaluator.max_new_tokens,
                batch_size=evaluator.batch_size,
                seed=1000 * evaluator.seed + AUDIT_STREAM,
            )

    def begin(self) -> None:
        """Audits the base policy, or reads the audits that were made; their last is made again."""
        file = self.run.path / AUDITS
        if self.run.resume is not None and file.is_file():
            self.audits = json.loads(file.read_text(encoding="utf-8"))[:-1]
        # What a killed process left of the last one is made again too.
        last = self.audits[-1]["step"] if self.audits else -1
        self.best.forget(after=last)
        forget_audits(self.run.path, after=last)
        if self.run.resume is None:
            (self.run.path / METRICS).unlink(missing_ok=True)
        if self.auditor is None:
            return
        source = self.job.source
        self.reference = load_policy(source["path"], source["revision"])
        if not self.audits:
            self._measure(self.reference, 0)

    def after(self, folder: Path, facts: list[dict[str, Any]]) -> str | None:
        """Audits the policy that a round left; returns a reason to end the run, if any.

        Args:
            folder: The round's folder.
            facts: What the rounds so far drew and kept, the last one's last.
        """
        step = sum(each["steps"] for each in facts)
        metrics: dict[str, Any] = {}
        if self.auditor is not None and all(audit["step"] != step for audit in self.audits):
            with checkpoints_stay(self.run.path):
                metrics = self._measure(load_policy(str(folder)), step)
                newest = self.audits[-1]
                if self.keeps_best:
                    golds = [float(np.mean(audit["gold"])) for audit in self.audits]
                    steps = [audit["step"] for audit in self.audits]
                    within = self._within(newest)
                    self.best.update(
                        steps, golds, newest["kl"], lambda to: _copy(folder, to), eligible=within
                    )
        self._log({"step": step, **facts[-1], **{f"audit/{k}": v for k, v in metrics.items()}})
        if self.audits and not self._within(self.audits[-1]):
            return (
                f"stopped after round {len(facts)}, as the sequence KL of "
                f"{self.audits[-1]['kl']:.3g} nats is above kl_budget {self.options.kl_budget:g}"
            )
        return None

    def end(self) -> None:
        """Settles which policy is the best, and tells the evaluator."""
        if self.auditor is None:
            return
        self.reference = None
        evaluator = self.job.evaluator
        evaluator.audits = self.audits
        if self.keeps_best:
            golds = [float(np.mean(audit["gold"])) for audit in self.audits]
            self.best.settle([audit["step"] for audit in self.audits], golds)
            evaluator.best_step = self.best.step

    def _within(self, audit: dict[str, Any]) -> bool:
        return self.options.kl_budget is None or audit["kl"] <= self.options.kl_budget

    def _measure(self, policy: Any, step: int) -> dict[str, float]:
        audit = self.auditor.audit(policy, self.reference, step)
        if not audit.consistent:
            self.run.warn(f"step {step}: the two estimates of the KL disagree")
        self.audits.append(audit.record)
        write_completions(self.run.path / audit_file(step), audit.samples)
        write_text(self.run.path / AUDITS, json.dumps(self.audits) + "\n")
        return audit.metrics

    def _log(self, line: dict[str, Any]) -> None:
        """One line per round in the run's `metrics.jsonl`; a round done again replaces its line."""
        file, lines = self.run.path / METRICS, []
        if file.is_file():
            read = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
            lines = [old for old in read if old["step"] < line["step"]]
            known = [old for old in read if old["step"] == line["step"]]
            line = line if len(line) > len(known[0] if known else ()) else known[0]
        lines.append(line)
        write_text(file, "".join(json.dumps(entry) + "\n" for entry in lines))


def _copy(folder: Path, to: Path) -> None:
    """A saved policy, without what else lies in its folder."""
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            shutil.copyfile(file, to / file.name)
