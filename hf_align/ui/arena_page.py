"""The static part of the arena's page: the form to ask with, the models' cards, the help.

What a model's card says is its author's text and numbers: escaped, and links lead to https alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_align.arena import Contestant, Sampling
from hf_align.types import Estimate
from hf_align.ui.arena_views import ROLES
from hf_align.ui.page import help_dialog
from hf_align.ui.safe_text import escaped

KEYS = (
    ("Ctrl Enter", "ask, while you write the prompt"),
    ("Esc", "stop the answers"),
    ("1, 2, 3, 0", "vote: A is better, B is better, tie, both bad"),
    ("C", "show or hide where the reference would write otherwise"),
    ("P", "write another prompt"),
    ("?", "these keys"),
    ("Tab, arrows, space", "everything else"),
)


_TYPING = "Single letters and digits do nothing while you type."


@dataclass(frozen=True)
class Page:
    """What the page begins with.

    Attributes:
        title: Its heading.
        about: A sentence or two below it.
        examples: Prompts to begin with.
        sampling: The settings that it begins with.
        most_tokens: Longest answer that may be asked for.
        votes: What it says about votes; empty where none are taken.
    """

    title: str = "Arena"
    about: str = "One prompt, every model, side by side."
    examples: Sequence[str] = ()
    sampling: Sampling = Sampling()
    most_tokens: int = 1024
    votes: str = ""


def arena_frame(page: Page, contestants: Sequence[Contestant], no_scores: str | None = None) -> str:
    """The page without any answers; `no_scores` says why answers have no score."""
    return (
        '<div id="hf-align" data-page="arena" data-signed="yes"><header class="top">'
        f"<h1>{escaped(page.title)}</h1>"
        '<nav class="tabs" aria-label="Page"><a href="#hf-models">Models</a>'
        '<a href="#hf-history">History</a>'
        '<button type="button" data-do="help">Keys</button></nav></header>'
        f'<p class="hint">{escaped(page.about)}</p>{_form(page, contestants)}'
        '<div id="hf-notice" role="status" aria-live="polite"></div>'
        '<div id="hf-state" role="status" aria-live="polite" data-state="idle"></div>'
        '<div id="hf-view" tabindex="-1"></div>'
        f"{_cards(contestants, no_scores)}{_history()}{help_dialog(KEYS, _TYPING)}</div>"
    )


def _form(page: Page, contestants: Sequence[Contestant]) -> str:
    examples = "".join(
        f'<button type="button" data-do="example" data-prompt="{escaped(text)}">'
        f"{escaped(text if len(text) <= 60 else text[:59] + '…')}</button>"
        for text in page.examples
    )
    shown = f'<div class="examples"><span>Examples</span>{examples}</div>' if examples else ""
    return (
        '<form id="hf-ask" class="ask" autocomplete="off"><label class="field" for="hf-prompt">'
        'Prompt</label><textarea id="hf-prompt" name="prompt" rows="3" dir="auto" '
        f'spellcheck="false"></textarea>{shown}<div class="settings">{_sampling(page)}'
        f"{_models(contestants)}{_blind(page)}</div>"
        '<div class="actions"><button type="submit" class="primary">Ask <kbd>Ctrl Enter</kbd>'
        '</button><button type="button" data-do="stop" disabled>Stop <kbd>Esc</kbd></button>'
        '<button type="button" data-do="share">Copy a link to this</button></div>'
        '<p id="hf-link" class="field" hidden><label>Link to this<input readonly></label></p>'
        "</form>"
    )


def _sampling(page: Page) -> str:
    asked = page.sampling
    fields = (
        ("temperature", "Temperature", asked.temperature, 'min="0" max="5" step="any"'),
        ("top_p", "Top-p", asked.top_p, 'min="0.01" max="1" step="any"'),
        (
            *("max_new_tokens", "Most tokens", asked.max_new_tokens),
            f'min="1" max="{page.most_tokens}" step="1"',
        ),
        ("seed", "Seed", asked.seed, 'min="0" max="9007199254740991" step="1"'),
    )
    inputs = "".join(
        f'<label class="field">{label}<input type="number" name="{name}" value="{value:g}" '
        f"required {limits}></label>"
        for name, label, value, limits in fields
    )
    return (
        f'<fieldset class="sampling"><legend>Sampling, the same for all</legend>{inputs}'
        '<button type="button" data-do="seed">New seed</button></fieldset>'
    )


def _models(contestants: Sequence[Contestant]) -> str:
    boxes = "".join(
        f'<label class="check"><input type="checkbox" name="models" value="{escaped(one.key)}" '
        f"{'checked' if one.problem is None else 'disabled'}>"
        f"<span>{escaped(one.name)}{'' if one.problem is None else ' (cannot answer)'}</span>"
        "</label>"
        for one in contestants
    )
    return f'<fieldset class="models"><legend>Models</legend>{boxes}</fieldset>'


def _blind(page: Page) -> str:
    if not page.votes:
        return ""
    return (
        '<fieldset class="mode"><legend>Vote</legend><label class="check">'
        '<input type="checkbox" name="blind"><span>Blind: two of the models in random order, '
        f'named after your vote</span></label><p class="hint">{escaped(page.votes)} A vote stores '
        "the prompt and both answers.</p></fieldset>"
    )


def _cards(contestants: Sequence[Contestant], no_scores: str | None) -> str:
    cards = "".join(map(model_card, contestants))
    told = "" if no_scores is None else f'<p class="warn">No scores: {escaped(no_scores)}</p>'
    return (
        '<section id="hf-models" tabindex="-1" aria-labelledby="hf-models-title">'
        f'<h2 id="hf-models-title">Models</h2>{told}<div class="cards">{cards}</div></section>'
    )


def model_card(one: Contestant) -> str:
    """What a model's own run says of it, or why it cannot answer."""
    facts = one.facts
    rows = (
        ("Role", ROLES[one.role]),
        ("Made by", facts.recipe),
        ("From", facts.base),
        ("KL", estimate(facts.kl, " nats")),
        ("Win rate", estimate(facts.win_rate)),
        ("Gold gain", estimate(facts.gold_gain)),
        ("Commit", one.revision and one.revision[:12]),
    )
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{escaped(value)}</dd></div>" for name, value in rows if value
    )
    name = escaped(one.name)
    if facts.link is not None and facts.link.startswith(("https://", "http://")):
        name = (
            f'<a href="{escaped(facts.link)}" target="_blank" '
            f'rel="noopener noreferrer nofollow">{name}</a>'
        )
    problem = "" if one.problem is None else f'<p class="warn">{escaped(one.problem)}</p>'
    verdict = ""
    if facts.verdict is not None:
        # A report's sentence begins with its label.
        why = (facts.verdict_text or "").removeprefix(f"{facts.verdict}:").strip()
        why = f"<p>{escaped(why[:1].upper() + why[1:])}</p>" if why else ""
        verdict = (
            f'<p class="label">Verdict on over-optimisation: {escaped(facts.verdict)}</p>{why}'
        )
    return f'<article class="card"><h3>{name}</h3>{problem}{verdict}<dl>{listed}</dl></article>'


def estimate(value: Estimate | None, unit: str = "") -> str:
    """A number with its interval; empty where there is none."""
    if value is None:
        return ""
    interval = "" if value.low is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.value:.2f}{interval}{unit}".replace("-", "\N{MINUS SIGN}")


def _history() -> str:
    return (
        '<section id="hf-history" tabindex="-1" aria-labelledby="hf-history-title">'
        '<h2 id="hf-history-title">Asked in this visit</h2><p class="hint">Nothing yet.</p>'
        "<ol></ol></section>"
    )
