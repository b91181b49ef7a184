"""LangChain's standard integration tests of a chat model. Run by test_clients, in an environment of its own."""

import base64
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

BASE_URL = os.environ["BASE_URL"]
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests fetch their pictures and documents from the internet; one of ours will do."""
    answer = {"status_code": 200, "content": PNG}
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(**answer, request=httpx.Request("GET", url)))
    yield


class TestChat(ChatModelIntegrationTests):
    supports_image_inputs = supports_image_urls = supports_image_tool_message = True
    supports_pdf_inputs = supports_pdf_tool_message = True
    supports_json_mode = True
    model_override_value = "gpt-6-luna"
    responses = False

    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "gpt-5.5", "base_url": BASE_URL, "api_key": "any", "use_responses_api": self.responses,
            "stream_usage": True,
        }  # fmt: skip


class TestResponses(TestChat):
    responses = True


class TestMessages(TestChat):
    supports_json_mode = False
    supports_anthropic_inputs = True

    @property
    def chat_model_class(self) -> Any:
        return ChatAnthropic

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "gpt-6-sol", "base_url": BASE_URL.removesuffix("/v1"), "api_key": "any"}
