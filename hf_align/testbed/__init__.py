"""The built-in world "Brief": prompts, exact gold reward, simulated annotators, tiny models, data.

The laboratory where truth is known, and the default of every recipe. A prompt names four topics;
a good completion mentions each once and stops:

    >>> print(explain("mention tea rain books music :", "tea coffee rain please"))
    gold 1.90: names tea and rain (+2), misses books and music, mentions coffee unasked (−0.5), \
is polite (+0.4)

`build_testbed()` writes its datasets and a small SFT policy once, under HF_HOME.
"""

from hf_align.testbed.build import Testbed, build_testbed, more_preferences
from hf_align.testbed.models import sample_completions, tiny_llama, tokenizer
from hf_align.testbed.world import (
    ANNOTATORS,
    DEFAULT,
    MAX_NEW_TOKENS,
    Annotator,
    Breakdown,
    WorldSpec,
    annotate,
    explain,
    gold_reward,
    sample_demonstrations,
)

__all__ = [
    "ANNOTATORS",
    "DEFAULT",
    "MAX_NEW_TOKENS",
    "Annotator",
    "Breakdown",
    "Testbed",
    "WorldSpec",
    "annotate",
    "build_testbed",
    "explain",
    "gold_reward",
    "more_preferences",
    "sample_completions",
    "sample_demonstrations",
    "tiny_llama",
    "tokenizer",
]
