"""That the self-test fails where the API does."""

from typing import Any

import pytest

from codexd.ctl.conformance import CHECKS, Listener, Wrong
from codexd.ctl.verbs import selftest

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


class Said(Listener):
    """Answers each question with the next of what it was given."""

    def __init__(self, *answers: Any) -> None:
        super().__init__("unix:/nowhere", None)
        self.answers = list(answers)
        self.model = "m"

    def document(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        return self.answers.pop(0)

    def events(self, path: str, body: Any) -> Any:
        return self.answers.pop(0)


def whole(**given: Any) -> dict[str, Any]:
    choice = {"message": {"content": "hello"}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": USAGE} | given


def chunks(*deltas: Any, last: Any = "[DONE]", id: str = "a") -> list[tuple[str, Any]]:  # noqa: A002
    made: list[Any] = [{"id": id, "choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    made[-1]["choices"][0]["finish_reason"] = "stop"
    made.append({"id": "a", "choices": [], "usage": USAGE})
    return [("", data) for data in [*made, last]]


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("models", [{"data": []}]),
        ("chat", [whole(object="thing")]),
        ("chat", [whole(usage=USAGE | {"total_tokens": 9})]),
        ("chat", [whole(choices=[{"message": {"content": ""}, "finish_reason": "stop"}])]),
        ("chat", [whole(choices=[{"message": {"content": "x"}, "finish_reason": "length"}])]),
        ("chat", [{}]),
        ("chat, streamed", [chunks({"role": "assistant"}, {"content": "x"}, last="end")]),
        ("chat, streamed", [chunks({}, {"content": "x"})]),
        ("chat, streamed", [chunks({"role": "assistant"}, {}, {})]),
        ("chat, streamed", [chunks({"role": "assistant"}, {"content": "x"}, id="b")]),
        ("structured output", [whole()]),
        ("responses", [{"object": "response", "status": "failed", "output": []}]),
        ("responses, streamed", [[("response.created", {"type": "response.created", "sequence_number": 0})]]),
        ("responses, streamed", [[("x", {"type": "response.created", "sequence_number": 0})]]),
        ("messages", [{"type": "message", "stop_reason": "max_tokens"}]),
        ("web search", [{"output": [{"type": "message", "content": []}]}]),
        ("web search", [{"output": [{"type": "web_search_call", "status": "failed"}]}]),
        ("Ollama's API", [{"models": []}]),
        ("Ollama's API", [{"models": [{"name": "m:latest"}]}, {"done": False, "message": {"content": ""}}]),
        ("images", [{"data": [{}]}]),
        ("refusals", [{"error": {"message": "x"}}]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(name: str, answers: list[Any]) -> None:
    found = selftest.checked(name, Said(*answers))
    assert found.outcome == "failed"
    assert found.message


def test_what_is_right_is_right() -> None:
    good = {"chat": [whole()], "chat, streamed": [chunks({"role": "assistant"}, {"content": "x"}, {})]}
    for name, answers in good.items():
        assert CHECKS[name](Said(*answers))


def test_nobody_there() -> None:
    with pytest.raises(Wrong, match="No such file"):
        Listener("unix:/nowhere/api.sock", None).document("GET", "/v1/models")
