"""Requests to OpenAI's Images API, and their answers. Pure functions.

Wire facts: the official client's own requests for images (section K of the protocol notes). The backend has one model.
"""

import base64
import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.protocol import decoding, sse
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.hosted.tools import IMAGE_MODEL, ImageOptions, image_body
from codexd.protocol.members import RequestDecoder
from codexd.protocol.raw import encoded

MAX_N = 10

_SIZES = ((1024, 1024), (1536, 1024), (1024, 1536))
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_QUALITIES = {"auto": "auto", "low": "low", "medium": "medium", "high": "high", "hd": "high", "standard": "medium"}

_MAGIC = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"))


class _Url(Struct, frozen=True):
    url: str


class ImageReference(Struct, frozen=True, kw_only=True):
    """An image of an edit, as a data URL or an address."""

    image_url: str | _Url | None = None
    file_id: str | None = None


class ImagesRequest(Struct, frozen=True, kw_only=True):
    """A request for images; with ``image`` or ``images``, for an edit of them."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    quality: str | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: str | None = None
    stream: bool | None = None
    image: str | list[str] | None = None
    images: list[ImageReference] | None = None


REQUEST = RequestDecoder(ImagesRequest)


class Image(Struct, frozen=True, kw_only=True):
    b64_json: str | UnsetType = UNSET
    url: str | UnsetType = UNSET


class ImagesResponse(Struct, frozen=True, kw_only=True):
    """The answer. ``created`` is in Unix seconds; ``usage`` is the backend's, if it sent one."""

    created: int
    data: list[Image]
    background: str | UnsetType = UNSET
    output_format: str = "png"
    quality: str | UnsetType = UNSET
    size: str | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET


def wants_url(asked: ImagesRequest) -> bool:
    """Returns whether the answer has addresses; OpenAI's older models answered so by default."""
    if asked.response_format is None:
        return (asked.model or "").startswith("dall-e")
    return asked.response_format == "url"


def to_backend(asked: ImagesRequest, *, edits: bool) -> tuple[bytes, Adjustments]:
    """Returns the backend's body for one image. Raises ApiError 400."""
    if not asked.prompt.strip():
        raise errors.bad_request("prompt must say what the image shows.", param="prompt")
    if asked.n is not None and not 1 <= asked.n <= MAX_N:
        raise errors.bad_request(f"n must be between 1 and {MAX_N}.", param="n")
    size, sized = _size(asked.size)
    quality = _QUALITIES.get(asked.quality or "auto")
    if quality is None:
        raise errors.bad_request("quality must be auto, low, medium or high.", param="quality")
    adjusted = sized
    if asked.model not in (None, IMAGE_MODEL):
        adjusted += (Adjustment("model", IMAGE_MODEL),)
    if asked.output_format not in (None, "png"):
        adjusted += (Adjustment("output_format", "png"),)
    if quality != (asked.quality or "auto"):
        adjusted += (Adjustment("quality", quality),)
    images = _images(asked)
    if edits and not images:
        raise errors.bad_request("An edit needs an image: send image (a file, or a data URL).", param="image")
    if images and not edits:
        raise errors.bad_request("Send image edits to /v1/images/edits.", param="image")
    background = None if asked.background == "auto" else asked.background
    options = ImageOptions(size=size, quality=quality, background=background)
    return msgspec.json.encode(image_body(options, asked.prompt, images)), adjusted


def _size(asked: str | None) -> tuple[str, Adjustments]:
    """Returns the size of the same orientation that the backend's model has."""
    if asked in (None, "", "auto"):
        return "auto", NONE
    found = _SIZE.fullmatch(asked)
    if found is None or "0" in (found[1], found[2]):
        raise errors.bad_request("size must be auto or WIDTHxHEIGHT, such as 1024x1024.", param="size")
    width, height = int(found[1]), int(found[2])
    if (width, height) in _SIZES:
        return asked, NONE
    size = "1024x1024" if width == height else "1536x1024" if width > height else "1024x1536"
    return size, (Adjustment("size", size),)


def _images(asked: ImagesRequest) -> list[str]:
    own = [asked.image] if isinstance(asked.image, str) else asked.image or []
    found = [_address(each, "image") for each in own]
    for index, reference in enumerate(asked.images or ()):
        where = f"images[{index}]"
        if reference.image_url is None:
            raise errors.unsupported(where, "Send images as image_url (a data URL): codexd has no files API.")
        url = reference.image_url
        found.append(_address(url if isinstance(url, str) else url.url, where))
    return found


def _address(text: str, where: str) -> str:
    """Returns an image as an address; some clients send base64 alone."""
    if text.startswith(("data:", "https://", "http://")):
        return text
    return from_base64(text, where)


def from_base64(text: str, where: str) -> str:
    """Returns an image in base64 as a data URL; only its beginning is looked at. Raises ApiError 400."""
    text = "".join(text.split())
    try:
        head = base64.b64decode(text[:64], validate=True)
    except ValueError as error:
        raise errors.bad_request(f"{where} must be an image as base64, or a data URL.", param=where) from error
    return f"data:image/{_kind(head, where)};base64,{text}"


def data_url(image: bytes, where: str) -> str:
    """Returns a file as a data URL. Raises ApiError 400 if it is not an image of a known type."""
    return f"data:image/{_kind(image, where)};base64,{base64.b64encode(image).decode()}"


def _kind(image: bytes, where: str) -> str:
    kind = next((kind for magic, kind in _MAGIC if image.startswith(magic)), None)
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "webp"
    if kind is None:
        raise errors.bad_request(f"{where} is not an image: use PNG, JPEG, WebP or GIF.", param=where)
    return kind


# --- forms

_NUMBERS = frozenset({"n", "partial_images", "output_compression"})


def members_of(fields: Sequence[tuple[str, str]], files: Sequence[tuple[str, bytes]]) -> dict[str, Raw]:
    """Returns a form as the members of a JSON body. Raises ApiError 400 for a file that is not an image."""
    values: dict[str, Any] = {}
    for name, value in fields:
        if name in _NUMBERS and value.isdecimal():
            values[name] = int(value[:9])
        elif name == "stream":
            values[name] = value.lower() in ("true", "1")
        else:
            values[name] = value
    images = [data_url(data, name) for name, data in files if name in ("image", "image[]")]
    if images:
        values["image"] = images
    values |= {name: "file" for name, _ in files if name not in ("image", "image[]")}
    return {name: encoded(value) for name, value in values.items()}


# --- streams


def completed_event(image: Image, answer: ImagesResponse, *, edits: bool) -> bytes:
    """Returns the event that carries a whole image; the backend sends no partial ones."""
    kind = "image_edit.completed" if edits else "image_generation.completed"
    whole = decoding.decode(msgspec.json.encode(msgspec.structs.replace(answer, data=[])))
    facts = {key: value for key, value in whole.items() if key not in ("data", "created")}
    event = {"type": kind, **msgspec.to_builtins(image), "created_at": answer.created, **facts}
    return sse.encode(kind.encode(), msgspec.json.encode(event))
