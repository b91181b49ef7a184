"""The simulated ChatGPT: an OAuth issuer and the Codex backend on one loopback port.

``websocket`` false refuses websockets, of which ``connections`` counts the accepted ones.

It validates requests as strictly as the real one and has the same quirks: the stream has no content type, the final
event's output is empty, refresh tokens work once.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from codexd.demo import judge, script, websocket
from codexd.demo.issuer import ACCOUNT, EMAIL, SimulatedIssuer, send
from codexd.protocol import decoding, sse
from codexd.protocol.codex.models import BUILT_IN, RESERVE, Model
from codexd.server import loopback
from codexd.server.loopback import Reply, Request

MAX_BODY = 256 * 1024 * 1024
PATIENCE = 300.0

_MODELS = {model.slug: model for model in BUILT_IN}


def _entry(model: Model, priority: int) -> dict[str, object]:
    """Returns one catalogue entry. The official client refuses a catalogue whose entries lack any of these keys."""
    return {
        "slug": model.slug,
        "display_name": model.slug,
        "description": "Simulated",
        "supported_reasoning_levels": [{"effort": effort, "description": effort} for effort in model.efforts],
        "default_reasoning_level": model.default_effort,
        "shell_type": "unified_exec",
        "visibility": "list" if model.listed else "hide",
        "supported_in_api": True,
        "priority": priority,
        "additional_speed_tiers": [],
        "service_tiers": [],
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": "You are a simulated model.",
        "default_reasoning_summary": "none",
        "support_verbosity": True,
        "default_verbosity": model.verbosity,
        "apply_patch_tool_type": "freeform",
        "web_search_tool_type": "text_and_image",
        "truncation_policy": {"mode": "tokens", "limit": 10000},
        "supports_parallel_tool_calls": not model.lite,
        "supports_image_detail_original": True,
        "context_window": model.context_window,
        "max_context_window": model.context_window,
        "effective_context_window_percent": 95,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"],
        "supports_search_tool": True,
        "use_responses_lite": model.lite,
    }


def _decoded(body: bytes) -> Any:
    try:
        return decoding.decode(body)
    except msgspec.DecodeError:
        return None


class ChatGPT:
    """The simulated server. ``clock`` gives Unix seconds; ``pace`` is the pause before each event, in seconds.

    ``refusals`` are answers that the endpoints ``search``, ``images`` and ``transcribe`` give next instead of theirs.
    """

    def __init__(self, clock: Callable[[], float], issuer: SimulatedIssuer, *, pace: float = 0.02) -> None:
        self._clock = self.now = clock
        self.models: Mapping[str, Model] = _MODELS
        self.pace = pace
        self.websocket = True
        self.connections = 0
        self.refusals: dict[str, list[judge.Refusal]] = {}
        self.turns: list[websocket.Turn] | None = None
        self.issuer = issuer

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled. Starts with the base URL of both issuer and backend."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.issuer.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started(self.issuer.url)
        await loopback.serve(self.handle, listeners, max_body=MAX_BODY, patience=PATIENCE)

    async def handle(self, request: Request, reply: Reply) -> None:
        if await self.issuer.handle(request, reply):
            return
        match (request.method, request.path.removeprefix("/backend-api")):
            case ("POST", "/codex/responses"):
                await self._responses(request, reply)
            case ("GET", "/codex/responses") if request.headers.get("upgrade", "").lower() == "websocket":
                await self._websocket(request, reply)
            case ("POST", "/codex/alpha/search"):
                await self._search(request, reply)
            case ("POST", "/codex/images/generations" | "/codex/images/edits"):
                await self._images(request, reply)
            case ("POST", "/transcribe"):
                await self._transcribe(request, reply)
            case ("GET", "/codex/models"):
                await self._models(request, reply)
            case ("GET", "/wham/usage"):
                await self._usage(request, reply)
            case ("GET", "/wham/accounts/check"):
                await self._accounts(request, reply)
            case _:
                await send(reply, 404, {"detail": "Not Found"})

    async def _authorized(self, request: Request, reply: Reply) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self.issuer.access and request.headers.get("chatgpt-account-id") == ACCOUNT:
            return True
        await send(
            reply,
            401,
            {"error": {"message": "Provided authentication token is expired.", "code": "token_expired"}, "status": 401},
        )
        return False

    async def _websocket(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        if not self.websocket or request.headers.get("openai-beta") != websocket.BETA:
            await send(reply, 426, {"detail": "Upgrade Required"})
            return
        session, rest = await websocket.accept(self, request, reply)
        await session.run(rest)

    async def _models(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        entries = [_entry(model, priority) for priority, model in enumerate(_MODELS.values())]
        await send(reply, 200, {"models": entries}, [("etag", 'W/"demo"')])

    async def _usage(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        windows = {
            f"{name}_window": {
                "used_percent": used,
                "limit_window_seconds": minutes * 60,
                "reset_after_seconds": minutes * 20,
                "reset_at": int(self._clock()) + minutes * 20,
            }
            for name, (used, minutes) in script.WINDOWS.items()
        }
        usage = {
            "account_id": ACCOUNT,
            "email": EMAIL,
            "plan_type": "plus",
            "rate_limit": {"allowed": True, "limit_reached": False, **windows},
            "additional_rate_limits": [
                {
                    "limit_name": RESERVE,
                    "normal_model_slug": "gpt-6-luna",
                    "allowed": True,
                    "rate_limit": {"primary_window": windows["secondary_window"] | {"used_percent": 0}},
                }
            ],
            "credits": {"has_credits": False, "unlimited": False, "balance": "0"},
            "rate_limit_reached_type": None,
        }
        await send(reply, 200, usage)

    async def _search(self, request: Request, reply: Reply) -> None:
        if await self._authorized(request, reply):
            body = _decoded(request.body)
            refusal = self.refuses("search") or judge.refuse_search(body, self.models)
            await send(reply, *(refusal or (200, script.found(body))))

    async def _images(self, request: Request, reply: Reply) -> None:
        if await self._authorized(request, reply):
            body, edits = _decoded(request.body), request.path.endswith("/edits")
            refusal = self.refuses("images") or judge.refuse_image(body, edits=edits)
            await send(reply, *(refusal or (200, script.drawn(body, int(self._clock())))), self._limits())

    async def _transcribe(self, request: Request, reply: Reply) -> None:
        if await self._authorized(request, reply):
            form = request.headers.get("content-type", "").startswith("multipart/form-data; boundary=")
            whole = form and b'name="file"; filename="' in request.body
            answer = (200, {"text": "This is a simulated transcript."}) if whole else (400, {"detail": "No file"})
            await send(reply, *(self.refuses("transcribe") or answer))

    def refuses(self, what: str) -> judge.Refusal | None:
        """Returns the refusal that is set for an endpoint, once for each that is in the list."""
        waiting = self.refusals.get(what)
        return waiting.pop(0) if waiting else None

    async def _accounts(self, request: Request, reply: Reply) -> None:
        if await self._authorized(request, reply):
            account = {"id": ACCOUNT, "account_routing_override": "NO_CONSTRAINT"}
            await send(reply, 200, {"accounts": [account], "default_account_id": ACCOUNT})

    def _limits(self) -> list[tuple[str, str]]:
        windows = [
            (f"x-codex-{name}-{field}", value)
            for name, (used, minutes) in script.WINDOWS.items()
            for field, value in (
                ("used-percent", str(used)),
                ("window-minutes", str(minutes)),
                ("reset-at", str(int(self._clock()) + minutes * 20)),
            )
        ]
        return [("x-codex-plan-type", "plus"), *windows]

    async def _responses(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        try:
            body = decoding.decode(request.body)
        except msgspec.DecodeError:
            await send(reply, 400, {"detail": "Invalid JSON"})
            return
        events: list[script.Json] = []
        try:
            refusal = judge.refuse(body, request.headers, _MODELS)
            if refusal is None:
                events += script.events(body, f"resp_{secrets.token_hex(12)}", int(self._clock()))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            # The real backend checks each field; here a request that cannot be processed is refused as a whole.
            refusal = judge.NOT_UNDERSTOOD
        if refusal is not None:
            await send(reply, *refusal)
            return
        cookies = [("set-cookie", "__cf_bm=simulated; path=/"), ("set-cookie", "oai-did=simulated; path=/")]
        # No content-type: the real streams have had none since the summer of 2026.
        await reply.start(200, [*self._limits(), *cookies])
        for event in events:
            await trio.sleep(self.pace)
            await reply.write(sse.encode(event["type"].encode(), msgspec.json.encode(event)))
        await reply.end()
