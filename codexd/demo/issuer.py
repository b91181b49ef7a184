"""The simulated issuer. It makes the real one's checks, and a simulated user can approve device codes.

Codes work once, for the redirect URI, client and verifier that they were made for. Refresh tokens work once too.
"""

import base64
import secrets
from collections.abc import Callable, Mapping
from html import escape
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec
import trio
from msgspec import Struct

from codexd.auth.oauth import SCOPE, challenge
from codexd.auth.store import Credentials
from codexd.config.model import CLIENT_ID
from codexd.protocol import decoding
from codexd.server.loopback import Reply, Request

ACCOUNT = "acct-simulated"
EMAIL = "demo@example.test"
TOKEN_LIFETIME = 10 * 86400
DEVICE_LIFETIME = 900.0
CODE_LIFETIME = 60.0

_CALLBACKS = tuple(
    f"http://{host}:{port}/auth/callback" for host in ("127.0.0.1", "localhost") for port in (1455, 1457)
)


class _IssuedCode(Struct):
    """An authorization code and the values that its exchange must match. ``expires`` is in trio's time."""

    redirect_uri: str
    challenge: str
    expires: float


class _IssuedDevice(Struct):
    user_code: str
    created: float
    polled: float = -float("inf")
    decision: str = "pending"


class SimulatedIssuer:
    """The issuer's state and routes. ``clock`` gives Unix seconds. ``approves_after``: seconds after which a device
    code is approved automatically; None leaves it to ``decide``. ``any_port`` accepts any port in the redirect URI.
    """

    def __init__(
        self, clock: Callable[[], float], *, approves_after: float | None = None, any_port: bool = False
    ) -> None:
        self.url = ""
        self.approves_after = approves_after
        self.asks = True
        self.device_codes = True
        self.revokes = True
        self.interval = "1"
        self.too_fast = 0
        self.posts: list[tuple[str, Mapping[str, str]]] = []
        self.revoked: list[str] = []
        self.access: set[str] = set()
        self.devices: dict[str, _IssuedDevice] = {}
        self._clock = clock
        self._any_port = any_port
        self._refresh: set[str] = set()
        self._spent: set[str] = set()
        self._codes: dict[str, _IssuedCode] = {}
        self._requests: dict[str, dict[str, str]] = {}

    def sign_in(self, lifetime: float = TOKEN_LIFETIME) -> Credentials:
        """Returns new credentials, as after a sign-in."""
        expires_at = int(self._clock() + lifetime)
        claims = {
            "exp": expires_at,
            "email": EMAIL,
            "https://api.openai.com/auth": {"chatgpt_account_id": ACCOUNT, "chatgpt_plan_type": "plus"},
            "jti": secrets.token_hex(8),
        }
        access, refresh = _jwt(claims), f"rt_{secrets.token_urlsafe(32)}"
        self.access.add(access)
        self._refresh.add(refresh)
        return Credentials(
            access_token=access,
            refresh_token=refresh,
            id_token=_jwt(claims),
            expires_at=expires_at,
            account_id=ACCOUNT,
            updated_at=int(self._clock()),
        )

    def decide(self, user_code: str, decision: str) -> bool:
        """Sets the user's decision, ``granted`` or ``denied``; returns whether the code exists."""
        for device in self.devices.values():
            if device.user_code == user_code.strip().upper() and device.decision == "pending":
                device.decision = decision
                return True
        return False

    async def handle(self, request: Request, reply: Reply) -> bool:
        """Answers a request for the issuer; returns whether it was one."""
        match (request.method, request.path):
            case ("GET", "/oauth/authorize"):
                await self._authorize(request, reply)
            case ("GET", "/oauth/decide"):
                await self._decided(_fields(request), reply)
            case ("POST", "/oauth/token"):
                await self._token(request, reply)
            case ("POST", "/oauth/revoke"):
                await self._revoke(request, reply)
            case ("POST", "/api/accounts/deviceauth/usercode"):
                await self._start_device(request, reply)
            case ("POST", "/api/accounts/deviceauth/token"):
                await self._poll_device(request, reply)
            case ("GET", "/codex/device"):
                await self._device_page(_fields(request), reply)
            case _:
                return False
        return True

    # --- browser

    async def _authorize(self, request: Request, reply: Reply) -> None:
        asked = _fields(request)
        if (wrong := self._wrong_request(asked)) is not None:
            await _page(reply, 400, "Invalid request", f"<p>{escape(wrong)}</p>")
            return
        id = secrets.token_urlsafe(8)  # noqa: A001
        self._requests[id] = asked
        if not self.asks:
            await self._decided({"request": id, "allow": "yes"}, reply)
            return
        links = " ".join(
            f'<a id="{allow}" href="/oauth/decide?request={id}&amp;allow={allow}">{text}</a>'
            for allow, text in (("yes", "Approve"), ("no", "Deny"))
        )
        await _page(reply, 200, "Simulated ChatGPT", f"<p>Sign in to codexd as {EMAIL}?</p><p>{links}</p>")

    def _wrong_request(self, asked: Mapping[str, str]) -> str | None:
        wanted = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "code_challenge_method": "S256",
            "scope": SCOPE,
            "id_token_add_organizations": "true",
            "codex_cli_simplified_flow": "true",
        }
        for name, value in wanted.items():
            if asked.get(name) != value:
                return f"{name} must be {value}"
        if len(asked.get("code_challenge", "")) != 43 or len(asked.get("state", "")) < 16:
            return "code_challenge must be a SHA-256, and state must not be guessable"
        uri = asked.get("redirect_uri", "")
        if uri not in _CALLBACKS and not (self._any_port and urlsplit(uri).hostname == "127.0.0.1"):
            return f"redirect_uri {uri} is not registered for this client"
        return None

    async def _decided(self, fields: Mapping[str, str], reply: Reply) -> None:
        asked = self._requests.pop(fields.get("request", ""), None)
        if asked is None:
            await _page(reply, 400, "Invalid request", "<p>This request has expired.</p>")
            return
        back = {"error": "access_denied", "error_description": "The user declined", "state": asked["state"]}
        if fields.get("allow") == "yes":
            code = f"ac_{secrets.token_urlsafe(24)}"
            self._codes[code] = _IssuedCode(
                asked["redirect_uri"], asked["code_challenge"], trio.current_time() + CODE_LIFETIME
            )
            back = {"code": code, "scope": asked["scope"], "state": asked["state"]}
        await reply.send(302, b"", [("location", f"{asked['redirect_uri']}?{urlencode(back)}")])

    # --- tokens

    async def _token(self, request: Request, reply: Reply) -> None:
        kind = request.headers.get("content-type", "")
        if kind == "application/x-www-form-urlencoded":
            fields = {name: values[-1] for name, values in parse_qs(request.body.decode()).items()}
        else:
            fields = _json(request)
        self.posts.append((request.path, fields))
        match (kind, fields.get("grant_type")):
            case _ if fields.get("client_id") != CLIENT_ID:
                await _refuse(reply, 401, "invalid_client", "unknown client")
            case ("application/x-www-form-urlencoded", "authorization_code"):
                await self._exchange(fields, reply)
            case ("application/json", "refresh_token"):
                await self._rotate(fields, reply)
            case _:
                await _refuse(reply, 400, "unsupported_grant_type", f"{fields.get('grant_type')} as {kind}")

    async def _exchange(self, fields: Mapping[str, str], reply: Reply) -> None:
        code = self._codes.pop(fields.get("code", ""), None)
        if code is None or code.expires < trio.current_time():
            await _refuse(reply, 400, "invalid_grant", "the code is unknown, used or expired")
        elif fields.get("redirect_uri") != code.redirect_uri:
            await _refuse(reply, 400, "invalid_grant", "redirect_uri is not that of the request")
        elif challenge(fields.get("code_verifier", "")) != code.challenge:
            await _refuse(reply, 400, "invalid_grant", "code_verifier does not match code_challenge")
        else:
            new = self.sign_in()
            answer = {"id_token": new.id_token, "access_token": new.access_token, "refresh_token": new.refresh_token}
            await send(reply, 200, answer | {"expires_in": TOKEN_LIFETIME, "token_type": "Bearer", "scope": SCOPE})

    async def _rotate(self, fields: Mapping[str, str], reply: Reply) -> None:
        token = fields.get("refresh_token", "")
        if token in self._spent:
            error = {"message": "Your refresh token has already been used.", "code": "refresh_token_reused"}
            await send(reply, 401, {"error": error})
        elif token not in self._refresh:
            await _refuse(reply, 400, "invalid_grant", "unknown refresh token")
        else:
            self._refresh.discard(token)
            self._spent.add(token)
            new = self.sign_in()
            answer = {"access_token": new.access_token, "refresh_token": new.refresh_token, "id_token": new.id_token}
            await send(reply, 200, answer | {"expires_in": TOKEN_LIFETIME})

    async def _revoke(self, request: Request, reply: Reply) -> None:
        fields = _json(request)
        if not self.revokes:
            await send(reply, 500, {"error": {"message": "Internal error", "code": "internal_error"}})
        elif fields.get("token_type_hint") != "refresh_token" or fields.get("client_id") != CLIENT_ID:
            await _refuse(reply, 400, "invalid_request", "token_type_hint and client_id are needed")
        else:
            # An unknown token is not an error (RFC 7009, 2.2).
            self._refresh.discard(fields.get("token", ""))
            self.revoked.append(fields.get("token", ""))
            self.access.clear()
            await send(reply, 200, {})

    # --- device

    async def _start_device(self, request: Request, reply: Reply) -> None:
        if not self.device_codes:
            await send(reply, 404, {"detail": "Not Found"})
            return
        if _json(request).get("client_id") != CLIENT_ID:
            await _refuse(reply, 400, "invalid_client", "unknown client")
            return
        letters = "BCDFGHJKLMNPQRSTVWXZ"
        user_code = "-".join("".join(secrets.choice(letters) for _ in range(size)) for size in (4, 5))
        id = f"deviceauth_{secrets.token_hex(8)}"  # noqa: A001
        self.devices[id] = _IssuedDevice(user_code, trio.current_time())
        await send(reply, 200, {"device_auth_id": id, "user_code": user_code, "interval": self.interval})

    async def _poll_device(self, request: Request, reply: Reply) -> None:
        fields = _json(request)
        device = self.devices.get(fields.get("device_auth_id", ""))
        if device is None or fields.get("user_code") != device.user_code:
            await _refuse(reply, 400, "invalid_grant", "unknown device code")
            return
        now = trio.current_time()
        fast, device.polled = now - device.polled < float(self.interval) * 0.9, now
        if self.approves_after is not None and now - device.created >= self.approves_after:
            self.decide(device.user_code, "granted")
        if now - device.created > DEVICE_LIFETIME:
            await send(reply, 400, {"error": {"message": "The code has expired", "code": "expired_token"}})
        elif device.decision == "denied":
            await send(reply, 403, {"error": {"message": "The user declined", "code": "access_denied"}})
        elif device.decision == "granted":
            await self._grant(fields["device_auth_id"], reply)
        else:
            self.too_fast += fast
            code = "slow_down" if fast else "deviceauth_authorization_pending"
            await send(reply, 403, {"error": {"message": "Waiting for the user", "code": code}})

    async def _grant(self, device_auth_id: str, reply: Reply) -> None:
        del self.devices[device_auth_id]
        code, verifier = f"ac_{secrets.token_urlsafe(24)}", secrets.token_urlsafe(48)
        self._codes[code] = _IssuedCode(
            f"{self.url}/deviceauth/callback", challenge(verifier), trio.current_time() + CODE_LIFETIME
        )
        answer = {"authorization_code": code, "code_challenge": challenge(verifier), "code_verifier": verifier}
        await send(reply, 200, answer)

    async def _device_page(self, fields: Mapping[str, str], reply: Reply) -> None:
        code = fields.get("user_code", "")
        if not code:
            form = (
                '<form><p><label>Code <input name="user_code" autofocus></label></p>'
                '<button name="decision" value="granted">Approve</button> '
                '<button name="decision" value="denied">Deny</button></form>'
            )
            await _page(reply, 200, "Simulated ChatGPT", form)
        elif self.decide(code, fields.get("decision", "granted")):
            await _page(reply, 200, "Simulated ChatGPT", "<p>Done. You can close this page.</p>")
        else:
            await _page(reply, 400, "Simulated ChatGPT", f"<p>Unknown code {escape(code)}.</p>")


def _jwt(claims: dict[str, object]) -> str:
    parts = [msgspec.json.encode({"alg": "none", "typ": "JWT"}), msgspec.json.encode(claims), b"unsigned"]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def _fields(request: Request) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(request.query).items()}


def _json(request: Request) -> dict[str, str]:
    try:
        return decoding.decode(request.body, type=dict[str, str])
    except msgspec.DecodeError:
        return {}


async def _refuse(reply: Reply, status: int, error: str, description: str) -> None:
    await send(reply, status, {"error": error, "error_description": description})


async def _page(reply: Reply, status: int, title: str, body: str) -> None:
    page = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<link rel="icon" href="data:,"><title>{title}</title><h1>{title}</h1>{body}'
    )
    await reply.send(status, page.encode(), [("content-type", "text/html; charset=utf-8")])


async def send(
    reply: Reply, status: int, body: Mapping[str, object], headers: list[tuple[str, str]] | None = None
) -> None:
    await reply.send(status, msgspec.json.encode(body), [("content-type", "application/json"), *(headers or [])])
