"""A client of the real daemon that asks in one of four ways, and checks that the outcome is well-formed."""

from typing import Any, NamedTuple

import httpx
import msgspec

from codexd.protocol import sse


class Outcome(NamedTuple):
    """What a client got: the status, the text of the answer, the error object if any, and whether it ended well."""

    status: int
    text: str
    error: dict[str, Any] | None
    finished: bool
    headers: httpx.Headers


class Client:
    """One of the four ways to ask."""

    def __init__(self, http: httpx.AsyncClient, dialect: str, streamed: bool) -> None:
        self._http = http
        self.dialect = dialect
        self._chat = dialect == "chat"
        self.streamed = streamed

    async def ask(self, **fields: Any) -> Outcome:
        question = {"messages": [{"role": "user", "content": "hi"}]} if self._chat else {"input": "hi"}
        path = "/v1/chat/completions" if self._chat else "/v1/responses"
        body = {"model": "gpt-5.5", "stream": self.streamed, **question, **fields}
        response = await self._http.post(path, content=msgspec.json.encode(body))
        if response.headers["content-type"] == "application/json":
            return self._document(response)
        return self._events(response)

    def _document(self, response: httpx.Response) -> Outcome:
        document = msgspec.json.decode(response.content)
        error = document.get("error")
        said = ""
        if error is None:
            said = document["choices"][0]["message"]["content"] if self._chat else self._said(document)
        return Outcome(response.status_code, said, error, error is None, response.headers)

    @staticmethod
    def _said(document: dict[str, Any]) -> str:
        return "".join(part["text"] for item in document["output"] for part in item.get("content", []))

    def _events(self, response: httpx.Response) -> Outcome:
        events = sse.EventDecoder().feed(response.content)
        finished = events[-1] == b"[DONE]"
        decoded = [msgspec.json.decode(event) for event in events if event != b"[DONE]"]
        errors = [event["error"] for event in decoded if event.get("error")]
        errors += [event["response"]["error"] for event in decoded if event.get("type") == "response.failed"]
        if self._chat:
            said = "".join(c["delta"].get("content", "") for e in decoded for c in e.get("choices", []))
            reasons = [c["finish_reason"] for e in decoded for c in e.get("choices", []) if c["finish_reason"]]
            assert len(reasons) == finished, "a finish_reason exactly when the answer is whole"
        else:
            said = "".join(e["delta"] for e in decoded if e["type"] == "response.output_text.delta")
            numbers = [event["sequence_number"] for event in decoded]
            assert numbers == sorted(set(numbers))
        assert len(errors) == (not finished), "one error, or the end"
        return Outcome(response.status_code, said, errors[0] if errors else None, finished, response.headers)
