"""Requests for images, and their answers."""

import base64
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from codexd.errors import ApiError
from codexd.protocol import images
from codexd.protocol.images import Image, ImagesRequest, ImagesResponse
from codexd.protocol.members import split

PNG = b"\x89PNG\r\n\x1a\n"
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def request(**fields: Any) -> ImagesRequest:
    return images.REQUEST.decode(split(msgspec.json.encode({"prompt": "a dot", **fields})))


def sent(*, edits: bool = False, **fields: Any) -> tuple[dict[str, Any], list[str]]:
    body, adjusted = images.to_backend(request(**fields), edits=edits)
    return msgspec.json.decode(body), [str(each) for each in adjusted]


@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        (None, "auto"),
        ("", "auto"),
        ("auto", "auto"),
        ("1024x1024", "1024x1024"),
        ("512x512", "1024x1024"),
        ("1792x1024", "1536x1024"),
        ("1024x1792", "1024x1536"),
    ],
)
def test_a_size_becomes_one_of_the_models(size: str | None, becomes: str) -> None:
    body, adjusted = sent(size=size)
    assert body["size"] == becomes
    assert adjusted == ([] if becomes == (size or "auto") else [f"size={becomes}"])


def test_what_is_changed_is_told() -> None:
    body, adjusted = sent(model="dall-e-3", quality="standard", output_format="webp", background="auto")
    assert adjusted == ["model=gpt-image-2", "output_format=png", "quality=medium"]
    assert (body["quality"], body["background"], body["model"]) == ("medium", "opaque", "gpt-image-2")
    assert sent(background="transparent", model="gpt-image-2", quality="low")[1] == []


@pytest.mark.parametrize(
    ("fields", "edits", "param"),
    [
        ({"prompt": " "}, False, "prompt"),
        ({"n": 0}, False, "n"),
        ({"n": 11}, False, "n"),
        ({"size": "large"}, False, "size"),
        ({"size": "0x5"}, False, "size"),
        ({"quality": "ultra"}, False, "quality"),
        ({"image": URL}, False, "image"),
        ({}, True, "image"),
        ({"image": "?"}, True, "image"),
        ({"image": "AAAA"}, True, "image"),
        ({"images": [{"file_id": "f"}]}, True, "images[0]"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], edits: bool, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        sent(edits=edits, **fields)
    assert (caught.value.status, caught.value.error.param) == (400, param)


@pytest.mark.parametrize(
    ("fields", "urls"),
    [
        ({"image": URL}, [URL]),
        ({"image": [base64.b64encode(PNG).decode(), "https://a.example/x.png"]}, [URL, "https://a.example/x.png"]),
        ({"images": [{"image_url": URL}, {"image_url": {"url": URL}}]}, [URL, URL]),
    ],
)
def test_images_may_come_in_many_shapes(fields: dict[str, Any], urls: list[str]) -> None:
    assert [each["image_url"] for each in sent(edits=True, **fields)[0]["images"]] == urls


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"GIF89a", "gif"), (b"RIFF\0\0\0\0WEBPVP8 ", "webp")],
)
def test_an_image_is_known_by_its_beginning(data: bytes, kind: str) -> None:
    assert images.data_url(data, "x").startswith(f"data:image/{kind};base64,")


def test_a_form_is_as_json() -> None:
    fields = [("prompt", "x"), ("n", "2"), ("stream", "True"), ("size", "1024x1024"), ("partial_images", "many")]
    found = images.members_of(fields, [("image[]", PNG), ("image", PNG), ("mask", b"x")])
    assert found["n"] == Raw(b"2") and found["stream"] == Raw(b"true") and found["partial_images"] == Raw(b'"many"')
    assert msgspec.json.decode(found["image"]) == [URL, URL] and "mask" in found
    assert images.members_of([("stream", "0")], [])["stream"] == Raw(b"false")


def test_who_wants_an_address() -> None:
    assert [images.wants_url(request(**fields)) for fields in (
        {}, {"model": "gpt-image-1"}, {"model": "dall-e-2"}, {"response_format": "url"},
        {"model": "dall-e-2", "response_format": "b64_json"},
    )] == [False, False, True, True, False]  # fmt: skip


@pytest.mark.parametrize(("edits", "kind"), [(True, "image_edit.completed"), (False, "image_generation.completed")])
def test_an_image_is_one_event(edits: bool, kind: str) -> None:
    image = Image(b64_json="AA==")
    answer = ImagesResponse(created=1, data=[image], usage=Raw(b'{"total_tokens":1}'))
    event = images.completed_event(image, answer, edits=edits)
    assert event.startswith(f"event: {kind}\n".encode())
    assert msgspec.json.decode(event.split(b"data: ")[1]) == {
        "type": kind, "b64_json": "AA==", "created_at": 1, "output_format": "png", "usage": {"total_tokens": 1},
    }  # fmt: skip
