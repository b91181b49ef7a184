"""What ChatGPT and its issuer answer to the official client: just enough for each scenario to go on to its end.

Shapes of the answers: what the client was seen to parse, one field less and it stops.
"""

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from codexd.config.model import CLIENT_ID
from codexd.protocol import sse
from support.secrets import ACCOUNT
from upstream.recorder import Json, Recorded, Reply, Speaker

CLAIMS = "https://api.openai.com/auth"
LIFE = 864_000
"""Seconds that the official issuer's access tokens live."""

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4APMOGVHbHSAEEsAROxCnMTAAAAAElFTkSuQmCC"
)

Step = str | Sequence[Json]
"""What the model does with one request: a text, or items such as ``call`` and ``REASONING``."""

REASONING: Json = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA-reason"}


def call(name: str, arguments: Json, namespace: str | None = None) -> Json:
    """A tool call, as a step's item."""
    place = {} if namespace is None else {"namespace": namespace}
    said = msgspec.json.encode(arguments).decode()
    return {
        "type": "function_call", "id": "fc_1", "status": "completed", "call_id": "call_1", **place, "name": name,
        "arguments": said,
    }  # fmt: skip


def _message(text: str, number: int) -> Json:
    return {
        "type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "phase": "final_answer",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }  # fmt: skip


def _jwt(claims: Json) -> str:
    parts = [msgspec.json.encode({"alg": "RS256", "typ": "JWT"}), msgspec.json.encode(claims), b"sig"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def tokens(number: int = 0, life: int = LIFE) -> dict[str, str]:
    """What the token endpoint gives out, with the claims that the client reads."""
    now = int(time.time())
    account = {"chatgpt_account_id": ACCOUNT, "chatgpt_plan_type": "plus", "chatgpt_user_id": "user-0001"}
    common = {"iss": "https://auth.openai.com", "sub": "auth0|u1", "iat": now}
    person = account | {"organizations": [], "completed_platform_onboarding": True, "is_org_owner": True}
    identity = {"aud": [CLIENT_ID], "email": "dev@example.test", "exp": now + 3600, CLAIMS: person}
    access = {
        "aud": ["https://api.openai.com/v1"], "client_id": CLIENT_ID, "exp": now + life, "jti": f"j{number}",
        CLAIMS: account | {"user_id": "user-0001"},
    }  # fmt: skip
    return {
        "id_token": _jwt(common | identity),
        "access_token": _jwt(common | access),
        "refresh_token": f"rt-{number}",
    }


class Backend:
    """``models`` is the catalogue's answer, ``steps`` what the model does in turn; the last one goes on for ever."""

    def __init__(self, models: Json, steps: Sequence[Step] = ("Done.",), *, websocket: bool = False) -> None:
        self._models = models
        self._steps = steps
        self._speaks = websocket
        self._generated = 0
        self._polls = 0

    def websocket(self, _: Recorded) -> Speaker | None:
        return self.events if self._speaks else None

    def answer(self, recorded: Recorded) -> Reply:
        path = recorded.path
        if path.endswith("/codex/responses") and recorded.method == "POST":
            return self._stream(msgspec.json.decode(recorded.body))
        if path.endswith("/codex/models"):
            return _json(self._models, etag='"m-1"')
        if path.endswith("/deviceauth/token"):
            return self._device()
        if "/images/" in path:
            return _json(_picture())
        found = next((make for end, make in _PAGES.items() if path.endswith(end)), None)
        return Reply(404, body=b'{"detail":"Not Found"}') if found is None else _json(found())

    def events(self, body: Any) -> list[Json]:
        """The response to one generating request, a compaction, or a websocket's warm-up that generates nothing."""
        items = self._output(body)
        shell = {
            "id": f"resp_{self._generated}", "object": "response", "created_at": int(time.time()),
            "status": "in_progress", "model": body.get("model"), "output": [],
        }  # fmt: skip
        events: list[Json] = [{"type": "response.created", "response": shell}]
        for index, item in enumerate(items):
            events.append({"type": "response.output_item.added", "output_index": index, "item": item})
            events.append({"type": "response.output_item.done", "output_index": index, "item": item})
        usage = {
            "input_tokens": 1200, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 10,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 1210,
        }  # fmt: skip
        ended = shell | {"status": "completed", "usage": usage, "end_turn": True}
        return [*events, {"type": "response.completed", "response": ended}]

    def _output(self, body: Any) -> list[Json]:
        if any(isinstance(item, dict) and item.get("type") == "compaction_trigger" for item in body.get("input") or ()):
            return [{"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAA-compacted"}]
        if body.get("generate") is False:
            return []
        step = self._steps[min(self._generated, len(self._steps) - 1)]
        self._generated += 1
        return [_message(step, self._generated)] if isinstance(step, str) else list(step)

    def _stream(self, body: Any) -> Reply:
        # Of these cookies the client may only send the first one back.
        cookies = (("set-cookie", "__cf_bm=cf1; path=/; Secure; HttpOnly"), ("set-cookie", "oai-did=x; path=/"))
        data = b"".join(sse.encode(event["type"].encode(), msgspec.json.encode(event)) for event in self.events(body))
        return Reply(200, (("content-type", "text/event-stream"), ("x-codex-turn-state", "ts-1"), *cookies), data)

    def _device(self) -> Reply:
        self._polls += 1
        if self._polls < 2:
            return _json({"error": {"code": "deviceauth_authorization_pending"}}, status=403)
        return _json({"authorization_code": "ac-1", "code_challenge": "cc", "code_verifier": "cv-1"})


def _json(value: Any, *, status: int = 200, etag: str | None = None) -> Reply:
    extra = () if etag is None else (("etag", etag),)
    return Reply(status, (("content-type", "application/json"), *extra), msgspec.json.encode(value))


def _picture() -> Json:
    data = [{"b64_json": base64.b64encode(PNG).decode()}]
    return {"created": 1, "data": data, "background": "opaque", "quality": "low", "size": "1024x1024"}


def _accounts() -> Json:
    """Without a valid answer here the client refuses to work."""
    account = {
        "id": ACCOUNT, "workspace_backend_origin": "https://chatgpt.com", "account_routing_override": "NO_CONSTRAINT"
    }  # fmt: skip
    return {"accounts": [account], "account_ordering": [ACCOUNT], "default_account_id": ACCOUNT}


def _usage() -> Json:
    def window(seconds: int, percent: int) -> Json:
        return {
            "used_percent": percent, "limit_window_seconds": seconds, "reset_after_seconds": 600,
            "reset_at": int(time.time()) + 600,
        }  # fmt: skip

    limit = {"primary_window": window(18_000, 16), "secondary_window": window(604_800, 34)}
    return {
        "user_id": "user-0001", "account_id": ACCOUNT, "email": "dev@example.test", "plan_type": "plus",
        "rate_limit": {"allowed": True, "limit_reached": False, **limit}, "code_review_rate_limit": None,
        "additional_rate_limits": [], "credits": {"has_credits": False, "unlimited": False, "balance": "0"},
    }  # fmt: skip


_PAGES: dict[str, Callable[[], Any]] = {
    "/wham/accounts/check": _accounts,
    "/wham/usage": _usage,
    "/oauth/token": lambda: tokens(1) | {"token_type": "Bearer", "expires_in": LIFE, "scope": "openid"},
    "/oauth/revoke": dict,
    "/deviceauth/usercode": lambda: {
        # The interval is a text: a number makes the client fail.
        "device_auth_id": "dev-1", "user_code": "WIRE-DIFF", "interval": "1", "expires_at": "2030-01-01T00:00:00Z"
    },
}  # fmt: skip
