"""What the arena shows of a turn, as HTML: the answers, what is measured of them, the vote.

Pure functions of what is to be shown; all text of models goes through `safe_text`. Nothing here
names a model before its turn is revealed.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from hf_align.arena import Answer, Contestant, Measures, Progress, Token
from hf_align.ui.arena_turns import CHOICES, Turn
from hf_align.ui.safe_text import escaped, safe_html, safe_source

LETTERS = "AB"
ROLES = {
    "reference": "reference",
    "aligned": "aligned",
    "best_of_n": "best of several",
}
KINDS = (
    ("unshifted", "unshifted", "the reference's first choice, too"),
    ("marginal", "marginal", "its second or third choice"),
    ("shifted", "shifted", "beyond its third choice"),
)
_MOST_SHIFTED = 6
_LONG_PROMPT = 600


def turn_view(turn: Turn, contestants: Sequence[Contestant], votes: bool) -> str:
    """A whole turn: prompt, answers side by side, the vote where one is due."""
    columns = "".join(_column(turn, contestants, seat) for seat in range(len(turn.places)))
    size = "two" if len(turn.places) == 2 else "many"
    return (
        '<section class="turn-view" aria-label="Answers">'
        f'{_prompt(turn.prompt)}{_tools(turn)}<div class="outputs {size}">{columns}</div>'
        f'{_vote(turn, votes)}<p class="hint provenance">{_sampling(turn)}</p></section>'
    )


def hidden(turn: Turn) -> bool:
    """Whether the names must not be told."""
    return turn.blind and not turn.revealed


def writing(
    turn: Turn, progress: Progress, contestants: Sequence[Contestant]
) -> dict[str, list[str]]:
    """What changes while answers come, in the order shown.

    A best-of-n shows nothing until it has chosen, which would tell who it is: a blind turn with one
    holds both answers back until they are complete.
    """
    best = any(contestants[place].role == "best_of_n" for place in turn.places)
    if turn.blind and best and not all(progress.done[place] for place in turn.places):
        return {"texts": ["", ""], "states": ["writing…", "writing…"]}
    return {
        "texts": [safe_html(progress.texts[place]) for place in turn.places],
        "states": [
            "" if progress.done[place] else _waiting(progress, place) for place in turn.places
        ],
    }


def _waiting(progress: Progress, place: int) -> str:
    if not progress.texts[place] and progress.drawn and progress.drawn[place]:
        return f"{progress.drawn[place]} answers drawn, to choose from…"
    return "writing…"


def _prompt(text: str) -> str:
    body = f'<div class="text">{safe_source(text)}</div>'
    if len(text) <= _LONG_PROMPT:
        return f'<div class="prompt" dir="auto"><p class="role">Prompt</p>{body}</div>'
    words = f"Prompt, {len(text):,} characters"
    return f'<details class="prompt" dir="auto"><summary>{words}</summary>{body}</details>'


def _tools(turn: Turn) -> str:
    """The switch of the colouring and its legend, once there is anything to colour."""
    if hidden(turn) or not any(
        turn.measures[place].shift for place in turn.places if turn.measures
    ):
        return ""
    legend = "".join(
        f'<li><span class="tok {kind}">word</span> {name}: {what}</li>'
        for kind, name, what in KINDS
    )
    drawn = ""
    if turn.sampling.temperature > 0:
        drawn = (
            "<li>Tokens were drawn, so the reference's own answers leave its first choice, too; "
            "at temperature 0 they never do.</li>"
        )
    return (
        '<div class="tools"><button type="button" data-do="shift" aria-pressed="false">Show where '
        "the reference would write otherwise</button>"
        f'<ul class="legend" hidden>{legend}{drawn}</ul></div>'
    )


def _column(turn: Turn, contestants: Sequence[Contestant], seat: int) -> str:
    contestant = contestants[turn.places[seat]]
    title = f"Answer {LETTERS[seat]}" if turn.blind else escaped(contestant.name)
    told = ""
    if turn.blind and turn.revealed:
        told = f'<p class="name">{escaped(contestant.name)}</p>'
    if not hidden(turn):
        words = [ROLES[contestant.role], contestant.revision and contestant.revision[:12]]
        told += f'<p class="quiet">{escaped(" · ".join(filter(None, words)))}</p>'
    answer = turn.shown[seat] if turn.answers else None
    measures = turn.measures[turn.places[seat]] if turn.measures and not hidden(turn) else None
    won = {"left": 0, "right": 1}.get(turn.choice or "") == seat
    return (
        f'<article class="output{" won" if won else ""}" data-seat="{seat}" '
        f'aria-labelledby="hf-seat-{seat}"><header><h2 id="hf-seat-{seat}">{title}'
        f"{' <span>your choice</span>' if won else ''}</h2>{told}</header>"
        f"{_body(answer, measures, hidden(turn))}</article>"
    )


def _body(answer: Answer | None, measures: Measures | None, is_hidden: bool) -> str:
    if answer is None:
        return '<div class="text plain" dir="auto"></div><p class="quiet state">waiting…</p>'
    if answer.problem is not None:
        # What went wrong with a model may name it.
        why = "this model could not answer" if is_hidden else answer.problem
        return f'<p class="warn">No answer: {escaped(why)}</p>'
    shown = safe_html(answer.text) if answer.text.strip() else '<p class="hint">(empty)</p>'
    tokens = "" if measures is None else _coloured(measures.shift)
    return (
        f'<div class="text plain" dir="auto">{shown}</div>{tokens}'
        f'<p class="quiet state">{escaped(_ended(answer, is_hidden))}</p>'
        f"{'' if measures is None else _measures(measures)}"
        '<div class="actions"><button type="button" data-do="copy" '
        f'data-text="{html.escape(answer.text)}">Copy</button></div>'  # as it was written
    )


def _ended(answer: Answer, is_hidden: bool) -> str:
    count = _count(len(answer.token_ids), "token") if answer.token_ids else "some tokens"
    if answer.cancelled:
        return f"stopped after {count}"
    chosen = f", the best of {answer.draws}" if answer.draws > 1 and not is_hidden else ""
    return f"{count}{chosen}" if answer.ended else f"cut off after {count}{chosen}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------- measures


def _measures(measures: Measures) -> str:
    beta = "" if measures.beta is None else f" (β = {measures.beta:g})"
    rows = [
        ("Length", _count(measures.length, "token")),
        ("Reward-model score", signed(measures.score)),
        ("log π/π<sub>ref</sub>", signed(measures.log_ratio, " nats")),
        (f"Implicit reward{escaped(beta)}", signed(measures.implicit_reward)),
    ]
    if measures.shift:
        rows.append(("Tokens", _shares(measures.shift)))
        rows.append(("Farthest", _farthest(measures.shift)))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    return f'<details class="measures"><summary>Measures</summary><dl>{listed}</dl></details>'


def signed(value: float | None, unit: str = "") -> str:
    """A number with its sign; empty where there is none."""
    return "" if value is None else f"{value:+.2f}{unit}".replace("-", "\N{MINUS SIGN}")


def shares(tokens: Sequence[Token]) -> list[tuple[str, int]]:
    """How many tokens there are of each kind."""
    return [(name, sum(token.kind == name for token in tokens)) for name, _, _ in KINDS]


def _shares(tokens: Sequence[Token]) -> str:
    counts = shares(tokens)
    bars = "".join(
        f'<i class="{kind}" style="flex-grow:{count}"></i>' for kind, count in counts if count
    )
    words = ", ".join(f"{count / len(tokens):.0%} {kind}" for kind, count in counts)
    return f'<span class="bar" aria-hidden="true">{bars}</span>{words}'


def _farthest(tokens: Sequence[Token]) -> str:
    """The tokens that the reference ranks lowest, in words: a title needs a mouse."""
    moved = sorted((t for t in tokens if t.kind == "shifted"), key=lambda t: -t.rank)
    if not moved:
        return "none shifted"
    told = [
        f"<code>{escaped(token.text.strip() or 'white space')}</code> rank {token.rank}, "
        f"{signed(token.log_ratio)} nats"
        for token in moved[:_MOST_SHIFTED]
    ]
    return "<br>".join(told)


def _coloured(tokens: Sequence[Token]) -> str:
    if not tokens:
        return '<p class="hint coloured" hidden>Nothing to hold this answer against.</p>'
    spans = "".join(
        f'<span class="tok {token.kind}" title="{token.kind}: rank {token.rank}, '
        f'{signed(token.log_ratio)} nats">{escaped(token.text)}</span>'
        for token in tokens
    )
    return f'<div class="text coloured" dir="auto" hidden>{spans}</div>'


# ------------------------------------------------------------------------------------- the vote


def _vote(turn: Turn, votes: bool) -> str:
    if not turn.blind or not turn.answers:
        return ""
    if turn.revealed:
        label = {value: label for value, _, label in CHOICES}.get(turn.choice or "")
        said = f"You said: {label}. It is stored." if label else "No vote was given."
        return f'<p class="verdict">{said}</p>'
    reveal = '<button type="button" data-do="reveal">Show the names without a vote</button>'
    if not votes or not turn.may_be_voted_on:
        why = "" if turn.may_be_voted_on else "Two whole answers are needed for a vote."
        return (
            f'<div class="vote"><p class="hint">{why}</p><div class="actions">{reveal}</div></div>'
        )
    buttons = "".join(
        f'<button type="button" data-do="vote" data-choice="{value}">{label} <kbd>{key}</kbd>'
        "</button>"
        for value, key, label in CHOICES
    )
    return (
        '<fieldset class="vote"><legend>Which answer is better?</legend>'
        f'<div class="actions">{buttons}</div><div class="actions">{reveal}</div></fieldset>'
    )


def _sampling(turn: Turn) -> str:
    asked = turn.sampling
    heat = f"temperature {asked.temperature:g}" if asked.temperature else "greedy"
    return (
        f"{heat}, top-p {asked.top_p:g}, at most {asked.max_new_tokens} tokens, seed {asked.seed}; "
        "what is measured is measured at temperature 1"
    )
