"""Runs for the explorer's tests: records, audits and completions, harmless or hostile."""

import json
from pathlib import Path

import numpy as np
from ui_world import ATTACKS

from hf_align.diagnostics.overoptimization import Verdict
from hf_align.diagnostics.report import build_report
from hf_align.diagnostics.sample_files import (
    POOL,
    ScoredCompletions,
    audit_file,
    write_completions,
)
from hf_align.types import Estimate

BIDI = "safe \u202egnp.exe\u202c"
ATTACK = "\n\n".join([*ATTACKS.values(), BIDI])


def audits(steps=8, prompts=60, peak=2.0, farthest=6.0, seed=0):
    """A run that rises, peaks and falls: distances, gold and proxy (C, G)."""
    rng = np.random.default_rng(seed)
    d = np.linspace(0, farthest, steps)
    gold = (d * (1 - d / (2 * peak)))[:, None] + rng.normal(0, 0.3, (steps, prompts))
    proxy = (d * (1 - 0.05 * d))[:, None] + rng.normal(0, 0.3, (steps, prompts))
    return d, gold, proxy


def write_run(
    folder,
    *,
    curve=None,
    samples=True,
    text=lambda step, row: f"answer {row} of step {step}",
    every=10,
    recipe="ppo",
    verdict="OVER-OPTIMISED",
    config=(),
    report=(),
):
    """A finished run in `folder`; returns it."""
    folder = Path(folder)
    d, gold, proxy = audits() if curve is None else curve
    made = build_report(
        recipe=recipe,
        policy=folder.name,
        reference="base",
        verdict=Verdict(verdict, f"{verdict}: gold peaked, then fell."),
        metrics={
            "kl/sequence": Estimate(float(d[-1] ** 2), 1.0, 99.0, 60),
            "gold/gain": Estimate(float((gold[-1] - gold[0]).mean()), -9.0, 9.0, 60),
        },
        samples=[{"prompt": "p", "policy": "shipped", "reference": "base"}],
        evaluation={"gold": "exact", "proxy": "rm"},
    )
    lineage = {"reference": {"name": "base", "revision": None, "sha256": "a" * 64}}
    record = {"recipe": recipe, "name": folder.name, "status": "finished", "lineage": lineage}
    record["config"] = {"beta": 0.05} | dict(config)
    (folder / "report").mkdir(parents=True)
    entries = [
        {"step": every * i, "kl": float(d[i] ** 2)}
        | {"gold": gold[i].tolist(), "proxy": proxy[i].tolist()}
        for i in range(len(d))
    ]
    for path, content in (
        ("run.json", record),
        ("lineage.json", lineage),
        ("report/report.json", made | dict(report)),
        ("audits.json", entries),
    ):
        (folder / path).write_text(json.dumps(content))
    for i in range(len(d)) if samples else ():
        write_completions(
            folder / audit_file(every * i), completions(every * i, gold[i], proxy[i], text)
        )
    return folder


def completions(step, gold, proxy, text):
    """One completion per prompt."""
    num = len(gold)
    return ScoredCompletions(
        [f"prompt {row}" for row in range(num)],
        [text(step, row) for row in range(num)],
        np.full(num, 7),
        np.arange(num) % 5 > 0,
        gold=gold,
        proxy=proxy,
        log_ratio=np.zeros(num) if step == 0 else np.arange(num) * 0.1,
    )


def write_best_of_n(folder, prompts=6, num_samples=8, seed=0):
    """A finished best-of-n run with its pool; returns it."""
    from hf_align.diagnostics.best_of_n import best_of_n_curve, best_of_n_kl, best_of_n_values

    rng = np.random.default_rng(seed)
    proxy = rng.normal(size=(prompts, num_samples)).round(3)
    gold = (proxy + rng.normal(size=proxy.shape)).round(3)
    found = best_of_n_curve(proxy, gold)
    points = [
        {"n": int(n), "proxy": found.proxy[i].to_dict(), "gold": found.gold[i].to_dict()}
        | {"nominal_kl": float(found.kl[i]), "low_variance": bool(4 * n <= num_samples)}
        for i, n in enumerate(found.ns)
    ]
    ns = [1, 2, 4, 8]
    folder = write_run(
        folder,
        recipe="best_of_n",
        samples=False,
        verdict="NOT DETECTED",
        report={"best_of_n": {"num_samples": num_samples, "curve": points}},
    )
    (folder / "audits.json").unlink()
    values = [best_of_n_values(proxy, v, ns) for v in (None, gold)]
    curve = [
        {"n": n, "kl": float(best_of_n_kl(n)), "proxy": values[0][:, i].tolist()}
        | {"gold": values[1][:, i].tolist()}
        for i, n in enumerate(ns)
    ]
    (folder / "report/curve.json").write_text(json.dumps(curve))
    pool = ScoredCompletions(
        [f"prompt {row}" for row in range(prompts) for _ in range(num_samples)],
        [f"draw {k} of {row}" for row in range(prompts) for k in range(num_samples)],
        np.full(prompts * num_samples, 5),
        np.ones(prompts * num_samples, bool),
        gold=gold.ravel(),
        proxy=proxy.ravel(),
    )
    write_completions(folder / "report" / POOL, pool)
    return folder, proxy, gold
