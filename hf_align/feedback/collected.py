"""What a dataset's card says of how votes were collected: protocol, people, agreement, sides."""

from __future__ import annotations

from typing import Any

from hf_align.feedback.exports import ExportOptions, Kind
from hf_align.feedback.progress import progress
from hf_align.feedback.quality import agreement, load_votes, quality
from hf_align.feedback.store import Store
from hf_align.types import Estimate

_QUESTION = {
    "preference": "two answers beside each other, blind; five steps from one to the other, and "
    "both bad",
    "ranking": "several answers under each other, blind; a rank for each, ties allowed",
    "unpaired": "a rating from 1 to 7 and flags for single answers",
    "demonstration": "an answer written to a prompt",
    "battle": "two answers beside each other, blind; five steps from one to the other",
    "raw": "everything that was done, in order",
}
_VOTES = {
    "majority": "one per item, by the majority of its votes",
    "single": "one per vote",
    "soft": "one per item, with the share of its votes for the better one in `p_chosen`",
}
_TIES = {"drop": "left out", "both": "there both ways round"}
_SKIPS = {"drop": "left out", "tie": "counted as ties"}


def collected(store: Store, project: str, kind: Kind, options: ExportOptions) -> dict[str, Any]:
    """Facts for a card, ready for JSON: `protocol`, `annotators`, `agreement`, `position_bias`.

    Nobody's pseudonym is among them.

    Raises:
        InputError: No such project.
    """
    done, votes = progress(store, project), load_votes(store, project)
    everyone, agreed = quality(votes)[0], agreement(votes)
    protocol = {
        "shown": _QUESTION[kind],
        "sides": "balanced within each item's votes, by design",
        "guidelines": f"version {done.guideline_version}",
    }
    if kind in ("preference", "battle"):
        protocol |= {"rows": _VOTES[options.votes]} if kind == "preference" else {}
        protocol |= {"ties": _TIES[options.ties], "skips": _SKIPS[options.skips]}
        if options.adjudicated and options.votes != "single":
            protocol["disagreements"] = "a lead's decision replaces the votes where there is one"
    people = {
        "annotators": f"{done.annotators:,}",
        "votes": f"{done.votes:,} of {done.wanted:,} wanted",
        "items with all their votes": f"{done.complete:,} of {done.items:,}",
        "skips": f"{done.skips:,}",
        "right on items with a known answer": _shown(everyone.gold),
        "the same again on repeated items": _shown(everyone.consistency),
        "Krippendorff's α of the winner": _shown(agreed.alpha_winner),
        "Krippendorff's α of the five steps": _shown(agreed.alpha_strength),
        "median seconds per item": None
        if everyone.wall_ms is None
        else f"{everyone.wall_ms / 1000:.1f}",
    }
    return {
        "protocol": protocol,
        "annotators": people,
        "agreement": _shown(agreed.same_winner),
        "position_bias": _shown(everyone.left),
    }


def _shown(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else found.to_dict()
