"""Images, transcription and search as endpoints, by the real daemon over the strict simulated ChatGPT."""

import base64
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from codexd.demo.script import PIXEL
from codexd.protocol import sse
from support.codexctl import Make, Setup, in_thread

pytestmark = pytest.mark.loopback

PNG = base64.b64decode(PIXEL)
DATA = f"data:image/png;base64,{PIXEL}"
GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Setup]:
    with in_thread(tmp_path_factory.mktemp("tools"), logs, models={"experimental": True}) as setup:
        yield setup


@pytest.fixture
async def http(daemon: Setup) -> AsyncIterator[httpx.AsyncClient]:
    async with daemon.client() as client:
        yield client


async def test_images_are_made(http: httpx.AsyncClient) -> None:
    asked = {"prompt": "a dot", "n": 3, "size": "1792x1024", "quality": "hd", "model": "gpt-image-1", "style": "vivid"}
    answer = await http.post(GENERATE, json=asked)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["data"] == [{"b64_json": PIXEL}] * 3
    assert made["created"] > 0 and made["output_format"] == "png" and "usage" not in made
    for said in ("size=1536x1024", "quality=high", "model=gpt-image-2", "style=dropped", "n=emulated"):
        assert said in answer.headers["x-codexd-adjusted"]
    assert "x-codex-primary-used-percent" in answer.headers
    one = (await http.post(GENERATE, json={"prompt": "a dot"})).json()
    assert one["usage"]["output_tokens"] == 100


async def test_an_image_has_an_address_for_a_while(http: httpx.AsyncClient, setup: Make) -> None:
    for asked in ({"response_format": "url"}, {"model": "dall-e-3"}):
        url = (await http.post(GENERATE, json={"prompt": "a dot", **asked})).json()["data"][0]["url"]
        assert url.startswith(str(http.base_url).rstrip("/"))
        found = await http.get(url, headers={"sec-fetch-site": "cross-site"})
        assert (found.content, found.headers["content-type"]) == (PNG, "image/png")
        assert (await http.get(f"{url}x")).json()["error"]["code"] == "image_not_found"
    async with setup(storage={"image_bytes": 10}) as it, it.key("a") as key:
        auth = {"authorization": f"Bearer {key}"}
        async with it.client(headers=auth) as client:
            whole = await client.post(GENERATE, json={"prompt": "a dot", "response_format": "url"})
            assert whole.json()["data"] == [{"b64_json": PIXEL}], "paid for, and too large for the store"
            assert "response_format=b64_json" in whole.headers["x-codexd-adjusted"]


async def test_an_address_needs_no_key(setup: Make) -> None:
    async with setup() as it, it.key("a") as key, it.client() as client:
        auth = {"authorization": f"Bearer {key}", "x-forwarded-proto": "https", "host": "images.example"}
        asked = {"prompt": "a dot", "response_format": "url"}
        url = (await client.post(GENERATE, json=asked, headers=auth)).json()["data"][0]["url"]
        assert url.startswith("https://images.example/v1/images/files/")
        assert (await client.get(url.removeprefix("https://images.example"))).content == PNG
        assert (await client.post(GENERATE, json=asked)).status_code == 401


FORMS: list[dict[str, Any]] = [
    {"files": {"image": ("a.png", PNG, "image/png")}},
    {"files": [("image[]", ("a.png", PNG, "image/png")), ("image[]", ("b.gif", b"GIF89a...", "image/gif"))]},
]


@pytest.mark.parametrize("form", FORMS)
async def test_images_are_changed_by_a_form(http: httpx.AsyncClient, form: dict[str, Any]) -> None:
    answer = await http.post(EDIT, data={"prompt": "make it blue", "n": "2", "size": "1024x1024"}, **form)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == [{"b64_json": PIXEL}] * 2


@pytest.mark.parametrize(
    "images",
    [
        {"images": [{"image_url": DATA}]},
        {"images": [{"image_url": {"url": DATA}}]},
        {"image": DATA},
        {"image": [PIXEL, DATA]},
    ],
)
async def test_images_are_changed_by_json(http: httpx.AsyncClient, images: dict[str, Any]) -> None:
    answer = await http.post(EDIT, json={"prompt": "make it blue", **images})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-3"])
async def test_images_as_open_webui_asks_for_them(http: httpx.AsyncClient, model: str) -> None:
    """It leaves ``response_format`` out for OpenAI's newer models, and takes a URL or base64."""
    more = {} if model.startswith("gpt-image") else {"response_format": "b64_json"}
    made = await http.post(GENERATE, json={"model": model, "prompt": "a dot", "n": 1, "size": "1024x1024", **more})
    (image,) = made.json()["data"]
    assert image.get("url") is None and image["b64_json"] == PIXEL
    form = {"model": model, "prompt": "make it blue", "n": "1", "size": "1024x1024", **more}
    files = [("image[]", ("image.png", PNG, "image/png")), ("image[]", ("image.png", PNG, "image/png"))]
    changed = await http.post(EDIT, data=form, files=files)
    assert changed.status_code == 200 and changed.json()["data"][0]["b64_json"] == PIXEL


async def test_images_are_streamed(http: httpx.AsyncClient) -> None:
    for path, body, kind in (
        (GENERATE, {"prompt": "a dot", "partial_images": 2}, "image_generation.completed"),
        (EDIT, {"prompt": "a dot", "image": DATA}, "image_edit.completed"),
    ):
        answer = await http.post(path, json=body | {"stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        (event,) = [msgspec.json.decode(each) for each in sse.EventDecoder().feed(answer.content)]
        assert (event["type"], event["b64_json"], event["output_format"]) == (kind, PIXEL, "png")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (GENERATE, {}, "prompt"),
        (GENERATE, {"prompt": ""}, "prompt must"),
        (GENERATE, {"prompt": "x", "n": 11}, "n must"),
        (GENERATE, {"prompt": "x", "size": "big"}, "1024x1024"),
        (GENERATE, {"prompt": "x", "size": "0x0"}, "1024x1024"),
        (GENERATE, {"prompt": "x", "quality": "best"}, "quality must be"),
        (GENERATE, {"prompt": "x", "response_format": "png"}, "response_format"),
        (GENERATE, {"prompt": "x", "image": DATA}, "/v1/images/edits"),
        (EDIT, {"prompt": "x"}, "needs an image"),
        (EDIT, {"prompt": "x", "image": "nothing!"}, "base64"),
        (EDIT, {"prompt": "x", "image": base64.b64encode(b"no image").decode()}, "is not an image"),
        (EDIT, {"prompt": "x", "images": [{"file_id": "f"}]}, "no files API"),
        (EDIT, {"prompt": "x", "image": DATA, "mask": DATA}, '"mask" is not supported'),
    ],
)
async def test_bad_requests_for_images(http: httpx.AsyncClient, path: str, body: dict[str, Any], said: str) -> None:
    refused = await http.post(path, json=body)
    assert (refused.status_code, said in refused.json()["error"]["message"]) == (400, True), refused.text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\ncontent-disposition: form-data\r\n\r\nx\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"--x\r\n\r\n\r\n--x--\r\n", "multipart/form-data"),
        (
            b"--x\r\ncontent-disposition: form-data; name=prompt\r\n\r\nx\r\n" * 200 + b"--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
    ],
)
async def test_bad_forms(http: httpx.AsyncClient, body: bytes, kind: str) -> None:
    refused = await http.post(EDIT, content=body, headers={"content-type": kind})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error"), refused.text


LIMIT = {
    "error": {"type": "usage_limit_reached", "message": "The usage limit has been reached", "resets_in_seconds": 60}
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [(429, LIMIT, 429), (500, {"detail": "no"}, 502), (200, {"data": []}, 502), (200, {"nothing": 1}, 502)],
)
async def test_an_image_that_fails(
    daemon: Setup, http: httpx.AsyncClient, status: int, answer: Any, expected: int, stream: bool
) -> None:
    daemon.chatgpt.chatgpt.refusals["images"] = [(status, answer)]
    failed = await http.post(GENERATE, json={"prompt": "a dot", "stream": stream})
    assert failed.status_code == expected, failed.text
    assert failed.json()["error"]["message"]


# --- speech


async def test_speech_is_transcribed(http: httpx.AsyncClient) -> None:
    recording = {"file": ("a b.wav", b"RIFF", "audio/wav")}
    for form, expected in (
        ({"model": "whisper-1", "language": "en"}, '{"text":"This is a simulated transcript."}'),
        ({"response_format": "text", "prompt": "x"}, "This is a simulated transcript.\n"),
    ):
        answer = await http.post("/v1/audio/transcriptions", data=form, files=recording)
        assert (answer.status_code, answer.text) == (200, expected)
    streamed = await http.post("/v1/audio/transcriptions", data={"stream": "true"}, files=recording)
    events = [msgspec.json.decode(each) for each in sse.EventDecoder().feed(streamed.content)]
    assert [event["type"] for event in events] == ["transcript.text.delta", "transcript.text.done"]


@pytest.mark.parametrize(
    ("form", "files", "said"),
    [
        ({"response_format": "srt"}, {"file": ("a", b"x")}, "response_format"),
        ({"language": "English please"}, {"file": ("a", b"x")}, "language must be"),
        ({}, {"file": ("a", b"")}, "missing or empty"),
        ({}, {"other": ("a", b"x")}, "missing or empty"),
        ({}, {"file": ("a", bytes(26 * 1024 * 1024))}, "larger than"),
    ],
)
async def test_bad_transcriptions(http: httpx.AsyncClient, form: Any, files: Any, said: str) -> None:
    refused = await http.post("/v1/audio/transcriptions", data=form, files=files)
    assert (refused.status_code, said in refused.json()["error"]["message"]) == (400, True), refused.text
    assert (await http.post("/v1/audio/transcriptions", json={})).status_code == 400
    raw = {"content": b"[{," * 100_000, "headers": {"content-type": "audio/wav"}}
    assert "multipart/form-data" in (await http.post("/v1/audio/transcriptions", **raw)).text


@pytest.mark.parametrize(
    ("status", "answer", "expected", "said"),
    [
        (403, {"detail": "no"}, 403, "only from browsers"),
        (429, LIMIT, 429, "usage limit"),
        (200, {"nothing": 1}, 502, "cannot be read"),
    ],
)
async def test_a_transcription_that_fails(
    daemon: Setup, http: httpx.AsyncClient, status: int, answer: Any, expected: int, said: str
) -> None:
    daemon.chatgpt.chatgpt.refusals["transcribe"] = [(status, answer)]
    failed = await http.post("/v1/audio/transcriptions", files={"file": ("a", b"x")})
    assert (failed.status_code, said in failed.json()["error"]["message"]) == (expected, True), failed.text


async def test_transcription_is_off_unless_wanted(shared: Setup) -> None:
    async with shared.client() as client:
        refused = await client.post("/v1/audio/transcriptions", files={"file": ("a", b"x")})
        assert (refused.status_code, "models.experimental" in refused.text) == (404, True)
        for path, said in (
            ("audio/speech", "speech synthesis"),
            ("realtime", "realtime"),
            ("audio/translations", "transl"),
        ):
            assert said in (await client.post(f"/v1/{path}", json={})).json()["error"]["message"]


# --- search


async def test_the_codex_clis_search_is_passed_on(http: httpx.AsyncClient) -> None:
    body = {"id": "s", "model": "gpt-6-sol", "commands": {"search_query": [{"q": "x"}]}}
    body |= {"settings": {"allowed_callers": ["direct"]}, "max_output_tokens": 100}
    found = await http.post("/v1/alpha/search", json=body)
    assert found.json().keys() == {"output", "encrypted_output"}
    assert (await http.post("/v1/alpha/search", json=body | {"model": "gpt-nix"})).status_code == 404
    assert (await http.post("/v1/alpha/search", json={})).status_code == 400
    refused = await http.post("/v1/alpha/search", json=body | {"odd": 1})
    assert (refused.status_code, refused.json()["error"]["message"][:22]) == (400, "Invalid search request")


async def test_what_it_did_is_told(daemon: Setup, http: httpx.AsyncClient) -> None:
    question = {"model": "gpt-6-sol", "input": "Search the web for 'x'.", "tools": [{"type": "web_search"}]}
    answer = await http.post("/v1/responses", json=question, headers={"x-request-id": "req-searched"})
    assert answer.status_code == 200
    said = (await daemon.ctl("explain", "req-searched")).out
    assert re.search(r"searches, images +1 by codexd", said)
    metrics = (await daemon.ctl("metrics")).out
    assert re.search(r'codexd_hosted_calls_total\{outcome="ok"\} [1-9]', metrics)
