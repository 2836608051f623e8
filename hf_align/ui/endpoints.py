"""The pages' JSON endpoints, answered without what Gradio does around a component's event.

A vote is one text in and one text out; state, files, progress and types, which Gradio looks at for
every call, are none of its business and cost several times what storing the vote does. Addresses
and bodies are Gradio's own, so whatever is not understood here is passed on to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

Answer = Callable[[Any, Request], str]
"""The text that a request is answered with; called in a thread."""

MAX_BODY = 4_000_000
"""Bytes; what is longer is answered as if it were empty."""

_THREADS = 64  # answers that wait for the backup occupy one each
_PREFIX = "/gradio_api/run/"


def text_endpoints(demo: gr.Blocks) -> dict[str, Answer]:
    """What `gr.api` made of functions of one text, outside of the queue, by name."""
    return {
        str(fn.api_name): fn.fn
        for fn in demo.fns.values()
        if fn.fn is not None and fn.api_name and not fn.queue and len(fn.inputs) == 1
    }


class TextRoutes:
    """ASGI middleware: `POST /gradio_api/run/NAME` with `{"data": [text]}` gets the same back.

    Args:
        app: The app behind it.
        answers: By name.
    """

    def __init__(self, app: Any, answers: Mapping[str, Answer]) -> None:
        self._app = app
        self._answers = {_PREFIX + name: answer for name, answer in answers.items()}
        self._threads: CapacityLimiter | None = None

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Answers what it knows and passes the rest on."""
        answer = self._answers.get(scope.get("path", ""))
        # A page elsewhere can send any other type without asking first.
        if answer is None or scope.get("method") != "POST" or not _is_json(scope):
            await self._app(scope, receive, send)
            return
        if self._threads is None:  # it belongs to the running loop
            self._threads = CapacityLimiter(_THREADS)
        request = Request(scope, receive)
        try:
            payload = await _text(request)
        except ClientDisconnect:
            return
        text = await to_thread.run_sync(answer, payload, request, limiter=self._threads)
        content = json.dumps({"data": [text]}).encode()
        await Response(content, media_type="application/json")(scope, receive, send)


def _is_json(scope: Mapping[str, Any]) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"application/json")
        for name, value in scope["headers"]
    )


async def _text(request: Request) -> Any:
    """What `data` holds; None where it is no such body."""
    body = bytearray()
    async for block in request.stream():
        body += block if len(body) <= MAX_BODY else b""
    if len(body) > MAX_BODY:
        return None
    try:
        data = json.loads(bytes(body))["data"]
        return data[0] if len(data) == 1 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
