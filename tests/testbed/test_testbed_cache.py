"""A cached folder is whole or built again, and is built once however many ask."""

import subprocess
import sys

import pytest

from hf_align.testbed.cache import cache_root, damage, open_or_build


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "world"


def fill(draft):
    (draft / "sub").mkdir()
    (draft / "sub" / "a.txt").write_text("alpha")
    (draft / "b.txt").write_text("beta")


def refuse(draft):
    raise AssertionError("built although a whole folder was there")


def test_a_whole_folder_is_not_built_again(folder, capsys):
    assert open_or_build(folder, fill, {"spec": 1}) == folder
    assert (folder / "sub" / "a.txt").read_text() == "alpha"
    open_or_build(folder, refuse, {"spec": 1})
    assert capsys.readouterr().err == ""


def remove(folder):
    (folder / "b.txt").unlink()


def truncate(folder):
    (folder / "b.txt").write_text("bet")


def alter(folder):
    (folder / "sub" / "a.txt").write_text("alphA")


def remove_manifest(folder):
    (folder / "manifest.json").unlink()


def truncate_manifest(folder):
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:40])


def garble_manifest(folder):
    (folder / "manifest.json").write_text('{"files": [1, 2]}')


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (remove, "b.txt is missing"),
        (truncate, "b.txt has 3 bytes, expected 4"),
        (alter, "sub/a.txt was altered"),
        (remove_manifest, "manifest.json is missing"),
        (truncate_manifest, "manifest.json is not readable"),
        (garble_manifest, "manifest.json is not readable"),
    ],
)
def test_a_damaged_folder_is_built_again_with_a_notice(folder, capsys, harm, fault):
    open_or_build(folder, fill, {})
    built = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    harm(folder)
    assert damage(folder) == fault
    open_or_build(folder, fill, {})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == built
    notice = capsys.readouterr().err
    assert fault in notice
    assert notice.count("\n") == 1


def test_what_a_killed_build_left_is_swept(folder, capsys):
    folder.parent.mkdir()
    for name in ("world.draft", "world.damaged"):
        (folder.parent / name).mkdir()
        (folder.parent / name / "b.txt").write_text("half")
    open_or_build(folder, fill, {})
    assert damage(folder) is None
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == ["world"]
    assert capsys.readouterr().err == ""


def test_a_failed_build_leaves_nothing_and_does_not_block_the_next(folder):
    def fail(draft):
        fill(draft)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        open_or_build(folder, fail, {})
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    open_or_build(folder, fill, {})
    assert damage(folder) is None


def test_processes_that_start_at_once_build_once(folder):
    program = f"""
import time
from pathlib import Path
from hf_align.testbed.cache import open_or_build

def fill(draft):
    with open({str(folder.parent.parent / "log")!r}, "a") as log:
        log.write("built\\n")
    time.sleep(1)
    (draft / "b.txt").write_text("beta")

folder = open_or_build(Path({str(folder)!r}), fill, {{}})
assert (folder / "b.txt").read_text() == "beta"
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert (folder.parent.parent / "log").read_text() == "built\n"


def test_the_cache_lies_under_hf_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "hf_align"
