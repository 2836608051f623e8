"""What the Hub needs to know and what it must never see: revisions, hashes, model cards, pushes.

Torch-free. A model is named by repo id or folder; `resolve_model` turns that into a commit or a
content hash, so that a run records exactly what went in. `model_card` is a pure function of the
run's own files; `push_run` publishes them in one commit, private unless asked otherwise.
"""

from hf_align.hub.cards import model_card, shown_name
from hf_align.hub.models import content_hash, resolve_model
from hf_align.hub.publishing import Destination, check_destination, push_run

__all__ = [
    # what went in
    "resolve_model",
    "content_hash",
    "shown_name",
    # what goes out
    "model_card",
    "Destination",
    "check_destination",
    "push_run",
]
