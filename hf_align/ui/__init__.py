"""Gradio parts that the Spaces share. Needs the extra: `pip install hf_align[ui]`."""

from hf_align.ui.arena import build_arena_app
from hf_align.ui.arena_page import Page
from hf_align.ui.arena_turns import open_votes, until
from hf_align.ui.collect import build_collect_app, serve
from hf_align.ui.explorer import build_explorer_app, serve_explorer
from hf_align.ui.explorer_runs import Source
from hf_align.ui.safe_text import CSP_META, safe_html
from hf_align.ui.sign_in import LocalSignIn, SpaceSignIn, on_space
from hf_align.ui.visitors import Visitors, visitors_here

__all__ = [
    "build_collect_app",
    "build_arena_app",
    "Page",
    "open_votes",
    "until",
    "serve",
    "build_explorer_app",
    "serve_explorer",
    "Source",
    "LocalSignIn",
    "SpaceSignIn",
    "Visitors",
    "visitors_here",
    "on_space",
    "safe_html",
    "CSP_META",
]
