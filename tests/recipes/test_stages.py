"""The scheduler: order, what is kept, what goes on, what a failure or a kill leaves."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hf_align.recipes._parser import RecipeParser
from hf_align.recipes._stages import Stage, _workers, log_of, run_stages, state_of
from hf_align.types import InputError

DUMMY = textwrap.dedent(
    """
    import json, os, shlex, sys, time
    from pathlib import Path

    def main(args):
        path, mode, *rest = Path(args[1]), *args[2:]
        path.mkdir(parents=True, exist_ok=True)
        record = {"command": shlex.join(["python", "-m", __name__, *args]), "status": "running"}
        record["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        (path / "run.json").write_text(json.dumps(record))
        with (path.parent / "journal").open("a") as journal:
            journal.write(path.name + " " + " ".join(rest) + "\\n")
        print("this is", path.name, "with", os.environ["OMP_NUM_THREADS"], "thread", os.getpid())
        if mode == "mistake":
            print("error: beta is -1; give more", file=sys.stderr)
            raise SystemExit(2)
        if mode == "crash":
            raise RuntimeError("no luck")
        if mode == "die":
            os._exit(9)
        if mode == "slow" and "--resume_from_checkpoint" not in rest:
            (path / "checkpoint-3").mkdir(exist_ok=True)
            (path / "checkpoint-3/trainer_state.json").write_text('{"global_step": 3}')
            time.sleep(60)
        record |= {"status": "finished"}
        record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        (path / "run.json").write_text(json.dumps(record))
    """
)


@pytest.fixture
def dummy(tmp_path, monkeypatch):
    """A package with a recipe that does next to nothing; gives the stage that runs it."""
    package = tmp_path / "modules" / "dummies"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "dummy.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(package.parent))

    def stage(name, mode="quick", *rest, needs=()):
        return Stage(name, "dummies.dummy", (mode, *rest), tuple(needs))

    return stage


def journal(folder):
    file = folder / "journal"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_stages_run_after_what_they_need_once_and_with_a_log_each(dummy, tmp_path, capfd):
    folder = tmp_path / "study"
    stages = [dummy("a"), dummy("b"), dummy("c", needs="a"), dummy("d", needs="bc")]
    run_stages(stages, folder, num_workers=2)
    ran = [name for name, *_ in journal(folder)]
    assert sorted(ran) == list("abcd")
    assert ran.index("a") < ran.index("c") < ran.index("d") and ran.index("b") < ran.index("d")
    words = log_of(stages[0], folder).read_text().split()
    assert words[:6] == ["this", "is", "a", "with", "1", "thread"]
    logs = (log_of(stage, folder).read_text().split()[-1] for stage in stages)
    assert len(set(logs)) <= 2  # processes are used again
    printed = capfd.readouterr()
    assert "this is" not in printed.out + printed.err and "4/4" in printed.err
    run_stages(stages, folder, num_workers=2)
    assert len(journal(folder)) == 4

    changed = [stages[0], dummy("b", "quick", "more"), *stages[2:]]
    time.sleep(1.1)  # times in records are whole seconds
    run_stages(changed, folder, num_workers=1)
    # b was asked for otherwise, and d read the old b.
    assert journal(folder)[4:] == [["b", "more", "--overwrite"], ["d", "--overwrite"]]


def test_the_folder_may_move(dummy, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"

    def stages(folder):
        return [dummy("a"), dummy("b", "quick", str(folder / "a"), needs="a")]

    run_stages(stages(first), first, num_workers=1)
    first.rename(second)
    assert [state_of(stage, second) for stage in stages(second)] == ["finished"] * 2
    assert state_of(dummy("b", "quick", str(tmp_path)), second) == "absent"


def test_a_failure_is_one_line_and_stops_the_rest(dummy, tmp_path):
    folder = tmp_path / "study"
    stages = [dummy("slow", "slow"), dummy("bad", "mistake"), dummy("after", needs=["bad"])]
    began = time.monotonic()
    with pytest.raises(InputError) as error:
        run_stages(stages, folder, num_workers=2)
    assert time.monotonic() - began < 30  # the slow one would take 60 s
    message = str(error.value)
    assert message.startswith("stage bad: beta is -1; give more (log: ")
    assert str(log_of(stages[1], folder)) in message and "\n" not in message
    assert not (folder / "after").exists()
    assert state_of(stages[0], folder) == "stopped"
    run_stages([stages[0], dummy("bad")], folder, num_workers=2)  # mended
    assert ["slow", "--resume_from_checkpoint"] in journal(folder)
    assert ["bad", "--overwrite"] in journal(folder)


def test_a_crash_and_a_killed_worker_are_told(dummy, tmp_path):
    with pytest.raises(OSError, match=r"stage crash: RuntimeError: no luck \(log: "):
        run_stages([dummy("crash", "crash")], tmp_path)
    assert "Traceback" in (tmp_path / "crash.log").read_text()
    with pytest.raises(OSError, match="stage die: its process was killed"):
        run_stages([dummy("die", "die")], tmp_path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_no_process_and_goes_on(dummy, tmp_path, how):
    folder = tmp_path / "study"
    code = (
        "from pathlib import Path\n"
        "from hf_align.recipes._stages import Stage, run_stages\n"
        "if __name__ == '__main__':\n"
        "    stages = [Stage('quick', 'dummies.dummy', ('quick',)),\n"
        "              Stage('slow', 'dummies.dummy', ('slow',))]\n"
        f"    run_stages(stages, Path({str(folder)!r}), 1)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "modules")}
    process = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (folder / "slow/checkpoint-3/trainer_state.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=20)
    worker = _worker_of(folder)
    while worker is not None and Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)
    stages = [dummy("quick"), dummy("slow", "slow")]
    assert [state_of(stage, folder) for stage in stages] == ["finished", "stopped"]
    run_stages(stages, folder, 1)
    assert journal(folder) == [["quick"], ["slow"], ["slow", "--resume_from_checkpoint"]]


def _worker_of(folder):
    """The process that ran the quick stage, and so the slow one after it."""
    return int((folder / "quick.log").read_text().split()[-1])


def test_a_damaged_record_is_no_run(dummy, tmp_path):
    stage = dummy("a")
    for text in ("", "[]", "{}", json.dumps({"status": "finished", "command": shlex.join("abc")})):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "run.json").write_text(text)
        assert state_of(stage, tmp_path) == "absent"


def test_stages_come_after_their_needs(dummy, tmp_path):
    for stages in ([dummy("a", needs="b"), dummy("b")], [dummy("a"), dummy("a")]):
        with pytest.raises(ValueError, match="stage a"):
            run_stages(stages, tmp_path)


@pytest.mark.parametrize("name", ["dpo", "filter", "online", "collect"])
def test_ctrl_c_names_only_options_that_the_recipe_has(name, monkeypatch, capsys):
    def interrupted(self, args):
        raise KeyboardInterrupt

    monkeypatch.setattr(RecipeParser, "parse", interrupted)
    module = importlib.import_module(f"hf_align.recipes.{name}")
    with pytest.raises(SystemExit) as stopped:
        module.main([])
    said = capsys.readouterr().err
    assert stopped.value.code == 130 and "stopped" in said
    named = re.findall(r"--(\w+)", said)
    assert set(named) <= set(module.make_parser().options)
    assert ("resume_from_checkpoint" in named) == (name == "dpo")


def test_ctrl_c_in_a_study_says_how_to_go_on():
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"), _workers(1):
        raise KeyboardInterrupt
