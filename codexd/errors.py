"""All failures that codexd reports to a client.

One exception carries what an OpenAI client needs: the HTTP status, the error object ``{message, type, param, code}``
and, if waiting helps, the seconds for ``Retry-After``. A message ends with the next step.
"""

from collections.abc import Iterable

import msgspec

from codexd.reasons import place_of, quoted, reason_of

NO_RETRY = ("x-should-retry", "false")
"""Tells OpenAI's and Anthropic's SDKs that another attempt in some seconds is of no use."""

SIGN_IN_HINT = "run `codexctl login` on the machine where codexd runs"


class ErrorObject(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's error object. Its four keys are always present, because clients read them unconditionally.

    The others are the backend's, with a usage limit: ``resets_at`` in Unix seconds.
    """

    message: str
    type: str
    param: str | None
    code: str | None
    plan_type: str | msgspec.UnsetType = msgspec.UNSET
    resets_at: int | msgspec.UnsetType = msgspec.UNSET
    resets_in_seconds: int | msgspec.UnsetType = msgspec.UNSET


class _Envelope(msgspec.Struct, frozen=True):
    error: ErrorObject


class ApiError(Exception):
    """A failed request, with all parts of its answer.

    ``retry_after`` is in seconds. ``retryable`` marks faults of the upstream after which one more attempt is safe,
    until the client has received a byte. ``headers`` are sent to the client unchanged. ``type`` follows from the
    status, unless it is given.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the API's own word
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        retryable: bool = False,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        if type is None:
            type = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"  # noqa: A001
        self.status = status
        self.error = ErrorObject(message=message, type=type, param=param, code=code)
        self.retry_after = retry_after
        self.retryable = retryable
        self.headers: list[tuple[str, str]] = list(headers)

    def all_headers(self) -> dict[str, str]:
        """Returns the headers of the answer, including ``retry-after``."""
        wait = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**wait, **dict(self.headers)}

    def body(self) -> bytes:
        """Returns the JSON document of an answer that fails before its first byte."""
        return msgspec.json.encode(_Envelope(self.error))


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def wrong_shape(error: msgspec.ValidationError, where: str = "") -> ApiError:
    """Returns the error for JSON in another shape than the API's. ``where`` is the place of what was decoded."""
    said, place = place_of(error)
    place = f"{where}.{place}" if where and place and not place.startswith("[") else where + place
    if not place:
        return bad_request(f"{said.replace('Expected an object, got', 'The request body must be an object, not')}.")
    return bad_request(f"{place}: {said[:1].lower()}{said[1:]}.", param=place)


def not_json(error: Exception) -> ApiError:
    why = "it is empty or ends too early" if "truncated" in str(error) else reason_of(error)
    return bad_request(f"The request body is not valid JSON: {why}.")


def too_deep() -> ApiError:
    return bad_request("The request is nested too deeply. Send JSON with fewer than a few hundred levels.")


def too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {limit} bytes. Send less, or raise server.max_body_bytes.",
        code="request_too_large",
    )


def expands_too_much(ratio: int) -> ApiError:
    return ApiError(
        413,
        f"The compressed request expands to more than {ratio} times its size. Send it without content-encoding.",
        code="request_too_large",
    )


def too_large_together(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request and the stored items that it refers to are larger than {limit} bytes together. Start a new "
        "conversation, compact this one, or raise server.max_body_bytes.",
        code="request_too_large",
    )


def too_many_items(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The request has more than {limit} JSON values. Shorten the conversation, send fewer tools, or raise "
        "server.max_items.",
        code="request_too_large",
    )


def body_timeout(seconds: float) -> ApiError:
    return ApiError(
        408,
        f"The request body did not arrive within {seconds:g} seconds. Send the request again.",
        code="request_timeout",
    )


def unsupported(param: str, message: str) -> ApiError:
    """Returns the error for a parameter that is not supported and would change the answer if it were dropped."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def model_not_found(name: str, near: list[str], known: list[str], *, alias: str | None = None) -> ApiError:
    subject = (
        f"The model {quoted(name)}"
        if alias is None
        else f"{quoted(alias)} is an alias in [models.aliases]: its model {quoted(name)}"
    )
    nearest = f" Did you mean {' or '.join(map(quoted, near))}?" if near else ""
    return ApiError(
        404,
        f"{subject} does not exist or this account has no access to it.{nearest} "
        f"Known models: {', '.join(known)}. Each also works with an effort, such as NAME-high; "
        "other names can be mapped in [models.aliases].",
        code="model_not_found",
        param="model",
    )


def no_catalogue(why: str | None) -> ApiError:
    reason = f": {why}" if why else ""
    return ApiError(
        503,
        f"The model list has not been fetched yet{reason}; `codexctl models` shows its state.",
        code="no_catalogue",
        retry_after=60,
    )


def signed_out(why: str) -> ApiError:
    return ApiError(401, f"{why}: {SIGN_IN_HINT}.", type="authentication_error", code="signed_out", headers=(NO_RETRY,))


def issuer_unavailable(why: str, retry_after: int, *, valid: bool = False) -> ApiError:
    token = "the current access token stays in use" if valid else "the access token is no longer valid"
    return ApiError(
        503,
        f"The ChatGPT sign-in could not be refreshed ({why}); {token}. codexd tries again by itself.",
        code="auth_unavailable",
        retry_after=retry_after,
    )


# --- signing in

DEVICE_CODES_OFF_HINT = (
    "If the page says that device codes are off, turn on “Enable device code authorization for Codex” in ChatGPT, "
    "Settings, Security. In a workspace, ask an administrator."
)
"""The setting is off by default for many accounts, and only the page in the browser reports it."""

_BROWSER_HINT = "`codexctl login --paste` signs in without a device code"
_TRY_AGAIN = "start again with `codexctl login`"


def login_unreachable(why: str) -> ApiError:
    return ApiError(
        502,
        f"The ChatGPT sign-in server could not be used ({why}). Run `codexctl doctor` to find the cause.",
        code="login_unreachable",
    )


def device_codes_off(why: str) -> ApiError:
    return ApiError(
        403,
        f"The sign-in server refused a device code ({why}). Turn on “Enable device code authorization for Codex” "
        f"in ChatGPT, Settings, Security (in a workspace, ask an administrator), or: {_BROWSER_HINT}.",
        type="authentication_error",
        code="device_codes_off",
    )


def login_refused(why: str) -> ApiError:
    return ApiError(
        403, f"The sign-in was refused: {why}; {_TRY_AGAIN}.", type="authentication_error", code="login_refused"
    )


def login_expired(seconds: float, what: str) -> ApiError:
    minutes = f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
    return ApiError(
        408,
        f"The sign-in was not completed within {minutes}, the limit for {what}; {_TRY_AGAIN}.",
        type="authentication_error",
        code="login_expired",
    )


def login_ended(why: str) -> ApiError:
    return ApiError(409, f"The sign-in was cancelled: {why}.", type="authentication_error", code="login_ended")


def callback_port_in_use(ports: Iterable[tuple[int, str | None]]) -> ApiError:
    who = "; ".join(
        f"port {port} is used by {name or f'another program (run `ss -ltnp sport = :{port}` as root to find it)'}"
        for port, name in ports
    )
    return ApiError(
        409,
        f"The sign-in redirect could not reach codexd: {who}. Stop that program, or use "
        "`codexctl login --device` or `codexctl login --paste`, which need no port.",
        type="authentication_error",
        code="callback_port_in_use",
    )


def no_login() -> ApiError:
    return ApiError(409, "No browser sign-in is in progress. Start one with `codexctl login --paste`.", code="no_login")


def wrong_callback(why: str) -> ApiError:
    return ApiError(
        400,
        f"That address does not belong to this sign-in: {why}. Paste the whole address from the browser's address bar, "
        "on the page after the sign-in.",
        code="wrong_callback",
    )


def no_refresh_token() -> ApiError:
    return ApiError(
        409,
        "This sign-in has no refresh token, so it ends with its access token. Sign in with `codexctl login`.",
        type="authentication_error",
        code="no_refresh_token",
    )


def cannot_delete(path: str, why: str) -> ApiError:
    return ApiError(
        500,
        f"{path} could not be deleted ({why}). Delete it: it contains the sign-in.",
        code="state_not_writable",
    )


def cannot_save(path: str, why: str) -> ApiError:
    return ApiError(
        500,
        f"{path} could not be written ({why}), so nothing was changed. Check the free disk space and the owner of "
        "the directory.",
        code="state_not_writable",
    )


def key_required(*, given: bool, any_known: bool, fault: str | None) -> ApiError:
    if fault is not None:
        message = (
            "This codexd requires a client key but cannot read its own. Run `codexctl doctor` on the machine where "
            "codexd runs."
        )
    elif not any_known:
        message = (
            "This codexd accepts connections from other machines, so it requires a client key, and none exists. Run "
            "`codexctl keys add NAME` on the machine where it runs."
        )
    elif not given:
        message = (
            "This codexd requires a client key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'. "
            "To create one, run `codexctl keys add NAME` on the machine where codexd runs."
        )
    else:
        message = (
            "Unknown client key. Check the key, or create a new one with `codexctl keys add NAME` on the machine where "
            "codexd runs."
        )
    return ApiError(401, message, code="invalid_api_key", headers=(NO_RETRY,))


def key_expired(name: str) -> ApiError:
    return ApiError(
        401,
        f"The client key {quoted(name)} has expired. On the machine where codexd runs, remove it with "
        f"`codexctl keys revoke {name}` and create a new one with `codexctl keys add {name}`.",
        code="expired_api_key",
        headers=(NO_RETRY,),
    )


def key_busy(name: str, limit: int) -> ApiError:
    return ApiError(
        429,
        f"The client key {quoted(name)} has {limit} requests in progress, which is its limit (concurrent_requests). "
        "Wait for one of them to end.",
        code="key_concurrency_limit",
        retry_after=1,
    )


def key_too_fast(name: str, limit: int, seconds: int) -> ApiError:
    return ApiError(
        429,
        f"The client key {quoted(name)} may make {limit} requests a minute (requests_per_minute). Try again in "
        f"{seconds} s.",
        code="key_rate_limit",
        retry_after=seconds,
    )


def key_share_spent(name: str, until: int, window: str, used: float, seconds: int | None) -> ApiError:
    """Returns the error for a key with a share of the windows; ``seconds`` until the window resets, if known."""
    when = "when it resets" if seconds is None else f"in {span(seconds)}, when it resets"
    error = ApiError(
        429,
        f"The client key {quoted(name)} may use the account until a window is {until} % used (until_percent). The "
        f"{window} window is {used:g} % used. Try again {when}.",
        code="key_budget_spent",
        retry_after=seconds,
    )
    error.headers.append(NO_RETRY)
    return error


def key_day_spent(name: str, limit: int, used: int, seconds: int) -> ApiError:
    error = ApiError(
        429,
        f"The client key {quoted(name)} may use {limit} tokens a day (tokens_per_day) and has used {used}. "
        f"Try again in {span(seconds)}, at midnight.",
        code="key_budget_spent",
        retry_after=seconds,
    )
    error.headers.append(NO_RETRY)
    return error


def span(seconds: float) -> str:
    """Returns a duration in words: ``5 min``, ``2 h 10 min``, ``3 d 4 h``."""
    minutes = max(1, -int(-seconds // 60))
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def key_not_for_model(name: str, model: str, allowed: Iterable[str]) -> ApiError:
    return ApiError(
        403,
        f"The client key {quoted(name)} may not use the model {quoted(model)}, only {', '.join(allowed)}. Use one of "
        "those, or another key.",
        param="model",
        code="model_not_allowed",
    )


def no_images(plan: str, why: str) -> ApiError:
    return ApiError(
        403,
        f"The account's plan ({plan}) does not include images. Use another provider for images. ChatGPT says: {why}",
        code="images_not_included",
    )


def not_compacted() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend answered without compacting the conversation. Try again, or with another model.",
        code="not_compacted",
    )


def no_such_response(name: str, param: str | None = None) -> ApiError:
    advice = " Send the whole input." if param else ""
    return ApiError(
        404 if param is None else 400,
        f"No stored response {quoted(name)}: it was not stored, was deleted, or has expired "
        f"(storage.response_bytes and storage.response_seconds are the limits).{advice}",
        code="previous_response_not_found" if param else "response_not_found",
        param=param,
    )


def no_such_item(name: str, param: str) -> ApiError:
    return ApiError(
        404,
        f"No item {quoted(name)} in a stored response: it was not stored, or has expired (storage.response_bytes and "
        "storage.response_seconds are the limits). Send the item itself.",
        code="item_not_found",
        param=param,
    )


def not_local() -> ApiError:
    return ApiError(
        403,
        "Sign in on the machine where codexd runs, not through a proxy: run `codexctl login` there.",
        code="not_local",
    )


def cross_site() -> ApiError:
    return ApiError(
        403,
        "Web pages of other sites may not use this codexd. To allow one, create a client key with "
        "`codexctl keys add NAME` and have the page send it.",
        code="cross_site_request",
    )


def proxy_without_key() -> ApiError:
    return ApiError(
        403,
        "This request came through a proxy, and no client key exists, so anyone who can reach the proxy could use the "
        "account. Make a key with `codexctl keys add NAME`, or, if the proxy authenticates clients, set "
        "server.allow_unauthenticated = true.",
        type="authentication_error",
        code="proxy_without_key",
    )


def foreign_origin(origin: str) -> ApiError:
    return ApiError(
        403,
        f"Web pages and apps from {quoted(origin)} may not use this codexd. To allow them, add that origin to "
        "server.allowed_origins, or create a client key with `codexctl keys add NAME` and have them send it.",
        code="origin_not_allowed",
    )


def no_such_page(name: str) -> ApiError:
    return ApiError(404, f"The documentation has no page {quoted(name)}. See /docs for all pages.", code="not_found")


def no_such_request(name: str, kept: int) -> ApiError:
    return ApiError(
        404,
        f"No request whose id begins with {quoted(name)} is among the last {kept}. The id is in the answer's "
        "x-request-id; `codexctl log` shows recent ids.",
        code="no_such_request",
    )


def no_such_prompt(name: str, families: Iterable[str]) -> ApiError:
    return ApiError(
        404,
        f"{quoted(name)} is neither a family of prompts ({', '.join(families)}) nor a model; "
        "`codexctl prompts list` and `codexctl models` show them.",
        code="no_such_prompt",
    )


def only_local(path: str) -> ApiError:
    return ApiError(
        403,
        f"{path} is only for programs on the machine where codexd runs. Use loopback or the unix socket there.",
        code="only_local",
    )


def too_many_requests(limit: int) -> ApiError:
    return ApiError(
        503,
        f"codexd is already answering {limit} requests, its limit (server.max_requests). Try again in a moment.",
        code="server_is_busy",
        retry_after=1,
    )


def key_revoked() -> ApiError:
    return ApiError(
        401, "The client key was revoked. Use another key.", code="invalid_api_key", type="authentication_error"
    )


def no_memory(size: int) -> ApiError:
    return ApiError(
        503,
        f"The memory for requests ({size >> 20} MiB) is in use by other requests. Try again in a moment, or raise "
        "server.memory_mb.",
        code="server_is_busy",
        retry_after=2,
    )


def needs_more_memory(size: int) -> ApiError:
    return ApiError(
        413,
        f"The request needs more memory than all requests may use ({size >> 20} MiB). Send less, or raise "
        "server.memory_mb.",
        code="request_too_large",
    )


def too_many_connections() -> ApiError:
    return ApiError(
        503,
        "codexd has reached its connection limit (server.max_connections). Try again in a moment.",
        code="server_is_busy",
        retry_after=1,
    )


def user_not_allowed() -> ApiError:
    return ApiError(
        403,
        "The connecting user may not use this socket. Connect as another user, or add this one to "
        "server.allowed_users.",
        code="user_not_allowed",
    )


def foreign_host(name: str) -> ApiError:
    return ApiError(
        403,
        f"The request is for host {quoted(name)}, which is not a known name of this machine: a web page "
        "may have sent it. Use http://127.0.0.1 or http://localhost, add the name to server.hosts, or create a "
        "client key with `codexctl keys add NAME` and send it.",
        code="foreign_host",
    )


def websocket_expired(lifetime: float) -> ApiError:
    return ApiError(
        400,
        f"This websocket is older than {lifetime / 60:g} minutes. Open a new one and continue there.",
        code="websocket_connection_limit_reached",
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "codexd is stopping and ended this answer after server.drain_seconds. Send the request again when codexd has "
        "restarted.",
        code="shutting_down",
        retry_after=5,
    )


def stopping() -> ApiError:
    return ApiError(
        409,
        "codexd is stopping: requests in progress may finish. Send new ones after it has started again.",
        code="stopping",
    )


def not_answering(seconds: float) -> ApiError:
    """Returns the error of ``codexctl health`` if the control socket answers but the API does not."""
    return ApiError(
        500,
        f"codexd is running, but did not answer a request on its own listener within {seconds:g} seconds. See "
        "`codexctl log`, or restart codexd (`codexctl restart` shows how).",
        code="internal_error",
    )


def upstream_unreachable(why: str) -> ApiError:
    return ApiError(
        502,
        f"The ChatGPT backend could not be reached: {why}. Check the network of the machine where codexd runs.",
        code="upstream_unreachable",
        retryable=True,
    )


def unsendable() -> ApiError:
    return ApiError(
        502,
        "The request to the ChatGPT backend was not sent: one of its headers contains invalid characters. Check "
        "backend.originator and backend.user_agent, or run `codexctl login` again.",
        code="upstream_unreachable",
    )


def upstream_unreadable(why: str) -> ApiError:
    """Returns the error for a document of the backend that is of no use. ``why`` starts with the word "its"."""
    return ApiError(
        502, f"The ChatGPT backend answered, but {why}. Send the request again.", code="upstream_unreadable"
    )


def cannot_connect(what: str, advice: str, code: str, *, retryable: bool) -> ApiError:
    """Returns a connection error. ``code``: upstream_unreachable, proxy_failed or certificate_not_trusted."""
    return ApiError(
        502,
        f"The ChatGPT backend could not be reached: {what}. {advice}",
        code=code,
        retryable=retryable,
    )


def foreign_answer() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend mixed up two answers on one connection. Send the request again.",
        code="upstream_stream_ended",
        retryable=True,
    )


def websocket_refused(why: str) -> ApiError:
    return ApiError(
        502,
        f"The ChatGPT backend could not be reached by websocket: {why}. Set backend.transport to auto or http.",
        code="upstream_unreachable",
        retryable=True,
    )


def too_many_websockets(limit: int) -> ApiError:
    return ApiError(
        503,
        f"All {limit} websockets to the ChatGPT backend are in use (backend.max_connections). Try again in a moment.",
        code="server_is_busy",
        retry_after=1,
    )


def upstream_timeout(what: str, seconds: float, key: str | None = None) -> ApiError:
    limit = "" if key is None else f", or raise {key}"
    return ApiError(
        504,
        f"The ChatGPT backend sent {what} for {seconds:g} seconds. Send the request again{limit}.",
        code="upstream_timeout",
    )


def answer_too_large(limit: int) -> ApiError:
    return ApiError(
        502,
        f"The ChatGPT backend's answer is larger than {limit} bytes, so codexd ended it. Ask for a shorter one.",
        code="upstream_answer_too_large",
    )


def stream_ended() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend ended the stream before the answer was complete. Send the request again.",
        code="upstream_stream_ended",
        retryable=True,
    )


def empty_answer() -> ApiError:
    return ApiError(
        502,
        "The ChatGPT backend reported the answer as complete without sending any of it. Send the request again.",
        code="upstream_empty_answer",
        retryable=True,
    )


def internal(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"Internal error in codexd. Its log has the details: `codexctl log --request {request_id}`.",
        code="internal_error",
    )


# --- starting


class ConfigError(Exception):
    """The configuration cannot be used. The message names the file or variable, the key and the expected value."""

    def sentence(self) -> str:
        """Returns the message with a full stop, unless it ends with one or asks whether another key was meant."""
        said = str(self)
        return said if said.endswith((".", "?")) else f"{said}."


class CannotStart(Exception):
    """The daemon cannot start. The message says why and gives the next step."""
