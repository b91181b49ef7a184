"""Requests of either dialect as they are converted for the backend."""

from typing import Any

import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.convert import from_chat
from codexd.protocol.codex.models import Catalogue
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.members import split
from codexd.protocol.responses import wire as responses
from codexd.protocol.responses.convert import from_responses

CATALOGUE = Catalogue({})


def chat_request(model: str = "gpt-5.5", settings: Settings = Settings(prompt="P"), **fields: Any) -> Converted:  # noqa: B008
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return from_chat(chat.REQUEST.decode(split(msgspec.json.encode(asked))), CATALOGUE.resolve(model), settings)


def responses_request(model: str = "gpt-5.5", settings: Settings = Settings(prompt="P"), **fields: Any) -> Converted:  # noqa: B008
    body = msgspec.json.encode({"model": model, "input": "hi", **fields})
    return from_responses(responses.REQUEST.decode(split(body)), CATALOGUE.resolve(model), settings)


def up(converted: Converted) -> Any:
    """The body that is sent upstream."""
    return msgspec.json.decode(msgspec.json.encode(converted.request))


def refusal(**fields: Any) -> ApiError:
    """The error that a chat request with these fields gets."""
    with pytest.raises(ApiError) as caught:
        chat_request(**fields)
    return caught.value
