"""What an explorer's page is told, without a server: curves, texts, refusals, and what is read."""

import json
import re

import numpy as np
import pytest
from explorer_world import ATTACK, audits, write_best_of_n, write_run
from ui_world import Reader

from hf_align.diagnostics import explorer as numbers
from hf_align.diagnostics.what_if import what_if
from hf_align.types import InputError
from hf_align.ui import explorer_runs
from hf_align.ui.charts import Axes, Series, curve_chart, ticks
from hf_align.ui.explorer import build_explorer_app
from hf_align.ui.explorer_runs import Shelf, Source
from hf_align.ui.exploring import Exploring
from hf_align.ui.rate_limits import RateLimit

ALLOWED = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "em", "strong", "code", "pre", "a"),
    *("blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "div", "span"),
    *("section", "figure", "figcaption", "svg", "g", "path", "circle", "line", "text"),
    *("dl", "dt", "dd", "details", "summary"),
}


class Page:
    """An explorer's page: `page.ask(action="chart", runs=["a"])`."""

    def __init__(self, *sources, **settings):
        self.shelf = Shelf([Source(str(s)) if not isinstance(s, Source) else s for s in sources])
        self.exploring = Exploring(self.shelf, **settings)

    def ask(self, **body):
        return self.exploring.act("here", json.dumps(body))

    def read(self, run, index, row=0, order="prompts"):
        return self.ask(action="read", run=run, index=index, row=row, order=order)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with completions, one without, a hostile one, and best-of-n."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "good")
    write_run(folder / "silent", samples=False, curve=audits(farthest=2.0, seed=1))
    write_run(
        folder / "hostile",
        text=lambda step, row: ATTACK,
        report={"warnings": [ATTACK], "verdict": {"label": "NO GAIN", "text": ATTACK}},
    )
    write_best_of_n(folder / "best")
    return folder


@pytest.fixture
def page(runs):
    return Page(*(runs / name for name in ("good", "silent", "hostile", "best")))


ALL = ["good", "silent", "hostile", "best"]


def test_the_chart_holds_every_run_and_its_numbers(page):
    reply = page.ask(action="chart", runs=ALL)
    assert reply["pending"] == [] and reply["problems"] == ""
    d, gold, proxy = audits()
    curve = reply["curves"]["good"]
    assert curve["steps"] == [10 * i for i in range(8)]
    assert curve["d"] == pytest.approx(d, abs=1e-5)
    assert curve["gold"] == pytest.approx((gold - gold[0]).mean(axis=1), abs=1e-4)
    assert curve["proxy"] == pytest.approx((proxy - proxy[0]).mean(axis=1), abs=1e-4)
    assert reply["pools"] == {"best": 8} and not reply["curves"]["best"]["trained"]
    assert reply["html"].count('class="band') == 8  # gold and proxy of four runs
    words = Reader(reply["html"]).words
    for name in (*ALL, "circle", "square", "triangle", "diamond"):
        assert name in words


def test_equal_kl_is_that_of_the_numbers_and_says_what_was_not_reached(page):
    reply = page.ask(action="equal", runs=["good", "silent"], run="good", index=2)
    d, gold, _ = audits()
    words = Reader(reply["html"]).words
    assert f"KL {d[2] ** 2:.3g} nats" in words
    assert f"{(gold[2] - gold[0]).mean():+.2f}" in words and "step 20" in words
    far = Reader(page.ask(action="equal", runs=["silent"], run="good", index=5)["html"]).words
    assert "not reached: it went to KL 4 (gold" in far


def test_completions_are_read_beside_the_references(page):
    _, gold, proxy = audits()
    reply = page.read("good", 3, row=4)
    words = Reader(reply["html"]).words
    assert (reply["row"], reply["rows"]) == (4, 60)
    assert "answer 4 of step 0" in words and "answer 4 of step 30" in words and "prompt 4" in words
    for value in (gold[3][4], gold[3][4] - gold[0][4], proxy[3][4], 0.4):
        assert f"{abs(value):.2f}" in words
    assert page.read("good", 3, row=-1)["row"] == 59
    worst = page.read("good", 7, order="over_optimised")
    assert "Over-optimised here" in worst["html"]
    apart = (proxy[7] - proxy[0]) / (proxy[7] - proxy[0]).std() - (gold[7] - gold[0]) / (
        gold[7] - gold[0]
    ).std()
    assert f"prompt {apart.argmax()}" in Reader(worst["html"]).words


def test_a_run_without_completions_shows_its_reports_and_says_so(page, runs, tmp_path):
    reply = page.read("silent", 3)
    words = Reader(reply["html"]).words
    assert "kept no completions of its audits" in words and "shipped" in words
    lost = write_run(tmp_path / "lost")
    (lost / "audit_samples" / "step-00000030.parquet").unlink()
    words = Reader(Page(lost).read("lost", 3)["html"]).words
    assert "no completions of this audit" in words and "step 30" in words
    (lost / "audit_samples" / "step-00000040.parquet").write_bytes(b"PAR1 no")
    other = Page(lost)
    error = other.read("lost", 4)["error"]
    assert "damaged" in error and str(tmp_path) not in error
    assert other.ask(action="equal", runs=["lost"], run="lost", index=4)["code"] == "equal"


def test_best_of_n_is_the_best_of_the_first_n(page, tmp_path):
    folder, proxy, gold = write_best_of_n(tmp_path / "other", seed=3)
    other = Page(folder)
    for n, row in ((1, 0), (3, 2), (8, 5)):
        reply = other.ask(action="best", run="other", n=n, row=row)
        words = Reader(reply["html"]).words
        winner = int(proxy[row][:n].argmax())
        assert f"draw {winner} of {row}" in words and (reply["rows"], reply["row"]) == (6, row)
        assert f"{np.log(n) - (n - 1) / n:.3f} nats" in words
    everything = other.ask(action="best", run="other", n=8, row=0)["html"]
    best_gold = gold[np.arange(6), proxy.argmax(axis=1)].mean()
    assert f"{best_gold:.2f}".replace("-", "−") in Reader(everything).words
    assert "no best-of-n run" in page.ask(action="best", run="good", n=2, row=0)["error"]
    (folder / "report/pool.parquet").unlink()
    alone = Page(folder).ask(action="best", run="other", n=2, row=0)
    assert "kept no pool" in alone["html"] and "Best of 2" in alone["html"]


def test_what_if_shows_the_answer_with_what_did_happen(page):
    d, gold, proxy = audits()
    found = what_if(numbers.curve_of_audits(
        [{"step": i, "kl": d[i] ** 2, "gold": gold[i].tolist(), "proxy": proxy[i].tolist()}
         for i in range(8)], "x"), 0.1)  # fmt: skip
    reply = page.ask(action="what-if", runs=ALL, run="good", beta=0.1)
    words = Reader(reply["html"]).words
    assert f"KL {found.kl.value:.2f} [" in words and "R²" in words
    assert "What did happen" in words and "0.05" in words
    refused = Reader(page.ask(action="what-if", runs=ALL, run="good", beta=9)["html"]).words
    assert "Cannot be said" in refused
    assert "trained run" in page.ask(action="what-if", runs=ALL, run="best", beta=0.1)["error"]


def test_no_text_of_a_run_becomes_more_than_text(page):
    parts = [page.ask(action="chart", runs=["hostile"])[key] for key in ("html", "verdicts")]
    parts.append(page.read("hostile", 5)["html"])
    for part in parts:
        reader = Reader(part)
        assert set(reader.tags) <= ALLOWED, set(reader.tags) - ALLOWED
        for _, name, value in reader.attributes:
            assert not name.startswith("on") and name not in ("src", "style", "action", "srcdoc")
            if name == "href":
                assert re.match("https?://", value)
        assert "\u202e" not in part
    assert "U+202E" in parts[2] and "U+202E" in parts[1]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("report/report.json", '{"schema": 1, "metrics": {"gold/gain": NaN}}', "holds NaN"),
        ("report/report.json", "{", "damaged"),
        ("report/report.json", "[" * 5000, "refused|damaged"),
        ("report/report.json", " " * (17 * 2**20), "refused: 17,"),
        ("run.json", '{"recipe": 3}', "names no recipe"),
        ("run.json", '{"recipe": "goodhart"}', "comparison of runs"),
        ("report/report.json", '{"schema": 1, "recipe": "hhh"}', "refused|damaged|not a report|no"),
        ("run.json", None, "holds no run"),
    ],
)
def test_a_hostile_record_is_refused_with_its_reason_beside_a_good_run(
    runs, tmp_path, file, content, words
):
    bad = write_run(tmp_path / "bad", samples=False)
    (bad / file).unlink() if content is None else (bad / file).write_text(content)
    reply = Page(runs / "good", bad).ask(action="chart", runs=["good", "bad"])
    assert re.search(words, Reader(reply["problems"]).words), reply["problems"]
    assert str(tmp_path) not in reply["problems"]  # the page may be open to others
    assert list(reply["curves"]) == ["good"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "kept no audits"),
        ("[{}]", "damaged"),
        ('[{"step": 0, "kl": 1e999}]', "no finite number"),
        ("{}", "not a list"),
    ],
)
def test_a_run_with_damaged_audits_keeps_its_verdict(tmp_path, content, words):
    bad = write_run(tmp_path / "bad")
    (bad / "audits.json").unlink() if content is None else (bad / "audits.json").write_text(content)
    page = Page(bad)
    reply = page.ask(action="chart", runs=["bad"])
    assert words in reply["verdicts"] and "OVER-OPTIMISED" in reply["verdicts"]
    assert reply["curves"] == {} and words in page.read("bad", 0)["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "fly"},
        {"action": "chart"},
        {"action": "chart", "runs": "good"},
        {"action": "chart", "runs": [1]},
        {"action": "chart", "runs": list("abcdefg")},
        {"action": "read", "run": "good", "index": 99, "row": 0},
        {"action": "read", "run": "good", "index": -1, "row": 0},
        {"action": "read", "run": "good", "index": True, "row": 0},
        {"action": "read", "run": "good", "index": 10**400, "row": 0},
        {"action": "read", "run": "../good", "index": 1, "row": 0},
        {"action": "read", "run": ["good"], "index": 1, "row": 0},
        {"action": "read", "run": "good", "index": 1, "row": "x"},
        {"action": "what-if", "runs": [], "run": "good", "beta": -1},
        {"action": "what-if", "runs": [], "run": "good", "beta": None},
        {"action": "best", "run": "best", "n": 0, "row": 0},
        {"action": "best", "run": "best", "n": 9, "row": 0},
        {"action": "add", "name": "org/run"},
        {"action": "add"},
    ],
)
def test_a_request_that_no_page_makes_is_one_line(page, body):
    reply = page.ask(**body)
    assert reply["code"] == "input" and reply["error"] and "\n" not in reply["error"]


def test_what_is_no_request_is_one_line_too(page):
    for payload in ("", "[]", "nan", "{" * 99_999, None, '{"action": "read", "index": NaN}'):
        assert page.exploring.act("here", payload)["code"] == "input"


def test_one_address_cannot_ask_without_end(runs):
    page = Page(runs / "good", limit=RateLimit(0.001, 3))
    codes = [page.ask(action="equal", runs=["good"], run="good", index=0)["code"] for _ in range(4)]
    assert codes == ["equal"] * 3 + ["retry"]


def test_visitors_add_hub_ids_and_nothing_else_and_only_where_they_may(runs):
    shelf = Shelf([Source(str(runs / "good"))], allow_others=True)
    assert shelf.add(" https://huggingface.co/org/run ") == "org/run"
    assert shelf.add("datasets/org/best") == "datasets/org/best" and shelf.add("good") == "good"
    for name in ("", "run", "a/b/c", "../etc", "/etc/passwd", "a/..", "org/ru n", "~/x", str(runs)):
        with pytest.raises(InputError, match="org/name"):
            shelf.add(name)
    with pytest.raises(InputError, match="no others"):
        Shelf([Source(str(runs / "good"))]).add("org/run")
    for number in range(40):
        shelf.add(f"org/run-{number}")
    assert len(shelf._others) == explorer_runs.MOST_OTHERS


def test_a_folder_of_the_server_is_no_hub_id(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    shelf = Shelf([], allow_others=True)
    key = shelf.add(f"{runs.name}/good")
    _, problems, _ = shelf.opened([key], 5.0)
    assert "a folder of that name lies here" in problems[key]


def test_opening_reads_summaries_and_no_completions(runs, monkeypatch):
    read = []
    real = explorer_runs.LoadedRun._completions

    def completions(self, path):
        read.append(path)
        return real(self, path)

    monkeypatch.setattr(explorer_runs.LoadedRun, "_completions", completions)
    page = Page(*(runs / name for name in ALL))
    page.ask(action="chart", runs=ALL)
    page.ask(action="equal", runs=ALL, run="good", index=3)
    page.ask(action="what-if", runs=ALL, run="good", beta=0.1)
    assert read == []
    page.read("good", 3)
    page.read("good", 3, row=9)  # the same two files, which are kept
    assert read == ["audit_samples/step-00000030.parquet", "audit_samples/step-00000000.parquet"]


def test_folders_of_one_name_are_told_apart_without_their_whole_path(tmp_path):
    for place in ("x/runs/ppo", "y/runs/ppo"):
        write_run(tmp_path / place, samples=False)
    shelf = Shelf([Source(str(tmp_path / place)) for place in ("x/runs/ppo", "y/runs/ppo")])
    assert shelf.keys == ["ppo", "runs/ppo"]
    with pytest.raises(InputError, match="named twice"):
        Shelf([Source("org/a"), Source("org/a")])
    with pytest.raises(InputError, match="no runs"):
        build_explorer_app([])


def test_runs_that_cannot_be_compared_say_why(runs, tmp_path):
    other = write_run(tmp_path / "other", samples=False)
    (other / "lineage.json").write_text(json.dumps({"reference": {"sha256": "b" * 64}}))
    report = json.loads((other / "report/report.json").read_text())
    report["evaluation"] = {"gold": "a judge", "proxy": "rm"}
    (other / "report/report.json").write_text(json.dumps(report))
    notes = Reader(Page(runs / "good", other).ask(action="chart", runs=["good", "other"])["notes"])
    assert (
        "different references" in notes.words and "different golds (exact, a judge)" in notes.words
    )
    assert "different proxys" not in notes.words
    assert Page(runs / "good").ask(action="chart", runs=["good"])["notes"] == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.7, 2), (0, 1e-6), (-1e9, 1e9), (0.1, 0.2), (5, 5.001)]
)
def test_ticks_are_round_evenly_spaced_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 14 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert np.allclose(np.diff(found), found[1] - found[0], rtol=1e-6)
    assert not low < 0 < high or 0 in found


def test_a_chart_without_spread_or_values_still_draws():
    flat = Series("x", 0, np.array([0.0, 1.0]), numbers.gains(np.zeros((2, 3))))
    assert "nan" not in curve_chart([flat], 1.0, "Gold gain", "gold")
    assert "None of these runs" in curve_chart([], 1.0, "Gold gain", "gold")
    axes = Axes((0, 2), (-1, 1))
    assert axes.across(2) > axes.across(0) and axes.up(1) < axes.up(-1)
