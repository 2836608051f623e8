"""Votes per second of the collection app over HTTP, and how long one takes.

    python tests/benchmarks/collect_load.py [--annotators 50] [--seconds 20]

Starts the app in a process of its own on a store in a temporary folder. Annotators together try for
`--offered` votes a second, or vote as fast as they are answered where that is 0; they begin at
random moments, or with `--in_step` at the same one. Clients share the
machine's cores with the server, whose own processor time per vote is told too (Linux). Exits with 1
below 100 votes/s, or above 300 ms at the 95th percentile.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import random
import tempfile
import threading
import time
from pathlib import Path

SECRET = "a secret of enough characters"


def serve_app(folder, port, ready):
    """The server's process."""
    from hf_align.feedback import Item, Output, Project, open_collection
    from hf_align.ui import LocalSignIn, build_collect_app, serve

    collection = open_collection(Path(folder) / "collect.db", SECRET, leads={"local:lead"})
    collection.lead.create_project("local:lead", Project("p", overlap=3), "Read both.")
    items = (
        Item(f"prompt {n}", (Output("tea " * 60), Output(f"rain {n} " * 60))) for n in range(20_000)
    )
    collection.lead.add_items("local:lead", "p", items)
    sign_in = LocalSignIn(SECRET)
    demo = build_collect_app(collection, "p", sign_in, per_second=1e6, burst=10**6)
    serve(demo, collection, sign_in, port=port, ready=lambda _: ready.set())


def annotate(port, name, until, every, wait, times):
    """One annotator's session: after a wait, votes until the time is over."""
    from hf_align.ui import LocalSignIn

    headers = {
        "content-type": "application/json",
        "cookie": f"hf_align_account={LocalSignIn(SECRET).cookie(name)}",
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(**body):
        data = json.dumps({"data": [json.dumps(body | {"version": 1})]})
        connection.request("POST", "/gradio_api/run/collect", data, headers)
        return json.loads(json.loads(connection.getresponse().read())["data"][0])

    reply = ask(action="next")
    time.sleep(wait)
    due = time.monotonic()
    while time.monotonic() < until:
        token = reply["html"].split('data-token="')[1].split('"')[0]
        start = time.monotonic()
        reply = ask(action="vote", token=token, answer={"choice": "left", "wall_ms": 1000})
        times.append(time.monotonic() - start)
        assert reply["notice"] == "Saved.", reply
        due += every  # late votes are caught up with
        time.sleep(max(0.0, due - time.monotonic()))


def cpu_seconds(process):
    """Processor time of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    """Measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--offered", type=float, default=110.0)
    parser.add_argument("--in_step", action="store_true", help="all vote at the same moment")
    parser.add_argument("--port", type=int, default=7955)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        server = context.Process(target=serve_app, args=(folder, asked.port, ready))
        server.start()
        ready.wait(120)
        import hf_align.ui  # noqa: F401  (seconds that are not the server's)

        before, until = cpu_seconds(server), time.monotonic() + asked.seconds
        times = []
        every = asked.annotators / asked.offered if asked.offered else 0.0
        # People do not begin together, unless that is what is asked.
        waits = [
            0.0 if asked.in_step else every * random.Random(n).random()
            for n in range(asked.annotators)
        ]
        people = [
            threading.Thread(
                target=annotate, args=(asked.port, f"ann {n}", until, every, wait, times)
            )
            for n, wait in enumerate(waits)
        ]
        for person in people:
            person.start()
        for person in people:
            person.join()
        used = cpu_seconds(server) - before
        server.terminate()
        server.join()
    times.sort()
    at = [1000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 0.99)]
    rate = len(times) / asked.seconds
    print(f"{asked.annotators} annotators: {rate:.0f} votes/s, p50/p95/p99 ms")
    print(" / ".join(f"{value:.0f}" for value in at))
    print(f"server: {1000 * used / len(times):.2f} ms of processor time per vote")
    raise SystemExit(asked.offered > 0 and (rate < 100 or at[1] > 300))


if __name__ == "__main__":
    main()
