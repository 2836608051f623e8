"""The frame that both pages share, its style and script, and how the app is launched.

A page is a static frame; what is inside comes from the server as HTML. Its script sends one JSON
text per action and repeats it until the server has answered, so a restart in between loses nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from hf_align.feedback import Project
from hf_align.ui.endpoints import Answer, TextRoutes
from hf_align.ui.safe_text import CSP_META, POLICY, escaped
from hf_align.ui.sign_in import LocalSignIn, SignInRoutes

_ASSETS = Path(__file__).parent / "assets"
MAX_UPLOAD = "1mb"

KEYS = (
    ("1 … 5", "choose: 1 for A, 3 for a tie, 5 for B; in a ranking, rank the marked answer"),
    ("0", "both bad"),
    ("J, K", "mark the next or the previous answer of a ranking"),
    ("Enter", "submit, once a choice is made"),
    ("N", "write a note; Esc leaves it"),
    ("S", "skip: asks for the reason first"),
    ("U", "undo your last answer: asks first"),
    ("R", "show the answers as typed, character by character"),
    ("G", "show or hide the guidelines"),
    ("?", "these keys"),
    ("Tab, arrows, space", "everything else: ratings, flags, buttons"),
)


def frame(page: str, title: str, project: Project | None = None, chat: bool = False) -> str:
    """The static part of a page: header, places to fill, dialogs."""
    skip = "" if project is None else _skip_dialog(project.skip_reasons)
    tabs = _tabs(chat) if page == "collect" else ""
    side = (
        '<details id="hf-guidelines" open><summary>Guidelines <span id="hf-version"></span>'
        '</summary><div id="hf-guidelines-text" class="text"></div></details>'
        if page == "collect"
        else ""
    )
    return (
        f'<div id="hf-align" data-page="{page}"><header class="top"><h1>{escaped(title)}</h1>'
        f'<div id="hf-status"></div>{tabs}</header>'
        '<div id="hf-notice" role="status" aria-live="polite"></div>'
        f'<div class="body"><div id="hf-view" tabindex="-1"><p class="hint">Loading…</p></div>'
        f"{side}</div>{skip}{_UNDO}{help_dialog(KEYS, _TYPING)}</div>"
    )


def _tabs(chat: bool) -> str:
    extra = '<button type="button" data-do="chat-open">Chat</button>' if chat else ""
    return (
        '<nav class="tabs" aria-label="Pages"><button type="button" data-do="next">Tasks</button>'
        f'{extra}<button type="button" data-do="history">Your answers</button>'
        '<button type="button" data-do="sign-out" class="sign-out">Sign out</button></nav>'
    )


def _skip_dialog(reasons: Sequence[str]) -> str:
    options = "".join(
        f'<label><input type="radio" name="reason" value="{escaped(reason)}" required>'
        f"<span>{escaped(reason)}</span></label>"
        for reason in reasons
    )
    return (
        '<dialog id="hf-skip" aria-labelledby="hf-skip-title"><form method="dialog">'
        '<h2 id="hf-skip-title">Skip this task</h2><p>Someone else gets it.</p>'
        f"<fieldset><legend>Why?</legend>{options}</fieldset>"
        '<div class="actions"><button type="submit" class="primary" data-do="skip">Skip</button>'
        '<button type="button" data-do="close">Cancel</button></div></form></dialog>'
    )


_TYPING = "None of them works while you type."

_UNDO = (
    '<dialog id="hf-undo" aria-labelledby="hf-undo-title"><form method="dialog">'
    '<h2 id="hf-undo-title">Take back your last answer?</h2>'
    "<p>You get the same task again; nothing is deleted from the log.</p>"
    '<div class="actions"><button type="submit" class="primary" data-do="undo">Take back</button>'
    '<button type="button" data-do="close">Cancel</button></div></form></dialog>'
)


def help_dialog(keys: Sequence[tuple[str, str]], note: str) -> str:
    """The keys of a page and what they do."""
    rows = "".join(f"<dt><kbd>{key}</kbd></dt><dd>{what}</dd>" for key, what in keys)
    return (
        '<dialog id="hf-help" aria-labelledby="hf-help-title"><form method="dialog">'
        f'<h2 id="hf-help-title">Keys</h2><dl>{rows}</dl><p>{note}</p>'
        '<div class="actions"><button type="submit" class="primary">Close</button></div></form>'
        "</dialog>"
    )


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Fonts of the system, so that no page waits for another server; hues that pass for text."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def launch_options(
    sign_in: Any, answers: Mapping[str, Answer] | None = None, app: str = "collect"
) -> dict[str, Any]:
    """What `launch` needs beside address and port; nothing is asked of another server.

    Args:
        sign_in: How accounts are known.
        answers: The pages' endpoints, from `text_endpoints`; without them Gradio answers.
        app: Whose script it is: `assets/<app>.js`, with `assets/<app>.css` after the common one.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Not as `css`: Gradio's rewriting takes the commas inside :is() for ends of selectors.
    styles = ("collect.css", *([] if app == "collect" else [f"{app}.css"]))
    head = f"{CSP_META}<style>{''.join(map(_asset, styles))}</style>"
    options: dict[str, Any] = {
        **{"theme": theme(), "head": head, "js": _asset(f"{app}.js"), "footer_links": []},
        **{"run_history": False, "ssr_mode": False},
        **{"show_error": False, "max_file_size": MAX_UPLOAD, "strict_cors": True},
    }
    middleware = [Middleware(PolicyHeader)]
    if isinstance(sign_in, LocalSignIn):
        middleware.append(Middleware(SignInRoutes, sign_in=sign_in))
    if answers:
        middleware.append(Middleware(TextRoutes, answers=answers))
    options["app_kwargs"] = {"middleware": middleware, "docs_url": None, "redoc_url": None}
    return options


def wait_launched(
    demo: gr.Blocks,
    options: dict[str, Any],
    host: str | None,
    port: int | None,
    ready: Callable[[str], Any],
    finish: Callable[[], Any] = lambda: None,
) -> None:
    """Launches an app, says where it answers, and waits until the process is told to end.

    Args:
        demo: The app, closed at the end.
        options: From `launch_options`.
        host: Address to listen at; Gradio's own choice if None.
        port: Port; a free one from 7860 if None.
        ready: Called with the address once the app answers.
        finish: Called at the end while requests that came in are still answered.

    Raises:
        OSError: The port is taken.
    """
    where = {"server_name": host, "server_port": port}
    try:
        _, address, _ = demo.launch(**where, prevent_thread_lock=True, quiet=True, **options)
    except OSError as error:
        if port is None or "empty port" not in str(error):
            raise
        raise OSError(f"port {port} is taken; give another one, or none for a free one") from error
    try:
        ready(address)
        threading.Event().wait()
    finally:
        finish()
        demo.close(verbose=False)


class PolicyHeader:
    """ASGI middleware: the policy as a header too, in force before Gradio's script runs.

    Args:
        app: The app behind it.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Passes on, with three more headers."""

        async def with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        await self._app(scope, receive, with_policy)


_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)
