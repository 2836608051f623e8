"""Two processes with half the batch each train the same policy as one, and leave one clean run."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from hf_align.recipes import dpo

STEPS = 8
ARGS = (
    *("--max_steps", str(STEPS), "--logging_steps", "1", "--save_steps", "4"),
    *("--audit_steps", "4", "--num_audit_prompts", "64", "--num_eval_prompts", "16"),
    *("--num_eval_samples", "1", "--max_train_samples", "1024", "--max_test_samples", "128"),
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def two(testbed, tmp_path_factory):
    """A run of two processes on the CPU, 8 pairs each: its directory and what each process said."""
    path = tmp_path_factory.mktemp("runs") / "two"
    logs = path.parent / "logs"
    # `accelerate launch --cpu` starts one process whatever the number asked for; the launcher for
    # several processes is the one called multi_gpu, and the recipe finds no GPU.
    subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
            *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--main_process_port", str(free_port())),
            *("--log_dir", str(logs), "--tee", "3", "-m", "hf_align.recipes.dpo"),
            *("--output_dir", str(path), "--per_device_train_batch_size", "8", *ARGS),
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        timeout=240,
        check=True,
    )
    said = {}
    for rank in (0, 1):
        files = list(logs.glob(f"*/attempt_0/{rank}/std*.log"))
        assert len(files) == 2
        said[rank] = "".join(file.read_text() for file in files)
    return path, said


@pytest.fixture(scope="module")
def one(testbed, tmp_path_factory):
    """The same run in this process, 16 pairs at a time."""
    path = tmp_path_factory.mktemp("runs") / "one"
    dpo.main(["--output_dir", str(path), "--per_device_train_batch_size", "16", *ARGS])
    return path


def metrics_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_curve_is_that_of_one_process(one, two):
    ours, theirs = metrics_of(two[0]), metrics_of(one)
    # float32 sums over the batch are taken in another order; the losses are about 0.69.
    for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):
        curve = [line[name] for line in ours if "loss" in line]
        assert len(curve) == STEPS
        assert curve == pytest.approx([line[name] for line in theirs if "loss" in line], abs=1e-5)
    assert ours[1]["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_the_weights_are_those_of_one_process(one, two, testbed):
    ours, theirs = (load_file(path / "model.safetensors") for path in (two[0], one))
    start = load_file(testbed.policy_path / "model.safetensors")
    for name, weight in theirs.items():
        moved = (weight - start[name]).abs().max()
        assert moved > 0
        # AdamW's first steps divide by a gradient's own size, so a rounding error in one of nearly
        # no gradient moves the weight by up to a step; elsewhere the two agree.
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=float(moved) / 100)


def test_there_is_one_run_with_each_line_once(two):
    path, _ = two
    assert [entry.name for entry in path.parent.iterdir() if entry.name != "logs"] == ["two"]
    lines = metrics_of(path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "audit/kl/sequence" in line] == [0, 4, 8]
    assert [audit["step"] for audit in json.loads((path / "audits.json").read_text())] == [0, 4, 8]
    assert sum("train_runtime" in line for line in lines) == 1
    assert json.loads((path / "run.json").read_text())["status"] == "finished"
    assert (path / "report/report.json").is_file() and (path / "README.md").is_file()
    assert not list(path.glob(".*"))
    # Each process keeps its own random state, so that two can resume.
    assert len(list((path / f"checkpoint-{STEPS}").glob("rng_state_*.pth"))) == 2


def test_only_the_main_process_speaks(two):
    _, said = two
    assert "kl/sequence" in said[0]
    assert "Warning" not in said[0]
    assert said[1] == ""


def test_a_mistake_is_told_by_one_process_per_machine(tmp_path, monkeypatch, capsys):
    args = ["--output_dir", str(tmp_path), "--learning_rate", "-1"]
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit) as stopped:
            dpo.main(args)
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == lines
