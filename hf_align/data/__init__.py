"""Preference, ranking, SFT and prompt data from the Hub or local files, in TRL's columns.

`load_data` recognises the layouts of `LAYOUTS`, gives them an explicit prompt, splits by prompt and
reports what was kept, dropped and counted. The import itself loads neither torch nor datasets.
"""

from hf_align.data.audit import audit_with_tokenizer
from hf_align.data.layouts import LAYOUTS, Task, detect_layout
from hf_align.data.loading import LoadedData, load_data
from hf_align.data.rankings import completions_and_ranks, ordered_pairs
from hf_align.data.report import DataReport
from hf_align.data.rows import NormalisedRow, normalise_row
from hf_align.data.sources import DataSource
from hf_align.data.splits import split_by_prompt
from hf_align.data.texts import InvalidRow
from hf_align.data.writing import write_dataset

__all__ = [
    # loading
    "load_data",
    "LoadedData",
    "DataReport",
    "DataSource",
    "Task",
    # pieces
    "LAYOUTS",
    "detect_layout",
    "normalise_row",
    "NormalisedRow",
    "InvalidRow",
    "split_by_prompt",
    "completions_and_ranks",
    "ordered_pairs",
    # results
    "write_dataset",
    "audit_with_tokenizer",
]
