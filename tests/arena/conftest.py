"""Tiny policies, adapters and a reward model in folders, arenas of them, and the loopback Hub."""

from types import SimpleNamespace

import pytest
from arena_world import save_reward, seeded_adapter
from loopback import LoopbackHub
from small_models import save_policy


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_model, tokenizer):
    """A base, another model, a LoRA adapter of the base, that merged, and a reward model."""
    from hf_align import load_policy

    root = tmp_path_factory.mktemp("arena")
    save_policy(root / "base", make_model, tokenizer)
    save_policy(root / "other", make_model, tokenizer, seed=1)
    seeded_adapter(root / "adapter", root / "base", str(root / "base"))
    merged, _ = load_policy(root / "adapter", device="cpu")
    merged.merge_and_unload().save_pretrained(root / "merged")
    tokenizer.save_pretrained(root / "merged")
    save_reward(root / "reward", tokenizer)
    return SimpleNamespace(**{path.name: str(path) for path in root.iterdir()})


@pytest.fixture(scope="session")
def arena(folders):
    """The base, its adapter, the same merged, the other model, and the best of 4 of the base."""
    from hf_align.arena import Arena

    names = [folders.base, folders.adapter, folders.merged, folders.other]
    return Arena.open(
        names, reward_model=folders.reward, best_of=4, device="cpu", prompt_format="text"
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The loopback Hub, this process's clients turned towards it, and an empty cache."""
    from huggingface_hub import constants
    from transformers.utils import hub as transformers_hub

    with LoopbackHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.chdir(tmp_path)
        yield running
