"""No acknowledged vote is lost or doubled: servers killed, stopped, and their disks wiped.

The fast tests stop a server a few times; `-m slow` does so 100, 100 and 50 times.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from dataset_hub import DatasetHub
from feedback_world import SECRET

from hf_align.feedback import DirectoryBackup, Store, open_backup, open_collection, restore

HERE = Path(__file__).parent


class Trial:
    """Starts servers on one store, stops them, and remembers what they acknowledged."""

    def __init__(self, disk, backup, level, items=600, pause=0.0, hub=None):
        self.path = disk / "server" / "collect.db"
        self.options = {"path": str(self.path), "backup": str(backup), "level": level}
        self.options |= {"items": items, "pause": pause}
        self.env = os.environ | ({"HF_ENDPOINT": hub.url} if hub else {})
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        self.env |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": path}
        self.acked, self.sent = set(), {}
        self.chance = random.Random(0)

    def run(self, number, seconds):
        """Serves for a while, then sends the signal."""
        self.options["start"] = self.options.get("start", 0) + self.options["items"]
        script = [sys.executable, str(HERE / "collection_server.py"), json.dumps(self.options)]
        server = subprocess.Popen(
            script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env, text=True
        )
        server.stdin.write("".join(f"{who} {token}\n" for who, token in self.sent.items()))
        server.stdin.close()
        reader = threading.Thread(target=self.read, args=(server.stdout,))
        self.ready = threading.Event()
        reader.start()
        assert self.ready.wait(60), "the server did not start"
        time.sleep(seconds * self.chance.random() + 0.02)
        server.send_signal(number)
        server.wait(60)
        reader.join()
        assert server.returncode == -number

    def read(self, stream):
        for line in stream:
            if not line.endswith("\n"):
                continue  # cut off by the kill, so nobody was told
            word, *rest = line.split()
            if word == "ready":
                self.ready.set()
            elif word == "sent":
                self.sent[rest[0]] = rest[1]
            elif word == "acked":
                self.acked.add(rest[1])
                self.sent.pop(rest[0], None)

    def check(self, store):
        """Every acknowledged vote is there, once, and no item has more than two."""
        assert store.damage() is None
        with store.read() as connection:
            stored = [row[0] for row in connection.execute("SELECT event_id FROM answers")]
            votes = Counter(row[0] for row in connection.execute("SELECT item_id FROM answers"))
            events = connection.execute("SELECT count(*) FROM events WHERE type = 'answer'")
            assert events.fetchone()[0] == len(stored)
        assert len(self.acked) > 0
        assert self.acked - set(stored) == set()
        assert len(stored) == len(set(stored)) and max(votes.values()) <= 2
        print(f"\nacknowledged {len(self.acked)}, stored {len(stored)}, faults survived")


def killed(disk, times, seconds):
    trial = Trial(disk, disk / "backup", "local")
    for _ in range(times):
        trial.run(signal.SIGKILL, seconds)
    trial.check(Store(trial.path))


def stopped(disk, times, seconds):
    """After SIGTERM the backup alone has everything."""
    trial = Trial(disk, disk / "backup", "local", pause=0.002)
    for _ in range(times):
        trial.run(signal.SIGTERM, seconds)
        shutil.rmtree(trial.path.parent)
    store = Store(disk / "fresh.db")
    restore(store, DirectoryBackup(disk / "backup"))
    trial.check(store)


def wiped(disk, times, seconds, monkeypatch):
    """Killed without warning and the disk gone: at the level `safe` the backup has all."""
    with DatasetHub(fault_rate=0.2) as hub:
        trial = Trial(disk, "dataset:me/votes", "safe", items=300, pause=0.01, hub=hub)
        for _ in range(times):
            trial.run(signal.SIGKILL, seconds)
            shutil.rmtree(trial.path.parent)
        assert hub.faults > 0
        store = Store(disk / "fresh.db")
        segments = disk / "segments"
        for path, content in hub.files.items():
            DirectoryBackup(segments).upload({path: content})
        restore(store, DirectoryBackup(segments))
        trial.check(store)
        print(f"{hub.faults} faults in {hub.commits} commits, {len(hub.files)} segments")


def test_kill_loses_nothing(disk):
    killed(disk, 2, 0.5)


def test_sigterm_leaves_nothing_behind(disk):
    stopped(disk, 2, 0.5)


def test_a_wiped_disk_loses_nothing_that_was_acknowledged(disk, monkeypatch):
    wiped(disk, 2, 1.5, monkeypatch)


@pytest.mark.slow
def test_a_hundred_kills(disk):
    killed(disk, 100, 0.5)


@pytest.mark.slow
def test_a_hundred_sigterms(disk):
    stopped(disk, 100, 0.4)


@pytest.mark.slow
def test_fifty_wiped_disks(disk, monkeypatch):
    wiped(disk, 50, 1.5, monkeypatch)


def test_a_truncated_file_is_noticed_put_aside_and_restored(disk, make_collection, annotate):
    from feedback_world import pairs

    path = disk / "there" / "collect.db"
    collection = make_collection(pairs(200), path, disk / "backup", "safe", overlap=1)
    annotate(collection, "local:a", limit=30)
    before = [event["event_id"] for event in collection.store.events()]
    collection.close()
    collection.store.scrub()
    collection.store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size * 2 // 3)
    from hf_align.feedback import DamagedStore

    with pytest.raises(DamagedStore, match="damaged"):
        Store(path)
    again = open_collection(path, SECRET, backup=DirectoryBackup(disk / "backup"))
    assert sorted(before) == sorted(event["event_id"] for event in again.store.events())
    assert len(list(path.parent.glob("collect.db.damaged-*"))) >= 1
    again.close()
    other = disk / "other.db"
    other.write_bytes(b"not a database" * 1000)
    with pytest.raises(DamagedStore, match="restore it from its backup"):
        open_collection(other, SECRET)


def test_open_backup_names_its_kind(disk):
    assert open_backup(str(disk)).name == str(disk)
    assert open_backup("bucket:me/votes").name == "bucket me/votes"
    assert open_backup("dataset:me/votes").name == "dataset me/votes"
