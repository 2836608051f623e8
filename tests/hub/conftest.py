"""The loopback Hub, and clients of this process turned towards it."""

import pytest
from loopback import LoopbackHub


@pytest.fixture
def hub():
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def client(hub, monkeypatch):
    """Points this process's clients at the loopback Hub; `client(token)` signs in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def sign_in(token):
        monkeypatch.setenv("HF_TOKEN", token)

    return sign_in
