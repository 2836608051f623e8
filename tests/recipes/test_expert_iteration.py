"""Expert iteration: what a round keeps and leaves, going on after a kill, and what it refuses."""

import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM

from hf_align.diagnostics.report import load_report
from hf_align.recipes import _expert_rounds as rounds
from hf_align.recipes import expert_iteration, goodhart
from hf_align.testbed import gold_reward

QUICK = (
    *("--reward_model", "testbed", "--rounds", "2", "--prompts_per_round", "24"),
    *("--num_samples", "4", "--max_steps", "3", "--per_device_train_batch_size", "8"),
    *("--num_audit_prompts", "16", "--num_eval_prompts", "16", "--num_eval_samples", "2"),
    *("--save_steps", "1"),
)


@pytest.fixture(scope="module")
def whole(testbed, tmp_path_factory):
    path = tmp_path_factory.mktemp("expert") / "run"
    expert_iteration.main(["--output_dir", str(path), *QUICK])
    return path


def weights(path):
    return AutoModelForCausalLM.from_pretrained(path).state_dict()


def assert_equal(one, other):
    ours, theirs = weights(one), weights(other)
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_round_keeps_the_best_of_each_prompt(whole):
    for number in (1, 2):
        rows = pq.read_table(whole / f"round-{number}" / "data.parquet").to_pylist()
        facts = json.loads((whole / f"round-{number}" / "round.json").read_text())
        assert len({row["prompt"] for row in rows}) == len(rows) == facts["kept"] <= 24
        kept = gold_reward([r["prompt"] for r in rows], [r["completion"] for r in rows])
        assert facts["kept_proxy"] == pytest.approx(np.mean(kept))
        assert facts["kept_proxy"] > facts["pool_proxy"] and facts["drawn"] == 96
        assert facts["steps"] == 3
    prompts = [
        set(pq.read_table(whole / f"round-{number}" / "data.parquet")["prompt"].to_pylist())
        for number in (1, 2)
    ]
    assert not prompts[0] & prompts[1]


def test_it_leaves_a_run_directory_with_report_and_the_last_policy(whole):
    report = load_report(whole / "report")
    assert {table["title"] for table in report["tables"]} >= {"Rounds", "Checkpoints"}
    audits = json.loads((whole / "audits.json").read_text())
    assert [audit["step"] for audit in audits] == [0, 3, 6] and audits[0]["kl"] == 0
    assert audits[2]["kl"] > audits[1]["kl"] > 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert all("audit/gold/mean" in line for line in lines)
    assert_equal(whole, whole / "round-2")
    assert not list(whole.glob("round-1/*.safetensors")) and not list(whole.glob("*/checkpoint-*"))
    assert json.loads((whole / "run.json").read_text())["status"] == "finished"
    if report["best_audited_step"]:
        assert (whole / "best" / "model.safetensors").is_file()


class Killed(Exception):
    pass


@pytest.mark.parametrize("where", ["best_of_n", "_forget_weights"])
def test_a_killed_run_goes_on_the_same_way(whole, tmp_path, monkeypatch, where):
    """Killed while the second round draws, and once it has been audited."""
    calls, real = [], getattr(rounds, where)

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) == (1 if where == "_forget_weights" else 2):
            raise Killed
        return real(*args, **kwargs)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(rounds, where, kill)
        with pytest.raises(Killed):
            expert_iteration.main(["--output_dir", str(path), *QUICK])
    expert_iteration.main(["--output_dir", str(path), *QUICK, "--resume_from_checkpoint"])
    assert_equal(whole, path)
    for name in ("audits.json", "metrics.jsonl"):
        assert (path / name).read_text() == (whole / name).read_text()
    kept = [{f.name: f.read_bytes() for f in p.glob("audit_samples/*")} for p in (path, whole)]
    assert kept[0] == kept[1] and len(kept[0]) == 3


def test_a_round_goes_on_from_its_own_checkpoint(whole, tmp_path, monkeypatch):
    real = rounds.write_beside

    def kill(*args, **kwargs):
        raise Killed

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "write_beside", kill)
        with pytest.raises(Killed):
            expert_iteration.main(["--output_dir", str(path), *QUICK])
    assert list(path.glob("round-1/checkpoint-*")) and rounds.write_beside is real
    expert_iteration.main(["--output_dir", str(path), *QUICK, "--resume_from_checkpoint"])
    assert_equal(whole, path)


def test_settings_reach_the_rounds(testbed, tmp_path, monkeypatch):
    """The best of all, from the base each time, with demonstrations mixed in, and a KL budget."""
    trained = []
    real = rounds._train

    def watch(run, folder, number, rows, start, job):
        trained.append((start, len(rows), rows))
        return real(run, folder, number, rows, start, job)

    monkeypatch.setattr(rounds, "_train", watch)
    path = tmp_path / "run"
    options = ("--keep", "top_fraction", "--keep_fraction", "0.25", "--start_from", "base")
    mixed = ("--mix_dataset", "testbed", "--mix_fraction", "0.5", "--kl_budget", "1e-6")
    expert_iteration.main(["--output_dir", str(path), *QUICK, *options, *mixed])
    (start, count, rows), *others = trained
    assert start is None and not others  # the budget ended it after one round
    facts = json.loads((path / "round-1" / "round.json").read_text())
    assert facts["kept"] == facts["mixed"] == count // 2 <= 24
    assert isinstance(rows, datasets.Dataset)
    assert not (path / "best").exists()  # beyond the budget nothing is the best
    report = load_report(path / "report")
    assert any("kl_budget" in warning for warning in report["warnings"])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--rounds", "0"), "rounds must be at least 1"),
        (("--num_samples", "1"), "num_samples must be at least 2"),
        (("--keep", "threshold"), "min_score"),
        (("--min_score", "1"), "min_score"),
        (("--keep_fraction", "0"), "keep_fraction"),
        (("--mix_fraction", "0.5"), "mix_dataset"),
        (("--mix_fraction", "1", "--mix_dataset", "testbed"), "below 1"),
        (("--temperature", "0"), "temperature"),
        (("--stop_when_gold_falls",), "kl_budget"),
        (("--eval_strategy", "steps"), "eval_strategy"),
        (("--keep", "threshold", "--min_score", "1e9"), "kept none"),
        (("--resume_from_checkpoint",), "no complete checkpoint"),
    ],
)
def test_mistakes_are_one_line(testbed, tmp_path, capsys, options, part):
    with pytest.raises(SystemExit) as stop:
        expert_iteration.main(["--output_dir", str(tmp_path / "run"), *QUICK, *options])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and part in lines[0]


def test_its_runs_stand_on_goodharts_axis(whole, tmp_path):
    small = ("--num_eval_prompts", "12", "--num_eval_samples", "2", "--best_of_n", "4")
    goodhart.main([str(whole), *small, "--output_dir", str(tmp_path / "report")])
    (run,) = load_report(tmp_path / "report" / "report")["runs"]
    assert run["recipe"] == "expert_iteration" and run["name"] == whole.name
