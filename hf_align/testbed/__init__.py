"""The built-in world "Brief": prompts, exact gold reward, simulated annotators, tiny models, data.

The laboratory where truth is known, and the default of every recipe. A prompt names four topics;
a good completion mentions each once and stops:

    >>> print(explain("mention tea rain books music :", "tea coffee rain please"))
    gold 1.90: names tea and rain (+2), misses books and music, mentions coffee unasked (−0.5), \
is polite (+0.4)

`build_testbed()` writes its datasets and a small SFT policy once, under HF_HOME. A second world has
a metric to optimise instead: `build_translation()` writes a language pair with every correct
translation, for BLEU.
"""

from hf_align.testbed.build import Testbed, build_testbed, more_preferences
from hf_align.testbed.language import accepted_translation, translations
from hf_align.testbed.models import sample_completions, tiny_llama, tokenizer
from hf_align.testbed.rankings import build_rankings
from hf_align.testbed.translation import TranslationSpec, TranslationTask, build_translation
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
    "TranslationSpec",
    "TranslationTask",
    "WorldSpec",
    "accepted_translation",
    "annotate",
    "build_rankings",
    "build_testbed",
    "build_translation",
    "explain",
    "gold_reward",
    "more_preferences",
    "sample_completions",
    "sample_demonstrations",
    "tiny_llama",
    "tokenizer",
    "translations",
]
