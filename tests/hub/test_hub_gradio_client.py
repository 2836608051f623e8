"""A Space found and called by its id: gradio_client asks the Hub where the app runs.

The Hub tells a host, the app runs on this machine, so the client is the real one all the way.
"""

import contextlib
import json

import pytest
from loopback import READ_TOKEN, WRITE_TOKEN, Repo

gr = pytest.importorskip("gradio", reason="needs the extra: pip install hf_align[ui]")
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The collection app on a port of this machine, with what its visitors sent along."""
    from hf_align.feedback import Item, Output, Project, open_collection
    from hf_align.ui import LocalSignIn, build_collect_app
    from hf_align.ui.endpoints import text_endpoints
    from hf_align.ui.page import launch_options

    secret, lead = "a secret of enough characters", "local:lead"
    path = tmp_path_factory.mktemp("app") / "collect.db"
    collection = open_collection(path, secret, leads={lead})
    collection.lead.create_project(lead, Project("p"), "Read both.")
    collection.lead.add_items(lead, "p", [Item("q", (Output("a"), Output("b")))])
    seen = []

    class SignIn(LocalSignIn):
        def account(self, request):
            seen.append({k.lower(): v for k, v in dict(request.headers).items()})
            return super().account(request)

    sign_in = SignIn(secret)
    demo = build_collect_app(collection, "p", sign_in)
    options = launch_options(sign_in, text_endpoints(demo))
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
    yield address, sign_in, seen
    demo.close(verbose=False)
    collection.close()
    collection.store.close()


@pytest.fixture
def space(hub, client, app, monkeypatch):
    """A private Space whose app is that one."""
    from huggingface_hub import hf_api

    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # made when the client is imported
    hub.repos["spaces/lab/collect"] = Repo(private=True, host=app[0].rstrip("/"))
    return hub.repos["spaces/lab/collect"]


def connect(token=WRITE_TOKEN, **settings):
    return contextlib.closing(
        gradio_client.Client(
            "lab/collect", token=token, verbose=False, analytics_enabled=False, **settings
        )
    )


def test_a_private_space_is_found_with_a_token_and_its_app_is_called(hub, space, app):
    _, sign_in, seen = app
    cookie = {"cookie": f"hf_align_account={sign_in.cookie('ann')}"}
    with connect(headers=cookie) as client:
        assert client.src.rstrip("/") == space.host
        told = json.loads(client.predict(json.dumps({"action": "next"}), api_name="/collect"))
    assert (told["code"], told["status"]["name"]) == ("task", "ann")
    asked = [request for request in hub.log if "/api/spaces/" in request]
    assert asked == ["GET /api/spaces/lab/collect", "GET /api/spaces/lab/collect/runtime"]
    # The token goes where the Hub's proxy looks for it, and never as the app's own sign-in.
    assert seen[-1]["x-hf-authorization"] == f"Bearer {WRITE_TOKEN}"
    assert "authorization" not in seen[-1]


def test_who_sends_no_session_is_nobody_whatever_token_they_have(space):
    with connect(token=READ_TOKEN) as client:
        told = json.loads(client.predict(json.dumps({"action": "next"}), api_name="/collect"))
        assert told["code"] == "signed_out"
        told = json.loads(client.predict(json.dumps({"action": "pause"}), api_name="/lead"))
        assert told["code"] == "signed_out"


def test_a_space_that_is_hidden_broken_or_gone_is_said(hub, space):
    from huggingface_hub.errors import RepositoryNotFoundError

    with pytest.raises(RepositoryNotFoundError):
        connect(token=False)
    space.stage = "RUNTIME_ERROR"
    with pytest.raises(ValueError, match="invalid state: RUNTIME_ERROR"):
        connect()
    space.stage, space.host = "RUNNING", None
    with pytest.raises(ValueError, match="Could not find Space"):
        connect()
