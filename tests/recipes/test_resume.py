"""A run that was killed and resumed ends as if nothing had happened: bit for bit, on CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from hf_align.recipes import dpo, sft

STEPS = 12
RESUME = ("--resume_from_checkpoint",)
SMALL = (
    *("--logging_steps", "1", "--save_steps", "4", "--num_eval_prompts", "16"),
    *("--num_eval_samples", "1", "--num_audit_prompts", "64", "--max_train_samples", "1024"),
    *("--max_test_samples", "128"),
)
DPO = (*SMALL, "--max_steps", str(STEPS), "--audit_steps", "4")
SUMMARY = "train_runtime"


def start(name, path, *args):
    """Starts a recipe in its own process, its errors kept beside the run."""
    with (path.parent / f"{path.name}.stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", f"hf_align.recipes.{name}", "--output_dir", str(path), *args],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ,
            # A shell's background jobs ignore SIGINT, and their children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def stderr_of(path):
    return (path.parent / f"{path.name}.stderr").read_text()


def stop_after_step(process, path, step, how):
    """Sends a signal as soon as the run has logged a step."""
    metrics = path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while f'{{"step": {step}, "loss"' not in (metrics.read_text() if metrics.exists() else ""):
        assert process.poll() is None, stderr_of(path)
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    return process.wait(timeout=60)


def cut_back(whole, path, last_checkpoint):
    """What a kill some steps after a checkpoint leaves of a run that went to its end."""
    shutil.copytree(whole, path)
    for entry in path.iterdir():
        if entry.name in ("report", "README.md", "model.safetensors"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        elif entry.name.startswith("checkpoint-") and int(entry.name[11:]) > last_checkpoint:
            shutil.rmtree(entry)
    return path


def metrics_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def trajectory(path):
    """The logged lines without the closing summary, whose times differ from run to run.

    `num_tokens` is TRL's count since the process began, which its checkpoints do not hold.
    """
    return [
        {key: value for key, value in line.items() if key != "num_tokens"}
        for line in metrics_of(path)
        if SUMMARY not in line
    ]


def assert_same_run(resumed, whole):
    ours, theirs = (load_file(path / "model.safetensors") for path in (resumed, whole))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
    lines = trajectory(resumed)
    logged = [line["step"] for line in lines if "loss" in line]
    assert logged == list(range(1, logged[-1] + 1))
    assert lines == trajectory(whole)
    assert len(metrics_of(resumed)) == len(lines) + 1
    files = [{f.name: f.read_bytes() for f in p.glob("audit_samples/*")} for p in (resumed, whole)]
    assert files[0] == files[1] and bool(files[0]) == (whole / "audits.json").exists()
    if (whole / "audits.json").exists():
        assert json.loads((resumed / "audits.json").read_text()) == json.loads(
            (whole / "audits.json").read_text()
        )
    assert json.loads((resumed / "run.json").read_text())["status"] == "finished"
    reports = [json.loads((path / "report/report.json").read_text()) for path in (resumed, whole)]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["verdict"] == reports[1]["verdict"]


@pytest.fixture(scope="module")
def whole(testbed, tmp_path_factory):
    """A DPO run that nothing interrupts, in its own process."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    # Every checkpoint is kept, so that tests can go back to each.
    process = start("dpo", path, *DPO, "--save_total_limit", "9")
    assert process.wait(timeout=240) == 0, stderr_of(path)
    return path


@pytest.fixture(scope="module")
def killed(testbed, tmp_path_factory):
    """The same run, killed with SIGKILL after step 6 of 12."""
    path = tmp_path_factory.mktemp("runs") / "killed"
    code = stop_after_step(start("dpo", path, *DPO), path, 6, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert (path / "checkpoint-4/trainer_state.json").exists()
    assert not (path / "model.safetensors").exists()
    assert json.loads((path / "run.json").read_text())["status"] == "running"
    return path


def test_a_killed_run_resumes_bit_for_bit(whole, killed, tmp_path):
    path = shutil.copytree(killed, tmp_path / "resumed")
    process = start("dpo", path, *DPO, *RESUME)
    assert process.wait(timeout=240) == 0, stderr_of(path)
    assert_same_run(path, whole)
    saved = [(folder / "model.safetensors").read_bytes() for folder in (path, whole)]
    assert saved[0] == saved[1]
    assert (path / f"checkpoint-{STEPS}").is_dir()
    assert not (path / ".saving").exists()


@pytest.mark.parametrize("damage", ["state missing", "state truncated", "line half written"])
def test_a_run_killed_while_writing_resumes_from_what_is_complete(whole, tmp_path, damage):
    path = cut_back(whole, tmp_path / "resumed", last_checkpoint=8)
    state = path / "checkpoint-8/trainer_state.json"
    if damage == "state missing":
        # The trainer writes its state last, after the weights and the optimizer.
        state.unlink()
    elif damage == "state truncated":
        state.write_bytes(state.read_bytes()[:200])
    else:
        lines = [line for line in metrics_of(path) if line["step"] <= 9]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text[:-20])
    dpo.main(["--output_dir", str(path), *DPO, *RESUME])
    assert_same_run(path, whole)


def test_a_run_killed_during_its_evaluation_resumes_without_training(whole, tmp_path):
    path = cut_back(whole, tmp_path / "resumed", last_checkpoint=STEPS)
    dpo.main(["--output_dir", str(path), *DPO, *RESUME])
    assert_same_run(path, whole)


def test_a_named_checkpoint_is_resumed_from_wherever_it_is(whole, tmp_path):
    elsewhere = shutil.copytree(whole / "checkpoint-8", tmp_path / "the best one")
    path = cut_back(whole, tmp_path / "resumed", last_checkpoint=4)
    dpo.main(["--output_dir", str(path), *DPO, "--resume_from_checkpoint", str(elsewhere)])
    assert_same_run(path, whole)


def test_nothing_to_resume_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        dpo.main(["--output_dir", str(tmp_path / "new"), *DPO, *RESUME])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no complete checkpoint" in line
    assert not (tmp_path / "new").exists()


def test_ctrl_c_stops_with_one_line_that_says_how_to_go_on(testbed, tmp_path):
    path = tmp_path / "stopped"
    process = start("dpo", path, *DPO)
    assert stop_after_step(process, path, 5, signal.SIGINT) == 130
    errors = stderr_of(path)
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("stopped")]
    assert " ".join(RESUME) in line


@pytest.mark.parametrize(
    ("recipe", "args"),
    [
        (sft, (*SMALL, "--max_steps", "8", "--audit_steps", "0", "--max_length", "64")),
        # 256 pairs are four steps, so the second epoch begins where the run is resumed.
        (
            dpo,
            (
                *SMALL,
                *("--max_steps", "-1", "--num_train_epochs", "2", "--max_train_samples", "256"),
                *("--audit_steps", "0", "--precompute_ref_log_probs"),
            ),
        ),
    ],
    ids=["sft", "dpo with a precomputed reference"],
)
def test_other_runs_resume_as_well(testbed, tmp_path, recipe, args):
    whole = tmp_path / "whole"
    recipe.main(["--output_dir", str(whole), *args])
    path = cut_back(whole, tmp_path / "resumed", last_checkpoint=4)
    recipe.main(["--output_dir", str(path), *args, *RESUME])
    assert_same_run(path, whole)
