"""What the two pages may ask, without a server: every request that must be refused is."""

import base64
import io
import json
import socket
import zipfile

import pytest
from ui_world import ATTACKS, LEAD, MODELS, SECRET, Reader, item, quiz, request_with, token_of

from hf_align.feedback import Output
from hf_align.ui import LocalSignIn, SpaceSignIn
from hf_align.ui.page import wait_launched
from hf_align.ui.rate_limits import RateLimit

ANN, BEN = "local:ann", "local:ben"


# ------------------------------------------------------------------------------------- the way


def test_a_vote_is_stored_and_the_next_task_comes(make_pages):
    pages = make_pages()
    first = pages.ask(ANN, action="next")
    second = pages.vote(ANN, token_of(first), notes="n", active_ms=5, wall_ms=9)
    assert second["notice"] == "Saved." and token_of(second) != token_of(first)
    assert second["status"]["served"] == 1 and second["status"]["wanted"] == 4
    assert pages.answers() == 1


def test_everything_that_can_be_sent_twice_counts_once(make_pages):
    pages = make_pages()
    token = token_of(pages.ask(ANN, action="next"))
    pages.vote(ANN, token)
    assert pages.vote(ANN, token)["notice"] == "Saved already."
    last = pages.ask(ANN, action="next")["status"]["last"]
    pages.ask(ANN, action="undo", last=last)
    before = pages.ask(ANN, action="next")
    assert "notice" not in before or not before["notice"]
    pages.ask(ANN, action="undo", last=last)
    with pages.collection.store.read() as connection:
        undone = connection.execute("SELECT count(*) FROM events WHERE type = 'undo'").fetchone()
    assert undone[0] == 1


def test_two_tabs_on_one_item_store_one_answer(make_pages):
    pages = make_pages()
    token = token_of(pages.ask(ANN, action="next"))
    pages.vote(ANN, token, "left")
    other = pages.vote(ANN, token, "right")
    assert "answered" in other["notice"] and 'class="task"' in other["html"]
    assert pages.answers() == 1


def test_the_quiz_stands_before_the_tasks(make_pages):
    pages = make_pages([item(0), *quiz(2)], quiz_pass=1.0)
    asked = pages.ask(ANN, action="next")
    assert asked["code"] == "quiz" and "because" not in asked["html"]
    questions = [question.item_id for question in pages.collection.quiz("p")]
    failed = pages.ask(ANN, action="quiz", choices=dict.fromkeys(questions, "right"))
    assert "Not passed" in failed["html"] and "because 0" in failed["html"]
    assert pages.ask(ANN, action="next")["code"] == "quiz"
    passed = pages.ask(ANN, action="quiz", choices=dict.fromkeys(questions, "slightly_left"))
    assert "2 of 2" in passed["html"]
    assert pages.ask(ANN, action="next")["code"] == "task"


def test_rankings_ratings_flags_and_changes_reach_the_log(make_pages):
    pages = make_pages([item(0, "ranking")], rate_outputs=True)
    shown = pages.ask(ANN, action="next")
    answer = {
        "ranks": [1, 2, 2, 4],
        "ratings": [7, None, 1, None],
        "flags": [[], ["inappropriate"], [], []],
    }
    pages.ask(ANN, action="vote", token=token_of(shown), answer=answer)
    done = pages.collection.history("p", pages.collection.sign_in("p", ANN))[0]
    assert done.said["ranks"] == [1, 2, 2, 3] and done.said["ratings"] == [7, None, 1, None]
    card = pages.ask(ANN, action="change", event=done.event_id)
    assert card["html"].count(" checked") == 4 + 2 + 1
    changed = pages.ask(
        ANN, action="edit", event=done.event_id, answer={**answer, "ranks": [4, 3, 2, 1]}
    )
    assert changed["notice"] == "Changed."
    done = pages.collection.history("p", pages.collection.sign_in("p", ANN))[0]
    assert done.said["ranks"] == [4, 3, 2, 1]


def test_a_chat_goes_on_from_the_chosen_answer(make_pages):
    heard = []

    def respond(messages):
        heard.append([dict(message) for message in messages])
        return [Output(f"first {len(heard)}", MODELS[0]), Output(f"second {len(heard)}", MODELS[1])]

    pages = make_pages(respond=respond)
    turn = pages.ask(ANN, action="chat", text="hello", after="")
    assert 'data-mode="chat"' in turn["html"]
    right = turn["html"].split('aria-label="Answer B"')[1].split("</section>")[0]
    answer = {"choice": "right"}
    then = pages.ask(ANN, action="vote", token=token_of(turn), mode="chat", answer=answer)
    assert then["code"] == "chat"
    after = then["html"].split('data-after="')[1].split('"')[0]
    pages.ask(ANN, action="chat", text="and now", after=after)
    assert [turn["role"] for turn in heard[1]] == ["user", "assistant", "user"]
    assert heard[1][1]["content"] in right
    assert "error" in pages.ask(BEN, action="chat", text="mine now", after=after)


# ------------------------------------------------------------------------------------- attacks


def test_nobody_sees_a_model_or_who_else_said_what(make_pages):
    pages = make_pages([item(n) for n in range(3)], rate_outputs=True)
    seen = json.dumps(pages.ask(BEN, action="next"))
    for account in (ANN, BEN):
        reply = pages.ask(account, action="next")
        while reply["code"] == "task":
            reply = pages.vote(account, token_of(reply), notes="a note of mine")
            seen += json.dumps(reply)
        seen += json.dumps(pages.ask(account, action="history"))
    seen += json.dumps(pages.lead(LEAD, action="next"))
    assert not any(model in seen for model in MODELS)


def test_without_a_session_nothing_is_done(make_pages):
    pages = make_pages()
    token = token_of(pages.ask(ANN, action="next"))
    for action in ("next", "vote", "skip", "undo", "history", "quiz", "chat"):
        reply = pages.ask(None, action=action, token=token, answer={"choice": "left"})
        assert reply["code"] == "signed_out" and "status" not in reply
    assert pages.lead(None, action="export")["code"] == "signed_out"
    assert pages.answers() == 0


@pytest.mark.parametrize("name", ["account", "annotator", "name", "user", "profile"])
def test_a_page_cannot_say_who_it_is(make_pages, name):
    pages = make_pages()
    pages.ask(BEN, action="next")
    reply = pages.ask(ANN, action="next", **{name: BEN})
    assert reply["status"]["name"] == "ann"


def test_a_forged_or_foreign_token_stores_nothing(make_pages):
    pages = make_pages()
    mine = token_of(pages.ask(ANN, action="next"))
    payload, _, signature = mine.partition(".")
    body = json.loads(base64.urlsafe_b64decode(payload))
    body["annotator"] = pages.collection.sign_in("p", BEN)
    other = base64.urlsafe_b64encode(json.dumps(body).encode()).decode()
    forged = [f"{other}.{signature}", "", "x.y", None, 7, {"a": 1}, "é.é", "a" * 10**5]
    for token in forged:
        assert pages.vote(ANN, token)["notice"].startswith("Not stored")
    assert pages.vote(BEN, mine)["notice"].startswith("Not stored")
    assert pages.answers() == 0


def test_a_vote_on_an_item_given_back_is_refused(make_pages):
    pages = make_pages()
    token = token_of(pages.ask(ANN, action="next"))
    pages.ask(ANN, action="skip", token=token, reason="bug")
    assert pages.vote(ANN, token)["notice"].startswith("Not stored")
    assert pages.answers() == 0


@pytest.mark.parametrize(
    "body",
    [
        {"action": "pause", "paused": "yes"},
        {"action": "export", "kind": "raw"},
        {"action": "push", "repo": "a/b"},
        {"action": "guidelines", "text": "mine"},
        {"action": "settings", "overlap": "9"},
        {"action": "adjudicate", "item": "x", "score": "2"},
        {"action": "pause-annotator", "annotator": "x", "reason": "y"},
        {"action": "requeue", "item": "x"},
        {"action": "next"},
    ],
    ids=lambda body: body["action"],
)
def test_an_annotator_leads_nothing(make_pages, body):
    pages = make_pages()
    reply = pages.lead(ANN, **body)
    assert reply["code"] == "role" and set(reply) == {"html", "code"}
    assert "numbers" not in reply["html"]
    briefing = pages.collection.briefing("p")
    assert not briefing.paused and briefing.guideline_version == 1
    # The lead's actions are unknown to the annotators' page, whoever asks there.
    assert pages.ask(LEAD, action="adjudicate")["code"] == "input"


@pytest.mark.parametrize(
    "payload",
    [
        *("", "null", "[]", "7", '"x"', "{", "[" * 100_000, '{"action": ["next"]}', "{}"),
        '{"action": "vote", "token": "x"}',
        '{"action": "vote", "token": "x", "answer": []}',
        '{"action": "vote", "token": "x", "answer": {"is_gold": true}}',
        '{"action": "vote", "token": "x", "answer": {"ranks": 5, "flags": "ab", "ratings": {}}}',
        '{"action": "vote", "token": "x", "answer": {"flags": [5]}}',
        '{"action": "skip", "token": "x", "reason": 5}',
        '{"action": "quiz", "choices": {"a": 1}}',
        '{"action": "change", "event": {"$ne": 1}}',
        '{"action": "chat", "text": "hi"}',
    ],
)
def test_nonsense_is_one_line(make_pages, payload):
    pages = make_pages()
    reply = pages.annotating.act(ANN, payload)
    assert reply["code"] == "input" and "\n" not in reply["error"]
    assert pages.leading.act(LEAD, payload)["code"] == "input"


def test_ten_megabytes_of_note_are_refused_and_the_task_stays(make_pages):
    pages = make_pages()
    token = token_of(pages.ask(ANN, action="next"))
    reply = pages.vote(ANN, token, notes="x" * 10_000_000)
    assert reply["code"] == "input" and "html" not in reply
    reply = pages.vote(ANN, token, notes="x" * 20_000)
    assert "at most 10000" in reply["error"] and pages.answers() == 0
    assert pages.vote(ANN, token, notes="x" * 10_000)["notice"] == "Saved."


NASTY = ["'; DROP TABLE events; --", '"><script>alert(1)</script>', *ATTACKS.values()]


def test_sql_and_html_in_every_field_are_words(make_pages):
    pages = make_pages([item(n) for n in range(40)], overlap=2, limit=RateLimit(1e6, 10**6))
    pages.leading._limit = RateLimit(1e6, 10**6)
    replies = []
    for text in NASTY:
        reply = pages.ask(ANN, action="next")
        token = token_of(reply)
        for field in ("choice", "layout", "viewport", "text"):
            replies.append(pages.vote(ANN, token, **{field: text}))
        replies.append(pages.ask(ANN, action="skip", token=token, reason=text, notes=text))
        shown = pages.ask(ANN, action="next")
        replies.append(pages.vote(ANN, token_of(shown), notes=text))
        replies.append(pages.ask(BEN, action="next"))
        replies.append(pages.vote(BEN, token_of(replies[-1]), "right", notes=text))
        for field in ("guidelines", "reason", "item", "annotator", "kind", "repo", "overlap"):
            for action in ("guidelines", "adjudicate", "requeue", "pause-annotator", "settings"):
                body = {field: text, "text": text, "score": "1", "action": action}
                replies.append(pages.lead(LEAD, **body))
    replies.append(pages.ask(ANN, action="history"))
    replies.append(pages.lead(LEAD, action="next"))
    for reply in replies:
        read = Reader(reply.get("html", ""))
        assert not {"script", "img", "iframe", "object", "style", "base", "svg"} & set(read.tags)
        assert not [name for _, name, _ in read.attributes if name.startswith("on")]
        assert "\u202e" not in json.dumps(reply, ensure_ascii=False)
    with pages.collection.store.read() as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone()[0] > 40


def test_one_account_cannot_hold_up_the_others(make_pages):
    now = [0.0]
    pages = make_pages(limit=RateLimit(1.0, 3, lambda: now[0]))
    replies = [pages.ask(ANN, action="next") for _ in range(5)]
    assert [reply["code"] for reply in replies] == ["task"] * 3 + ["retry"] * 2
    assert pages.ask(BEN, action="next")["code"] == "task"
    now[0] += 1.0
    assert pages.ask(ANN, action="next")["code"] == "task"


# ------------------------------------------------------------------------------------- sign-in


def test_a_cookie_is_whose_it_was_made_for_or_nobodys():
    signs = LocalSignIn(SECRET)
    cookie = signs.cookie("ann")
    assert signs.account(request_with(cookie)) == "local:ann"
    payload, _, signature = cookie.partition(".")
    other = base64.urlsafe_b64encode(b"local:lead").decode()
    for forged in (f"{other}.{signature}", payload, f"{payload}.", "", ".", "é.é", "a.b"):
        assert signs.account(request_with(forged)) is None
    assert LocalSignIn(SECRET + "2").account(request_with(cookie)) is None


@pytest.mark.parametrize("name", ["lead", "LEAD", "Lead", " lead "])
def test_a_leads_name_needs_the_key(name):
    from hf_align.feedback import Refused

    signs = LocalSignIn(SECRET)
    for key in ("", "wrong", signs.lead_key[:-1], "é"):
        with pytest.raises(Refused):
            signs.cookie(name, key)
    cookie = signs.cookie("lead", signs.lead_key)
    assert signs.account(request_with(cookie)) == LEAD


@pytest.mark.parametrize("name", ["", "a" * 41, "../x", "<b>", "a\nb", "é", "a;b", "a\u202eb"])
def test_names_are_plain(name):
    from hf_align.feedback import Refused

    with pytest.raises(Refused):
        LocalSignIn(SECRET).cookie(name)


def test_an_invitation_is_needed_where_there_is_one():
    from hf_align.feedback import Refused

    signs = LocalSignIn(SECRET, invite="spring")
    with pytest.raises(Refused):
        signs.cookie("ann", "autumn")
    assert signs.account(request_with(signs.cookie("ann", "spring"))) == "local:ann"


def test_on_a_space_the_oauth_session_alone_tells_who_it_is():
    from types import SimpleNamespace

    signs = SpaceSignIn()
    info = {"userinfo": {"preferred_username": "ann"}, "expires_at": 4e9}
    request = SimpleNamespace(request=SimpleNamespace(session={"oauth_info": info}))
    assert signs.account(request) == "hf:ann"
    request.request.session["oauth_info"]["expires_at"] = 1
    assert signs.account(request) is None
    cookie = LocalSignIn(SECRET).cookie("ann")
    assert signs.account(SimpleNamespace(cookies={"hf_align_account": cookie})) is None


# ------------------------------------------------------------------------------------- the lead


def test_the_lead_settles_pauses_changes_and_exports(make_pages):
    pages = make_pages([item(0)])
    for account, side in ((ANN, "left"), (BEN, "left")):
        pages.vote(account, token_of(pages.ask(account, action="next")), side)
    page = pages.lead(LEAD, action="next")["html"]
    # The sides were balanced, so two votes for the left one disagree.
    assert "Disagreements to settle (1)" in page and "local:ann" in page
    where = page.split('name="item" value="')[1].split('"')[0]
    after = pages.lead(LEAD, action="adjudicate", item=where, score="2", notes="clear")
    assert "Disagreements to settle (0)" in after["html"]
    assert "paused" in pages.lead(LEAD, action="pause", paused="yes")["html"]
    assert pages.ask("local:new", action="next")["code"] == "paused"
    pages.lead(LEAD, action="pause", paused="no")
    assert "version 2" in pages.lead(LEAD, action="guidelines", text="New.")["notice"]
    assert pages.lead(LEAD, action="settings", overlap="3", quota="")["code"] == "lead"
    assert pages.ask("local:new", action="next")["code"] == "task"
    file = pages.lead(LEAD, action="export", kind="preference", votes="majority")["file"]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(file["base64"]))) as archive:
        names = {name.split("/")[-1] for name in archive.namelist()}
        assert "manifest.json" in names and len(names) == 2
        rows = next(n for n in archive.namelist() if n.endswith("jsonl"))
        row = json.loads(archive.read(rows).splitlines()[0])
    assert row["chosen_model"] == MODELS[0] and row["adjudicated"]


@pytest.mark.parametrize(
    "body",
    [
        {"action": "settings", "overlap": "0"},
        {"action": "settings", "overlap": "2.5"},
        {"action": "settings", "gold_rate": "nan"},
        {"action": "export", "kind": "../../etc"},
        {"action": "export", "kind": "preference"},
        {"action": "export", "kind": "raw", "format": "exe"},
        {"action": "push", "repo": ""},
        {"action": "adjudicate", "item": "none", "score": "2"},
        {"action": "pause-annotator", "annotator": "nobody", "reason": "x"},
    ],
    ids=str,
)
def test_a_leads_mistake_is_one_line(make_pages, body):
    reply = make_pages().lead(LEAD, **body)
    assert reply["code"] == "input" and "\n" not in reply["error"]


def test_a_port_that_is_taken_is_named():
    import gradio as gr

    with socket.socket() as other, gr.Blocks() as demo:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"^port {port} is taken"):
            wait_launched(demo, {}, "127.0.0.1", port, lambda address: None)
