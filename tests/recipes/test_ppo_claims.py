"""What the READMEs claim of PPO, run in full: minutes long, `make test ARGS="-m slow"`."""

import json

import numpy as np
import pytest

from hf_align.recipes import ppo, rloo

pytestmark = pytest.mark.slow
HARD = ("--learning_rate", "2e-4", "--lr_scheduler_type", "constant")


@pytest.fixture
def run(testbed, tmp_path, monkeypatch):
    """Runs a recipe on the testbed; returns its report, its audits and its logged sequence KL."""
    monkeypatch.chdir(tmp_path)

    def go(module, *args):
        module.main(["--output_dir", "run", *map(str, args)])
        report = json.loads((tmp_path / "run/report/report.json").read_text())
        audits = json.loads((tmp_path / "run/audits.json").read_text())
        logs = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
        kl = [line["kl/sequence_k1"] for line in logs if "kl/sequence_k1" in line]
        return report, audits, np.array(kl)

    return go


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_ppo_raises_gold_and_does_not_collapse(run, seed):
    report, audits, _ = run(ppo, "--seed", seed)
    gold = np.array([np.mean(audit["gold"]) for audit in audits])
    assert gold.max() - gold[0] >= 0.3
    assert gold[-1] > gold[0] + 0.3
    assert report["metrics"]["gold/gain"]["low"] > 0
    assert report["verdict"]["label"] == "NOT DETECTED"


def test_without_a_penalty_the_proxy_rises_throughout_while_gold_falls_below_the_start(run):
    report, audits, _ = run(ppo, "--beta", 0, "--max_steps", 600, *HARD)
    gold = np.array([np.mean(audit["gold"]) for audit in audits])
    proxy = np.array([np.mean(audit["proxy"]) for audit in audits])
    assert report["verdict"]["label"] == "OVER-OPTIMISED"
    assert gold.max() > gold[0] + 0.3 and gold[-1] < gold[0] - 0.5
    assert (np.diff(proxy) > -0.05).all() and proxy[-1] > proxy[gold.argmax()] + 0.2


def test_the_adaptive_controller_holds_its_target(run):
    target = ("--kl_controller", "adaptive", "--kl_target", 2, "--kl_horizon", 1280)
    _, _, kl = run(ppo, *target, "--beta", 0.1, *HARD)
    assert kl[len(kl) // 2 :].mean() == pytest.approx(2.0, rel=0.2)


def test_the_budget_controller_ends_at_its_budget(run):
    _, _, kl = run(ppo, "--kl_controller", "budget", "--kl_target", 3, "--beta", 0.1, *HARD)
    assert kl[-len(kl) // 5 :].mean() == pytest.approx(3.0, rel=0.1)


def test_the_limit_stops_within_one_rollout(run):
    report, _, kl = run(ppo, "--beta", 0, "--kl_limit", 4, *HARD)
    assert (kl[:-1] <= 4).all() and kl[-1] > 4
    assert any("kl_limit" in line for line in report["warnings"])


def test_rloo_raises_gold(run):
    report, _, _ = run(rloo)
    assert report["metrics"]["gold/gain"]["low"] > 0.3


def test_bleu_with_reference_answers_improves_a_translation_policy(run):
    report, _, _ = run(rloo, "--config", "recipes/rloo/testbed-translation.yaml")
    for name in ("proxy/gain", "gold/gain"):
        assert report["metrics"][name]["low"] > 0.05
