"""The backup: what reaches it, what comes back, and what happens when it is away."""

import sqlite3
import subprocess
import sys
import threading

import pytest
from dataset_hub import DatasetHub
from feedback_world import LEAD, SECRET, pairs

from hf_align.feedback import (
    Answer,
    DatasetBackup,
    DirectoryBackup,
    Limits,
    Refused,
    Store,
    open_collection,
    restore,
)
from hf_align.feedback import store as store_module
from hf_align.types import InputError


class Away(DirectoryBackup):
    """A folder that can be out of reach."""

    away = False

    def upload(self, files):
        if self.away:
            raise OSError("planned: away")
        super().upload(files)

    def list(self):
        if self.away:
            raise OSError("planned: away")
        return super().list()


def state_of(store):
    """The views as plain rows, leases left out."""
    with store.read() as connection:
        return {
            table: sorted(
                map(tuple, connection.execute(f"SELECT * FROM {table}")), key=lambda row: repr(row)
            )
            for table in ("projects", "answers", "annotators", "adjudications")
        } | {
            "items": sorted(
                map(
                    tuple,
                    connection.execute("SELECT item_id, votes, skips, withdrawn, gold FROM items"),
                )
            )
        }


def test_a_replay_gives_the_same_state(make_collection, annotate, disk):
    collection = make_collection(pairs(12), backup=disk / "b", overlap=2, repeat_rate=0.3)
    ann, receipts, _ = annotate(collection, "local:ann", limit=8)
    collection.undo("p", ann)
    collection.edit("p", ann, receipts[0].event_id, Answer(choice="tie"))
    bob = collection.sign_in("p", "local:bob")
    collection.skip(bob, collection.next("p", bob).token, "bug")
    item = collection.next("p", bob).item_id
    collection.lead.adjudicate(LEAD, "p", item, 1)
    collection.lead.withdraw(LEAD, "p", item)
    collection.lead.pause_annotator(LEAD, "p", bob, "a break")
    collection.lead.change_guidelines(LEAD, "p", "second")
    assert collection.close() == 0
    fresh = Store(disk / "fresh.db")
    assert restore(fresh, DirectoryBackup(disk / "b")) == len(list(collection.store.events()))
    assert state_of(fresh) == state_of(collection.store)
    assert restore(fresh, DirectoryBackup(disk / "b")) == 0  # nothing twice
    assert [e["event_id"] for e in fresh.events()] == [
        e["event_id"] for e in collection.store.events()
    ]
    fresh.close()


def test_a_token_outlives_a_wiped_disk_but_not_the_overlap(make_collection, disk):
    collection = make_collection(pairs(1), backup=disk / "b", level="safe", overlap=1)
    ann, bob = (collection.sign_in("p", f"local:{name}") for name in ("ann", "bob"))
    task = collection.next("p", ann)
    collection.close()
    again = make_collection(path=disk / "wiped" / "c.db", backup=disk / "b", level="safe")
    again.submit(ann, task.token, Answer(choice="left"))
    with pytest.raises(Refused):
        again.next("p", bob)
    again.close()
    third = make_collection(path=disk / "wiped2" / "c.db", backup=disk / "b", level="safe")
    assert third.submit(ann, task.token, Answer(choice="left")).duplicate


def test_it_does_not_serve_without_its_backup_unless_told_to(disk):
    backup = Away(disk / "b")
    backup.away = True
    with pytest.raises(OSError, match="away"):
        open_collection(disk / "c.db", SECRET, backup=backup)
    served = open_collection(disk / "c.db", SECRET, backup=backup, allow_empty=True)
    served.close(0.2)
    backup.away = False
    DirectoryBackup(disk / "b").upload(
        {"events/20260101T000000Z-0123456789ab/00000001.jsonl": b'{"event_id": "x"'}
    )
    with pytest.raises(OSError, match="cut short"):
        open_collection(disk / "d.db", SECRET, backup=backup)
    path = disk / "b/events/20260101T000000Z-0123456789ab/00000001.jsonl"
    path.write_bytes(b'{"event_id": "x"}\n')
    with pytest.raises(OSError, match="damaged, line 1"):
        open_collection(disk / "e.db", SECRET, backup=backup)


def test_a_lagging_backup_stops_tasks_but_not_answers(make_collection, disk):
    backup = Away(disk / "b")
    limits = Limits(every_seconds=0.05, max_events=3, safe_timeout=0.3)
    collection = make_collection(pairs(5), backup=backup, limits=limits, overlap=2)
    people = [collection.sign_in("p", f"local:{i}") for i in range(3)]
    collection.outbox.flush()
    backup.away = True
    tasks = [collection.next("p", person) for person in people]
    for person, task in zip(people, tasks, strict=True):
        collection.submit(person, task.token, Answer(choice="left"))
    collection.undo("p", people[0])
    with pytest.raises(Refused) as refused:
        collection.next("p", people[1])
    assert refused.value.code == "backlog" and collection.lag().events == 4
    backup.away = False
    assert collection.outbox.flush() == 0
    assert collection.next("p", people[1]).token


def test_safe_answers_are_not_acknowledged_before_the_backup_has_them(make_collection, disk):
    backup = Away(disk / "b")
    limits = Limits(safe_timeout=0.2)
    collection = make_collection(pairs(2), backup=backup, limits=limits, level="safe", overlap=1)
    person = collection.sign_in("p", "local:a")
    task = collection.next("p", person)
    backup.away = True
    with pytest.raises(OSError, match="not backed up yet"):
        collection.submit(person, task.token, Answer(choice="left"))
    backup.away = False
    collection.outbox.flush()
    assert collection.submit(person, task.token, Answer(choice="left")).duplicate


def test_an_error_of_any_kind_leaves_the_uploading_alive(make_collection, disk):
    class Broken(DirectoryBackup):
        uploads = 0

        def upload(self, files):
            self.uploads += 1
            if self.uploads == 1:
                raise KeyError("a defect of the client")
            super().upload(files)

    limits = Limits(every_seconds=0.02)
    backup = Broken(disk / "b")
    collection = make_collection(pairs(2), backup=backup, limits=limits, level="safe", overlap=1)
    person = collection.sign_in("p", "local:a")
    collection.submit(person, collection.next("p", person).token, Answer(choice="left"))
    assert backup.uploads >= 2 and collection.lag().events == 0


def test_segments_go_to_a_dataset_repo_through_faults(make_collection, annotate, disk, monkeypatch):
    with DatasetHub(fault_rate=0.3, seed=1) as hub:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        backup = DatasetBackup("me/votes", "hf_token")
        collection = make_collection(pairs(4), backup=backup, overlap=1)
        for i in range(4):
            annotate(collection, f"local:{i}", limit=1)
            collection.outbox.flush()
        assert hub.faults > 0 and collection.lag().events == 0
        fresh = Store(disk / "fresh.db")
        restore(fresh, DatasetBackup("me/votes", "hf_token"))
        assert state_of(fresh) == state_of(collection.store)
        hub.down = True
        with pytest.raises(OSError, match="answered 503"):
            DatasetBackup("me/votes", "hf_token").list()
        hub.down, hub.private = False, False
        with pytest.raises(InputError, match="public"):
            DatasetBackup("me/votes", "hf_token").list()


def test_another_secret_is_noticed(make_collection, disk):
    make_collection(path=disk / "c.db").close()
    with pytest.raises(Refused, match="another secret"):
        open_collection(disk / "c.db", "z" * 20)
    with pytest.raises(InputError, match="16"):
        open_collection(disk / "d.db", "short")


def test_closing_lets_nobody_in_and_waits_for_those_inside(make_collection, disk):
    collection = make_collection(pairs(3), backup=disk / "b", overlap=1)
    person = collection.sign_in("p", "local:a")
    task = collection.next("p", person)
    inside, leave, left = threading.Event(), threading.Event(), []

    def slow():
        with collection.gate.entered():
            inside.set()
            leave.wait()
            from hf_align.feedback.submission import submit

            submit(collection.store, collection.keys, person, task.token, Answer(choice="left"))

    worker = threading.Thread(target=slow)
    worker.start()
    inside.wait()
    closer = threading.Thread(target=lambda: left.append(collection.close()))
    closer.start()
    while not collection.gate.closing:
        pass
    with pytest.raises(Refused, match="restarting"):
        collection.next("p", person)
    assert not left
    leave.set()
    worker.join()
    closer.join()
    assert left == [0]
    content = b"".join(p.read_bytes() for p in (disk / "b").rglob("*.jsonl"))
    assert b'"type": "answer"' in content


def limit_pages(store, pages):
    """A disk of so many pages, for the connection that writes."""
    with store.write() as transaction:
        transaction.connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_one_line_and_loses_nothing(make_collection, annotate):
    collection = make_collection(pairs(40), overlap=1)
    person, *_ = annotate(collection, "local:a", limit=2)
    task = collection.next("p", person)
    with collection.store.read() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    limit_pages(collection.store, pages)
    note = Answer(choice="left", notes="n" * 9000)
    with pytest.raises(OSError, match="the disk is full; free some space") as full:
        for _ in range(10):
            collection.submit(person, task.token, note)
            task = collection.next("p", person)
    assert "\n" not in str(full.value)
    limit_pages(collection.store, 100_000)
    assert not collection.submit(person, task.token, note).duplicate
    assert collection.store.damage() is None


def test_a_store_locked_by_another_process_is_one_line(make_collection, monkeypatch, disk):
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.2)
    collection = make_collection(pairs(1), path=disk / "c.db", overlap=1)
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(disk / "c.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(OSError, match="locked by another process"):
        collection.sign_in("p", "local:a")
    other.communicate("")
    assert collection.sign_in("p", "local:a")


def test_the_log_cannot_be_rewritten(make_collection):
    collection = make_collection(pairs(1), overlap=1)
    for statement in ("DELETE FROM events", "UPDATE events SET body = '{}'"):
        with (
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
            collection.store.write() as transaction,
        ):
            transaction.connection.execute(statement)
    with collection.store.read() as connection:
        modes = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert modes == ["wal", 2, 1, 30_000]


def test_a_remote_disk_is_refused_or_used_with_one_connection(disk, monkeypatch):
    monkeypatch.setattr(store_module, "file_system", lambda path: "fuse.bucket")
    with pytest.raises(InputError, match=r"fuse\.bucket, where SQLite loses data"):
        Store(disk / "c.db")
    store = Store(disk / "c.db", network_disk="exclusive")
    done = []

    def write():
        with store.write() as transaction:
            done.append(transaction.append(f"e{len(done)}", "note", "p", {}))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [True] * 4
    with store.read() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    assert len(list(store.events())) == 4
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(disk / "c.db", timeout=0.05).execute("SELECT * FROM events").fetchall()
    store.close()
