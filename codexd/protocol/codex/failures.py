"""Failures of the upstream in all their shapes, as one error with the right status.

The backend reports failures in two JSON formats (``{"detail": ...}`` and ``{"error": {...}}``), as HTML from the edge
in front of it, and as ``response.failed`` inside a 200. Source of status codes and texts: captures of the wire, and the
official client's reaction to each.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from codexd.errors import NO_RETRY, SIGN_IN_HINT, ApiError, span
from codexd.protocol import decoding
from codexd.protocol.codex.events import ErrorEvent, Event, Failed, ResponseError
from codexd.protocol.codex.rate_limits import YEAR_9999

_IN_STREAM: dict[str, tuple[int, str]] = {
    # code inside response.failed -> HTTP status, OpenAI error type
    "context_length_exceeded": (400, "invalid_request_error"),
    "invalid_prompt": (400, "invalid_request_error"),
    "invalid_encrypted_content": (400, "invalid_request_error"),
    "cyber_policy": (400, "invalid_request_error"),
    "bio_policy": (400, "invalid_request_error"),
    "insufficient_quota": (429, "insufficient_quota"),
    "usage_limit_reached": (429, "insufficient_quota"),
    "usage_not_included": (429, "insufficient_quota"),
    "rate_limit_exceeded": (429, "rate_limit_error"),
    "server_is_overloaded": (503, "server_error"),
    "slow_down": (503, "server_error"),
}

_WAIT = re.compile(r"try again in\s+(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|seconds?|m|minutes?)\b", re.IGNORECASE)


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None
    param: str | None = None
    plan_type: Any = None
    resets_at: Any = None
    resets_in_seconds: Any = None


class _Coded(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Body(msgspec.Struct):
    error: _Error | str | None = None
    detail: msgspec.Raw = msgspec.Raw(b"null")


_BODY = decoding.Decoder(_Body)


_LIMITS = frozenset({"usage_limit_reached", "usage_not_included", "insufficient_quota"})
"""Codes of limits that last for hours or for ever."""

LONGEST_WAIT = 31 * 86400
"""Seconds; whatever the backend says."""

_PATIENCE = 60
"""Seconds that a client may well wait before another attempt."""


def in_stream(code: str | None, message: str | None, status: int | None = None) -> ApiError:
    """Returns the error of a ``response.failed`` or ``error`` event; ``status`` is the event's own.

    An unknown code without a status becomes 502.
    """
    known, kind = _IN_STREAM.get(code or "", (None, None))
    if known is None:
        known = status if status is not None and 400 <= status < 600 else 502
    text = message or "The ChatGPT backend reported a failure without saying what it was. Send the request again."
    error = ApiError(
        known,
        text,
        type=kind,
        code=code or "upstream_failed",
        retry_after=_wait_in(text),
        retryable=known >= 500,
    )
    if code in _LIMITS:
        error.headers.append(NO_RETRY)
    return error


def _limited(error: ApiError, said: "_Error | ResponseError") -> ApiError:
    """Adds what the backend says about a limit: the plan, and when it resets."""
    moment, wait = _number(said.resets_at), _number(said.resets_in_seconds)
    if wait is None and error.retry_after is not None:
        wait = error.retry_after
    facts: dict[str, object] = {
        "plan_type": said.plan_type if isinstance(said.plan_type, str) else None,
        "resets_at": round(moment) if moment is not None and abs(moment) < YEAR_9999 else None,
        "resets_in_seconds": None if wait is None else whole_seconds(wait),
    }
    text = error.error.message
    if when := " ".join(filter(None, (_span(wait), _date(moment)))):
        text = f"{text.rstrip('. ')}. The limit resets {when}."
    changes = {key: value for key, value in facts.items() if value is not None}
    error.error = msgspec.structs.replace(error.error, message=text, **changes)
    return error


def _number(value: object) -> float | None:
    """Returns a number; None for any other value, which must not cost the rest of the error."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _span(seconds: float | None) -> str:
    return "" if seconds is None else f"in {span(seconds)}"


def _date(moment: float | None) -> str:
    if moment is None or not 0 < moment < YEAR_9999:
        return ""
    return f"(at {datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC)"


def from_event(event: Event) -> ApiError:
    """Returns the error of a terminal event: failed, error or cancelled."""
    if isinstance(event, Failed):
        said = event.response.error or ResponseError()
    elif isinstance(event, ErrorEvent):
        said = event.error or ResponseError(event.code, event.message)
    else:
        said = ResponseError("upstream_cancelled", "The ChatGPT backend cancelled the answer.")
    # usage_limit_reached and similar were observed in "type", with no "code".
    code = said.code if said.code is not None else said.type
    status = (event.status or event.status_code) if isinstance(event, ErrorEvent) else None
    error = in_stream(None if code is None else str(code), said.message, status)
    if error.retry_after is None and (wait := _number(said.resets_in_seconds)) is not None:
        error.retry_after = whole_seconds(wait)
    return _limited(error, said) if error.error.code in _LIMITS else error


def from_http(status: int, headers: Mapping[str, str], body: bytes, now: float) -> ApiError:
    """Returns the error of a response other than 200. ``now``, in Unix seconds, turns a reset time into a wait."""
    said = _read(body)
    message = said.message or ""
    wait = _retry_after(headers, said, now)
    match status:
        case 401:
            return ApiError(
                401,
                f"The ChatGPT backend refuses the sign-in ({message or 'no reason given'}). "
                f"If this continues, {SIGN_IN_HINT}.",
                type="authentication_error",
                code=_text(said.code) or "upstream_unauthorized",
            )
        case 429:
            kind = next((each for each in (said.type, _text(said.code)) if each in _LIMITS), None)
            limit = kind is not None
            useless = limit or (wait is not None and wait > _PATIENCE)
            error = ApiError(
                429,
                message or "The ChatGPT backend is limiting requests. `codexctl usage` shows until when.",
                type="insufficient_quota" if limit else "rate_limit_error",
                code=kind or _text(said.code) or "rate_limit_exceeded",
                retry_after=wait,
                headers=(NO_RETRY,) if useless else (),
            )
            return _limited(error, said) if limit else error
        case _ if _is_html(headers, body):
            return _from_edge(status)
        case 402 | 403 | 404 | 413:
            return ApiError(
                status,
                _hinted(message or f"The ChatGPT backend answered {status} without a reason."),
                type="permission_error" if status in (402, 403) else "invalid_request_error",
                code=_text(said.code) or _CODES.get(status),
                param=said.param,
            )
        case _ if 400 <= status < 500:
            return ApiError(
                400,
                _hinted(message or f"The ChatGPT backend refused the request with status {status}."),
                type=said.type or "invalid_request_error",
                code=_text(said.code),
                param=said.param or _param_in(message),
            )
        case _:
            overloaded = _text(said.code) in ("server_is_overloaded", "slow_down")
            return ApiError(
                503 if overloaded or status == 503 else 502,
                message or f"The ChatGPT backend failed with status {status}. Try again in a moment.",
                code=_text(said.code) or "upstream_error",
                retry_after=wait,
                retryable=wait is None,
            )


_CODES = {402: "payment_required", 403: "forbidden", 404: "not_found", 413: "request_too_large"}


def _text(code: str | int | None) -> str | None:
    return None if code is None else str(code)


def _read(body: bytes) -> _Error:
    try:
        answer = _BODY.decode(body)
    except msgspec.DecodeError:
        return _Error()
    if isinstance(answer.error, _Error):
        return answer.error
    if isinstance(answer.error, str):
        return _Error(message=answer.error, code=answer.error)
    # "detail" is a text, an object with a code, or a list of validation errors.
    try:
        detail = decoding.decode(answer.detail, type=str | _Coded | None)
    except msgspec.ValidationError:
        return _Error(message=bytes(answer.detail).decode(errors="replace")[:1000])
    if isinstance(detail, _Coded):
        return _Error(message=detail.message or detail.code, code=detail.code)
    return _Error(message=detail)


def _is_html(headers: Mapping[str, str], body: bytes) -> bool:
    # Also decided by the first byte, because the backend's content types are unreliable.
    return "text/html" in headers.get("content-type", "") or body.lstrip()[:1] == b"<"


def _from_edge(status: int) -> ApiError:
    if status == 403:
        return ApiError(
            502,
            "Cloudflare, in front of the ChatGPT backend, refused the request (403, an HTML page). The sign-in is not "
            "the cause: this happens to addresses of data centres, and to requests without the originator, "
            "chatgpt-account-id or user-agent headers. Try again later or from another network, and check "
            "backend.originator.",
            code="upstream_blocked",
        )
    return ApiError(
        502,
        f"The edge in front of the ChatGPT backend answered {status} with an HTML page. Try again in a moment.",
        code="upstream_error",
        retryable=status >= 500,
    )


def _hinted(message: str) -> str:
    if "not supported when using Codex" in message or "Model not found" in message:
        return f"{message} Map the name to a current model in [models.aliases]; GET /v1/models lists them."
    if "requires a newer version of Codex" in message:
        return f"{message} Raise backend.client_version in codexd's configuration."
    return message


def _param_in(message: str) -> str | None:
    name, found, param = message.partition("Unsupported parameter: ")
    return param.strip() if found and not name else None


def _wait_in(text: str) -> int | None:
    if (found := _WAIT.search(text)) is None:
        return None
    unit = found[2].lower()
    scale = 0.001 if unit.startswith(("ms", "mil")) else 60 if unit.startswith("m") else 1
    return whole_seconds(float(found[1]) * scale)


def _retry_after(headers: Mapping[str, str], said: _Error, now: float) -> int | None:
    """Returns the whole seconds to wait before another attempt, from the most exact source available."""
    if (given := headers.get("retry-after", "").strip()).isdecimal():
        return min(int(given[:12]), LONGEST_WAIT)
    if (moment := _number(said.resets_at)) is not None:
        return whole_seconds(moment - now)
    if (wait := _number(said.resets_in_seconds)) is not None:
        return whole_seconds(wait)
    return _wait_in(said.message or "")


def whole_seconds(seconds: float) -> int:
    # Rounded up, because a client that returns too early is refused again. Bounded, because clocks differ.
    return max(1, min(int(-(-seconds // 1)), LONGEST_WAIT))
