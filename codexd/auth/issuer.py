"""HTTP calls to the OAuth issuer. Exceptions of httpx stop here; ``oauth`` interprets the answers."""

from typing import NamedTuple

import httpx
import msgspec

from codexd.auth.oauth import Device, RefreshReason, RefreshRequest, RevokeRequest, exchange_form
from codexd.config.model import OAuth
from codexd.protocol import codings
from codexd.reasons import reason_of

MAX_ANSWER = 1024 * 1024
"""Bytes; the largest real answer holds three tokens of a few KiB each."""

_DEVICE = "/api/accounts/deviceauth"


class IssuerUnreachable(Exception):
    """The issuer gave no readable answer. The message says why."""


class IssuerResponse(NamedTuple):
    status: int
    body: bytes

    def __repr__(self) -> str:
        return f"IssuerResponse(status={self.status})"


class _DeviceStart(msgspec.Struct, frozen=True):
    client_id: str


class _DevicePoll(msgspec.Struct, frozen=True):
    device_auth_id: str
    user_code: str


class Issuer:
    """Client of the issuer. All calls raise IssuerUnreachable. They have no deadline; the caller sets one.

    ``headers`` (originator and user agent) are sent only with refresh and revocation, as in the official client.
    """

    def __init__(self, client: httpx.AsyncClient, config: OAuth, headers: dict[str, str]) -> None:
        self._client = client
        self.configure(config, headers)

    def configure(self, config: OAuth, headers: dict[str, str]) -> None:
        self.url = config.issuer.rstrip("/")
        self.client_id = config.client_id
        self._headers = headers

    @property
    def verification_url(self) -> str:
        """Where the user enters a device code."""
        return f"{self.url}/codex/device"

    @property
    def device_redirect_uri(self) -> str:
        return f"{self.url}/deviceauth/callback"

    async def refresh(self, reason: RefreshReason, token: str) -> IssuerResponse:
        body = RefreshRequest(self.client_id, "refresh_token", reason, token)
        return await self._post_json("/oauth/token", body, self._headers)

    async def revoke(self, token: str) -> IssuerResponse:
        return await self._post_json(
            "/oauth/revoke", RevokeRequest(token, "refresh_token", self.client_id), self._headers
        )

    async def exchange(self, code: str, *, redirect_uri: str, verifier: str) -> IssuerResponse:
        form = exchange_form(code, client_id=self.client_id, redirect_uri=redirect_uri, verifier=verifier)
        return await self._post(self._client.build_request("POST", f"{self.url}/oauth/token", data=form))

    async def start_device(self) -> IssuerResponse:
        return await self._post_json(f"{_DEVICE}/usercode", _DeviceStart(self.client_id))

    async def poll_device(self, device: Device) -> IssuerResponse:
        return await self._post_json(f"{_DEVICE}/token", _DevicePoll(device.device_auth_id, device.user_code))

    async def _post_json(
        self, path: str, body: msgspec.Struct, headers: dict[str, str] | None = None
    ) -> IssuerResponse:
        content = {"content-type": "application/json"}
        request = self._client.build_request(
            "POST", f"{self.url}{path}", content=msgspec.json.encode(body), headers=content
        )
        return await self._post(request, headers)

    async def _post(self, request: httpx.Request, headers: dict[str, str] | None = None) -> IssuerResponse:
        del request.headers["user-agent"]
        request.headers.update(headers or {})
        try:
            response = await self._client.send(request, stream=True)
            try:
                body = b""
                coding = response.headers.get("content-encoding", "")
                expander = codings.Expander(coding)
                async for data in response.aiter_raw() if coding else response.aiter_bytes():
                    for piece in expander.feed(data):
                        body += piece
                        if len(body) > MAX_ANSWER:
                            raise IssuerUnreachable("the sign-in server's answer is too large")
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise IssuerUnreachable(reason_of(error).rstrip(".")) from error
        except (LookupError, codings.Undecodable) as error:
            raise IssuerUnreachable("the sign-in server's answer is compressed in an unknown way") from error
        return IssuerResponse(response.status_code, body)
