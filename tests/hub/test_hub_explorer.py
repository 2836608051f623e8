"""Completions of audits, from a run to the Hub to a Space that shows them, one audit at a time."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from loopback import WRITE_TOKEN
from small_run import write_run

from hf_align import InputError, load_run
from hf_align.diagnostics.sample_files import audit_file, write_completions
from hf_align.hub import Destination, push_dataset, push_model, push_space

pytest.importorskip("gradio", reason="the app needs the extra: pip install hf_align[ui]")
sys.path.append(str(Path(__file__).resolve().parents[1] / "ui"))

import explorer_world

from hf_align.ui.explorer_runs import Shelf, Source

pytestmark = pytest.mark.usefixtures("empty_cache")
ABSENT = ("torch", "transformers", "datasets", "trl", "peft", "matplotlib", "scipy", "evalica")


@pytest.fixture
def run(client, tmp_path):
    """A finished run with weights, audits and their completions."""
    client(WRITE_TOKEN)
    folder = explorer_world.write_run(tmp_path / "made" / "ppo")
    weights = write_run(tmp_path / "weights")
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_bytes((weights / name).read_bytes())
    return folder


@pytest.fixture
def selection(client, tmp_path):
    """A finished best-of-n run with the data that it made."""
    client(WRITE_TOKEN)
    folder, proxy, _ = explorer_world.write_best_of_n(tmp_path / "made" / "best")
    (folder / "train.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (folder / "README.md").write_text("# best\n\nThe best.\n")
    return folder, proxy


def test_completions_are_published_with_their_run_and_read_one_audit_at_a_time(hub, run):
    first = push_model(run, Destination("lab/ppo"))
    files = hub.repos["lab/ppo"].files
    assert sum(path.startswith("audit_samples/") for path in files) == 8
    hub.log.clear()
    found = load_run("lab/ppo")
    assert found.curve.steps.tolist() == [10 * i for i in range(8)]
    assert found.sampled_steps == {10 * i for i in range(8)}
    assert not [r for r in hub.log if "audit_samples" in r]
    assert found.audit_samples(30).completions[4] == "answer 4 of step 30"
    fetched = [r for r in hub.log if "audit_samples" in r]
    assert fetched and all(f"resolve/{first.commit}/{audit_file(30)}" in r for r in fetched)
    assert found.audit_samples(31) is None and found.pool() is None
    # A shorter run in its place: what the longer one left is gone, the old commit has it still.
    for step in (60, 70):
        (run / audit_file(step)).unlink()
    push_model(run, Destination("lab/ppo"))
    assert load_run("lab/ppo").audit_samples(70) is None
    assert load_run("lab/ppo", first.commit).audit_samples(70) is not None


def test_a_completion_with_a_token_in_it_is_not_published(hub, run):
    silly = explorer_world.completions(
        30, np.zeros(60), np.zeros(60), lambda step, row: "hf_" + "a" * 30 if row == 7 else "x"
    )
    write_completions(run / audit_file(30), silly)
    with pytest.raises(OSError, match=r"step-00000030\.parquet, row 8, column completion holds"):
        push_model(run, Destination("lab/ppo"))
    assert "lab/ppo" not in hub.repos
    (run / audit_file(30)).write_bytes(b"not a table")
    with pytest.raises(InputError, match="is damaged"):
        push_model(run, Destination("lab/ppo"))


def test_a_run_that_is_gone_or_gated_or_damaged_stands_beside_a_good_one(hub, run, monkeypatch):
    push_model(run, Destination("lab/ppo"))
    for name in ("gated", "damaged"):
        push_model(run, Destination(f"lab/{name}"))
    for name in ("ppo", "gated", "damaged"):
        hub.repos[f"lab/{name}"].private = False
    hub.repos["lab/gated"].gated = True
    monkeypatch.delenv("HF_TOKEN")
    hub.repos["lab/damaged"].add_commit("main", {"report/report.json": b'{"schema": NaN}'}, "odd")
    names = ("lab/ppo", "lab/gone", "lab/gated", "lab/damaged")
    shelf = Shelf([Source(name, on_hub=True) for name in names])
    runs, problems, pending = shelf.opened(names, 30.0)
    assert [one.key for one in runs] == ["lab/ppo"] and not pending
    assert "does not exist" in problems["lab/gone"] and "gated" in problems["lab/gated"]
    assert "holds NaN" in problems["lab/damaged"]


def ask(port, **body):
    data = json.dumps({"data": [json.dumps(body)]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/gradio_api/run/explorer",
        data,
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(json.load(reply)["data"][0])


def test_the_space_starts_from_what_it_brings_and_shows_its_runs(hub, run, selection, tmp_path):
    best, proxy = selection
    push_model(run, Destination("lab/ppo"))
    push_dataset(best, Destination("lab/best"))
    assert {"report/pool.parquet", "report/curve.json"} <= set(hub.repos["datasets/lab/best"].files)
    push_space("goodhart", Destination("lab/space"), ["lab/ppo"], ["lab/best"])
    files = hub.repos["spaces/lab/space"].files
    header = files["README.md"].decode()
    assert "sdk_version:" in header and "lab/ppo" in header and "preload" not in header
    pins = files["requirements.txt"].decode().splitlines()
    assert all("==" in line for line in pins) and not any(line.startswith(ABSENT) for line in pins)
    space, bare = tmp_path / "space", tmp_path / "bare"
    bare.mkdir()
    for path, data in files.items():
        (space / path).parent.mkdir(parents=True, exist_ok=True)
        (space / path).write_bytes(data)
    for name in ABSENT:
        (space / f"{name}.py").write_text("raise ImportError('not on this Space')\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | hub.env(WRITE_TOKEN, tmp_path / "home")
    env |= {"PYTHONPATH": str(space), "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, str(space / "app.py")]
    process = subprocess.Popen(command, cwd=bare, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert str(port) in process.stdout.readline()
        keys = ["lab/ppo", "lab/best"]
        reply = ask(port, action="chart", runs=keys)
        while reply["pending"]:
            reply = ask(port, action="chart", runs=keys)
        assert sorted(reply["curves"]) == sorted(keys) and reply["problems"] == ""
        assert hub.repos["lab/ppo"].sha[:8] in reply["verdicts"]
        assert not [r for r in hub.log if "GET" in r and "audit_samples" in r]
        read = ask(port, action="read", run="lab/ppo", index=3, row=4, order="prompts")
        assert "answer 4 of step 30" in read["html"] and "answer 4 of step 0" in read["html"]
        shown = ask(port, action="best", run="lab/best", n=3, row=1)
        assert f"draw {proxy[1][:3].argmax()} of 1" in shown["html"]
        assert ask(port, action="what-if", runs=keys, run="lab/ppo", beta=0.1)["code"] == "what-if"
        # It holds a token, so what visitors name is not read.
        assert "no others" in ask(port, action="add", name="lab/other")["error"]
    finally:
        process.kill()
        process.wait()
