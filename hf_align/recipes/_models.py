"""Opens what a model folder holds (tokenizer, configuration, weights); whatever is broken is one
line.

transformers reports a damaged folder as any of five exception types, and weights that do not fit as
a warning after which they are random. Both are the user's to mend, before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_align.types import InputError


@contextmanager
def _readable(path: str, what: str) -> Iterator[None]:
    """Turns what transformers raises on a damaged or unknown model into one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    # Its own report of the same problem runs over dozens of lines.
    logging.set_verbosity_error()
    try:
        yield
    except (ValueError, KeyError, TypeError, ImportError, RuntimeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_broken(path, what, error)) from error
    except SafetensorError as error:
        raise InputError(_broken(path, what, error)) from error
    except OSError as error:
        # Of a folder's content transformers complains with an OSError that has no errno.
        kind = InputError if Path(path).is_dir() and error.errno is None else OSError
        raise kind(_broken(path, what, error)) from error
    finally:
        logging.set_verbosity(verbosity)


def _broken(path: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= 240 else reason[:240] + "…"
    return f"model {path}: {what} ({reason}); mend it, or name another model"


def load_tokenizer_and_config(source: dict[str, Any], trust_remote_code: bool) -> tuple[Any, Any]:
    """The tokenizer and the text configuration of a model, before its weights load.

    Raises:
        InputError: The folder or repo has no usable tokenizer or configuration.
        OSError: A file cannot be read or downloaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    where = {"revision": source["revision"], "trust_remote_code": trust_remote_code}
    with _readable(source["path"], "its config.json cannot be used"):
        config = AutoConfig.from_pretrained(source["path"], **where).get_text_config()
    with _readable(source["path"], "its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source["path"], **where)
    return tokenizer, config


def is_language_model(source: dict[str, Any], trust_remote_code: bool = False) -> bool:
    """Whether the saved weights are a causal language model's, as their config.json says.

    Raises:
        InputError: The configuration cannot be read.
        OSError: It cannot be downloaded.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    where = {"revision": source["revision"], "trust_remote_code": trust_remote_code}
    with _readable(source["path"], "its config.json cannot be used"):
        names = AutoConfig.from_pretrained(source["path"], **where).architectures or []
    return any(name.endswith("ForCausalLM") or name in KNOWN.values() for name in names)


def load_weights(path: str, revision: str | None = None, dtype: Any = None, **kwargs: Any) -> Any:
    """A causal language model with every weight read from safetensors.

    Raises:
        InputError: The weights do not fit the configuration, or the model needs what is not
            installed (attention kernels, quantisation).
        OSError: A file cannot be read or downloaded.
    """
    from transformers import AutoModelForCausalLM

    with _readable(path, "its weights cannot be loaded"):
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    for keys, what in (("mismatched_keys", "of another shape"), ("missing_keys", "missing")):
        if info[keys]:
            first = min(key if isinstance(key, str) else key[0] for key in info[keys])
            raise InputError(
                f"model {path}: its weights do not fit its config.json: {len(info[keys])} are "
                f"{what} ({first}, …) and would be random; it may be no causal language model"
            )
    return model


def load_classifier(source: dict[str, Any], seed: int, dtype: Any = None, **kwargs: Any) -> Any:
    """A sequence-classification model of one output on a language model's weights.

    The head is new and random, by `seed`, unless the model has one; everything else must be there.

    Raises:
        InputError: The weights do not fit the configuration.
        OSError: A file cannot be read or downloaded.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    path = source["path"]
    with _readable(path, "its weights cannot be loaded"), torch.random.fork_rng():
        torch.manual_seed(seed)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=source["revision"],
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    head = ("score.", "classifier.")
    missing = [key for key in info["missing_keys"] if not key.startswith(head)]
    if missing or info["mismatched_keys"]:
        raise InputError(
            f"model {path}: its weights do not fit its config.json: {len(missing)} are missing and "
            f"{len(info['mismatched_keys'])} of another shape, and would be random"
        )
    return model
