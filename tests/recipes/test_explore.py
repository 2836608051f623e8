"""`explore`: what it serves, what it refuses, and that the testbed's sweep is trained once."""

import os
import subprocess
import sys
import urllib.request

import pytest

from hf_align.configs import ExploreArguments
from hf_align.recipes import _explore, _goodhart_sweep, explore

pytest.importorskip("gradio", reason="the app needs the extra: pip install hf_align[ui]")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "ppo"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"recipe": "ppo", "config": {}, "lineage": {}}')
    return folder


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["absent"], "runs absent: no such folder"),
        (["a/b/c"], "runs a/b/c: no such folder"),
        (["."], "holds no run"),
        (["RUN", "RUN"], "named twice"),
        (["RUN", "--port", "0"], "port is 0"),
        (["RUN", "--port", "70000"], "port is 70000"),
        (["RUN", "--output_dri", "x"], "output_dri"),
    ],
)
def test_a_mistake_is_one_line(run, args, words, monkeypatch, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(SystemExit) as stop:
        explore.main([str(run) if arg == "RUN" else arg for arg in args])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and words in error and "\n" not in error


def test_folders_hub_runs_and_selections_are_told_apart(run):
    found = _explore.sources_of([str(run), "org/ppo", "datasets/org/best"])
    assert [(s.name, s.kind) for s in found] == [
        (str(run), "model"),
        ("org/ppo", "model"),
        ("org/best", "dataset"),
    ]


def test_without_runs_the_sweep_is_trained_where_goodhart_has_it(tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(_goodhart_sweep, "run_stages", lambda s, folder: stages.append((s, folder)))
    names = _explore.train_runs(ExploreArguments(output_dir=str(tmp_path / "out")))
    ((made, folder),) = stages
    assert folder == tmp_path / "out" / "runs"
    assert [stage.name for stage in made] == [*_goodhart_sweep.SWEEP, "best-of-n"]
    assert made[-1].recipe == "best_of_n" and names[-1] == str(folder / "best-of-n")


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)],
)
def test_runs_are_added_only_by_whoever_sits_at_this_machine(host, own, run, monkeypatch):
    import hf_align.ui

    asked = []
    monkeypatch.setattr(
        hf_align.ui, "build_explorer_app", lambda *a, **options: asked.append(options)
    )
    monkeypatch.setattr(hf_align.ui, "serve_explorer", lambda *a, **options: None)
    explore.main([str(run), "--host", host])
    assert asked == [{"allow_others": own}]


def test_it_serves_until_it_is_stopped(run, tmp_path):
    command = [sys.executable, "-m", "hf_align.recipes.explore", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    try:
        address = process.stdout.readline().removeprefix("explorer: ").strip()
        with urllib.request.urlopen(address, timeout=30) as reply:
            assert "Goodhart explorer" in reply.read().decode()
        process.terminate()
        assert process.wait(30) == 0 and "stopped" in process.stdout.read()
    finally:
        process.kill()
