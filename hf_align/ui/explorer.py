"""The Goodhart explorer: published runs along the KL axis, read at any audited distance.

A static frame whose parts come from the server as HTML, through one JSON endpoint. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from hf_align.types import InputError
from hf_align.ui.endpoints import text_endpoints
from hf_align.ui.explorer_runs import Shelf, Source
from hf_align.ui.exploring import MOST_RUNS, Exploring
from hf_align.ui.page import launch_options, wait_launched
from hf_align.ui.rate_limits import RateLimit
from hf_align.ui.safe_text import escaped

TITLE = "Goodhart explorer"


def build_explorer_app(
    sources: Sequence[Source],
    *,
    title: str = TITLE,
    allow_others: bool = False,
    limit: RateLimit | None = None,
) -> gr.Blocks:
    """The app of some runs; building it reads none of them and asks no network.

    Args:
        sources: The runs to pick from; the first six are picked at the start.
        title: Of the page.
        allow_others: Whether visitors may add published runs by their Hub id; see `Shelf`.
        limit: How often one address may ask; 20 requests a second in the long run without it.

    Raises:
        InputError: There are no runs, or one is named twice.
    """
    if not sources and not allow_others:
        raise InputError("the explorer has no runs to show; name at least one")
    exploring = Exploring(Shelf(sources, allow_others), limit)
    with gr.Blocks(title=title, analytics_enabled=False) as demo:
        gr.HTML(explorer_frame(title, exploring.shelf.keys, allow_others))

        def answer(payload: str, request: gr.Request) -> str:
            address = getattr(request.client, "host", "") or ""
            return json.dumps(exploring.act(address, payload))

        # Outside Gradio's queue: nothing here takes long, and each answer stands by itself.
        gr.api(answer, api_name="explorer", queue=False, api_visibility="undocumented")
    return demo.queue(default_concurrency_limit=None, max_size=256)


def serve_explorer(
    demo: gr.Blocks,
    *,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[str], Any] = lambda address: None,
) -> None:
    """Serves until Ctrl-C or SIGTERM.

    Args:
        demo: From `build_explorer_app`.
        host: Address to listen at; Gradio's own choice if left out.
        port: Port; a free one from 7860 if left out.
        ready: Called with the address once the app answers.

    Raises:
        OSError: The port is taken.
    """
    options = launch_options(None, text_endpoints(demo), "explorer")
    wait_launched(demo, options, host, port, ready)


def explorer_frame(title: str, keys: Sequence[str], allow_others: bool) -> str:
    """The static part of the page: what to pick, places to fill, controls that keep their focus."""
    return (
        f'<div id="hf-align" data-page="explorer" data-signed="yes" data-most="{MOST_RUNS}">'
        '<header class="top">'
        f'<h1>{escaped(title)}</h1><nav class="tabs" aria-label="Parts of the page">'
        '<a href="#gx-curves">Curves</a><a href="#gx-reading">Completions</a>'
        '<a href="#gx-verdicts">Verdicts</a><a href="#gx-selection">Best-of-n</a>'
        '<a href="#gx-if">What if</a></nav></header>'
        '<p class="hint">How far each policy moved from its reference (KL), what its proxy reward '
        "said on the way, and what gold, the reward one really wants, said.</p>"
        '<div id="hf-notice" role="status" aria-live="polite"></div>'
        f"{_picker(keys, allow_others)}{_CURVES}{_READING}{_VERDICTS}{_SELECTION}{_WHAT_IF}</div>"
    )


def _picker(keys: Sequence[str], allow_others: bool) -> str:
    boxes = "".join(
        f'<label class="check"><input type="checkbox" name="run" value="{escaped(key)}"'
        f"{' checked' if place < MOST_RUNS else ''}><span>{escaped(key)}</span></label>"
        for place, key in enumerate(keys)
    )
    add = (
        '<form id="gx-add"><label class="field">Add a published run<input name="name" '
        'maxlength="120" placeholder="org/name" autocomplete="off" spellcheck="false"></label>'
        '<button type="submit">Add</button></form>'
        if allow_others
        else ""
    )
    return (
        '<section id="gx-runs" class="panel" aria-label="Runs"><fieldset class="runs">'
        f"<legend>Runs, at most {MOST_RUNS}</legend>{boxes}</fieldset>{add}"
        '<div id="gx-problems"></div></section>'
    )


def _slider(name: str, label: str, extra: str = "") -> str:
    return (
        f'<label class="slider" for="{name}">{label}</label>'
        f'<input type="range" id="{name}" min="0" max="0" value="0" {extra}>'
        f'<output id="{name}-says" for="{name}"></output>'
    )


def _pager(name: str) -> str:
    return (
        f'<div class="pager"><button type="button" data-turn="{name}" data-by="-1" '
        f'aria-label="Previous prompt">Previous</button><output id="{name}-row"></output>'
        f'<button type="button" data-turn="{name}" data-by="1" aria-label="Next prompt">Next'
        "</button>"
    )


_CURVES = (
    '<section id="gx-curves" class="panel" aria-labelledby="gx-curves-title">'
    '<h2 id="gx-curves-title">Gold and proxy against the distance</h2><div id="gx-notes"></div>'
    '<div id="gx-charts"><p class="hint">Loading…</p></div><div class="walk" hidden>'
    '<label class="field">Walk along<select id="gx-active"></select></label>'
    f'<div class="grow">{_slider("gx-at", "Drag, click in a chart, or use the arrow keys")}</div>'
    '</div><div id="gx-equal" aria-live="polite"></div></section>'
)
_READING = (
    '<section id="gx-reading" class="panel" aria-labelledby="gx-reading-title">'
    '<h2 id="gx-reading-title">What it wrote there</h2>'
    f"{_pager('gx-read')}"
    '<label class="field">Order<select id="gx-order">'
    '<option value="over_optimised">most over-optimised first</option>'
    '<option value="farthest">farthest from the reference first</option>'
    '<option value="prompts">as audited</option></select></label>'
    '<span id="gx-read-note" class="quiet"></span></div>'
    '<div id="gx-samples"></div></section>'
)
_VERDICTS = (
    '<section id="gx-verdicts" class="panel" aria-labelledby="gx-verdicts-title">'
    '<h2 id="gx-verdicts-title">Verdicts</h2><p class="hint">As each run\'s own report gives them; '
    'nothing is measured again here.</p><div id="gx-cards"></div></section>'
)
_SELECTION = (
    '<section id="gx-selection" class="panel" aria-labelledby="gx-selection-title">'
    '<h2 id="gx-selection-title">Best-of-n</h2><p class="hint" id="gx-no-pool">None of the runs '
    'picked is a best-of-n run.</p><div id="gx-selecting" hidden><div class="walk">'
    '<label class="field">Run<select id="gx-pool"></select></label>'
    f'<div class="grow">{_slider("gx-n", "Completions drawn, n")}</div></div>'
    f"{_pager('gx-best')}</div>"
    '<div id="gx-best" class="selection"></div></div></section>'
)
_WHAT_IF = (
    '<section id="gx-if" class="panel" aria-labelledby="gx-if-title">'
    '<h2 id="gx-if-title">What if the KL coefficient were another?</h2><div class="walk">'
    '<label class="field">On the path of<select id="gx-path"></select></label>'
    '<label class="field beta">β, score per nat<input type="number" id="gx-beta" min="0" '
    'step="any" value="0.05" inputmode="decimal"></label><div class="grow">'
    f"{_slider('gx-beta-slide', 'Slide from 0.001 to 1')}</div></div>"
    '<div id="gx-what-if" aria-live="polite"></div></section>'
)
