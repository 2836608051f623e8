"""One row of any layout as rows of TRL's columns: prompt/chosen/rejected, prompt/completion, ….

Pure functions: a row in, `NormalisedRow` out. Rows that carry no usable preference (ties, no shared
prompt, identical answers) come back as counted drops; faulty rows raise `InvalidRow`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from hf_align.data import layouts
from hf_align.data.layouts import Task
from hf_align.data.rankings import ordered_pairs, require_ranking
from hf_align.data.texts import (
    InvalidRow,
    as_completion,
    as_prompt,
    is_missing,
    require_completion,
    require_messages,
    require_string,
    require_text,
    split_last_answer,
    split_shared_turns,
)
from hf_align.data.transcripts import merge_same_role, prompt_transcript, split_transcript
from hf_align.types import Message, Text

Row = Mapping[str, object]


@dataclass(frozen=True)
class NormalisedRow:
    """What one source row gave.

    Attributes:
        rows: Normalised rows; none when dropped, several for a ranking.
        dropped: Why pairs of it are not there, reason -> how many.
        counted: Facts worth reporting about what is there, name -> how many.
    """

    rows: list[dict[str, object]]
    dropped: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)


def normalise_row(row: Row, layout: str, task: Task) -> NormalisedRow:
    """The row in TRL's columns for the task.

    Preference rows have an explicit prompt: `prompt`, `chosen`, `rejected` (and `probability` for
    valued pairs). Ranking rows have `prompt`, `completions` and `ranks`; a pair ranks two
    completions. SFT rows have `messages`, `text`, or `prompt` and `completion` (preference data:
    the chosen one). Prompt rows have `prompt`.

    Args:
        row: A source row, columns already mapped.
        layout: Its layout, from `detect_layout`.
        task: What the row is for; it must be among `layouts.TASKS[layout]`.

    Raises:
        InvalidRow: The row is faulty; it names the column.
    """
    if task == "ranking" and layout != "ranked":
        result = normalise_row(row, layout, "preference")
        return replace(result, rows=[_as_ranking(pair) for pair in result.rows])
    result = _NORMALISERS[layout](row, task, layout)
    if task != "preference":
        return result
    kept = [pair for pair in result.rows if pair["chosen"] != pair["rejected"]]
    if len(kept) == len(result.rows):
        return result
    dropped = {**result.dropped, "identical_pair": len(result.rows) - len(kept)}
    return NormalisedRow(kept, dropped, result.counted)


def _prompt(row: Row, transcript: bool = False) -> Text:
    """The prompt from whichever column holds it, with the system message if there is one."""
    if "prompt" in row:
        if transcript:
            prompt: Text = prompt_transcript(row["prompt"], "prompt")
        else:
            prompt = require_text(row["prompt"], "prompt")
        return _with_system(row, prompt)
    column = layouts.first_column(row, (*layouts.INSTRUCTION_COLUMNS, "input"))
    if column is None:
        raise InvalidRow("missing", "prompt", "no value (null)")
    question = require_text(row[column], column)
    context = row.get("input")
    if column != "input" and isinstance(question, str) and isinstance(context, str):
        question = f"{question}\n\n{context}" if context.strip() else question
    # What people ask an assistant is a conversation: joined to the answer as plain text, question
    # and answer would run into each other without a separator.
    return _with_system(row, as_prompt(question))


def _with_system(row: Row, prompt: Text) -> Text:
    """Puts a non-empty system column in front; an existing system message wins."""
    column = layouts.first_column(row, layouts.SYSTEM_COLUMNS)
    if column is None or is_missing(row[column]) or row[column] == "":
        return prompt
    turns = as_prompt(prompt)
    if turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": require_string(row[column], column)}, *turns]


def _joined(prompt: Text, **completions: Text) -> dict[str, object]:
    """One row whose texts are all plain or all messages."""
    if any(isinstance(text, list) for text in (prompt, *completions.values())):
        wrapped = {name: as_completion(text) for name, text in completions.items()}
        return {"prompt": as_prompt(prompt), **wrapped}
    return {"prompt": prompt, **completions}


def _for_task(prompt: Text, chosen: Text, rejected: Text | None, task: Task) -> dict[str, object]:
    if task == "sft":
        return _joined(prompt, completion=chosen)
    assert rejected is not None
    return _joined(prompt, chosen=chosen, rejected=rejected)


def _explicit(row: Row, task: Task, layout: str) -> NormalisedRow:
    """A prompt column beside chosen and rejected, each text or messages."""
    if _is_full_conversation(row.get("chosen")):
        return _full_conversation(row, task)
    prompt = _prompt(row, transcript=layout == "explicit_transcript")
    if task == "prompt":
        return NormalisedRow([{"prompt": prompt}])
    names = ("chosen",) if task == "sft" else ("chosen", "rejected")
    texts = {name: require_completion(row.get(name), name) for name in names}
    if layout == "explicit_transcript":
        texts = {k: v.strip() if isinstance(v, str) else v for k, v in texts.items()}
    counted = {}
    if isinstance(prompt, str) and all(
        isinstance(text, str) and text.startswith(prompt) for text in texts.values()
    ):
        counted["completion_repeats_prompt"] = 1
    normalised = _for_task(prompt, texts["chosen"], texts.get("rejected"), task)
    return NormalisedRow([normalised], counted=counted)


def _is_full_conversation(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return require_messages(value, "chosen")[0]["role"] != "assistant"


def _full_conversation(row: Row, task: Task) -> NormalisedRow:
    """chosen and rejected hold the prompt's turns as well (ultrafeedback_binarized)."""
    result = _implicit(row, task, "full_conversations")
    if not result.rows or "prompt" not in row:
        return result
    given, kept = require_text(row["prompt"], "prompt"), result.rows[0]["prompt"]
    assert isinstance(kept, list)
    said = [turn["content"].strip() for turn in kept]
    # A prompt column that says something else than the conversations do is reported, not trusted:
    # the conversations are what the annotators saw.
    if [turn for turn in as_prompt(given) if turn["content"].strip() not in said]:
        return NormalisedRow(result.rows, counted={"prompt_differs_from_conversation": 1})
    return result


def _implicit(row: Row, task: Task, layout: str) -> NormalisedRow:
    """Whole conversations, cut after the turns that they share."""
    chosen = require_messages(row.get("chosen"), "chosen")
    if task != "preference":
        prompt, answer = split_last_answer(chosen)
        _refuse_unanswered(prompt, answer, "chosen")
        system_and_prompt = as_prompt(_with_system(row, prompt))
        if task == "prompt":
            return NormalisedRow([{"prompt": system_and_prompt}])
        return NormalisedRow([{"prompt": system_and_prompt, "completion": answer}])
    rejected = require_messages(row.get("rejected"), "rejected")
    _refuse_unanswered(*split_last_answer(chosen), "chosen")
    _refuse_unanswered(*split_last_answer(rejected), "rejected")
    cut = split_shared_turns(chosen, rejected)
    if cut is None:
        return NormalisedRow([], dropped={"diverging_prompt": 1})
    return NormalisedRow([_joined(_with_system(row, cut[0]), chosen=cut[1], rejected=cut[2])])


def _refuse_unanswered(prompt: list[Message], answer: list[Message], column: str) -> None:
    if not answer:
        raise InvalidRow("bad_messages", column, "the conversation does not end with the assistant")
    if not prompt:
        raise InvalidRow("bad_messages", column, "the conversation holds no prompt")


def _transcripts(row: Row, task: Task, layout: str) -> NormalisedRow:
    """hh-rlhf: the prompt is what precedes the final assistant turn, if both sides agree on it."""
    context, answer = split_transcript(row.get("chosen"), "chosen")
    merged = merge_same_role(context)
    counted = {"merged_turns": 1} if len(merged) < len(context) else {}
    prompt, lead = split_last_answer(merged)
    if not prompt:
        raise InvalidRow("not_transcript", "chosen", "no 'Human:' turn before the answer")
    chosen = merge_same_role([*lead, answer])
    if task == "prompt":
        return NormalisedRow([{"prompt": prompt}], counted=counted)
    if task == "sft":
        return NormalisedRow([{"prompt": prompt, "completion": chosen}], counted=counted)
    other_context, other = split_transcript(row.get("rejected"), "rejected")
    if context != other_context:
        return NormalisedRow([], dropped={"diverging_prompt": 1})
    rejected = merge_same_role([*lead, other])
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return NormalisedRow([pair], counted=counted)


def _valued_pairs(row: Row, task: Task, layout: str) -> NormalisedRow:
    """Two completions and the probability of one being preferred; exact ties carry no direction."""
    prompt = _prompt(row)
    if task == "prompt":
        return NormalisedRow([{"prompt": prompt}])
    columns = layouts.value_columns(row)
    if columns is None:
        raise InvalidRow("missing", "preference", "no value (null)")
    first, second, value = columns
    p_first = _probability_of_first(row[value], value)
    if p_first is None:
        return NormalisedRow([], dropped={"missing_preference": 1})
    if p_first == 0.5:
        return NormalisedRow([], dropped={"tie": 1})
    texts = require_completion(row[first], first), require_completion(row[second], second)
    chosen, rejected = texts if p_first > 0.5 else texts[::-1]
    normalised = _for_task(prompt, chosen, rejected, task)
    if task == "preference":
        normalised["probability"] = max(p_first, 1 - p_first)
    return NormalisedRow([normalised])


def _probability_of_first(value: object, column: str) -> float | None:
    """P(first completion preferred): `p_a` itself, or 2 - `preference`; None when missing."""
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    low, high = (0.0, 1.0) if column == "p_a" else (1.0, 2.0)
    if isinstance(value, bool) or not low <= number <= high:
        detail = f"expected a number from {low:g} to {high:g}, got {value!r}"
        raise InvalidRow("bad_preference", column, detail)
    return number if column == "p_a" else 2.0 - number


def _ranked(row: Row, task: Task, layout: str) -> NormalisedRow:
    """K-wise rankings: as they are, every strictly ordered pair, or the best completion."""
    prompt = _prompt(row)
    if task == "prompt":
        return NormalisedRow([{"prompt": prompt}])
    completions, ranks = require_ranking(row)
    if task == "sft":
        best = completions[ranks.index(min(ranks))]
        return NormalisedRow([_joined(prompt, completion=best)])
    pairs = ordered_pairs(ranks)
    if not pairs:
        return NormalisedRow([], dropped={"tie": 1})
    tied = len(ranks) * (len(ranks) - 1) // 2 - len(pairs)
    counted = {"tied_rank_pairs": tied} if tied else {}
    if task == "preference":
        rows = [_joined(prompt, chosen=completions[i], rejected=completions[j]) for i, j in pairs]
        return NormalisedRow(rows, counted=counted)
    if all(completions[i] == completions[j] for i, j in pairs):
        return NormalisedRow([], dropped={"identical_pair": 1})
    if any(isinstance(text, list) for text in (prompt, *completions)):
        prompt, completions = as_prompt(prompt), [as_completion(text) for text in completions]
    ranking = {"prompt": prompt, "completions": completions, "ranks": ranks}
    return NormalisedRow([ranking], counted=counted)


def _as_ranking(pair: Row) -> dict[str, object]:
    completions = [pair["chosen"], pair["rejected"]]
    return {"prompt": pair["prompt"], "completions": completions, "ranks": [1, 2]}


def _messages(row: Row, task: Task, layout: str) -> NormalisedRow:
    """Whole conversations for SFT, or what comes before their last answer."""
    column = layouts.first_column(row, ("messages", "conversations")) or "messages"
    turns = as_prompt(_with_system(row, require_messages(row.get(column), column)))
    prompt, answer = split_last_answer(turns)
    if task == "prompt":
        if not prompt:
            raise InvalidRow("bad_messages", column, "the conversation holds no prompt")
        return NormalisedRow([{"prompt": prompt}])
    if all(turn["role"] != "assistant" for turn in turns):
        raise InvalidRow("bad_messages", column, "no assistant turn to learn from")
    counted = {} if answer else {"last_turn_not_assistant": 1}
    return NormalisedRow([{"messages": turns}], counted=counted)


def _prompt_completion(row: Row, task: Task, layout: str) -> NormalisedRow:
    prompt = _prompt(row)
    if task == "prompt":
        return NormalisedRow([{"prompt": prompt}])
    column = layouts.first_column(row, layouts.ANSWER_COLUMNS) or "completion"
    completion = require_completion(row.get(column), column)
    return NormalisedRow([_joined(prompt, completion=completion)])


def _prompt_only(row: Row, task: Task, layout: str) -> NormalisedRow:
    transcript = layouts.is_prompt_transcript(row.get("prompt"))
    return NormalisedRow([{"prompt": _prompt(row, transcript)}])


def _text(row: Row, task: Task, layout: str) -> NormalisedRow:
    return NormalisedRow([{"text": require_string(row.get("text"), "text")}])


_NORMALISERS: dict[str, Callable[[Row, Task, str], NormalisedRow]] = {
    "explicit": _explicit,
    "explicit_conversational": _explicit,
    "explicit_mixed": _explicit,
    "explicit_transcript": _explicit,
    "full_conversations": _explicit,
    "question_pairs": _explicit,
    "implicit_conversational": _implicit,
    "transcripts": _transcripts,
    "ranked": _ranked,
    "valued_pairs": _valued_pairs,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "prompt_only": _prompt_only,
    "text": _text,
}
