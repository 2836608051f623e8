"""Human comparisons: event store, fair assignment, backup that loses no vote, exports, quality.

`open_collection(path, secret, backup=...)` gives what an app calls; the rest reads its store.
"""

from hf_align.feedback.answers import CHOICES, Answer
from hf_align.feedback.assignment import Assignment
from hf_align.feedback.backups import (
    Backup,
    BucketBackup,
    DatasetBackup,
    DirectoryBackup,
    open_backup,
)
from hf_align.feedback.collection import Collection, open_collection
from hf_align.feedback.exports import Counts, ExportOptions, export_rows
from hf_align.feedback.identity import Keys, Refused, secret_of
from hf_align.feedback.items import Gold, Item, Output
from hf_align.feedback.outbox import Limits, Outbox, restore
from hf_align.feedback.progress import Progress, missing_votes, progress
from hf_align.feedback.projects import FLAGS, SKIP_REASONS, Project
from hf_align.feedback.quality import (
    Agreement,
    Quality,
    Thresholds,
    agreement,
    drift,
    drifted,
    feedback_text,
    kappas,
    load_votes,
    quality,
)
from hf_align.feedback.store import DamagedStore, Store
from hf_align.feedback.submission import Receipt
from hf_align.feedback.texts import visible_text
from hf_align.feedback.writing import split_of, write_export

__all__ = [
    # running a collection
    "Collection",
    "open_collection",
    "Project",
    "Item",
    "Output",
    "Gold",
    "Answer",
    "Assignment",
    "Receipt",
    "Refused",
    "secret_of",
    "CHOICES",
    "FLAGS",
    "SKIP_REASONS",
    "visible_text",
    # keeping it
    "Store",
    "DamagedStore",
    "Keys",
    "Backup",
    "BucketBackup",
    "DatasetBackup",
    "DirectoryBackup",
    "open_backup",
    "Outbox",
    "Limits",
    "restore",
    # using it
    "export_rows",
    "write_export",
    "ExportOptions",
    "Counts",
    "split_of",
    "progress",
    "missing_votes",
    "Progress",
    "load_votes",
    "agreement",
    "Agreement",
    "kappas",
    "quality",
    "Quality",
    "Thresholds",
    "drift",
    "drifted",
    "feedback_text",
]
