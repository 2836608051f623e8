"""What the Hub needs to know and what it must never see: revisions, hashes, cards, publications.

Torch-free. A model is named by repo id or folder; `resolve_model` turns that into a commit or a
content hash, so that a run records exactly what went in, and `ancestors` what came before that.
Cards are pure functions of a run's own files. `push_model`, `push_dataset`, `push_report` and
`push_space` publish: one commit, private unless asked otherwise, looked at afterwards, tagged,
repeatable.
"""

from hf_align.hub.accounts import Destination, check_destination
from hf_align.hub.cards import model_card, shown_name
from hf_align.hub.dataset_cards import dataset_card
from hf_align.hub.dataset_facts import dataset_facts
from hf_align.hub.datasets import plan_dataset, push_dataset
from hf_align.hub.lineage import ancestors
from hf_align.hub.loading import resolve_model
from hf_align.hub.models import content_hash
from hf_align.hub.publishing import (
    Publication,
    Published,
    plan_model,
    plan_report,
    push_model,
    push_report,
)
from hf_align.hub.spaces import SPACE_KINDS, plan_space, push_space
from hf_align.hub.tags import tag_commit, tags_of

__all__ = [
    # what went in
    "resolve_model",
    "content_hash",
    "shown_name",
    "ancestors",
    # cards
    "model_card",
    "dataset_card",
    "dataset_facts",
    # what goes out
    "Destination",
    "check_destination",
    "Publication",
    "Published",
    "plan_model",
    "plan_dataset",
    "plan_report",
    "push_model",
    "push_dataset",
    "push_report",
    "SPACE_KINDS",
    "plan_space",
    "push_space",
    "tag_commit",
    "tags_of",
]
