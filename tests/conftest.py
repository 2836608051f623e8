"""Test-wide environment: one thread, no network, no telemetry, and a cache shared by the whole run.

The environment is set while this file is imported, before any Hugging Face library reads it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_READ_AT_IMPORT = ("huggingface_hub", "datasets", "transformers", "torch")
_TOO_LATE = [name for name in _READ_AT_IMPORT if name in sys.modules]

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
# Nothing listens there, so a test that forgets its loopback Hub fails at once instead of leaving
# the machine.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ.pop("HF_TOKEN", None)

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    if _TOO_LATE:
        raise pytest.UsageError(f"imported before the test environment was set: {_TOO_LATE}")


@pytest.fixture(scope="session")
def testbed():
    """The testbed at its real size: built once per machine, then read from its cache."""
    from hf_align.testbed import build_testbed

    return build_testbed(progress=False)


@pytest.fixture(scope="session")
def quick_collections():
    """Spares each `train()` a walk over all that was imported, which takes longer than it does.

    accelerate collects garbage before and after, and a tiny model's training is over in no time.
    """
    import gc

    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    from hf_align.trainers import PPOTrainer, ReinforceTrainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def run_recipe(tmp_path):
    """Runs a recipe as a user does, in its own process: `run_recipe("dpo", "--max_steps", 2)`."""

    def run(name, *args, env=None, timeout=240, cwd=None):
        return subprocess.run(
            [sys.executable, "-m", f"hf_align.recipes.{name}", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or tmp_path,
            env=os.environ | {k: str(v) for k, v in (env or {}).items()},
        )

    return run


@pytest.fixture(scope="session")
def tokenizer():
    """A word-level tokenizer of 40 words with a chat template."""
    words = ["<pad>", "<eos>", "<user>", "<assistant>", *(f"w{i}" for i in range(36))]
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    built = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )
    built.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <eos> ' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return built


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """Builds a random model from a seed; a larger `scale` makes its distributions sharper."""

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed: int, *, scale: float = 0.3, hidden_size: int = 32, num_layers: int = 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                max_position_embeddings=128,
                initializer_range=scale,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
            return LlamaForCausalLM(config).eval()

    return build
