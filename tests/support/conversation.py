"""The whole API over websockets to the simulated ChatGPT, and what the backend then holds beside what HTTP would send."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from codexd.auth import store
from codexd.config.model import Backend, Config
from codexd.demo.websocket import Turn
from codexd.services import ConfigInForce, compose
from codexd.upstream import client as client_module
from codexd.upstream.call import Call
from codexd.upstream.client import make_client
from codexd.upstream.conversations import Head
from codexd.upstream.transport import Transport
from support.asgi import Client
from support.simulated import Simulated, simulated

Json = dict[str, Any]


class Conversing:
    """``turns``: for each answered request the message, what the model saw, and what HTTP would have sent."""

    def __init__(self, app: Client, chatgpt: Simulated) -> None:
        self.app = app
        self.chatgpt = chatgpt
        self.wanted: list[tuple[Json, list[Json]]] = []

    @property
    def turns(self) -> list[tuple[Turn, list[Json]]]:
        wanted, found = list(self.wanted), []
        for turn in self.chatgpt.chatgpt.turns or ():
            place = next(index for index, (body, _) in enumerate(wanted) if body == turn.body)
            found.append((turn, wanted.pop(place)[1]))
        return found

    @property
    def deltas(self) -> int:
        return sum("previous_response_id" in turn.body for turn, _ in self.turns)


@asynccontextmanager
async def conversing(folder: Path, **backend: Any) -> AsyncIterator[Conversing]:
    async with simulated() as chatgpt:
        chatgpt.chatgpt.turns = []
        store.save(folder / "tokens.json", chatgpt.issuer.sign_in())
        config = Config(backend=Backend(url=f"{chatgpt.url}/backend-api", **({"transport": "websocket"} | backend)))
        transport = Transport()
        async with make_client(transport) as http:
            in_force = ConfigInForce(config, None, lambda: (config, None))
            services = compose(in_force, folder, http, transport, clock=time.time)
            it = Conversing(Client(services), chatgpt)
            made = client_module.message

            def noting(call: Call, head: Head | None) -> bytes:
                sent = made(call, head)
                wanted = msgspec.json.decode(msgspec.json.encode(call.request.input))
                it.wanted.append((msgspec.json.decode(sent), wanted))
                return sent

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(client_module, "message", noting)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(services.upstream.run)
                    yield it
                    nursery.cancel_scope.cancel()


def differences(seen: list[Json], wanted: list[Json]) -> list[str]:
    """How what the model saw differs from what HTTP would have sent; written without the code that decides on deltas.

    The backend may hold reasoning that the client did not bring back; ids, status and phase are its own.
    """
    here, there = [_plain(item) for item in seen], [_plain(item) for item in wanted]
    found = [f"{one} instead of {other}" for one, other in zip(_rest(here), _rest(there), strict=False) if one != other]
    if len(_rest(here)) != len(_rest(there)):
        found.append(f"{len(_rest(here))} items instead of {len(_rest(there))}")
    held = iter([item for item in here if item["type"] == "reasoning"])
    found += [f"foreign {item}" for item in there if item["type"] == "reasoning" and item not in held]
    return found


def _rest(items: list[Json]) -> list[Json]:
    return [item for item in items if item["type"] != "reasoning"]


def _plain(item: Json) -> Json:
    kind = item.get("type", "message")
    if kind == "reasoning":
        return {"type": kind, "encrypted_content": item.get("encrypted_content")}
    if kind == "message" and item["role"] == "assistant":
        return {
            "type": kind,
            "role": "assistant",
            "text": "".join(part.get("text", "") for part in item["content"]).strip(),
        }
    if kind == "function_call":
        arguments = msgspec.json.format(msgspec.json.encode(msgspec.json.decode(item["arguments"]), order="sorted"))
        return {"type": kind, "call_id": item["call_id"], "name": item["name"], "arguments": arguments}
    return {key: value for key, value in item.items() if key not in ("id", "status", "namespace")} | {"type": kind}
