"""The arena's handlers, without a server: turns, blind votes, what is stored, what is refused."""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_arena import ATTACK, CONTESTANTS, NAMES, FakeArena, make_answering
from ui_world import ATTACKS, SECRET, Reader

from hf_align.arena import Answer, Progress
from hf_align.feedback import export_rows
from hf_align.ui.arena_page import Page, arena_frame
from hf_align.ui.arena_turns import Turns, seat, until
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.safe_text import TAGS
from hf_align.ui.sign_in import SpaceSignIn
from hf_align.ui.visitors import HEADER, Visitors

SAMPLING = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "seed": 7}
VISITOR = "visitor:ann"


@pytest.fixture
def make(shm):
    """Makes the page's handlers; their stores are closed at the end."""
    opened = []

    def build(arena=None, **settings):
        opened.append(make_answering(shm / str(len(opened)), arena, **settings))
        return opened[-1]

    yield build
    for answering in opened:
        answering.votes.collection.close(1.0)
        answering.votes.collection.store.close()


def ask(answering, prompt, account=VISITOR, models=(), blind=False, **sampling):
    """All steps of a turn."""
    body = {"prompt": prompt, "models": list(models), "blind": blind}
    payload = json.dumps({**body, "sampling": SAMPLING | sampling})
    return list(answering.turn(account, payload))


def act(answering, account=VISITOR, **body):
    """One request."""
    return answering.act(account, json.dumps(body))


def stored(answering):
    """What the store holds as battles, and the item of the first."""
    store = answering.votes.collection.store
    rows = list(export_rows(store, "arena", "battle"))
    items = [event for event in store.events("arena") if event["type"] == "item"]
    return rows, items


def test_a_turn_shows_both_answers_with_names_and_measures(make):
    steps = ask(make(), "why blue")
    assert steps[0]["code"] == "begun" and steps[-1]["code"] == "done"
    assert [step["code"] for step in steps].count("measuring") == 1
    read = Reader(steps[-1]["html"])
    for words in (NAMES[0], NAMES[1], "why blue ", "Certainly!", "+3.25 nats", "(β = 0.1)"):
        assert words in read.words
    assert "−1.50" in read.words and "bbbbbbbbbbbb" in read.words
    # Four tokens of the aligned answer: shifted, unshifted, marginal, shifted.
    kinds = [value for tag, name, value in read.attributes if (tag, name) == ("span", "class")]
    coloured = [value for value in kinds if value and value.startswith("tok ")][3:]  # the legend
    assert coloured == ["tok shifted", "tok unshifted", "tok marginal", "tok shifted"]
    assert "25% unshifted, 25% marginal, 50% shifted" in read.words
    titles = [value for tag, name, value in read.attributes if (tag, name) == ("span", "title")]
    assert titles[0] == "shifted: rank 7, +2.50 nats"


def test_only_those_who_are_chosen_are_asked_and_shown(make):
    arena = FakeArena()
    steps = ask(make(arena), "why", models=["tuned", "gone"])
    assert arena.keys == ("tuned",) and NAMES[0] not in steps[-1]["html"]


def test_nothing_names_a_model_before_the_vote(make):
    answering = make()
    for _ in range(4):
        steps = ask(answering, "why blue", blind=True)
        told = json.dumps(steps)
        assert not [word for word in (*NAMES, "aaaaaa", "bbbbbb", "reference") if word in told]
        assert "nats" not in told and "shifted" not in told  # only one of them has these
        turn = steps[-1]["turn"]
        told = json.dumps(act(answering, action="show", turn=turn))
        assert not [word for word in NAMES if word in told]
        reply = act(answering, action="vote", turn=turn, choice="left")
        assert NAMES[0] in reply["html"] and NAMES[1] in reply["html"]
        assert "+3.25 nats" in reply["html"] and "your choice" in reply["html"]


def test_a_best_of_n_is_not_known_by_its_pace(make):
    arena = FakeArena(
        contestants=(CONTESTANTS[0], replace(CONTESTANTS[1], role="best_of_n"), CONTESTANTS[2])
    )
    answer = arena.answer
    arena.answer = lambda *args: replace(answer(*args), draws=16)
    steps = ask(make(arena), "one two three", blind=True)
    assert [step["code"] for step in steps[:2]] == ["begun", "writing"]
    assert all(step["texts"] == ["", ""] for step in steps if step["code"] == "writing")
    assert "the best of" not in json.dumps(steps) and "three" in steps[-1]["html"]
    assert "the best of 16" in json.dumps(ask(make(arena), "one two three"))


def test_the_order_of_a_blind_turn_is_drawn():
    orders = [seat(CONTESTANTS, [], True) for _ in range(200)]
    # Binomial(200, 1/2) leaves 60..140 once in a hundred million.
    assert 60 < orders.count((0, 1)) < 140 and set(orders) == {(0, 1), (1, 0)}


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both_bad"])
def test_a_vote_is_stored_with_all_that_made_the_answers(make, choice):
    answering = make()
    steps = ask(answering, "why blue", blind=True, temperature=0.5, seed=11)
    shown = steps[-1]["html"]
    first = NAMES[1] if shown.index("Certainly!") < shown.index("why blue ", 400) else NAMES[0]
    act(answering, action="vote", turn=steps[-1]["turn"], choice=choice)
    [row], [item] = stored(answering)
    assert row["prompt"] == "why blue" and row["model_a"] == first
    winner = {"left": "model_a", "right": "model_b"}.get(choice)
    assert row["winner"] == winner or (winner is None and row["winner"].startswith("tie"))
    outputs = {output["model"]: output for output in item["body"]["outputs"]}
    tuned = outputs[NAMES[1]]
    assert tuned["completion"] == "Certainly! why blue please 11" and tuned["seed"] == 11
    assert tuned["revision"] == "b" * 40 and len(tuned["sha256"]) == 64
    assert tuned["sampling"] == {
        **{"temperature": 0.5, "top_p": 1.0, "max_new_tokens": 64, "draws": 1}
    }
    assert tuned["facts"]["log_ratio"] == 3.25 and tuned["facts"]["score"] == -1.5
    assert item["body"]["facts"] == {"source": "arena"} and item["body"]["withdrawn"]


def test_a_vote_on_a_folder_says_by_its_hash_what_was_in_it(make):
    folders = [replace(one, revision=None, sha256=one.key * 3) for one in CONTESTANTS[:2]]
    answering = make(FakeArena(contestants=(*folders, CONTESTANTS[2])))
    turn = ask(answering, "why", blind=True)[-1]["turn"]
    act(answering, action="vote", turn=turn, choice="left")
    [item] = stored(answering)[1]
    told = {output["model"]: output["revision"] for output in item["body"]["outputs"]}
    assert told == {one.name: one.sha256 for one in folders}


def test_a_vote_counts_once_and_cannot_be_changed_into_another(make):
    answering = make()
    turn = ask(answering, "why", blind=True)[-1]["turn"]
    for _ in range(2):
        assert "html" in act(answering, action="vote", turn=turn, choice="tie")
    assert act(answering, action="vote", turn=turn, choice="left")["code"] == "input"
    assert len(stored(answering)[0]) == 1


def test_a_vote_whose_receipt_was_lost_is_stored_once(make, monkeypatch):
    answering = make()
    turn = ask(answering, "why", blind=True)[-1]["turn"]
    collection = answering.votes.collection
    submit, calls = collection.submit, []

    def fails_after_storing(*args):
        receipt = submit(*args)
        calls.append(receipt)
        if len(calls) == 1:
            raise OSError("the backup cannot be reached")
        return receipt

    monkeypatch.setattr(collection, "submit", fails_after_storing)
    assert act(answering, action="vote", turn=turn, choice="left")["code"] == "retry"
    assert "html" in act(answering, action="vote", turn=turn, choice="left")
    assert len(stored(answering)[0]) == 1 and calls[1].duplicate


def test_names_shown_without_a_vote_are_no_longer_voted_on(make):
    answering = make()
    turn = ask(answering, "why", blind=True)[-1]["turn"]
    assert NAMES[0] in act(answering, action="reveal", turn=turn)["html"]
    assert act(answering, action="vote", turn=turn, choice="left")["code"] == "input"
    assert stored(answering) == ([], [])


def test_nothing_is_stored_without_a_vote(make):
    answering = make()
    ask(answering, "a secret")
    ask(answering, "a secret", blind=True)
    events = [event["type"] for event in answering.votes.collection.store.events("arena")]
    assert not {"item", "answer"} & set(events)


def test_an_answer_that_failed_names_no_model_and_takes_no_vote(make):
    answering = make()
    steps = ask(answering, "tuned fails", blind=True)
    assert not [name for name in NAMES if name in json.dumps(steps)]
    assert "could not answer" in steps[-1]["html"] and 'data-do="vote"' not in steps[-1]["html"]
    turn = steps[-1]["turn"]
    assert act(answering, action="vote", turn=turn, choice="left")["code"] == "input"
    assert f"{NAMES[1]} does not know" in act(answering, action="reveal", turn=turn)["html"]


def test_another_visitor_sees_nothing_of_a_turn(make):
    answering = make()
    turn = ask(answering, "why", blind=True)[-1]["turn"]
    for action in ("show", "vote", "reveal", "stop"):
        reply = act(answering, "visitor:eve", action=action, turn=turn, choice="left")
        assert reply["code"] == "input" and "no longer here" in reply["error"]
    assert stored(answering)[0] == []


def test_a_vote_may_need_a_name(make):
    answering = make(needs_name=True)
    assert "sign in" in ask(answering, "why", blind=True)[-1]["error"]
    assert ask(answering, "why")[-1]["code"] == "done"
    turn = ask(answering, "why", "hf:ann", blind=True)[-1]["turn"]
    assert "html" in act(answering, "hf:ann", action="vote", turn=turn, choice="left")


def test_stopping_keeps_what_was_written(make):
    answering, steps = make(FakeArena(pause=0.05)), []
    body = {"prompt": "one two three four five six", "models": [], "blind": True}
    payload = json.dumps(body | {"sampling": SAMPLING})
    for step in answering.turn(VISITOR, payload):
        steps.append(step)
        if step["code"] == "writing" and len(steps) == 3:
            assert act(answering, action="stop", turn=steps[0]["turn"]) == {"code": "stopping"}
    assert len(steps) < 7 and "stopped after" in steps[-1]["html"]
    assert 'data-do="vote"' not in steps[-1]["html"]  # half an answer is not compared


def test_a_page_that_goes_frees_the_turn(make):
    arena = FakeArena(pause=0.01)
    answering = make(arena)
    payload = json.dumps({"prompt": "a b c d", "models": [], "sampling": SAMPLING})
    turn = answering.turn(VISITOR, payload)
    next(turn), next(turn)
    assert arena.running == 1
    turn.close()
    assert arena.running == 0 and arena.ended == 1
    [left] = answering.turns._turns
    assert "not finished" in act(answering, action="show", turn=left)["error"]


def test_a_turn_elsewhere_is_stopped_by_closing_it():
    closed, stop = [], threading.Event()

    def elsewhere():
        try:
            for count in range(9):
                yield Progress(("a" * count, ""), (False, True), count)
        finally:
            closed.append(True)

    steps = []
    for step in until(stop, elsewhere()):
        steps.append(step)
        if len(steps) == 3:
            stop.set()
    answers = steps[-1]
    assert closed == [True] and [type(one) for one in answers] == [Answer, Answer]
    assert answers[0].text == "aaa" and answers[0].cancelled and len(steps) == 4


@pytest.mark.parametrize("name", ATTACKS)
def test_no_text_of_a_model_is_more_than_words(make, name):
    arena = FakeArena()
    arena.words = lambda prompt, sampling: [["hi"], [ATTACKS[name]], []]
    steps = ask(make(arena), ATTACKS[name])
    shown = [steps[-1]["html"], steps[-2]["texts"][1]]
    ours = {"section", "div", "p", "pre", "button", "ul", "li", "span", "article", "header", "h2"}
    ours |= {"details", "summary", "dl", "dt", "dd", "sub", "i", "br", "kbd", "code"}
    for html in shown:
        read = Reader(html)
        assert set(read.tags) <= TAGS | ours
        assert not [n for _, n, _ in read.attributes if n.startswith("on") or n == "src"]
        styles = [value for _, n, value in read.attributes if n == "style"]
        assert all(value.startswith("flex-grow:") for value in styles)
        buttons = {v for tag, n, v in read.attributes if (tag, n) == ("button", "data-do")}
        assert buttons <= {"copy", "shift"}
        hrefs = [value for _, n, value in read.attributes if n == "href"]
        assert all(value.startswith(("http://", "https://")) for value in hrefs)


def test_a_card_is_words_and_a_link(make):
    hostile = replace(
        CONTESTANTS[1],
        **{"name": ATTACKS["script"], "problem": ATTACKS["form"]},
        facts=replace(
            CONTESTANTS[1].facts,
            verdict_text=ATTACK,
            link="javascript:alert(1)",
            base="<img src=x>",
        ),
    )
    shown = arena_frame(Page(title="<b>", examples=[ATTACK]), [CONTESTANTS[0], hostile])
    read = Reader(shown)
    assert not {"script", "img", "style", "iframe", "svg", "b", "base"} & set(read.tags)
    assert not [v for _, n, v in read.attributes if n == "href" and not v.startswith("#")]
    assert "0.74 [0.73, 0.76]" in read.words and "−0.50" in read.words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ""}, "write a prompt"),
        ({"prompt": " \n\t"}, "write a prompt"),
        ({"prompt": "x" * 100_000}, "32,768 is the limit"),
        ({"models": ["gone"]}, "choose at least one"),
        ({"models": ["plain"], "blind": True}, "choose two"),
        ({"models": "plain"}, "reload"),
        ({"sampling": {}}, "reload"),
        ({"sampling": SAMPLING | {"temperature": -1}}, "temperature"),
        ({"sampling": SAMPLING | {"top_p": None}}, "top_p"),
        ({"sampling": SAMPLING | {"max_new_tokens": 2000}}, "at most 1024"),
        ({"sampling": SAMPLING | {"seed": 0.5}}, "seed"),
        ({"prompt": ["x"]}, "expected text"),
    ],
)
def test_what_cannot_be_asked_is_one_line(make, change, words):
    body = {"prompt": "why", "models": [], "blind": False, "sampling": SAMPLING} | change
    steps = list(make().turn(VISITOR, json.dumps(body)))
    assert steps[-1]["code"] == "input" and words in steps[-1]["error"]
    assert "\n" not in steps[-1]["error"]


@pytest.mark.parametrize("prompt", ["🙂🙃", "مرحبا بالعالم", "x" * 30_000])
def test_other_prompts_are_answered(make, prompt):
    steps = ask(make(), prompt)
    assert steps[-1]["code"] == "done" and 'dir="auto"' in steps[-1]["html"]


def test_a_visitor_is_whom_the_server_signed(make):
    visitors = Visitors(SECRET)
    token = visitors.new()
    known = visitors.account(SimpleNamespace(headers={HEADER: token}))
    assert known == f"visitor:{token.partition('.')[0]}"
    for forged in ("", "x", f"x.{token.partition('.')[2]}", token[:-1], "é.ü", "." + "0" * 64):
        assert visitors.account(SimpleNamespace(headers={HEADER: forged})) is None
    other = Visitors("another secret of its own")
    assert other.account(SimpleNamespace(headers={HEADER: token})) is None
    answering = make()
    assert act(answering, None, action="hello")["code"] == "visitor"
    assert next(answering.turn(None, "{}"))["code"] == "input"


def test_those_who_signed_in_are_known_by_name():
    visitors = Visitors(SECRET, SpaceSignIn())
    info = {"expires_at": time.time() + 60, "userinfo": {"preferred_username": "ann"}}
    request = SimpleNamespace(headers={HEADER: visitors.new()}, session={"oauth_info": info})
    assert visitors.account(request) == "hf:ann"
    request.session = {}
    assert visitors.account(request).startswith("visitor:")


def test_a_visitor_who_asks_too_often_waits(make):
    slow = {"limit": RateLimit(0.0, 2), "turn_limit": RateLimit(0.0, 1)}
    answering = make(**slow)
    assert ask(answering, "why")[-1]["code"] == "done"
    assert "too many requests" in ask(answering, "why")[-1]["error"]
    assert ask(answering, "why", "visitor:bob")[-1]["code"] == "done"
    replies = [act(answering, action="hello")["code"] for _ in range(3)]
    assert replies == ["hello", "hello", "retry"]


def test_old_turns_make_room():
    class One:
        def __init__(self, number):
            self.id, self.account = str(number), VISITOR

    turns = Turns(most=2)
    for number in range(3):
        turns.add(One(number))
    assert turns.of(VISITOR, "2").id == "2"
    with pytest.raises(ValueError, match="no longer here"):
        turns.of(VISITOR, "0")
