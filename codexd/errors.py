"""Every way in which codexd fails towards a client.

One exception carries what an OpenAI client needs: the HTTP status, the error object ``{message, type, param, code}``
and, where waiting helps, the seconds for ``Retry-After``. Messages end in what to do next.
"""

from collections.abc import Iterable

import msgspec

SIGN_IN_HINT = "run `codexctl login` on the machine where codexd runs"


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object. All four keys are always present; clients index into them."""

    message: str
    type: str
    param: str | None
    code: str | None


class _Envelope(msgspec.Struct, frozen=True):
    error: ErrorObject


class ApiError(Exception):
    """A request that fails, with all that its answer needs.

    ``retry_after`` is in seconds. ``retryable`` marks faults of the upstream after which one more attempt is safe as
    long as the client has seen no byte. ``headers`` go to the client as they are.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 - the API's own word
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retryable: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = ErrorObject(message=message, type=type, param=param, code=code)
        self.retry_after = retry_after
        self.retryable = retryable
        self.headers: list[tuple[str, str]] = list(headers)

    def body(self) -> bytes:
        """The JSON document of an answer that fails before its first byte."""
        return msgspec.json.encode(_Envelope(self.error))


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A parameter that cannot be honoured and would change the answer if it were dropped."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def model_not_found(name: str, near: list[str], known: list[str], *, alias: str | None = None) -> ApiError:
    subject = (
        f"The model {name!r}" if alias is None else f"{alias!r} is an alias in [models.aliases]: its model {name!r}"
    )
    nearest = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return ApiError(
        404,
        f"{subject} does not exist or this account has no access to it.{nearest} "
        f"Known models: {', '.join(known)}. Each also works with an effort, as in NAME-high; "
        "other names can be mapped in [models.aliases].",
        code="model_not_found",
        param="model",
    )


def signed_out(why: str) -> ApiError:
    return ApiError(401, f"{why}: {SIGN_IN_HINT}.", type="authentication_error", code="signed_out")


def invalid_key(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")


def issuer_unavailable(why: str, retry_after: int) -> ApiError:
    return ApiError(
        503,
        f"The ChatGPT sign-in could not be renewed ({why}) and the access token is no longer valid. "
        "codexd keeps trying; nothing has to be done unless this lasts.",
        type="server_error",
        code="auth_unavailable",
        retry_after=retry_after,
    )


def cross_site() -> ApiError:
    return ApiError(
        403,
        "A web page of another site may not use this codexd. Set a client key in [server.client_keys] and let the page "
        "send it, if it is meant to.",
        code="cross_site_request",
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "codexd is stopping, and the time for open answers (server.drain_seconds) is over. Send the request again.",
        type="server_error",
        code="shutting_down",
        retry_after=5,
    )


def upstream_unreachable(why: str) -> ApiError:
    return ApiError(
        502,
        f"The ChatGPT backend could not be reached: {why}. Check the network of the machine where codexd runs.",
        type="server_error",
        code="upstream_unreachable",
        retryable=True,
    )


def upstream_timeout(what: str, seconds: float, key: str) -> ApiError:
    return ApiError(
        504,
        f"The ChatGPT backend sent {what} for {seconds:g} seconds (the limit is {key}).",
        type="server_error",
        code="upstream_timeout",
    )


def stream_ended() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend ended the stream before the answer was complete. Send the request again.",
        type="server_error",
        code="upstream_stream_ended",
        retryable=True,
    )


def empty_answer() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend called the answer complete without having sent any of it. Send the request again.",
        type="server_error",
        code="upstream_empty_answer",
        retryable=True,
    )


def internal(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"codexd met a fault of its own. Its log has the details under request id {request_id}.",
        type="server_error",
        code="internal_error",
    )
