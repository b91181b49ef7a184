"""Conversations over websockets: what the backend holds is, item for item, what HTTP would have sent."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from support.conversation import Conversing, Json, conversing, differences

pytestmark = pytest.mark.loopback

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
    }
    for name in ("weather", "search")
]


class Chat:
    """A client of Chat Completions that repeats the history. ``spaced``: it writes arguments in its own way."""

    def __init__(self, it: Conversing, model: str, key: str, *, spaced: bool) -> None:
        self._it = it
        self._headers = {"x-forwarded-for": key}
        self._fields: Json = {"model": model, "tools": TOOLS}
        self._spaced = spaced
        self.messages: list[Json] = []

    async def ask(self, **fields: Any) -> Json | None:
        answer = await self._it.app.request(
            "POST", "/v1/chat/completions", {**self._fields, **fields, "messages": self.messages}
        )
        if answer.status != 200:
            return None
        message: Json = answer.json["choices"][0]["message"]
        back: Json = {"role": "assistant", "content": message["content"]}
        if calls := message.get("tool_calls"):
            back["tool_calls"] = [call | {"function": self._rewritten(call["function"])} for call in calls]
        self.messages.append(back)
        return message

    def _rewritten(self, function: Json) -> Json:
        if not self._spaced:
            return function
        arguments = msgspec.json.decode(function["arguments"])
        return function | {"arguments": msgspec.json.format(msgspec.json.encode(arguments), indent=2).decode()}

    async def say(self, text: str, **fields: Any) -> None:
        """Asks, and answers all tools that the model calls."""
        self.messages.append({"role": "user", "content": text})
        message = await self.ask(**fields)
        while message is not None and (calls := message.get("tool_calls")):
            self.messages += [{"role": "tool", "tool_call_id": call["id"], "content": "7"} for call in calls]
            message = await self.ask(**fields)

    # --- what clients do to a conversation

    async def retry(self) -> None:
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if self.messages:
            await self.ask()

    async def edit(self, place: int) -> None:
        users = [message for message in self.messages if message["role"] == "user"]
        if users:
            users[place % len(users)]["content"] += " (edited)"
            await self.say("and now?")

    async def rewrite(self, place: int) -> None:
        """The person changes what the model said."""
        said = [message for message in self.messages if message["role"] == "assistant" and message.get("content")]
        if said:
            said[place % len(said)]["content"] += " Not!"
            await self.say("really?")

    async def trim(self, place: int) -> None:
        users = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if users:
            del self.messages[: users[place % len(users)]]
            await self.say("go on")

    async def cut(self) -> None:
        await self.say("tell me about colours", stop=["simulated"])

    async def leave(self, after: float) -> None:
        self.messages.append({"role": "user", "content": "a long one"})
        await self._it.app.request("POST", "/v1/chat/completions",
                                   {**self._fields, "stream": True, "messages": self.messages}, leave_after=after)  # fmt: skip

    async def twice(self) -> None:
        """The same question again before the first answer: one of them is for nobody."""
        self.messages.append({"role": "user", "content": "twice"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ask)
            nursery.start_soon(self.ask)
        self.messages.pop()


PLACES = st.integers(0, 5)
STEPS = st.one_of(
    st.sampled_from([("say", "hello"), ("say", "what is the weather?"), ("say", "search the weather"), ("retry",), ("cut",), ("twice",)]),
    st.tuples(st.just("edit"), PLACES),
    st.tuples(st.just("rewrite"), PLACES),
    st.tuples(st.just("trim"), PLACES),
    st.tuples(st.just("leave"), st.floats(0, 0.004)),
)  # fmt: skip


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(0, 2), STEPS), max_size=14),
    st.sampled_from(["gpt-5.5", "gpt-6-sol"]),
    st.booleans(),
)
def test_the_backend_holds_what_http_would_have_sent(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, tuple[Any, ...]]], model: str, spaced: bool
) -> None:
    async def run() -> None:
        async with conversing(tmp_path_factory.mktemp("law"), max_connections=2) as it:
            chats = [Chat(it, model, f"10.0.0.{number}", spaced=spaced) for number in range(3)]
            with trio.fail_after(60):
                for number, (verb, *rest) in steps:
                    await getattr(chats[number], verb)(*rest)
            for turn, wanted in it.turns:
                assert differences(turn.seen, wanted) == [], turn.body

    trio.run(run)


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
@pytest.mark.parametrize("spaced", [False, True])
async def test_a_conversation_is_one_connection_and_deltas(tmp_path: Path, model: str, spaced: bool) -> None:
    async with conversing(tmp_path) as it:
        chat = Chat(it, model, "", spaced=spaced)
        for text in ("hello", "what is the weather?", "and you?", "search the weather", "bye"):
            await chat.say(text)
        assert it.chatgpt.chatgpt.connections == 1
        assert it.deltas == len(it.turns) - 1
        assert all(differences(turn.seen, wanted) == [] for turn, wanted in it.turns)
        trace = it.app.services.journal.recent.find("req_")
        assert trace is not None
        assert (trace.lane, trace.websocket_kept, trace.delta) == ("websocket", True, True)
        assert trace.sent_bytes < 8192


async def test_responses_clients_continue_by_id_or_by_items(tmp_path: Path) -> None:
    async with conversing(tmp_path) as it:
        previous, items = None, list[Json]()
        for text in ("one", "two", "three"):
            body: Json = {"model": "gpt-5.5", "input": text, "previous_response_id": previous}
            answer = await it.app.request("POST", "/v1/responses", body)
            previous = answer.json["id"]
        assert it.deltas == 2
        for text in ("uno", "due", "tre"):
            items.append({"role": "user", "content": text})
            answer = await it.app.request("POST", "/v1/responses", {"model": "gpt-5.5", "input": items, "store": False})
            items += answer.json["output"]
        assert it.deltas == 4
        assert all(differences(turn.seen, wanted) == [] for turn, wanted in it.turns)


async def test_messages_clients_continue(tmp_path: Path) -> None:
    async with conversing(tmp_path) as it:
        messages: list[Json] = []
        for text in ("one", "two", "three"):
            messages.append({"role": "user", "content": text})
            body = {"model": "gpt-5.5", "max_tokens": 1000, "messages": messages}
            answer = await it.app.request("POST", "/v1/messages", body)
            messages.append({"role": "assistant", "content": answer.json["content"]})
        assert it.deltas == 2


async def test_the_answers_are_those_of_http(tmp_path: Path) -> None:
    """The same questions, on either lane."""

    async def said(folder: Path, lane: str) -> list[Any]:
        folder.mkdir()
        async with conversing(folder, transport=lane) as it:
            chat = Chat(it, "gpt-5.5", "", spaced=False)
            for text in ("hello", "what is the weather?", "bye"):
                await chat.say(text)
            return [message.get("content") for message in chat.messages]

    assert await said(tmp_path / "a", "websocket") == await said(tmp_path / "b", "http")


async def test_nobody_continues_another_callers_conversation(tmp_path: Path) -> None:
    async with conversing(tmp_path) as it:
        keys = [it.app.keys.add(name) for name in ("one", "two")]
        messages: list[Json] = [{"role": "user", "content": "hello"}]

        async def ask(key: str) -> Any:
            body = {"model": "gpt-5.5", "messages": messages}
            return (await it.app.request("POST", "/v1/chat/completions", body, headers={"x-api-key": key})).json

        first = (await ask(keys[0]))["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "and?"}]
        await ask(keys[1])
        assert it.deltas == 0
        await ask(keys[0])
        assert it.deltas == 1
