"""The explorer in headless Chromium: walked along by mouse and keys, hostile runs and lost ones."""

import os
import shutil

import pytest
from explorer_world import ATTACK, audits, write_best_of_n, write_run

from hf_align.ui import Source, build_explorer_app
from hf_align.ui.endpoints import text_endpoints
from hf_align.ui.page import launch_options

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
playwright = pytest.importorskip("playwright.sync_api")

SHOTS = os.environ.get("HF_ALIGN_SCREENSHOTS")
"""A folder: pictures of the page are left there, to be looked at."""

ANSWER = "#gx-samples .output >> nth=1"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of two runs, a hostile one, one that is gone, and best-of-n."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "good")
    write_run(
        folder / "mild", curve=audits(farthest=2.0, seed=1), samples=False, verdict="NOT DETECTED"
    )
    hostile = {"warnings": [ATTACK], "verdict": {"label": "NO GAIN", "text": ATTACK}}
    write_run(folder / "hostile", text=lambda step, row: ATTACK, report=hostile)
    write_best_of_n(folder / "best")
    (folder / "gone").mkdir()
    names = ("good", "mild", "hostile", "gone", "best")
    demo = build_explorer_app([Source(str(folder / n)) for n in names], allow_others=True)
    options = launch_options(None, text_endpoints(demo), "explorer")
    _, running, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
    yield running
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def chromium():
    """A headless browser."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page with what it asked of others, and what went wrong in it."""

    def __init__(self, browser, address, **settings):
        self.context = browser.new_context(**settings)
        self.outside, self.errors = [], []
        home = (address, "data:", "blob:")
        self.context.on(
            "request", lambda r: None if r.url.startswith(home) else self.outside.append(r.url)
        )
        self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
        self.context.on("dialog", lambda dialog: self.errors.append(dialog.message))
        self.page = self.context.new_page()
        self.page.goto(address)
        self.settled()

    def settled(self):
        """Waits until every part has been answered."""
        self.page.wait_for_selector("#gx-charts svg.chart")
        self.page.wait_for_selector("#gx-equal table")
        self.page.wait_for_selector("#gx-best svg.chart")
        self.page.wait_for_selector("#gx-what-if details")
        self.page.wait_for_selector(ANSWER)
        self.page.wait_for_function("!document.querySelector('#hf-align [aria-busy]')")

    def says(self, selector, words):
        """Waits for words in a part."""
        self.page.wait_for_function(
            "([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words]
        )

    def look(self, name):
        """Nothing sticks out, axe has no serious complaint; a picture, where they are wanted."""
        page = self.page
        width = page.viewport_size["width"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        found = axe.Axe().run(page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in serious]
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)

    def close(self):
        """Nothing was asked of other servers, and no script of a run's ran."""
        assert not self.outside and not self.errors, (self.outside, self.errors)
        self.context.close()


def test_a_run_is_walked_along_by_keys_alone(address, chromium):
    visit = Visit(chromium, address, viewport={"width": 1440, "height": 900})
    page = visit.page
    assert page.input_value("#gx-active") in ("good", "hostile")
    assert "gone cannot be shown" in page.inner_text("#gx-problems")
    assert page.locator("#gx-cards > ul > li").count() == 4
    page.focus("#gx-active")
    page.keyboard.type("good")
    visit.says(ANSWER.split(" >>")[0] + ":nth-of-type(2)", "step 70")
    page.focus("#gx-at")
    page.keyboard.press("Home")
    visit.says("#gx-at-says", "step 0, KL 0.00 nats, gold +0.00, proxy +0.00")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    visit.says("#gx-samples", "of step 30")
    assert page.get_attribute("#gx-at", "aria-valuetext").startswith("step 30, KL 6.61 nats")
    visit.says("#gx-equal", "KL 6.61 nats")
    rows = page.inner_text("#gx-equal table")
    assert "not reached: it went to KL 4" in rows and "step 30" in rows and "best" in rows

    # Prompts, forth and back, and in another order.
    page.select_option("#gx-order", "prompts")
    visit.says("#gx-samples", "prompt 0")
    page.focus("[data-turn=gx-read][data-by='1']")
    page.keyboard.press("Enter")
    visit.says("#gx-samples", "answer 1 of step 0")
    visit.says("#gx-samples", "answer 1 of step 30")
    assert page.inner_text("#gx-read-row") == "2 of 60"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    visit.says("#gx-read-row", "60 of 60")
    page.focus("#gx-order")
    page.keyboard.type("most")
    page.focus("#gx-at")
    page.keyboard.press("End")
    visit.says("#gx-samples", "at step 70")
    visit.says("#gx-samples .flag", "Over-optimised here")

    # The numbers as tables, best-of-n, what if.
    page.focus("#gx-charts summary")
    page.keyboard.press("Enter")
    assert page.is_visible(".numbers-table table >> nth=0")
    page.focus("#gx-n")
    page.keyboard.press("Home")
    visit.says("#gx-best", "Best of 1: KL from the base policy of at most 0.000 nats")
    visit.says("#gx-best", "the same one")
    page.keyboard.press("End")
    visit.says("#gx-best", "Best of 8")
    page.focus("#gx-path")
    page.keyboard.type("good")
    page.fill("#gx-beta", "0.1")
    visit.says("#gx-what-if", "With β = 0.1, a run on the path of good")
    page.focus("#gx-beta-slide")
    page.keyboard.press("End")
    visit.says("#gx-what-if", "Cannot be said")
    assert page.input_value("#gx-beta") == "1"
    visit.look("explorer-light-1440")
    visit.close()


def test_a_chart_is_clicked_and_dragged(address, chromium):
    visit = Visit(chromium, address, viewport={"width": 1280, "height": 900})
    page = visit.page
    page.select_option("#gx-active", "good")
    chart = page.locator("[data-panel=proxy] svg").bounding_box()
    scale = chart["width"] / 600
    farthest = float(page.get_attribute("[data-panel=proxy] svg", "data-xmax"))

    def across(d):
        return chart["x"] + (58 + d / farthest * (600 - 58 - 14)) * scale

    middle = chart["y"] + chart["height"] / 2
    page.mouse.move(across(6.0), chart["y"] + 60 * scale)
    page.mouse.down()
    page.mouse.move(across(6 / 7 * 2), middle)
    page.mouse.up()
    visit.says("#gx-at-says", "step 20, KL 2.94")
    cursor = page.locator("[data-panel=gold] .cursor line").bounding_box()
    assert cursor["x"] == pytest.approx(across(6 / 7 * 2) - chart["x"] + page.locator(
        "[data-panel=gold] svg").bounding_box()["x"], abs=3)  # fmt: skip

    # The server is away for a moment: what was asked is asked again.
    page.select_option("#gx-order", "prompts")
    visit.says("#gx-samples", "prompt 0")
    page.route("**/run/explorer", lambda route: route.abort())
    page.click("[data-turn=gx-read][data-by='1']")
    visit.says("#hf-notice", "The server does not answer")
    page.unroute("**/run/explorer")
    visit.says("#gx-samples", "prompt 1")
    visit.says("#hf-notice", "")
    assert page.inner_text("#hf-notice") == ""

    # Which runs: one is taken out, and what is not ours is added.
    page.uncheck("input[name=run][value=hostile]")
    page.wait_for_function("!document.querySelector('.legend').innerText.includes('hostile')")
    page.fill("#gx-add input", "../good")
    page.keyboard.press("Enter")
    visit.says("#hf-notice", "give a Hub id of the form org/name")
    for name in ("good", "mild", "gone", "best"):
        page.uncheck(f"input[name=run][value={name}]")
    visit.says("#gx-charts", "Pick a run above")
    page.check("input[name=run][value=best]")
    visit.says("#gx-what-if", "None of the runs picked was trained")
    visit.says("#gx-samples", "further down")
    visit.close()


def test_a_hostile_run_shows_its_texts_and_does_nothing_else(address, chromium):
    visit = Visit(chromium, address, viewport={"width": 1440, "height": 900})
    page, title = visit.page, visit.page.title()
    page.select_option("#gx-active", "hostile")
    visit.says("#gx-samples", "document.title='owned'")
    visit.says("#gx-samples", "U+202E")
    assert page.title() == title
    for place in ("#gx-samples", "#gx-cards", "#gx-charts"):
        wrong = "script, img, iframe, object, form, input, button, style, base, meta, [onclick]"
        assert page.locator(f"{place} :is({wrong})").count() == 0
    for link in page.locator("#gx-samples a, #gx-cards a").all():
        assert link.get_attribute("href").startswith(("http://", "https://"))
    next_one = page.locator("[data-turn=gx-read][data-by='1']")
    next_one.scroll_into_view_if_needed()
    box = next_one.bounding_box()
    on_top = "([x, y]) => document.elementFromPoint(x, y).dataset.by"
    assert page.evaluate(on_top, [box["x"] + 10, box["y"] + 10]) == "1"
    visit.look("explorer-hostile-1440")
    visit.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 390), ("dark", 1440)])
def test_a_phone_and_the_dark(address, chromium, scheme, width):
    visit = Visit(chromium, address, viewport={"width": width, "height": 844}, color_scheme=scheme)
    visit.look(f"explorer-{scheme}-{width}")
    visit.close()
