"""Failures in the shape of the Anthropic Messages API."""

import msgspec
from msgspec import UNSET, Struct, UnsetType

from codexd.errors import ApiError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_DETAILED = frozenset({"thread_not_found", "thread_unsupported_request"})
"""Codes that the SDK reads in ``details``."""


class _Error(Struct):
    type: str
    message: str
    details: dict[str, str] | UnsetType = UNSET


class _Failure(Struct, kw_only=True):
    type: str = "error"
    error: _Error


def failure_document(error: ApiError) -> bytes:
    """Returns the API's error document, which is also the data of its error event.

    The document has no field for a parameter, so the message begins with it.
    """
    message, param = error.error.message, error.error.param
    if error.error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # clients compact the conversation when they see these words
    if param is not None and param not in message:
        message = f"{param}: {message}"
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    code = error.error.code
    details = {"error_code": code} if code in _DETAILED else UNSET
    return msgspec.json.encode(_Failure(error=_Error(kind, message, details)))
