"""The testbed's own collection from `collect prepare` to a reward model, in headless Chromium.

One person works with the mouse, one with the keyboard alone; the server is killed between two
votes; the lead looks, exports and pushes; `reward` trains on what was exported.
"""

import io
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from collect_visits import MARKS, Server, Visit

from hf_align.recipes import collect
from hf_align.testbed import build_testbed, gold_reward

HUB_TESTS = Path(__file__).resolve().parents[1] / "hub"
pytestmark = [*MARKS, pytest.mark.slow]

ITEMS = 20  # of each annotator
SIZES = {1440: 900, 390: 844}


@pytest.fixture(scope="module")
def hub():
    """A loopback Hub that the server pushes to."""
    sys.path.insert(0, str(HUB_TESTS))
    from loopback import LoopbackHub

    with LoopbackHub() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory, testbed, hub):
    """The testbed's project as the recipe prepares it, served by the recipe."""
    from loopback import WRITE_TOKEN

    folder = tmp_path_factory.mktemp("collect")
    rooms = ["--num_prompts", "30", "--num_rankings", "10", "--overlap", "3", "--gold_rate", "0.2"]
    collect.main(["prepare", "--output_dir", str(folder), *rooms])
    command = [sys.executable, "-m", "hf_align.recipes.collect", "serve"]
    options = ["--output_dir", folder, "--backup", folder / "backup", "--level", "safe"]
    running = Server(
        folder,
        lambda port: [*command, *map(str, options), "--port", str(port)],
        ready="answers: ",
        env=hub.env(WRITE_TOKEN, folder / "home"),
    )
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def lead_key(server):
    """What the recipe printed for the lead."""
    return re.search(r"key: (\w+)", server.said)[1]


def shown(page, index=None):
    """The prompt, or an answer, as a person reads it."""
    place = ".prompt .text" if index is None else f".output[data-index='{index}'] .text.shown"
    return page.inner_text(f"form.task {place}").strip()


def judged(page):
    """What an annotator who knows the exact reward says: a choice, or ranks."""
    texts = [shown(page, i) for i in range(page.locator("form.task .output").count())]
    scores = gold_reward([shown(page)] * len(texts), texts)
    if len(texts) == 2:
        return "tie" if scores[0] == scores[1] else ("left", "right")[scores[1] > scores[0]]
    return [1 + sum(other > own for other in scores) for own in scores]


def mouse_quiz(page):
    """The quiz by mouse: the better answer of each question by the exact reward."""
    page.wait_for_selector("form.quiz")
    for question in page.query_selector_all(".question"):
        prompt = question.query_selector(".text").inner_text().strip()
        texts = [e.inner_text().strip() for e in question.query_selector_all(".output .text")]
        first, second = gold_reward([prompt] * 2, texts)
        question.query_selector(f"label.{'left' if first > second else 'right'}").click()
    page.click("form.quiz button.primary")
    page.wait_for_selector("text=/Passed: 3 of 3/")
    page.click(".message button.primary")
    page.wait_for_selector("form.task")


def mouse_answer(visit):
    """One task by mouse alone; a pair's answers are rated too."""
    page, said = visit.page, judged(visit.page)
    token = visit.token()
    if isinstance(said, list):
        for index, rank in enumerate(said):
            page.click(f"label:has(input[name=rank-{index}][value='{rank}'])")
    else:
        page.click(f"form.task label.{said}")
        page.click("label:has(input[name=rating-0][value='5'])")
    page.click("form.task button.primary")
    visit.until_other(token)


KEYS = {"left": "1", "slightly_left": "2", "tie": "3", "slightly_right": "4", "right": "5"}


def key_answer(visit):
    """One task by keyboard alone."""
    said = judged(visit.page)
    visit.submit(*(map(str, said) if isinstance(said, list) else KEYS[said]))


def tab_to(page, selector):
    """Tab until an element that matches has the focus, as someone without a mouse does."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement?.matches(s)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_twenty_items_by_mouse(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    visit.sign_in("mara")
    mouse_quiz(page)
    # A flag and a note, kept over a reload, and stored.
    while visit.kind() != "pair":
        mouse_answer(visit)
    page.click("details.flags summary >> nth=0")
    page.click("text=harmful advice >> nth=0")
    page.fill("textarea[name=notes]", "too long")
    page.reload()
    page.wait_for_selector("form.task")
    assert page.input_value("textarea[name=notes]") == "too long"
    mouse_answer(visit)
    said = server.answers()[-1][2]
    assert said["notes"] == "too long" and list(said["flags"].values()) == [["harmful advice"]]
    assert 5 in said["ratings"].values()
    # Skip with a reason, then undo: the item comes back.
    skipped = shown(page)
    page.click("button[data-do=skip-ask]")
    page.click("#hf-skip label >> nth=1")
    token = visit.token()
    page.click("#hf-skip button.primary")
    visit.until_other(token)
    token = visit.token()
    page.click("button[data-do=undo-ask]")
    page.click("#hf-undo button.primary")
    visit.until_other(token)
    assert shown(page) == skipped
    while visit.served() < ITEMS:
        mouse_answer(visit)
    visit.check(models=["LlamaForCausalLM"])
    visit.context.close()


def test_twenty_items_by_keyboard_alone_with_two_tabs_and_a_killed_server(server, chromium):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    page.goto(server.address)
    page.wait_for_selector("form.sign-in")
    tab_to(page, "input[name=name]")
    page.keyboard.type("kim")
    page.keyboard.press("Enter")
    page.wait_for_selector("form.quiz")
    for question in page.query_selector_all(".question"):
        prompt = question.query_selector(".text").inner_text().strip()
        texts = [e.inner_text().strip() for e in question.query_selector_all(".output .text")]
        first, second = gold_reward([prompt] * 2, texts)
        page.keyboard.press("1" if first > second else "5")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=/Passed: 3 of 3/")
    tab_to(page, ".message button.primary")
    page.keyboard.press("Enter")
    page.wait_for_selector("form.task")
    while visit.kind() != "pair":
        key_answer(visit)
    # A rating and a flag without a mouse: Tab to a group, arrows or space inside it.
    tab_to(page, "input[name=rating-1]")
    page.keyboard.press("ArrowRight")
    tab_to(page, "details.flags summary")
    page.keyboard.press("Space")
    tab_to(page, "input[type=checkbox]")
    page.keyboard.press("Space")
    key_answer(visit)
    said = server.answers()[-1][2]
    assert len(said["ratings"]) == 1 and sum(map(len, said["flags"].values())) == 1
    # A second tab on the same item stores nothing.
    while visit.kind() != "pair":
        key_answer(visit)
    other = visit.context.new_page()
    other.goto(server.address)
    other.wait_for_selector("form.task")
    before = len(server.answers())
    key_answer(visit)
    for key in ("2", "Enter"):
        other.keyboard.press(key)
    other.wait_for_selector("#hf-notice:has-text('Not stored')")
    other.close()
    assert len(server.answers()) == before + 1
    page.reload()
    page.wait_for_selector("form.task")
    while visit.served() < ITEMS // 2:
        key_answer(visit)
    # The server dies in the middle: the vote waits in the page and is stored once.
    token, before = visit.token(), len(server.answers())
    said = judged(page)
    server.kill()
    for key in (*(map(str, said) if isinstance(said, list) else KEYS[said]), "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#hf-notice:has-text('cannot be reached')")
    server.start()
    visit.until_other(token)
    assert len(server.answers()) == before + 1
    while visit.served() < ITEMS:
        key_answer(visit)
    visit.check(models=["LlamaForCausalLM"])
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", SIZES)
def test_every_page_and_dialog_in_every_look(server, chromium, lead_key, scheme, width):
    size = {"width": width, "height": SIZES[width]}
    visit = Visit(chromium, server, viewport=size, color_scheme=scheme)
    page, name = visit.page, f"{scheme}-{width}"
    visit.sign_in(f"looker {scheme} {width}")
    page.wait_for_selector("form.quiz")
    visit.look(f"{name}-quiz")
    mouse_quiz(page)
    looked = set()
    for _ in range(12):
        kind = visit.kind()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if kind not in looked:
            looked.add(kind)
            visit.look(f"{name}-{kind}")
        if looked == {"pair", "ranking"} and visit.served() >= 2:
            break
        mouse_answer(visit)
    assert looked == {"pair", "ranking"}
    for key, dialog in (("s", "skip"), ("u", "undo"), ("?", "help")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#hf-{dialog}[open]")
        visit.look(f"{name}-{dialog}")
        box = page.locator(f"#hf-{dialog}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        page.keyboard.press("Escape")
    page.click("button[data-do=history]")
    page.wait_for_selector(".history")
    visit.look(f"{name}-history")
    visit.context.clear_cookies()
    visit.sign_in("lead", lead_key, "/lead")
    page.wait_for_selector(".numbers")
    visit.look(f"{name}-lead")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not visit.outside and not visit.errors
    visit.context.close()


def test_the_lead_exports_and_a_reward_model_trains_on_it(server, chromium, lead_key, tmp_path):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900}, accept_downloads=True)
    page = visit.page
    visit.sign_in("lead", lead_key, "/lead")
    page.wait_for_selector(".numbers")
    told = page.inner_text("#hf-view")
    assert "Everything is backed up" in told and "mara" in told and "kim" in told
    with page.expect_download() as waiting:
        page.click("form[data-action=export] button")
    content = Path(waiting.value.path()).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    files = list(tmp_path.rglob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(rows) >= ITEMS
    for row in rows:  # people chose by the exact reward, and so it must have come out
        better, worse = gold_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert better > worse
    from hf_align.recipes import reward

    train = next(file for file in files if file.name == "train.jsonl")
    out = tmp_path / "reward"
    options = ["--max_steps", "3", "--test_split_size", "0.2", "--output_dir", str(out)]
    policy = build_testbed(progress=False).policy_path
    reward.main(["--dataset_name", str(train), "--model", str(policy), *options])
    assert (out / "model.safetensors").is_file()
    visit.context.close()


def test_the_lead_pushes_and_is_told_in_a_line_what_went_wrong(server, chromium, lead_key, hub):
    visit = Visit(chromium, server, viewport={"width": 1440, "height": 900})
    page = visit.page
    visit.sign_in("lead", lead_key, "/lead")
    page.wait_for_selector(".numbers")
    hub.fail("POST .*/commit/", 403)
    page.fill("form[data-action=push] input[name=repo]", "alice/votes")
    page.click("form[data-action=push] button")
    page.wait_for_selector("#hf-notice.bad:has-text('may not write to alice/votes')")
    assert set(hub.repos["datasets/alice/votes"].files) <= {".gitattributes"}
    page.wait_for_selector("#hf-align:not([aria-busy])")
    page.fill("form[data-action=push] input[name=repo]", "alice/votes")
    page.click("form[data-action=push] button")
    page.wait_for_selector("#hf-notice.good:has-text('Published at')")
    repo = hub.repos["datasets/alice/votes"]
    assert repo.private and len(repo.commits) == 1
    assert {"README.md", "run.json"} <= set(repo.files)
    visit.context.close()
