"""The arena's app: one prompt, every model side by side, and a blind vote between two.

A turn comes through Gradio's queue, which says how many wait and ends it when its page is gone;
everything else is one JSON text and its reply. The page holds no model: it asks an `Arena`, or
whatever plays a turn in its place, in a process of its own for example.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from hf_align.arena import Answer, Arena, Measures, Progress, Sampling
from hf_align.feedback import Refused
from hf_align.types import InputError
from hf_align.ui import arena_views as views
from hf_align.ui.annotating import Reply, parsed, text_of
from hf_align.ui.arena_page import Page, arena_frame
from hf_align.ui.arena_turns import Keys, Play, Steps, Turn, Turns, Votes, seat
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.visitors import Visitors

MAX_WAITING = 64
PAUSE = 0.04
"""Seconds between two pictures of answers that are being written."""


def build_arena_app(
    arena: Arena,
    visitors: Visitors,
    page: Page | None = None,
    *,
    votes: Votes | None = None,
    play: Play | None = None,
    at_once: int = 4,
) -> gr.Blocks:
    """The app of one arena; nothing is global, and building it asks no network.

    Args:
        arena: Who answers.
        visitors: Tells visitors from each other.
        page: Title, examples and the settings to begin with.
        votes: Where votes go; None for none.
        play: Plays a turn in place of the arena: see `play_on`.
        at_once: Turns that are played at a time; the others wait in a queue.
    """
    page = replace(page or Page(), votes="" if votes is None else votes.kept)
    answering = Answering(arena, visitors, page, votes, play or play_on(arena))
    with gr.Blocks(title=page.title, analytics_enabled=False) as demo:
        if visitors.on_space:
            gr.LoginButton(size="sm", elem_id="hf-login")
        gr.HTML(arena_frame(page, arena.contestants, arena.reward_problem))

        # Gradio takes the annotation for the type of each value.
        def turn(payload: str, request: gr.Request) -> str:
            for step in answering.turn(visitors.account(request), payload):
                yield json.dumps(step)

        def act(payload: str, request: gr.Request) -> str:
            return json.dumps(answering.act(visitors.account(request), payload))

        gr.api(
            turn,
            api_name="turn",
            api_visibility="undocumented",
            concurrency_limit=at_once,
            concurrency_id="turns",
        )
        gr.api(act, api_name="arena", queue=False, api_visibility="undocumented")
    return demo.queue(default_concurrency_limit=None, max_size=MAX_WAITING)


def play_on(arena: Arena) -> Play:
    """Turns that the arena plays in this process: answers, then what is measured of them."""

    def play(prompt: str, sampling: Sampling, keys: Keys, stop: threading.Event) -> Steps:
        return arena.stream(prompt, sampling, stop, measures=True, keys=keys)

    return play


class Answering:
    """What a visitor's page may ask of the server.

    Args:
        arena: Who answers.
        visitors: Makes names for those who have none.
        page: The limits of what may be asked for.
        votes: Where votes go; None for none.
        play: Plays a turn.
        limit: How often one visitor may ask for anything but a turn.
        turn_limit: How often for a turn.
    """

    def __init__(
        self,
        arena: Arena,
        visitors: Visitors,
        page: Page,
        votes: Votes | None,
        play: Play,
        limit: RateLimit | None = None,
        turn_limit: RateLimit | None = None,
    ) -> None:
        self.arena, self.visitors, self.page, self.votes = arena, visitors, page, votes
        self.turns = Turns()
        self._play = play
        self._limit = limit or RateLimit(2.0, 40)
        self._turn_limit = turn_limit or RateLimit(0.5, 12)
        self._actions: dict[str, Callable[[str, Mapping[str, Any]], Reply]] = {
            "hello": lambda account, _: {"code": "hello"},
            "stop": self._stop,
            "show": self._show,
            "vote": self._vote,
            "reveal": self._reveal,
        }

    # ------------------------------------------------------------------------------------- a turn

    def turn(self, account: str | None, payload: str) -> Iterator[Reply]:
        """Plays a turn: what the page shows while answers come, and in the end."""
        try:
            if account is None:
                raise InputError("this page has no visitor's name; reload it")
            self._turn_limit.take(account)
            turn = self.asked(account, parsed(payload))
        except InputError as error:
            yield {"code": "input", "error": str(error)}
            return
        try:
            yield from self._played(turn)
        except (InputError, OSError) as error:
            yield {"code": "input", "error": str(error)}
        finally:
            turn.stop.set()  # the page may be gone

    def asked(self, account: str, body: Mapping[str, Any]) -> Turn:
        """The turn that a page asks for.

        Raises:
            InputError: An impossible setting, or no model left.
        """
        text = text_of(body, "prompt")
        if not text.strip():
            raise InputError("write a prompt first")
        given = body.get("sampling")
        names = ("temperature", "top_p", "max_new_tokens", "seed")
        if not isinstance(given, dict) or set(given) != set(names):
            raise InputError("this page is of another version; reload it")
        sampling = Sampling(**given)
        if sampling.max_new_tokens > self.page.most_tokens:
            raise InputError(f"most tokens: at most {self.page.most_tokens} here")
        models = body.get("models")
        if not isinstance(models, list):
            raise InputError("this page is of another version; reload it")
        blind = body.get("blind") is True and self.votes is not None
        if blind:
            self._check_voter(account)
        places = seat(self.arena.contestants, [str(key) for key in models], blind)
        return Turn(account, text, sampling, places, blind)

    def _played(self, turn: Turn) -> Iterator[Reply]:
        self.turns.add(turn)
        yield {"code": "begun", "turn": turn.id, "html": self._view(turn)}
        keys = tuple(self.arena.contestants[place].key for place in turn.places)
        steps = self._play(turn.prompt, turn.sampling, keys, turn.stop)
        last, answers = 0.0, ()
        measures: tuple[Measures, ...] = ()
        try:
            for step in steps:
                if not isinstance(step, Progress):
                    if answers:
                        measures = step
                    else:
                        answers = step
                        yield {"code": "measuring", **self._whole(turn, answers)}
                elif time.monotonic() - last >= PAUSE:
                    yield {"code": "writing", **views.writing(turn, step, self.arena.contestants)}
                    last = time.monotonic()
        finally:
            steps.close()
        turn.answers, turn.measures = answers, measures
        yield {"code": "done", "turn": turn.id, "html": self._view(turn)}

    # ------------------------------------------------------------------------------ anything else

    def act(self, account: str | None, payload: str) -> Reply:
        """Answers one request; a page without a name gets one first."""
        if account is None:
            return {"code": "visitor", "visitor": self.visitors.new()}
        try:
            self._limit.take(account)
            body = parsed(payload)
            action = self._actions.get(str(body.get("action")))
            if action is None:
                raise InputError("this page is of another version; reload it")
            return action(account, body)
        except Refused as refusal:
            again = refusal.code in ("rate", "closing", "backlog")
            return {"error": str(refusal), "code": "retry" if again else refusal.code}
        except InputError as error:
            return {"error": str(error), "code": "input"}
        except OSError as error:
            return {"error": f"not saved yet: {error}", "code": "retry"}

    def _stop(self, account: str, body: Mapping[str, Any]) -> Reply:
        self.turns.of(account, body.get("turn")).stop.set()
        return {"code": "stopping"}

    def _show(self, account: str, body: Mapping[str, Any]) -> Reply:
        turn = self.turns.of(account, body.get("turn"))
        if not turn.answers:
            raise InputError("this turn was not finished; ask again")
        return self._shown(turn)

    def _vote(self, account: str, body: Mapping[str, Any]) -> Reply:
        turn = self.turns.of(account, body.get("turn"))
        if self.votes is None:
            raise InputError("no votes are taken here")
        self._check_voter(account)
        self.votes.cast(turn, self.arena.contestants, text_of(body, "choice"))
        return {**self._shown(turn), "notice": "Stored. These are the names."}

    def _check_voter(self, account: str) -> None:
        if self.votes is not None and self.votes.needs_name and not account.startswith("hf:"):
            raise InputError("sign in with Hugging Face to vote; the button is above")

    def _reveal(self, account: str, body: Mapping[str, Any]) -> Reply:
        turn = self.turns.of(account, body.get("turn"))
        if not turn.answers:
            raise InputError("the answers are not complete yet")
        with turn.lock:
            turn.revealed = True
        return self._shown(turn)

    def _shown(self, turn: Turn) -> Reply:
        return {"code": "turn", "turn": turn.id, "html": self._view(turn)}

    def _view(self, turn: Turn) -> str:
        return views.turn_view(turn, self.arena.contestants, self.votes is not None)

    def _whole(self, turn: Turn, answers: tuple[Answer, ...]) -> Reply:
        done = Progress(tuple(a.text for a in answers), tuple(True for _ in answers), 0)
        return views.writing(turn, done, self.arena.contestants)
