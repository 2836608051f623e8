"""Reads the weights of all contestants, each once: adapters of one base share it.

An adapter shares a base where it is plain LoRA; one that brings layers of its own, or changes the
base when it is read, gets a copy. Torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_align.arena.facts import is_same
from hf_align.arena.memory import check_fits, free_bytes
from hf_align.arena.opening import Candidate, told
from hf_align.hub.loading import ADAPTER_FILES, Home
from hf_align.loading import load_policy
from hf_align.records import read_record
from hf_align.types import InputError
from hf_align.weights import load_weights, readable

if TYPE_CHECKING:
    from hf_align.arena.bodies import Body, Voice

_PLAIN = (".lora_A.weight", ".lora_B.weight")
_OWN_LAYERS = ("modules_to_save", "trainable_token_indices", "layer_replication", "use_dora")
_OWN_LAYERS = (*_OWN_LAYERS, "alora_invocation_tokens", "lora_bias", "target_parameters")
_STARTS = (True, False, None, "gaussian")


@dataclass
class Member:
    """A contestant that can answer.

    Attributes:
        voice: Its weights.
        tokenizer: Its tokenizer.
        chat: Whether text is shown to it as a user's message.
        end_ids: Tokens that end an answer.
        positions: Longest prompt and answer together, in tokens; None without a limit.
        best_of: Completions that each answer is chosen from.
        beta: Of its run, where its implicit reward is held against the arena's reference.
    """

    voice: Voice
    tokenizer: Any
    chat: bool
    end_ids: frozenset[int]
    positions: int | None
    best_of: int = 1
    beta: float | None = None

    def shares_vocabulary(self, other: Member) -> bool:
        """Whether token ids mean the same to both."""
        sizes = [m.voice.config.get_text_config().vocab_size for m in (self, other)]
        one, two = (m.tokenizer.get_vocab().items() for m in (self, other))
        return sizes[0] == sizes[1] and (one <= two or two <= one)


class Loader:
    """Reads weights, and remembers what it has read.

    Args:
        device: Where they go.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.bodies: dict[tuple[str, str | None], Body] = {}
        self._folders: list[Home] = []
        self.voices: dict[tuple[str, str | None], tuple[Voice, Any]] = {}

    def load(self, candidate: Candidate) -> tuple[Voice, Any]:
        """A candidate's weights and tokenizer.

        Raises:
            InputError: They cannot be used, or do not fit.
            OSError: The Hub cannot be reached, or refuses.
        """
        from hf_align.arena.bodies import Body, Voice

        assert candidate.found is not None and candidate.identity is not None
        if candidate.identity in self.voices:
            return self.voices[candidate.identity]
        home, base = candidate.found.home, candidate.found.base
        if base is None:
            voice, words = Voice(self._body(home)), home
        elif is_plain(home):
            body, name = self._body(base), f"adapter{len(self.voices)}"
            files = [home.file(path, None) for path in ADAPTER_FILES]
            with readable(home.name, "its adapter cannot be loaded"):
                body.add_adapter(files[0].parent, name)
            voice = Voice(body, name)
            words = home if "tokenizer_config.json" in home.sizes else base
        else:
            check_fits(base, self.device)
            model, tokenizer = load_policy(home.name, home.revision, device=self.device)
            self.bodies[candidate.identity] = Body(model)
            voice, words = Voice(self.bodies[candidate.identity]), None
        if words is not None:
            tokenizer = _tokenizer(words)
        self.voices[candidate.identity] = voice, tokenizer
        return voice, tokenizer

    def _body(self, home: Home) -> Body:
        from hf_align.arena.bodies import Body

        home = self._first_of(home)
        name = home.name if home.revision is not None else str(Path(home.name).resolve())
        key = name, home.revision
        if key not in self.bodies:
            check_fits(home, self.device)
            model = load_weights(home.name, home.revision, "auto")
            if not model.can_generate():
                raise InputError(f"{home.label} is a {type(model).__name__}, which cannot answer")
            self.bodies[key] = Body(model.to(self.device))
            if home.revision is None:
                self._folders.append(home)
        return self.bodies[key]

    def _first_of(self, home: Home) -> Home:
        """The folder read before that this one is a copy of, or itself: an adapter's base may lie
        in another place than the same model under its own name.
        """
        if home.revision is not None:
            return home
        weights = _weights_of(home)
        alike = (other for other in self._folders if _weights_of(other) == weights)
        same = (other for other in alike if is_same(other.source(), home.source()))
        return next(same, home)


def load_members(
    candidates: Sequence[Candidate], device: str, prompt_format: str = "auto"
) -> dict[str, Member]:
    """The candidates that can answer, by key; of the others `problem` says why not.

    Args:
        candidates: Who was found.
        device: Where the weights go.
        prompt_format: "chat" shows text as a user's message to all who have a chat template, "text"
            to none; "auto" to those who were trained on conversations, as their runs tell, or else
            the runs of the others, or else their having a template.
    """
    import torch

    loader, members = Loader(device), {}
    reference = next(c for c in candidates if c.role == "reference")
    known = [c.run.chat for c in candidates if c.run.chat is not None]
    for candidate in candidates:
        if candidate.problem is not None:
            continue
        try:
            voice, tokenizer = loader.load(candidate)
            members[candidate.key] = _member(candidate, voice, tokenizer)
        except (InputError, OSError) as error:
            candidate.problem = told(error)
            continue
        except torch.OutOfMemoryError:
            free = free_bytes(device) / 1e9
            candidate.problem = f"its weights do not fit: {free:.1f} GB of memory are free"
            continue
        member, own = members[candidate.key], candidate.run.chat
        if prompt_format != "auto":
            own = prompt_format == "chat"
        elif own is None and known:
            own = all(known)
        member.chat = tokenizer.chat_template is not None and own is not False
        # A reward held against another reference is another reward.
        other = is_same(candidate.run.reference, reference.source) is False
        member.beta = None if other else candidate.run.beta
    return members


def _weights_of(home: Home) -> dict[str, int | None]:
    """Sizes of its weights, which differ for most models, so that few contents are compared."""
    return {path: size for path, size in home.sizes.items() if path.endswith(".safetensors")}


def is_plain(home: Home) -> bool:
    """Whether an adapter can share its base: LoRA and nothing else.

    Raises:
        OSError: The Hub cannot be reached, or refuses.
    """
    from safetensors import safe_open

    config_path, weights = (home.file(path, None) for path in ADAPTER_FILES)
    config: Mapping[str, Any] = read_record(config_path, f"{home.label}: {ADAPTER_FILES[0]}")
    # PiSSA and its kin take their start out of the base's weights.
    if config.get("peft_type") != "LORA" or config.get("init_lora_weights") not in _STARTS:
        return False
    if any(config.get(name) for name in _OWN_LAYERS) or config.get("bias", "none") != "none":
        return False
    with readable(home.name, "its adapter cannot be loaded"), safe_open(weights, "np") as file:
        return all(key.endswith(_PLAIN) for key in file.keys())  # noqa: SIM118


def _tokenizer(home: Home) -> Any:
    from transformers import AutoTokenizer

    with readable(home.name, "its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(
            home.name, revision=home.revision, trust_remote_code=False
        )


def _member(candidate: Candidate, voice: Voice, tokenizer: Any) -> Member:
    from hf_align.sampling.completions import generation_config

    config = generation_config(voice.body.core, tokenizer, 1, 1.0)
    # The first call drops saved settings for cutting and padding, which no two threads may do.
    tokenizer("")
    return Member(
        voice=voice,
        tokenizer=tokenizer,
        chat=False,
        end_ids=frozenset(config.eos_token_id),
        positions=getattr(voice.config.get_text_config(), "max_position_embeddings", None),
        best_of=candidate.best_of,
    )
