"""The arena behind Gradio's queue: who waits is told so, and who leaves frees the place."""

import http.client
import json
import time

import pytest
from fake_arena import FakeArena
from ui_world import SECRET

from hf_align.ui.arena import build_arena_app
from hf_align.ui.arena_turns import open_votes
from hf_align.ui.endpoints import text_endpoints
from hf_align.ui.page import launch_options
from hf_align.ui.visitors import HEADER, Visitors

LONG = " ".join(f"word{number}" for number in range(60))
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "seed": 7}


@pytest.fixture
def app(shm):
    """A running app that plays one turn at a time: its arena and its port."""
    arena, visitors, votes = FakeArena(pause=0.03), Visitors(SECRET), open_votes(shm, SECRET)
    demo = build_arena_app(arena, visitors, votes=votes, at_once=1)
    options = launch_options(visitors, text_endpoints(demo), "arena")
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
    places = {str(fn.api_name): number for number, fn in demo.fns.items()}
    yield arena, int(address.rstrip("/").rpartition(":")[2]), places["turn"], visitors
    demo.close(verbose=False)
    votes.collection.close(1.0)
    votes.collection.store.close()


class Turn:
    """A turn over one connection, as a page makes it."""

    def __init__(self, app, session, prompt=LONG):
        _, self.port, place, visitors = app
        body = {"prompt": prompt, "models": [], "blind": False, "sampling": SAMPLING}
        asked = {"data": [json.dumps(body)], "fn_index": place, "session_hash": session}
        headers = {"content-type": "application/json", HEADER: visitors.new()}
        joining = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        joining.request("POST", "/gradio_api/queue/join", json.dumps(asked), headers)
        assert joining.getresponse().status == 200
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        self.stream = self.connection.getresponse()

    def until(self, wanted):
        """The next message of a kind."""
        for line in iter(self.stream.readline, b""):
            message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if message.get("msg") == wanted:
                return message
        raise AssertionError(f"the stream ended before {wanted}")

    def leave(self):
        """The page is closed."""
        self.stream.close()
        self.connection.close()


def soon(condition):
    """Whether it comes true within a few seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_who_leaves_frees_the_place_and_who_waits_is_told(app):
    arena = app[0]
    first = Turn(app, "first")
    for _ in range(3):
        first.until("process_generating")
    assert arena.running == 1
    second, third = Turn(app, "second"), Turn(app, "third")
    assert second.until("estimation")["rank"] == 0
    assert third.until("estimation")["rank"] == 1
    second.leave()  # before it began
    first.leave()  # in the middle
    third.until("process_generating")
    assert soon(lambda: arena.running == 1) and arena.ended == 1
    assert third.until("process_completed")["success"]
    third.leave()
    assert soon(lambda: arena.running == 0) and arena.ended == 2  # the second never began
