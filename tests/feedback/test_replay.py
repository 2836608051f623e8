"""A log taken in again gives the same state, in whatever order and however often its parts come."""

import random

import pytest
from feedback_world import pairs

from hf_align.feedback import Answer, Store
from hf_align.feedback import replay as replay_module


@pytest.fixture
def history(make_collection, annotate):
    """A store with votes, an edit, an undo, a skip and an erased person, and its events."""
    collection = make_collection(pairs(10), overlap=2, repeat_rate=0.3)
    ann, receipts, _ = annotate(collection, "local:ann", limit=7)
    collection.undo("p", ann)
    collection.edit("p", ann, receipts[0].event_id, Answer(choice="tie"))
    bob = collection.sign_in("p", "local:bob")
    collection.skip(bob, collection.next("p", bob).token, "bug")
    annotate(collection, "local:bob", limit=3)
    return collection, list(collection.store.events())


def state(store):
    """The views but leases, which a log does not have."""
    tables = ("projects", "answers", "annotators", "adjudications")
    with store.read() as connection:
        found = {t: sorted(map(tuple, connection.execute(f"SELECT * FROM {t}"))) for t in tables}
        rows = connection.execute("SELECT item_id, votes, skips, withdrawn, gold FROM items")
        return found | {"items": sorted(map(tuple, rows))}


def test_a_wiped_disk_is_filled_in_one_pass(history, disk, monkeypatch):
    collection, events = history

    def never(connection):
        raise AssertionError("the views were made a second time")

    monkeypatch.setattr(replay_module, "rebuild", never)
    fresh = Store(disk / "fresh.db")
    assert fresh.replay(events) == len(events)
    assert state(fresh) == state(collection.store)
    assert fresh.replay(events) == 0 and fresh.damage() is None
    fresh.close()


@pytest.mark.parametrize("seed", range(4))
def test_parts_in_any_order_and_twice_give_the_same_state(history, disk, seed):
    collection, events = history
    shuffled = events + events[::2]
    random.Random(seed).shuffle(shuffled)
    fresh = Store(disk / "fresh.db")
    assert fresh.replay(shuffled) == len(events)
    assert state(fresh) == state(collection.store)
    assert [e["event_id"] for e in sorted(fresh.events(), key=lambda e: e["ts_server"])] == [
        e["event_id"] for e in events
    ]
    fresh.close()


@pytest.mark.parametrize("last", [True, False])
def test_what_an_erased_person_did_does_not_come_back(history, disk, last):
    collection, events = history
    collection.erase("local:ann", "p", "local:ann")
    after = list(collection.store.events())
    [forgotten] = [event for event in after if event["type"] == "forget"]
    fresh = Store(disk / "fresh.db")
    # Old segments hold the votes still, and come before or after the word that they are to go.
    for part in (events, [forgotten]) if last else ([forgotten], events):
        fresh.replay(part)
    assert state(fresh)["answers"] == state(collection.store)["answers"]
    gone = forgotten["body"]["annotator"]
    assert all(e["annotator"] != gone for e in fresh.events())
    fresh.close()
