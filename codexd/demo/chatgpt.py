"""The simulated ChatGPT: an OAuth issuer and the Codex backend on one loopback port.

It is as strict as the real one about what it is sent, and as rude in what it answers: the stream has no content type,
the final event's output is empty, refresh tokens work once.
"""

import base64
import secrets
from collections.abc import Callable

import msgspec
import trio

from codexd.auth.store import Credentials
from codexd.demo import judge, script
from codexd.demo.http import Reply, Request, serve
from codexd.protocol import sse
from codexd.protocol.models import BUILT_IN

ACCOUNT = "acct-simulated"
TOKEN_LIFETIME = 10 * 86400

_MODELS = {model.slug: model for model in BUILT_IN}

_LIMITS = [
    ("x-codex-plan-type", "plus"),
    ("x-codex-primary-used-percent", "12"),
    ("x-codex-primary-window-minutes", "300"),
    ("x-codex-secondary-used-percent", "34"),
    ("x-codex-secondary-window-minutes", "10080"),
]


class ChatGPT:
    """``clock`` gives Unix seconds; ``pace`` is the pause before each event, in seconds."""

    def __init__(self, clock: Callable[[], float], *, pace: float = 0.02) -> None:
        self._clock = clock
        self._pace = pace
        self._access: set[str] = set()
        self._refresh: set[str] = set()
        self._spent: set[str] = set()

    def sign_in(self, lifetime: float = TOKEN_LIFETIME) -> Credentials:
        """Fresh credentials, as if a person had just signed in."""
        expires_at = int(self._clock() + lifetime)
        claims = {
            "exp": expires_at,
            "email": "demo@example.test",
            "https://api.openai.com/auth": {"chatgpt_account_id": ACCOUNT, "chatgpt_plan_type": "plus"},
            "jti": secrets.token_hex(8),
        }
        access, refresh = _jwt(claims), f"rt_{secrets.token_urlsafe(32)}"
        self._access.add(access)
        self._refresh.add(refresh)
        return Credentials(
            access_token=access,
            refresh_token=refresh,
            id_token=_jwt(claims),
            expires_at=expires_at,
            account_id=ACCOUNT,
            updated_at=int(self._clock()),
        )

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started with the port."""
        await serve(self._handle, task_status=task_status)

    async def _handle(self, request: Request, reply: Reply) -> None:
        match (request.method, request.path):
            case ("POST", "/oauth/token"):
                await self._token(request, reply)
            case ("POST", "/backend-api/codex/responses"):
                await self._responses(request, reply)
            case ("GET", "/backend-api/codex/models"):
                await self._models(request, reply)
            case _:
                await _send(reply, 404, {"detail": "Not Found"})

    # --- the issuer

    async def _token(self, request: Request, reply: Reply) -> None:
        try:
            form = msgspec.json.decode(request.body, type=dict[str, str])
        except msgspec.DecodeError:
            await _send(reply, 400, {"error": "invalid_request", "error_description": "expected JSON"})
            return
        token = form.get("refresh_token", "")
        if token in self._spent:
            await _send(
                reply,
                401,
                {"error": {"message": "Your refresh token has already been used.", "code": "refresh_token_reused"}},
            )
        elif form.get("grant_type") != "refresh_token" or token not in self._refresh:
            await _send(reply, 400, {"error": "invalid_grant", "error_description": "unknown refresh token"})
        else:
            self._refresh.discard(token)
            self._spent.add(token)
            new = self.sign_in()
            await _send(
                reply,
                200,
                {
                    "access_token": new.access_token,
                    "refresh_token": new.refresh_token,
                    "id_token": new.id_token,
                    "expires_in": TOKEN_LIFETIME,
                },
            )

    # --- the backend

    async def _authorized(self, request: Request, reply: Reply) -> bool:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token in self._access and request.headers.get("chatgpt-account-id") == ACCOUNT:
            return True
        await _send(
            reply,
            401,
            {"error": {"message": "Provided authentication token is expired.", "code": "token_expired"}, "status": 401},
        )
        return False

    async def _models(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        entries = [
            {
                "slug": model.slug,
                "supported_reasoning_levels": [{"effort": effort, "description": ""} for effort in model.efforts],
                "default_reasoning_level": model.default_effort,
                "visibility": "list" if model.listed else "hide",
                "use_responses_lite": model.lite,
                "context_window": model.context_window,
                "default_verbosity": model.verbosity,
                "priority": priority,
            }
            for priority, model in enumerate(_MODELS.values())
        ]
        await _send(reply, 200, {"models": entries}, [("etag", 'W/"demo"')])

    async def _responses(self, request: Request, reply: Reply) -> None:
        if not await self._authorized(request, reply):
            return
        try:
            body = msgspec.json.decode(request.body)
        except msgspec.DecodeError:
            await _send(reply, 400, {"detail": "Invalid JSON"})
            return
        if (refusal := judge.refuse(body, request.headers, _MODELS)) is not None:
            await _send(reply, *refusal)
            return
        cookies = [("set-cookie", "__cf_bm=simulated; path=/"), ("set-cookie", "oai-did=simulated; path=/")]
        # No content-type: since the summer of 2026 the real streams have none.
        await reply.start(200, [*_LIMITS, *cookies])
        for event in script.events(body, f"resp_{secrets.token_hex(12)}", int(self._clock())):
            await trio.sleep(self._pace)
            await reply.write(sse.encode(event["type"].encode(), msgspec.json.encode(event)))
        await reply.end()


def _jwt(claims: dict[str, object]) -> str:
    parts = [msgspec.json.encode({"alg": "none", "typ": "JWT"}), msgspec.json.encode(claims), b"unsigned"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


async def _send(reply: Reply, status: int, body: script.Json, headers: list[tuple[str, str]] | None = None) -> None:
    await reply.send(status, msgspec.json.encode(body), [("content-type", "application/json"), *(headers or [])])
