"""The arena in headless Chromium, on a server whose models are known or attack."""

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from collect_visits import MARKS, Server
from collect_visits import Visit as Visitor
from fake_arena import NAMES

from hf_align.feedback import Store, export_rows
from hf_align.ui.visitors import HEADER

pytestmark = MARKS

LONG = " ".join(f"word{number}" for number in range(60))
VIEW = "document.querySelector('#hf-view')"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server."""
    folder = tmp_path_factory.mktemp("arena")
    script = str(Path(__file__).with_name("arena_app_server.py"))
    running = Server(folder, lambda port: [sys.executable, script, str(folder), str(port)])
    running.start()
    yield running
    running.kill()


def votes(server):
    """All votes, the oldest first."""
    store = Store(server.folder / "collect.db")
    rows = list(export_rows(store, "arena", "battle"))
    store.close()
    return rows


class Visit(Visitor):
    """A visit of the arena."""

    def __init__(self, browser, server, link="", **settings):
        clipboard = ["clipboard-read", "clipboard-write"]
        super().__init__(browser, server, permissions=clipboard, **settings)
        self.open(link)

    def open(self, link=""):
        """Opens the page, or a link to it."""
        self.page.goto(link or self.server.address)
        self.page.wait_for_selector("#hf-align[data-ready]")

    def until(self, state):
        """Waits until the page is in a state."""
        self.page.wait_for_selector(f"#hf-state[data-state={state}]")

    def ask(self, prompt, state="done"):
        """Asks, and waits for the end."""
        self.page.fill("#hf-prompt", prompt)
        self.page.click("#hf-ask button.primary")
        self.until(state)
        return self.page.inner_text("#hf-view")

    def look(self, name):
        """As of any page; and nothing is beyond the edge."""
        super().look(name)
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width

    def close(self):
        """Nobody else was asked, and nothing broke."""
        self.check(models=())
        self.context.close()


def test_a_visit(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    visit.look("light-1440-empty")

    # The first words come within a second (the best of three: others may be using the machine).
    waits = []
    for number in range(3):
        page.fill("#hf-prompt", f"try{number} and more")
        start = time.monotonic()
        page.keyboard.press("Control+Enter")
        page.wait_for_function(f"{VIEW}.querySelector('.plain')?.innerText.includes('try{number}')")
        waits.append(time.monotonic() - start)
        visit.until("done")
    assert min(waits) < 1.0, waits

    # Words come while others are still to come.
    page.fill("#hf-prompt", LONG)
    page.keyboard.press("Control+Enter")
    visit.until("writing")
    seen = page.inner_text(".output >> nth=0")
    assert "word0" in seen and "word59" not in seen
    visit.until("done")
    assert page.inner_text(".output h2 >> nth=0") == NAMES[0]
    assert "word59" in page.inner_text(".output >> nth=0")

    # Colours, with a legend, by key and by mouse; what cannot be seen is said in words.
    visit.ask("Why is the sky blue, and not green?")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("c")
    styles = page.evaluate(
        "[...document.querySelectorAll('.legend .tok')].map(e => "
        "getComputedStyle(e).textDecorationLine + getComputedStyle(e).textDecorationStyle)"
    )
    assert len(set(styles)) == 3
    assert page.is_visible(".coloured .shifted") and page.is_visible(".legend")
    page.click("details.measures summary >> nth=1")
    assert "+3.25 nats" in page.inner_text("details.measures >> nth=1")
    visit.look("light-1440-shift")
    page.click("button[data-do=shift]")
    assert not page.is_visible(".legend") and page.is_visible(".plain >> nth=1")

    # Copied as it was written.
    page.click("button[data-do=copy] >> nth=1")
    page.wait_for_selector("#hf-notice:has-text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "Certainly! Why is the sky blue, and not green? please 7"

    # A model that could not be loaded is there, with the reason; the others answer.
    assert "is not on the Hub" in page.inner_text("#hf-models")
    assert page.is_disabled("input[name=models][value=gone]")

    # Another seed, another answer; the history brings the first back.
    page.fill("input[name=seed]", "12")
    assert "please 12" in visit.ask("Why is the sky blue, and not green?")
    page.click("#hf-history button >> nth=1")
    page.wait_for_selector("text=please 7")
    assert page.input_value("input[name=seed]") == "7"
    page.reload()
    page.wait_for_selector("#hf-history button >> nth=2")
    page.click("#hf-history button >> nth=0")
    page.wait_for_selector("text=please 12")
    visit.close()


def test_a_blind_vote_by_keyboard_alone(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page, before = visit.page, len(votes(server))
    page.focus("h1 >> xpath=../nav//a >> nth=0")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "hf-prompt":
            break
    page.keyboard.type("Which one is blind?")
    while page.evaluate("document.activeElement.name") != "blind":
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    visit.until("done")
    shown = page.inner_text("#hf-view")
    assert "ANSWER A" in shown.upper() and not [name for name in NAMES if name in shown]
    assert not page.locator(".coloured, .measures").count()
    visit.look("light-1440-blind")
    first = NAMES["Certainly!" in page.inner_text(".output >> nth=0")]
    page.keyboard.press("1")
    page.wait_for_selector("text=You said: A is better")
    assert page.inner_text(".output .name >> nth=0") == first
    assert "+3.25 nats" in page.text_content("#hf-view")
    page.keyboard.press("c")
    visit.look("light-1440-reveal")
    [vote] = votes(server)[before:]
    assert vote["winner"] == "model_a" and vote["model_a"] == first
    assert vote["prompt"] == "Which one is blind?"
    visit.close()


def test_stopping(server, chromium):
    visit = Visit(chromium, server)
    page = visit.page
    page.fill("#hf-prompt", LONG)
    page.click("#hf-ask button.primary")
    visit.until("writing")
    page.keyboard.press("Escape")
    visit.until("done")
    text = page.inner_text(".output >> nth=1")
    assert "stopped after" in text and "word0" in text and "word59" not in text
    assert page.inner_text("#hf-state") == "Stopped."
    # The place is free again, at once.
    start = time.monotonic()
    assert "Certainly! hi" in visit.ask("hi")
    assert time.monotonic() - start < 2
    visit.close()


def test_a_link_brings_everything_back(server, chromium):
    visit = Visit(chromium, server)
    page = visit.page
    page.fill("#hf-prompt", "Why? 100 % & more = #1\n😀")
    page.fill("input[name=temperature]", "0.25")
    page.fill("input[name=top_p]", "0.9")
    page.fill("input[name=max_new_tokens]", "33")
    page.fill("input[name=seed]", "123")
    page.uncheck("input[name=models][value=plain]")
    page.click("button[data-do=share]")
    page.wait_for_selector("#hf-notice:has-text('The link is copied')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.input_value("#hf-link input")
    visit.close()

    other = Visit(chromium, server, link)
    page = other.page
    page.wait_for_selector("#hf-notice:has-text('press Ask')")
    assert page.input_value("#hf-prompt") == "Why? 100 % & more = #1\n😀"
    given = [page.input_value(f"input[name={name}]") for name in ("temperature", "top_p", "seed")]
    assert given == ["0.25", "0.9", "123"]
    assert page.input_value("input[name=max_new_tokens]") == "33"
    assert not page.is_checked("input[name=models][value=plain]")
    page.click("#hf-ask button.primary")
    other.until("done")
    assert "please 123" in page.inner_text("#hf-view")
    assert "temperature 0.25, top-p 0.9, at most 33 tokens, seed 123" in page.inner_text("#hf-view")
    assert page.locator(".output").count() == 1
    page.goto("about:blank")
    other.open(f"{server.address}/#prompt=hi&models=plain,other&seed=<b>&temperature=1e999")
    page.wait_for_selector("#hf-notice:has-text('Not here any more: other')")
    assert page.input_value("input[name=seed]") == "7"
    page.fill("#hf-prompt", "x" * 9000)
    page.click("button[data-do=share]")
    page.wait_for_selector("#hf-notice:has-text('too long for a link')")
    other.close()


def test_text_that_attacks(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    page.fill("input[name=max_new_tokens]", "500")
    visit.ask("attack")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("c")
    assert page.title() == "SFT and RLHF, side by side"
    inside = "#hf-view :is(img, iframe, style, svg, form, script, object, base)"
    assert page.locator(inside).count() == 0
    assert page.locator("#hf-view [onclick], #hf-view a[href^=javascript]").count() == 0
    visit.look("light-1440-hostile")
    for selector in ("#hf-ask button.primary", "#hf-view button[data-do=copy] >> nth=0"):
        button = page.locator(selector)
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        on_top = page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).closest('button')?.textContent",
            [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2],
        )
        assert on_top == button.text_content()
    visit.close()


def test_what_goes_wrong_is_said(server, chromium):
    visit = Visit(chromium, server)
    page = visit.page
    for prompt, state, words in (
        ("", "idle", "Write a prompt first"),
        ("x" * 100_000, "error", "32,768 is the limit"),
        ("quota", "quota", "exceeded your GPU quota (25s requested vs. 3s left). Soon"),
        ("break", "error", "Something went wrong on the server"),
    ):
        page.fill("#hf-prompt", prompt)
        page.click("#hf-ask button.primary")
        page.wait_for_selector(f"#hf-notice.bad:has-text('{words}')")
        visit.until(state)
        assert "/secret" not in page.content()
    for prompt in ("🙂🙃", "مرحبا بالعالم"):
        assert prompt in visit.ask(prompt)
    direction = "getComputedStyle(document.querySelector('.output .plain')).direction"
    assert page.evaluate(direction) == "rtl"
    page.fill("input[name=temperature]", "-1")
    page.click("#hf-ask button.primary")
    assert page.evaluate("document.activeElement.name") == "temperature"  # the browser says why
    visit.close()


class Elsewhere(threading.Thread):
    """A visitor without a browser, who speaks as the page does."""

    def __init__(self, server, number):
        super().__init__(daemon=True)
        self.server, self.number, self.steps = server, number, []

    def post(self, path, body, visitor=""):
        """A request, and its reply."""
        headers = {"content-type": "application/json", HEADER: visitor}
        address = f"{self.server.address}/gradio_api{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def run(self):
        """One turn."""
        hello = self.post("/run/arena", {"data": [json.dumps({"action": "hello"})]})
        visitor = json.loads(hello["data"][0])["visitor"]
        with urllib.request.urlopen(f"{self.server.address}/config", timeout=30) as reply:
            places = {one["api_name"]: one["id"] for one in json.load(reply)["dependencies"]}
        sampling = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 40, "seed": self.number}
        asked = {"prompt": LONG, "models": [], "blind": False, "sampling": sampling}
        session = f"elsewhere{self.number}"
        body = {"data": [json.dumps(asked)], "fn_index": places["turn"], "session_hash": session}
        self.post("/queue/join", body, visitor)
        address = f"{self.server.address}/gradio_api/queue/data?session_hash={session}"
        with urllib.request.urlopen(address, timeout=60) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    self.steps.append(json.loads(line[6:]))


def test_eight_visitors_at_once(server, chromium):
    visit = Visit(chromium, server)
    page = visit.page
    page.evaluate(
        "window.states = []; new MutationObserver(() => window.states.push("
        "document.querySelector('#hf-state').textContent)).observe("
        "document.querySelector('#hf-state'), {childList: true, subtree: true})"
    )
    others = [Elsewhere(server, number) for number in range(7)]
    for other in others:
        other.start()
    while sum(bool(other.steps) for other in others) < 7:
        time.sleep(0.01)
    assert "Certainly! me" in visit.ask("me too")
    states = page.evaluate("window.states")
    assert any("before yours" in state or "Yours is next" in state for state in states), states
    for other in others:
        other.join(60)
        assert other.steps[-2]["msg"] == "process_completed" and other.steps[-2]["success"]
        assert "word39" in other.steps[-2]["output"]["data"][0]
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_dark(server, chromium, scheme):
    size = {"width": 390, "height": 844}
    visit = Visit(chromium, server, viewport=size, color_scheme=scheme)
    page = visit.page
    visit.ask("Why is the sky blue, and not green or some other colour?")
    page.click("button[data-do=shift]")
    page.click("details.measures summary >> nth=1")
    visit.look(f"{scheme}-390-shift")
    page.check("input[name=blind]")
    visit.ask("Why is the sea salty?")
    page.click("button[data-do=vote][data-choice=right]")
    page.wait_for_selector("text=You said: B is better")
    visit.look(f"{scheme}-390-reveal")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.click("#hf-history button >> nth=1")
    page.wait_for_selector("text=some other colour")
    visit.look(f"{scheme}-1440-shift-again")
    page.keyboard.press("?")
    page.wait_for_selector("#hf-help[open]")
    visit.look(f"{scheme}-1440-help")
    visit.close()
