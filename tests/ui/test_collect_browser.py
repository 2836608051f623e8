"""The collection app in headless Chromium, on a server that is killed in the middle."""

import io
import json
import re
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from collect_visits import MARKS, Server, Visit
from ui_world import SECRET

from hf_align.ui import LocalSignIn

pytestmark = MARKS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server."""
    folder = tmp_path_factory.mktemp("collect")
    script = Path(__file__).with_name("collect_app_server.py")
    running = Server(folder, lambda port: [sys.executable, str(script), str(folder), str(port)])
    running.start()
    yield running
    running.kill()


def test_an_annotators_day(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    visit.sign_in("ann")
    visit.pass_quiz()

    # The first item is text that attacks: nothing ran, nothing covers the button.
    assert page.title() == "A small project"
    assert (
        page.evaluate("document.querySelectorAll('#hf-view :is(img, iframe, style, svg)').length")
        == 0
    )
    visit.look("light-1440-hostile")
    button = page.locator("form.task button.primary")
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    top = page.evaluate(
        "([x, y]) => document.elementFromPoint(x, y).closest('button')?.className",
        [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2],
    )
    assert top == "primary"

    # Ratings and flags by mouse, a note in which digits and letters are no commands.
    page.check("input[name=rating-0][value='6']", force=True)
    page.click("details.flags >> nth=1")
    page.check("text=inappropriate >> nth=1")
    page.keyboard.press("n")
    page.keyboard.type("1 s u 5?")
    page.keyboard.press("Escape")
    assert (
        not page.locator("dialog[open]").count()
        and not page.locator("input[name=choice]:checked").count()
    )
    page.keyboard.press("4")

    # A reload: the same item, and all that was entered.
    token = visit.token()
    page.reload()
    page.wait_for_selector("form.task")
    assert page.input_value("textarea[name=notes]") == "1 s u 5?"
    assert page.is_checked("input[name=choice][value=slightly_right]")
    assert page.is_checked("input[name=rating-0][value='6']")
    page.click("form.task button.primary")
    visit.until_other(token)
    stored = server.answers()[-1][2]
    assert stored["notes"] == "1 s u 5?" and stored["wall_ms"] is not None
    assert list(stored["ratings"].values()) == [6] and list(stored["flags"].values()) == [
        ["inappropriate"]
    ]
    # Nothing of it is left on the next item.
    assert not page.locator("form.task input:checked").count()
    assert page.input_value("textarea[name=notes]") == ""

    # A ranking, by keyboard alone, with a tie; another by mouse.
    assert page.get_attribute("form.task", "data-kind") == "ranking"
    visit.submit("2", "1", "2", "4")
    assert sorted(server.answers()[-1][2]["ranks"].values()) == [1, 2, 2, 3]
    visit.look("light-1440-ranking")
    token = visit.token()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Rank every answer first")
    for index in range(4):
        page.check(f"input[name=rank-{index}][value='{4 - index}']", force=True)
    page.click("form.task button.primary")
    visit.until_other(token)

    # No key acts alone: a choice is not a vote, S and U ask first.
    before = len(server.answers())
    for key in ("1", "s", "Escape", "u", "Escape", "?", "Escape", "r", "g", "g", "j", "k"):
        page.keyboard.press(key)
    assert len(server.answers()) == before

    # Skip with a reason, by keyboard.
    token = visit.token()
    page.keyboard.press("s")
    page.wait_for_selector("#hf-skip[open]")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    visit.until_other(token)
    assert page.inner_text("#hf-notice") == "Skipped."

    # Undo: the same item with the draft of before, answered again.
    served = visit.served()
    visit.submit("2")
    assert visit.served() == served + 1
    token = visit.token()
    page.keyboard.press("u")
    page.wait_for_selector("#hf-undo[open]")
    page.keyboard.press("Enter")
    visit.until_other(token)
    assert visit.served() == served
    assert page.is_checked("input[name=choice][value=slightly_left]")
    visit.submit("5")

    # Two tabs on one item: the second says so, and one answer is stored.
    other = visit.context.new_page()
    other.goto(server.address)
    other.wait_for_selector("form.task")
    before = len(server.answers())
    visit.submit("1")
    other.keyboard.press("5")
    other.keyboard.press("Enter")
    other.wait_for_selector("#hf-notice:has-text('answered this already')")
    other.close()
    assert len(server.answers()) == before + 1
    page.reload()
    page.wait_for_selector("form.task")

    # The server is killed; a vote is cast while it is down and stored when it is back.
    page.keyboard.press("n")
    page.keyboard.type("before the fall")
    page.keyboard.press("Escape")
    token, before = visit.token(), len(server.answers())
    server.kill()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hf-notice:has-text('cannot be reached')")
    server.start()
    visit.until_other(token)
    answers = server.answers()
    assert len(answers) == before + 1 and answers[-1][2]["notes"] == "before the fall"

    # On by mouse and keyboard in turn, to the end: every item once.
    for turn in range(30):
        if not page.locator("form.task").count():
            break
        if turn % 2:
            visit.submit("12345"[turn % 5])
        else:
            token = visit.token()
            page.check("input[name=choice][value=tie]", force=True)
            page.click("form.task button.primary")
            visit.until_other(token)
    assert "nothing is left" in page.inner_text(".message")
    ours = [item for _, item, _ in server.answers()]
    assert len(set(ours)) == 24  # 25 less the skipped one
    assert len(ours) == 25  # and the undone answer, which stays in the log
    assert visit.served() == 25

    # The history, and an answer changed in it.
    page.click("button[data-do=history]")
    page.wait_for_selector(".history")
    visit.look("light-1440-history")
    page.click("button[data-do=change] >> nth=0")
    page.wait_for_selector("form.task[data-event]:not([data-event=''])")
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hf-notice:has-text('Changed')")
    assert "Both bad" in page.inner_text(".history tbody tr >> nth=0")
    visit.check()
    visit.context.close()


def test_a_lead_watches_and_exports(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900}, accept_downloads=True)
    visit.sign_in("lead", "no key", "/lead")
    visit.page.wait_for_selector('#hf-notice:has-text("needs the lead\'s key")')
    visit.sign_in("lead", LocalSignIn(SECRET).lead_key, "/lead")
    visit.page.wait_for_selector(".numbers")
    assert "Everything is backed up" in visit.page.inner_text("#hf-view")
    visit.look("light-1440-lead")
    with visit.page.expect_download() as waiting:
        visit.page.click("form[data-action=export] button")
    content = Path(waiting.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jsonl")]
        rows = [json.loads(line) for name in names for line in archive.read(name).splitlines()]
    assert rows and {"prompt", "chosen", "rejected", "chosen_model"} <= set(rows[0])
    visit.page.click("text=Pause handing out")
    visit.page.wait_for_selector("text=The project is paused")
    visit.page.click("text=Go on handing out")
    visit.page.wait_for_selector("#hf-notice:has-text('Going on')")
    assert not visit.outside and not visit.errors
    visit.context.close()


def test_an_annotator_leads_nothing(server, chromium):
    visit = Visit(chromium, server)
    visit.sign_in("eve", path="/lead")
    visit.page.wait_for_selector("text=No access")
    assert not visit.page.locator(".numbers, #hf-view form").count()
    visit.check()
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_dark(server, chromium, scheme):
    size = {"width": 390, "height": 844}
    visit = Visit(chromium, server, viewport=size, color_scheme=scheme)
    page = visit.page
    page.goto(server.address)
    page.wait_for_selector("form.sign-in")
    visit.look(f"{scheme}-390-sign-in")
    visit.sign_in(f"phone {scheme}")
    page.wait_for_selector("form.quiz")
    visit.look(f"{scheme}-390-quiz")
    visit.pass_quiz()
    visit.submit_any()
    while page.get_attribute("form.task", "data-kind") != "pair":
        visit.submit_any()
    page.keyboard.press("2")
    visit.look(f"{scheme}-390-pair")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.submit()
    stored = [body for _, _, body in server.answers()][-1]
    assert stored["layout"] == "stacked" and stored["viewport"].startswith("390x")
    page.set_viewport_size({"width": 1440, "height": 900})
    page.keyboard.press("4")
    visit.look(f"{scheme}-1440-pair")
    page.keyboard.press("s")
    page.wait_for_selector("#hf-skip[open]")
    visit.look(f"{scheme}-1440-skip")
    page.keyboard.press("Escape")
    page.click("button[data-do=chat-open]")
    page.wait_for_selector("form.chat")
    page.fill("form.chat textarea", "hello there")
    visit.look(f"{scheme}-1440-chat")
    page.click("form.chat button.primary")
    page.wait_for_selector("form.task[data-mode=chat]")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    page.wait_for_selector("form.chat .turn >> nth=1")
    assert re.search(r"th(is|at) or 1", page.inner_text("form.chat"))
    visit.check()
    visit.context.close()


def test_fifty_requests_at_once_are_answered(server):
    """Plain HTTP, as other clients would: each gets its own session's reply."""
    import urllib.request

    codes = []

    def ask(number):
        signs = LocalSignIn(SECRET)
        request = urllib.request.Request(
            f"{server.address}/gradio_api/run/collect",
            data=json.dumps({"data": [json.dumps({"action": "next"})]}).encode(),
            headers={
                "content-type": "application/json",
                "cookie": f"hf_align_account={signs.cookie(f'user {number}')}",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            said = json.loads(json.load(reply)["data"][0])
        codes.append((said["code"], said["status"]["name"] == f"user {number}"))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [("quiz", True)] * 50
    assert time.monotonic() - start < 30
