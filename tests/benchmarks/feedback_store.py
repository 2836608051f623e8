"""What a collection of a million events costs: status, export, agreement, and handing out tasks.

Builds the events through the store's own log and views, on a disk, then times what pages and
exports call, and a wiped disk's restore from its segments. Exits with 1 where the status takes
longer than 2 s, an export longer than 60 s, or the restore longer than 120 s.
"""

import argparse
import itertools
import resource
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np

from hf_align.feedback import (
    Answer,
    DirectoryBackup,
    ExportOptions,
    Item,
    Output,
    Project,
    Store,
    agreement,
    load_votes,
    open_collection,
    progress,
    quality,
    restore,
    write_export,
)
from hf_align.feedback.outbox import event_line

LEAD = "local:lead"


def fill(collection, events, annotators=50, overlap=4):
    """Items and votes, `events` together."""
    items = events // (overlap + 1)
    text = "word " * 40
    collection.lead.create_project(LEAD, Project("p", overlap=overlap), "Read both.")
    collection.lead.add_items(
        LEAD,
        "p",
        (
            Item(f"{i} {text}", (Output(f"a {i} {text}", "m1"), Output(f"b {i} {text}", "m2")))
            for i in range(items)
        ),
    )
    rng = np.random.default_rng(0)
    with collection.store.read() as connection:
        rows = connection.execute("SELECT item_id, prompt_hash FROM items").fetchall()
    for start in range(0, len(rows), 2000):
        with collection.store.write() as transaction:
            for item, prompt_hash in rows[start : start + 2000]:
                people = rng.choice(annotators, overlap, replace=False)
                for place, person in enumerate(people):
                    score, rotation = int(rng.integers(-2, 3)), place % 2
                    body = {
                        **{"kind": "pair", "shown_order": ["a", "b"], "notes": "", "score": score},
                        **{"choice": "left", "prompt_hash": prompt_hash, "rotation": rotation},
                        **{"is_gold": False, "is_repeat": False, "ratings": {}, "flags": {}},
                        **{"active_ms": 9000, "wall_ms": 12000, "correct": None, "content": ""},
                        **{"outputs": {"a": "0" * 64, "b": "1" * 64}, "lease_id": ""},
                    }
                    transaction.append(
                        *(str(uuid.uuid4()), "answer", "p", body),
                        annotator=f"{person:016x}",
                        item_id=item,
                    )


def segments_of(store, folder):
    """The whole log as a backup holds it."""
    backup, events = DirectoryBackup(folder), store.events()
    for number in itertools.count(1):
        lines = [event_line(event) for event in itertools.islice(events, 2_000)]
        if not lines:
            return backup
        name = f"events/20260101T000000Z-0123456789ab/{number:08d}.jsonl"
        backup.upload({name: b"".join(lines)})
    raise AssertionError("unreachable")


def timed(name, call, *args, **kwargs):
    """Runs and reports."""
    start = time.perf_counter()
    result = call(*args, **kwargs)
    taken = time.perf_counter() - start
    print(f"{name:45} {taken:8.2f} s", flush=True)
    return taken, result


def main():
    """Builds, measures, judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "collect.db"
        collection = open_collection(path, "a secret of enough characters", leads={LEAD})
        timed(f"building {events} events", fill, collection, events)
        status, _ = timed("status page (progress)", progress, collection.store, "p")
        exports = []
        for kind, options in (
            ("preference", ExportOptions()),
            ("preference", ExportOptions(votes="single")),
            ("raw", ExportOptions()),
        ):
            name = f"export {kind} {options.votes}"
            target = Path(folder) / name.replace(" ", "-")
            taken, _ = timed(name, write_export, collection.store, "p", target, kind, options)
            exports.append(taken)
        _, votes = timed("loading the votes", load_votes, collection.store, "p")
        timed("agreement with intervals", agreement, votes)
        timed("quality of everyone", quality, votes)
        collection.lead.change_project(LEAD, "p", overlap=5)
        person = collection.sign_in("p", "local:new")

        def work():
            for _ in range(100):
                task = collection.next("p", person)
                collection.submit(person, task.token, Answer(choice="left"))

        timed("100 tasks handed out and answered", work)
        backup = segments_of(collection.store, Path(folder) / "backup")
        collection.store.close()
        fresh = Store(Path(folder) / "wiped" / "collect.db")
        restored, taken_in = timed("restoring a wiped disk", restore, fresh, backup)
        print(f"{taken_in} events taken in, votes {progress(fresh, 'p').votes}")
        fresh.close()
        timed(
            "opening again, with its check", open_collection, path, "a secret of enough characters"
        )
        print(f"file {path.stat().st_size / 1e9:.2f} GB", end=", ")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    sys.exit(status > 2 or max(exports) > 60 or restored > 120)


if __name__ == "__main__":
    main()
