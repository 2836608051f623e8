"""What an annotator sees, as HTML: a pair, a ranking, a demonstration, the quiz, the history.

Pure functions of what is to be shown. Every control is a native one in a group with a name, so that
keyboards and screen readers know what to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_align.feedback import Project
from hf_align.types import Text
from hf_align.ui.safe_text import escaped, safe_html, safe_prompt, safe_source

CHOICE_LABELS = (
    ("left", "1", "A is better"),
    ("slightly_left", "2", "A slightly"),
    ("tie", "3", "Tie"),
    ("slightly_right", "4", "B slightly"),
    ("right", "5", "B is better"),
    ("both_bad", "0", "Both bad"),
)
NAMES = "ABCDEFGHI"


@dataclass(frozen=True)
class Card:
    """One task on the screen.

    Attributes:
        kind: "pair", "ranking" or "demonstration".
        prompt: Text or messages.
        completions: In the order to show them.
        token: Goes back with the answer; empty where an own answer is changed.
        event_id: The own answer that is changed.
        draft: Under which the page keeps what is not sent yet.
        said: What was answered before: `choice`, `ranks`, `ratings`, `flags`, `notes`, `text`.
        chat: It is a turn of the annotator's own conversation.
    """

    kind: str
    prompt: Text
    completions: Sequence[str]
    token: str = ""
    event_id: str = ""
    draft: str = ""
    said: Mapping[str, object] = field(default_factory=dict)
    chat: bool = False


def card_view(card: Card, project: Project, can_undo: bool) -> str:
    """A task with its controls."""
    body = {"pair": _pair, "ranking": _ranking}.get(card.kind, _demonstration)(card, project)
    heading = "Change your answer" if card.event_id else _TITLES[card.kind]
    return (
        f'<form class="task" data-kind="{card.kind}" data-token="{escaped(card.token)}" '
        f'data-event="{escaped(card.event_id)}" data-draft="{escaped(card.draft)}" '
        f'data-mode="{"chat" if card.chat else "task"}">'
        f'<section class="prompt" aria-label="Prompt"><h2>Prompt</h2>{safe_prompt(card.prompt)}'
        f"</section>{body}"
        f'<div class="actions"><button type="submit" class="primary">'
        f"{'Save the change' if card.event_id else 'Submit'} <kbd>Enter</kbd></button>"
        f"{_buttons(card, can_undo)}</div>"
        f'<p class="sr">{heading}</p></form>'
    )


_TITLES = {
    "pair": "Compare two answers",
    "ranking": "Rank the answers",
    "demonstration": "Write the answer",
}


def _buttons(card: Card, can_undo: bool) -> str:
    if card.event_id:
        return '<button type="button" data-do="next">Cancel</button>'
    undo = "" if can_undo else " disabled"
    return (
        '<button type="button" data-do="skip-ask">Skip… <kbd>S</kbd></button>'
        f'<button type="button" data-do="undo-ask"{undo}>Undo last… <kbd>U</kbd></button>'
        '<button type="button" data-do="raw" aria-pressed="false">Show as typed <kbd>R</kbd>'
        "</button>"
        '<button type="button" data-do="help">Keys <kbd>?</kbd></button>'
    )


def _pair(card: Card, project: Project) -> str:
    outputs = "".join(_output(card, project, index, "") for index in range(len(card.completions)))
    chosen = str(card.said.get("choice", ""))
    return (
        f'<div class="outputs two">{outputs}</div>'
        f"{choice_group('choice', 'Which answer is better?', chosen)}{_notes(card, True)}"
    )


def _ranking(card: Card, project: Project) -> str:
    number = len(card.completions)
    ranks = list(card.said.get("ranks") or [None] * number)  # type: ignore[call-overload]
    outputs = "".join(
        _output(card, project, index, _rank_group(index, number, ranks[index]))
        for index in range(number)
    )
    return (
        '<p class="hint">Give every answer a rank, 1 for the best. Equal ranks are a tie. '
        "Keys: a digit ranks the marked answer and goes on to the next; J and K move the mark.</p>"
        f'<div class="outputs many">{outputs}</div>{_notes(card, True)}'
    )


def _rank_group(index: int, number: int, rank: object) -> str:
    options = [(str(place), str(place)) for place in range(1, number + 1)]
    return _radios(f"rank-{index}", f"Rank of answer {NAMES[index]}", options, str(rank), "ranks")


def _demonstration(card: Card, _: Project) -> str:
    text = escaped(card.said.get("text", ""))
    return (
        '<label class="field">Your answer<textarea name="text" rows="10" maxlength="200000">'
        f"{text}</textarea></label>{_notes(card, False)}"
    )


def _output(card: Card, project: Project, index: int, extra: str) -> str:
    name, text = NAMES[index], card.completions[index]
    return (
        f'<section class="output" data-index="{index}" aria-label="Answer {name}">'
        f'<h2>Answer {name}</h2><div class="text shown">{safe_html(text)}</div>'
        f'<div class="text typed" hidden>{safe_source(text)}</div>'
        f"{extra}{_rating(card, project, index) if project.rate_outputs else ''}</section>"
    )


def _rating(card: Card, project: Project, index: int) -> str:
    name = NAMES[index]
    ratings = list(card.said.get("ratings") or [])  # type: ignore[call-overload]
    rating = ratings[index] if index < len(ratings) else None
    marked = list(card.said.get("flags") or [])  # type: ignore[call-overload]
    own = (marked[index] if index < len(marked) else None) or []
    options = [(str(value), str(value)) for value in range(1, 8)]
    boxes = "".join(
        f'<label><input type="checkbox" name="flag-{index}" value="{escaped(flag)}"'
        f"{' checked' if flag in own else ''}><span>{escaped(flag)}</span></label>"
        for flag in project.flags
    )
    likert = _radios(
        f"rating-{index}",
        f"Rate answer {name}: 1 very bad, 7 excellent",
        options,
        str(rating),
        "likert",
    )
    flags = (
        f'<details class="flags"{" open" if own else ""}><summary>Problems of answer {name} '
        f'<span class="count"></span></summary><fieldset><legend class="sr">Problems of answer '
        f"{name}</legend>{boxes}</fieldset></details>"
    )
    return likert + (flags if boxes else "")


def choice_group(name: str, legend: str, chosen: str = "") -> str:
    """The five steps and "both bad" as one group of radio buttons."""
    labels = "".join(
        f'<label class="{value}"><input type="radio" name="{escaped(name)}" value="{value}"'
        f"{' checked' if value == chosen else ''}><kbd>{key}</kbd><span>{text}</span></label>"
        for value, key, text in CHOICE_LABELS
    )
    return f'<fieldset class="choices"><legend>{legend}</legend>{labels}</fieldset>'


def _radios(
    name: str, legend: str, options: Sequence[tuple[str, str]], chosen: str, kind: str
) -> str:
    labels = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"'
        f"{' checked' if value == chosen else ''}><span>{text}</span></label>"
        for value, text in options
    )
    return f'<fieldset class="{kind}"><legend>{legend}</legend>{labels}</fieldset>'


def _notes(card: Card, recognizable: bool) -> str:
    said = card.said
    known = (
        '<label class="check"><input type="checkbox" name="recognized"'
        f"{' checked' if said.get('recognized') else ''}><span>I recognised a model</span></label>"
        if recognizable
        else ""
    )
    return (
        '<div class="extras"><label class="field">Notes (optional)<textarea name="notes" rows="2" '
        f'maxlength="10000">{escaped(said.get("notes", ""))}</textarea></label>{known}</div>'
    )


def quiz_view(questions: Sequence[tuple[str, Text, Sequence[str]]]) -> str:
    """The quiz's questions on one page."""
    asked = "".join(
        f'<section class="question"><h2>Question {number}</h2>{safe_prompt(prompt)}'
        f'<div class="outputs two">'
        + "".join(
            f'<section class="output" aria-label="Answer {NAMES[i]} of question {number}">'
            f'<h3>Answer {NAMES[i]}</h3><div class="text">{safe_html(text)}</div></section>'
            for i, text in enumerate(completions)
        )
        + f"</div>{choice_group(item, f'Question {number}: which answer is better?')}</section>"
        for number, (item, prompt, completions) in enumerate(questions, start=1)
    )
    return (
        '<form class="quiz"><p class="hint">A few pairs whose answer is known, to see whether the '
        "guidelines are clear. You are told the reasons afterwards.</p>"
        f'{asked}<div class="actions"><button type="submit" class="primary">Hand in '
        "<kbd>Enter</kbd></button></div></form>"
    )


def quiz_result_view(
    passed: bool, right: int, of: int, explanations: Sequence[tuple[bool, str]]
) -> str:
    """How the quiz went, with the researcher's reasons."""
    lines = "".join(
        f"<li><strong>{'Right' if correct else 'Not what we expected'}.</strong> "
        f'<span class="text">{safe_html(reason)}</span></li>'
        for correct, reason in explanations
    )
    label = "Start" if passed else "Read the guidelines and try again"
    return (
        f'<section class="message"><h2>{"Passed" if passed else "Not passed yet"}: {right} of {of} '
        f"as expected</h2><ol>{lines}</ol>"
        f'<button type="button" class="primary" data-do="next">{label}</button></section>'
    )


def message_view(title: str, text: str, again: str = "Look again") -> str:
    """A page with one sentence and a way on."""
    button = f'<button type="button" class="primary" data-do="next">{again}</button>'
    return (
        f'<section class="message"><h2>{escaped(title)}</h2><p>{escaped(text)}</p>'
        f"{button if again else ''}</section>"
    )


def sign_in_view(on_space: bool, invited: bool, to: str = "") -> str:
    """How to sign in: the Hub's button on a Space, a name elsewhere."""
    if on_space:
        return (
            '<section class="message"><h2>Sign in</h2><p>Use the button above to sign in with '
            'Hugging Face. If nothing happens inside a frame, <a href="" target="_blank" '
            'rel="noopener">open the page in a tab of its own</a>.</p></section>'
        )
    code = "Invitation code, or the lead's key" if invited else "Key (leads only)"
    return (
        '<section class="message"><h2>Sign in</h2><p>Your name is replaced by a pseudonym in all '
        'data.</p><form method="post" action="/sign-in" class="sign-in">'
        f'<input type="hidden" name="to" value="{escaped(to)}">'
        '<label class="field">Name<input name="name" required maxlength="40" autocomplete='
        '"username"></label>'
        f'<label class="field">{code}<input name="key" maxlength="200" autocomplete="off"></label>'
        '<button type="submit" class="primary">Sign in</button></form></section>'
    )


def history_view(done: Sequence[tuple[str, str, str, str, bool]], feedback: str) -> str:
    """Own answers, the newest first: event, time, prompt, what was said, whether it can change."""
    rows = "".join(
        f'<tr><td>{escaped(when)}</td><td class="cut">{escaped(prompt)}</td><td>{escaped(said)}'
        "</td><td>"
        + (
            f'<button type="button" data-do="change" data-event="{escaped(event)}" '
            f'aria-label="Change the answer of {escaped(when)}">Change</button>'
            if can
            else ""
        )
        + "</td></tr>"
        for event, when, prompt, said, can in done
    )
    own = "".join(f"<p>{escaped(line)}</p>" for line in feedback.splitlines())
    return (
        f'<section class="history"><h2>Your answers</h2>{own}<div class="wide" tabindex="0" '
        'role="region" aria-label="Your answers"><table><thead><tr>'
        "<th>When</th><th>Prompt</th><th>Answer</th><th>Change</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
        '<button type="button" class="primary" data-do="next">Back to work</button></section>'
    )


def chat_view(turns: str, going_on: str) -> str:
    """Where an annotator writes a prompt, alone or after the conversation so far."""
    label = "Your next message" if turns else "Your first message"
    return (
        f'<form class="chat" data-after="{escaped(going_on)}"><h2>Chat</h2><p class="hint">Write a '
        "message; two answers come back, and the one you choose goes on.</p>"
        f'{turns}<label class="field">{label}<textarea name="text" rows="4" maxlength="20000" '
        'required></textarea></label><div class="actions"><button type="submit" class="primary">'
        'Send</button><button type="button" data-do="chat-new">New conversation</button>'
        '<button type="button" data-do="next">Back to the tasks</button></div></form>'
    )
