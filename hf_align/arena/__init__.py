"""Answers one prompt with several published policies side by side, and measures the answers.

    >>> arena = Arena.open(["ORG/SFT", "ORG/DPO"])
    >>> *_, answers = arena.stream("Why is the sky blue?", Sampling(temperature=0.7))
    >>> arena.measure("Why is the sky blue?", answers)[1].log_ratio

Importing this package loads no torch; `engine`, where `Arena` is, loads it on use.
"""

from hf_align.arena.engine import Arena
from hf_align.arena.turns import (
    Answer,
    Contestant,
    Facts,
    Measures,
    Progress,
    Sampling,
    Token,
)

__all__ = ["Answer", "Arena", "Contestant", "Facts", "Measures", "Progress", "Sampling", "Token"]
