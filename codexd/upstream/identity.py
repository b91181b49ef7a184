"""Who codexd says it is: the headers of both lanes. Names and order are the official client's, where both send one."""

import platform
from functools import lru_cache

from codexd import __version__
from codexd.auth.session import Access
from codexd.config.model import Backend
from codexd.protocol.codex.models import RESERVE
from codexd.upstream.call import Call

USER_AGENT = f"codexd/{__version__} ({platform.system()} {platform.release()}; {platform.machine()})"

WEBSOCKET_BETA = "responses_websockets=2026-02-06"
LITE_HEADER = "x-openai-internal-codex-responses-lite"
LITE_METADATA = "ws_request_header_x_openai_internal_codex_responses_lite"
RESIDENCY = "x-openai-internal-codex-residency"
ROUTING = "x-openai-account-routing-override"
RESERVE_HEADER = "x-openai-codex-luna-reserve"
"""Marks a request to the reserve allowance (reported by third parties)."""
TURN_STATE = "x-codex-turn-state"

_BETA_FEATURES = "remote_compaction_v2"
"""Without it the backend answers a request for compaction with a message."""


def user_agent(config: Backend) -> str:
    return config.user_agent or USER_AGENT


def base(config: Backend, access: Access) -> dict[str, str]:
    """Returns the headers of every request with an access token."""
    headers = {
        "version": config.client_version,
        "authorization": f"Bearer {access.token}",
        "originator": config.originator,
    }
    if access.account_id is not None:
        headers["chatgpt-account-id"] = access.account_id
    if access.residency is not None:
        headers[RESIDENCY] = access.residency
    return headers


@lru_cache(maxsize=1)
def _of_posts(config: Backend) -> dict[str, str]:
    """Returns the headers that are the same for all requests over HTTP."""
    return {
        "user-agent": user_agent(config),
        "accept": "text/event-stream",
        "content-type": "application/json",
        "openai-beta": "responses=experimental",
    }


def of_post(config: Backend, access: Access, call: Call, routing: str | None) -> dict[str, str]:
    """Returns the headers of a request over HTTP. ``routing``: the workspace's region, if it has one."""
    # Earlier official clients sent session_id, conversation_id and OpenAI-Beta; the current one sends the others.
    headers = (
        base(config, access)
        | _of_posts(config)
        | {
            "session_id": call.key,
            "conversation_id": call.key,
            "x-codex-beta-features": _BETA_FEATURES,
            "x-codex-window-id": f"{call.key}:0",
            "x-codex-routing-hint": _routing_hint(call),
            "x-client-request-id": call.key,
            "session-id": call.key,
            "thread-id": call.key,
        }
    )
    if routing is not None:
        headers[ROUTING] = routing
    if call.turn_state is not None:
        headers[TURN_STATE] = call.turn_state
    if call.lite:
        headers[LITE_HEADER] = "true"
    if call.request.model == RESERVE:
        headers[RESERVE_HEADER] = "1"
    return headers


def of_handshake(config: Backend, access: Access, call: Call, routing: str | None) -> dict[str, str]:
    """Returns the headers of a websocket's handshake, behind those of the upgrade. ``routing``: as in ``of_post``."""
    first = {"chatgpt-account-id": access.account_id} if access.account_id is not None else {}
    last = {RESIDENCY: access.residency} if access.residency is not None else {}
    if routing is not None:
        last[ROUTING] = routing
    return {
        **first,
        "authorization": f"Bearer {access.token}",
        "user-agent": user_agent(config),
        "originator": config.originator,
        "openai-beta": WEBSOCKET_BETA,
        "version": config.client_version,
        "x-codex-beta-features": _BETA_FEATURES,
        "x-client-request-id": call.key,
        "session-id": call.key,
        "thread-id": call.key,
        "x-codex-window-id": f"{call.key}:0",
        "x-codex-routing-hint": _routing_hint(call),
        **last,
    }


def _routing_hint(call: Call) -> str:
    tier = ";tier=priority" if call.request.service_tier == "priority" else ""
    return f"model={call.request.model}{tier}"
