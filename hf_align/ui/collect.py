"""The collection app: annotators compare on one page, a lead watches and decides on another.

The pages' own HTML and script do the talking, through two JSON endpoints of the Gradio app. What
Gradio offers for it would let model text load pictures and cover buttons, and lose a vote when the
server restarts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from hf_align.feedback import Collection
from hf_align.ui.annotating import Annotating, Reply, Respond
from hf_align.ui.endpoints import text_endpoints
from hf_align.ui.leading import Leading
from hf_align.ui.page import frame, launch_options, wait_launched
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.sign_in import SignIn


def build_collect_app(
    collection: Collection,
    project: str,
    sign_in: SignIn,
    *,
    respond: Respond | None = None,
    per_second: float = 4.0,
    burst: int = 60,
) -> gr.Blocks:
    """The app of one project; nothing is global, and building it asks no network.

    Args:
        collection: An open collection that holds the project.
        project: Its name.
        sign_in: `SpaceSignIn()` on a Space, `LocalSignIn` elsewhere.
        respond: Writes the two answers of a chat turn; None for no chat.
        per_second: Requests per second that one account may make in the long run.
        burst: Requests that it may make at once.

    Raises:
        InputError: No such project.
    """
    settings = collection.briefing(project).project
    annotating = Annotating(collection, project, sign_in, respond, RateLimit(per_second, burst))
    leading = Leading(collection, project, sign_in, RateLimit(per_second, burst))
    title = settings.title or project
    with gr.Blocks(title=title, analytics_enabled=False) as demo:
        if sign_in.on_space:
            gr.LoginButton(size="sm", elem_id="hf-login")
        gr.HTML(frame("collect", title, settings, chat=respond is not None))
        _endpoint("collect", annotating.act, sign_in)
        _endpoint("lead", leading.act, sign_in)
    with demo.route("Lead", "/lead", show_in_navbar=False):
        if sign_in.on_space:
            gr.LoginButton(size="sm", elem_id="hf-login")
        gr.HTML(frame("lead", f"{title}: lead"))
    return demo.queue(default_concurrency_limit=None, max_size=256)


def _endpoint(name: str, act: Callable[[str | None, str], Reply], sign_in: SignIn) -> None:
    """An address that takes one JSON text and gives one back."""

    def answer(payload: str, request: gr.Request) -> str:
        return json.dumps(act(sign_in.account(request), payload))

    # Outside Gradio's queue: a reply over plain HTTP survives a restart, an event stream does not.
    gr.api(answer, api_name=name, queue=False, api_visibility="undocumented")


def serve(
    demo: gr.Blocks,
    collection: Collection,
    sign_in: SignIn,
    *,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[str], Any] = lambda address: None,
    app: str = "collect",
) -> None:
    """Serves until SIGTERM or Ctrl-C; then nothing is taken in any more and all is backed up.

    Args:
        demo: From `build_collect_app` or `build_arena_app`.
        collection: What it stores into.
        sign_in: As there.
        host: Address to listen at; Gradio's own choice if left out.
        port: Port; a free one from 7860 if left out.
        ready: Called with the address once the app answers.
        app: Which of the apps it is; see `launch_options`.

    Raises:
        OSError: The port is taken.
    """
    collection.gate.install()
    options = launch_options(sign_in, text_endpoints(demo), app)
    wait_launched(demo, options, host, port, ready, finish=collection.close)
