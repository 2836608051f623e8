"""Samples completions from a policy's own distribution, reproducibly.

Importing this package loads no torch. `decoding`, which on-policy training draws with, does.
"""

from hf_align.sampling.completions import Samples, sample_completions

__all__ = ["Samples", "sample_completions"]
