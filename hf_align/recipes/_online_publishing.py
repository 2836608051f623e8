"""Publishes online rounds: the mixed pairs after each as a revision `round-N`, the policy at last.

What was published is noted in the round's folder, so that a command that goes on sends nothing
twice, and no older round over a newer one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_align.configs import OnlineArguments
from hf_align.files import write_text
from hf_align.hub import Destination, push_dataset, tag_commit, tags_of
from hf_align.recipes._online_mix import data_of
from hf_align.recipes._online_stages import place
from hf_align.recipes._parser import Choices
from hf_align.recipes._publishing import (
    check_publishing,
    publish_output,
    published_line,
    settle_destination,
)
from hf_align.types import InputError

PUBLISHED = "published.json"


@dataclass(frozen=True)
class Destinations:
    """Where the rounds go on the Hub.

    Attributes:
        model: Of the policy, its report and records.
        pairs: Of the mixed pairs.
    """

    model: Destination
    pairs: Destination


def check_rounds(choices: Choices, options: OnlineArguments, folder: Path) -> Destinations | None:
    """Where the rounds go, if anywhere, after asking the Hub whether they may.

    Raises:
        InputError: No token, no right to write there, or the repo holds rounds of something else.
        OSError: The Hub cannot be reached.
    """
    name = options.hub_dataset_id
    if name is not None and not choices.get("push_to_hub"):
        raise InputError("hub_dataset_id needs --push_to_hub; add it")
    if choices.get("hub_revision"):
        raise InputError("hub_revision: every round is a revision of its own; leave it out")
    model = check_publishing(choices, folder)
    if model is None:
        return None
    asked = {"hub_model_id": name or f"{model.repo_id}-preferences"}
    asked |= {"hub_private_repo": model.private, "hub_license": model.license}
    try:
        pairs = settle_destination(asked, folder, "dataset")
    except InputError as error:
        raise InputError(str(error).replace("hub_model_id", "hub_dataset_id")) from error
    _check_tags(pairs, folder)
    return Destinations(model, pairs)


def _check_tags(pairs: Destination, folder: Path) -> None:
    """Refuses a repo with a round that this folder has not even begun to mix."""
    for tag in sorted(tags_of(pairs.repo_id, "dataset")):
        number = tag.removeprefix("round-")
        begun = folder / place(int(number), "mix") if number.isdecimal() else None
        if tag.startswith("round-") and begun is not None and not begun.is_dir():
            raise InputError(
                f"hub_dataset_id {pairs.repo_id} has a {tag} of another run; name another repo"
            )


def publish_round(folder: Path, number: int, destinations: Destinations | None) -> None:
    """Pushes a round's mixed pairs and tags them, where that was asked for and is not done.

    Raises:
        InputError: Another commit has the tag, or the round was made again since.
        OSError: The Hub refuses or cannot be reached; the round stays complete on disk, and the
            same command goes on with it.
    """
    if destinations is None:
        return
    target, tag = destinations.pairs, f"round-{number}"
    mix, note = folder / place(number, "mix"), folder / place(number, PUBLISHED)
    noted, content = _read(note), data_of(mix)["sha256"]
    if noted.get("repo_id") == target.repo_id:
        if noted["sha256"] != content:
            raise InputError(
                f"hub_dataset_id {target.repo_id} has {tag} from before {mix} was made again with "
                "other pairs; name another repo"
            )
        return
    published = push_dataset(mix, target)
    tag_commit(target.repo_id, "dataset", tag, published.commit)
    noted = {"repo_id": target.repo_id, **asdict(published), "sha256": content}
    write_text(note, json.dumps(noted, indent=2) + "\n")
    print(f"round {number} {published_line(published, target)}, revision {tag}")


def _read(note: Path) -> dict[str, Any]:
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}


def published_pairs(folder: Path, number: int) -> list[dict[str, Any]]:
    """A round's mixed pairs as a lineage names them, where these were published."""
    noted = _read(folder / place(number, PUBLISHED))
    if not noted or noted["sha256"] != data_of(folder / place(number, "mix"))["sha256"]:
        return []
    return [{"name": noted["repo_id"], "kind": "hub", "revision": noted["commit"], "sha256": None}]


def publish_run(folder: Path, destinations: Destinations | None) -> None:
    """Pushes the policy of the best round with the report, where that was asked for.

    Raises:
        OSError: The Hub refuses or cannot be reached.
    """
    if destinations is not None:
        publish_output(folder, destinations.model, "model")
