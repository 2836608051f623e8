"""The pages' endpoints answer as Gradio's do, and leave to Gradio what is none of theirs."""

import json

import pytest

gr = pytest.importorskip("gradio", reason="the app needs the extra: pip install hf_align[ui]")

from starlette.testclient import TestClient  # noqa: E402

from hf_align.ui.endpoints import MAX_BODY, TextRoutes, text_endpoints  # noqa: E402

ADDRESS = "/gradio_api/run/echo"


@pytest.fixture
def seen():
    return []


@pytest.fixture
def client(seen):
    """An endpoint that says what it was asked, before an app that says so of everything."""

    async def behind(scope, receive, send):
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b"behind"})

    def echo(payload, request):
        seen.append(payload)
        return f"{request.cookies.get('who', 'nobody')}: {payload}"

    return TestClient(TextRoutes(behind, {"echo": echo}))


def test_a_text_goes_in_and_one_comes_back_with_the_session_of_the_request(client, seen):
    client.cookies.set("who", "ann")
    reply = client.post(ADDRESS, json={"data": ['{"action": "next"}']})
    assert reply.json() == {"data": ['ann: {"action": "next"}']}
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b'{"data": 3}', b'{"data": []}', b'{"data": ["a", "b"]}']
)
def test_a_body_that_is_none_is_answered_as_an_empty_one(client, seen, body):
    reply = client.post(ADDRESS, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200 and seen == [None]


def test_a_body_without_end_is_not_kept(client, seen):
    body = json.dumps({"data": ["x" * (MAX_BODY + 1)]})
    client.post(ADDRESS, content=body, headers={"content-type": "application/json"})
    assert seen == [None]


@pytest.mark.parametrize(
    ("method", "address", "kind"),
    [
        ("GET", ADDRESS, "application/json"),
        ("POST", "/gradio_api/run/other", "application/json"),
        ("POST", ADDRESS, "text/plain"),  # what another site's form can send with cookies
        ("POST", ADDRESS, "multipart/form-data"),
    ],
)
def test_everything_else_is_passed_on(client, seen, method, address, kind):
    reply = client.request(method, address, content=b"{}", headers={"content-type": kind})
    assert (reply.status_code, reply.content, seen) == (418, b"behind", [])


def test_what_gradio_would_answer_is_found_in_an_app():
    with gr.Blocks() as demo:
        box = gr.Textbox()
        box.change(lambda text: text, box, box)

        def shout(text: str) -> str:
            return text.upper()

        gr.api(shout, api_name="shout", queue=False)
    assert list(text_endpoints(demo)) == ["shout"]
    assert text_endpoints(demo)["shout"]("a") == "A"
