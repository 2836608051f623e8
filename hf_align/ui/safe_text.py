"""Model and annotator text as HTML that can neither run, load, submit nor cover anything.

Hidden characters are spelled out, Markdown becomes HTML without raw HTML or pictures, and a list of
harmless tags is all that is left of that. What a browser is told not to load is the second line.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt

from hf_align.feedback import visible_text
from hf_align.types import Text

MAX_MARKDOWN = 50_000
"""Characters above which a text is shown as it is: laying it out could take seconds."""

TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "em", "strong", "code", "pre"),
    *("blockquote", "ul", "ol", "li", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href"}, "ol": {"start"}}

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-src 'none'; object-src 'none'; base-uri 'self'"
)
CSP_META = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
"""For the head of the page. Gradio's own scripts are inline, so what keeps scripts of a model out
is the list of tags; this keeps pictures, frames and forms from reaching other servers.
https://www.w3.org/TR/CSP3/"""

ROLES = {"user": "Person", "assistant": "Assistant", "system": "Instructions"}

_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
_markdown = _markdown.disable("image")


@lru_cache(maxsize=1024)  # an item is shown to several people
def safe_html(text: str) -> str:
    """Markdown of an unknown author as HTML with harmless tags only.

    Links lead to http and https alone, open a tab of their own and tell it nothing. Headings start
    below the page's own.
    """
    shown = visible_text(text)
    if len(shown) > MAX_MARKDOWN:
        return safe_source(text)
    return nh3.clean(
        _markdown.render(shown),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def safe_source(text: str) -> str:
    """A text character by character, hidden ones spelled out."""
    return f'<pre class="source">{escaped(text)}</pre>'


def escaped(text: object) -> str:
    """A short text inside HTML or one of its attributes, hidden characters spelled out."""
    return html.escape(visible_text(str(text)))


def safe_prompt(prompt: Text) -> str:
    """A prompt; of a conversation each turn under the name of its role."""
    if isinstance(prompt, str):
        return f'<div class="text">{safe_html(prompt)}</div>'
    return "".join(map(_turn, prompt))


def safe_turns(turns: Sequence[tuple[str, str]]) -> str:
    """Turns of a conversation, each with its role."""
    return "".join(_turn({"role": role, "content": content}) for role, content in turns)


def _turn(message: dict[str, str]) -> str:
    role = ROLES.get(message["role"], message["role"])
    return (
        f'<div class="turn"><p class="role">{escaped(role)}</p>'
        f'<div class="text">{safe_html(message["content"])}</div></div>'
    )
