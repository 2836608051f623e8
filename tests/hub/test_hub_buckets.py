"""A collection's backup in a bucket: the real client with its own Xet code, on loopback."""

import json
import time

import pytest
from loopback import READ_TOKEN, USER, WRITE_TOKEN

from hf_align.feedback import (
    Answer,
    BucketBackup,
    Item,
    Output,
    Project,
    Refused,
    Store,
    open_collection,
    restore,
)
from hf_align.types import InputError

pytest.importorskip("hf_xet", reason="buckets are reached through hf_xet alone")
NAME = f"{USER}/votes"
SECRET, LEAD = "a secret of enough characters", "local:lead"


@pytest.fixture
def bucket(hub, client, no_waiting):
    """A backup in a bucket."""
    client(WRITE_TOKEN)
    return BucketBackup(NAME)


def collecting(path, backup):
    collection = open_collection(path, SECRET, leads={LEAD}, backup=backup, level="safe")
    items = [Item(f"p{n}", (Output(f"a{n}"), Output(f"b{n}"))) for n in range(6)]
    collection.lead.create_project(LEAD, Project("p", overlap=1))
    collection.lead.add_items(LEAD, "p", items)
    return collection


def test_files_come_back_as_they_were_sent(hub, bucket):
    sent = {f"events/20260101T000000Z-ab/{n:08d}.jsonl": b"line %d\n" % n * n for n in range(1, 5)}
    bucket.upload(dict(list(sent.items())[:2]))
    bucket.upload(dict(list(sent.items())[2:]))
    hub.page_size = 3
    assert bucket.list() == sorted(sent)
    assert dict(bucket.download(list(sent))) == sent
    first = min(sent)
    bucket.delete([first])
    assert bucket.list() == sorted(set(sent) - {first})
    assert hub.buckets[NAME].private and not hub.leaks


def test_a_wiped_disk_is_filled_again_from_the_bucket(hub, bucket, tmp_path):
    collection = collecting(tmp_path / "here" / "collect.db", bucket)
    person = collection.sign_in("p", "local:ann")
    told = []
    for _ in range(5):
        task = collection.next("p", person)
        told.append(collection.submit(person, task.token, Answer(choice="left")).event_id)
    # No closing: the machine is gone. What was acknowledged is in the bucket.
    assert collection.lag().events == 0
    before = [event["event_id"] for event in collection.store.events()]
    again = collecting(tmp_path / "new disk" / "collect.db", BucketBackup(NAME))
    assert [event["event_id"] for event in again.store.events()] == before
    assert set(told) <= set(before)
    assert again.submit(person, task.token, Answer(choice="left")).duplicate
    assert again.next("p", person).served == 5
    for one in (collection, again):
        one.close(2.0)
        one.store.close()


def test_what_the_hub_refuses_is_one_line_and_nothing_is_served(hub, bucket, client, tmp_path):
    hub.fail("GET /api/buckets/.*/tree", 500, times=99)
    with pytest.raises(OSError, match=f"backup bucket {NAME}: .* answered 500") as caught:
        open_collection(tmp_path / "c.db", SECRET, backup=bucket)
    assert "\n" not in str(caught.value)
    hub.failures.clear()
    client(READ_TOKEN)
    with pytest.raises(OSError, match=r"access refused .*403"):
        BucketBackup(NAME).upload({"events/x.jsonl": b"x"})
    assert not hub.buckets[NAME].files
    client(WRITE_TOKEN)
    hub.buckets[NAME].private = False
    with pytest.raises(InputError, match="is public: back up to a private one"):
        BucketBackup(NAME).list()


def test_storage_that_stays_away_does_not_hold_a_server_up(hub, bucket, tmp_path):
    bucket.upload({"events/first.jsonl": b"x"})
    hub.fail("GET .*/xet-write-token", 500, times=99)
    began = time.monotonic()
    with pytest.raises(OSError, match="answered 500"):
        bucket.upload({"events/second.jsonl": b"another"})
    assert time.monotonic() - began < 15  # the client alone goes on for two minutes and a half
    assert list(hub.buckets[NAME].files) == ["events/first.jsonl"]


def test_an_upload_that_fails_is_sent_again_and_taken_in_once(hub, bucket, tmp_path):
    collection = collecting(tmp_path / "c.db", bucket)
    assert collection.outbox.flush() == 0
    person = collection.sign_in("p", "local:ann")
    task = collection.next("p", person)
    hub.fail("POST /api/buckets/.*/batch", 500, times=6)
    hub.fail("POST /api/buckets/.*/batch", "lost")
    collection.submit(person, task.token, Answer(choice="tie"))
    assert collection.lag().events == 0
    fresh = Store(tmp_path / "fresh.db")
    restore(fresh, bucket)
    kinds = [event["type"] for event in fresh.events()]
    assert kinds.count("answer") == 1
    assert [json.dumps(e) for e in fresh.events()] == [
        json.dumps(e) for e in collection.store.events()
    ]
    with pytest.raises(Refused):
        collection.lead.create_project("local:eve", Project("q"))
    fresh.close()
    collection.close(2.0)
    collection.store.close()
