"""How fast the explorer opens a report of 100 checkpoints x 512 completions.

    python tests/benchmarks/explorer_open.py [--checkpoints 100] [--samples 512] [--words 200]

Writes such a run to a temporary folder, starts the app in this process, and opens it as a page
would: from an empty cache to curves, equal KL and what-if, then to the first pair of completions
(and, where Chromium is installed, in it: from the address to the page with all of that). Exits with
1 where opening takes 2 seconds or more.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

LIMIT = 2.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoints", type=int, default=100)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--words", type=int, default=200, help="Words of a completion.")
    args = parser.parse_args()
    sys.path.append(str(Path(__file__).resolve().parents[1] / "ui"))
    import explorer_world

    from hf_align.ui import Source, build_explorer_app
    from hf_align.ui.endpoints import text_endpoints
    from hf_align.ui.page import launch_options

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "large"
        explorer_world.write_run(
            run,
            curve=explorer_world.audits(args.checkpoints, args.samples),
            text=lambda step, row: " ".join(
                f"w{(step * 7 + row * k) % 997}" for k in range(args.words)
            ),
        )
        size = sum(file.stat().st_size for file in (run / "audit_samples").iterdir())
        audits = (run / "audits.json").stat().st_size
        print(
            f"{args.checkpoints} checkpoints x {args.samples} completions of {args.words} words: "
            f"audits.json {audits / 1e6:.1f} MB, audit_samples {size / 1e6:.0f} MB"
        )
        demo = build_explorer_app([Source(str(run))])
        options = launch_options(None, text_endpoints(demo), "explorer")
        _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
        opened = over_http(address)
        if shutil.which("chromium"):
            demo.close(verbose=False)
            demo = build_explorer_app([Source(str(run))])  # nothing is open yet
            _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options | {
                "app_kwargs": launch_options(None, text_endpoints(demo), "explorer")["app_kwargs"]
            })  # fmt: skip
            opened = max(opened, in_chromium(address))
        demo.close(verbose=False)
    print(f"limit {LIMIT:g} s: {'met' if opened < LIMIT else 'MISSED'}")
    return int(opened >= LIMIT)


def over_http(address):
    """Seconds until curves, equal KL and what-if are there."""

    def ask(**body):
        data = json.dumps({"data": [json.dumps(body)]}).encode()
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(f"{address}gradio_api/run/explorer", data, kind)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.loads(json.load(reply)["data"][0])

    begun = time.perf_counter()
    reply = ask(action="chart", runs=["large"])
    while reply["pending"]:
        reply = ask(action="chart", runs=["large"])
    last = len(reply["curves"]["large"]["d"]) - 1
    drawn = time.perf_counter() - begun
    assert ask(action="equal", runs=["large"], run="large", index=last)["code"] == "equal"
    assert ask(action="what-if", runs=["large"], run="large", beta=0.1)["code"] == "what-if"
    opened = time.perf_counter() - begun
    reply = ask(action="read", run="large", index=last, row=0, order="over_optimised")
    assert reply["rows"] > 1
    read = time.perf_counter() - begun - opened
    again = time.perf_counter()
    ask(action="read", run="large", index=last - 1, row=0, order="over_optimised")
    again = time.perf_counter() - again
    print(f"over HTTP: charts {drawn:.2f} s, all numbers {opened:.2f} s; first completions "
          f"{read:.2f} s more, those of another audit {again:.2f} s")  # fmt: skip
    return opened


def in_chromium(address):
    """Seconds from the address to the page with charts, tables and the first completions."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        begun = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("#gx-charts svg.chart")
        drawn = time.perf_counter() - begun
        page.wait_for_selector("#gx-equal table")
        page.wait_for_selector("#gx-samples .output >> nth=1")
        whole = time.perf_counter() - begun
        browser.close()
    print(f"in Chromium: charts {drawn:.2f} s, with the first completions {whole:.2f} s")
    return whole


if __name__ == "__main__":
    sys.exit(main())
