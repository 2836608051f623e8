"""Reward models by Hub id: a round trip keeps every score; what is absent is said in one line."""

import numpy as np
import pytest
from loopback import Repo

from hf_align.rewards import Ensemble, RewardModel, normalise, write_ensemble
from hf_align.types import InputError

PROMPTS, COMPLETIONS = ["w1 w2 ", "w3 ", "w4 w5 "], ["w6", "w7 w8 w9", "w1"]


@pytest.fixture
def download(hub, client, tmp_path, monkeypatch):
    """Serves a folder as a public repo, to clients with an empty cache."""
    from huggingface_hub import constants

    # Made from the endpoint while huggingface_hub is imported.
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def serve(folder, repo_id):
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        hub.repos[repo_id] = Repo(private=False, files=files, commits=["first"])

    return serve


@pytest.fixture
def folder(tokenizer, tmp_path):
    """An ensemble of two normalised members."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    for seed in range(2):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_labels=1,
            initializer_range=0.5,
            pad_token_id=0,
        )
        model = LlamaForSequenceClassification(config).eval()
        normalise(model, 0.5 + seed, 2.0)
        model.save_pretrained(tmp_path / "judges" / f"member-{seed}")
        tokenizer.save_pretrained(tmp_path / "judges" / f"member-{seed}")
    write_ensemble(tmp_path / "judges", Ensemble(("member-0", "member-1"), "worst_case"))
    return tmp_path / "judges"


def test_one_model_and_an_ensemble_score_the_same_from_the_hub(folder, download):
    for path, repo_id in ((folder, "lab/judges"), (folder / "member-1", "lab/judge")):
        download(path, repo_id)
        local, remote = RewardModel(path), RewardModel(repo_id)
        np.testing.assert_allclose(
            remote.member_scores(PROMPTS, COMPLETIONS),
            local.member_scores(PROMPTS, COMPLETIONS),
            atol=1e-6,
        )
        assert remote.ensemble == local.ensemble
        assert remote.__name__ == repo_id.split("/")[1]


def test_what_the_hub_does_not_have_is_one_line(hub, folder, download):
    download(folder, "lab/judges")
    del hub.repos["lab/judges"].files["member-1/config.json"]
    with pytest.raises(InputError, match=r"reward model lab/judges: member member-1 is missing"):
        RewardModel("lab/judges")
    with pytest.raises(OSError, match="gold_reward lab/nobody: ") as caught:
        RewardModel("lab/nobody", option="gold_reward")
    assert "\n" not in str(caught.value)
