import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol.codex import failures
from codexd.protocol.codex.events import decode_event
from codexd.protocol.responses.stream import failure_document

NOW = 1_795_325_000.0


def http(status: int, body: object, **headers: str) -> ApiError:
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return failures.from_http(status, {name.replace("_", "-"): value for name, value in headers.items()}, encoded, NOW)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"detail": "Unsupported parameter: foo"}, (400, "Unsupported parameter: foo", None, "foo")),
        (400, {"detail": [{"loc": ["body"]}]}, (400, '[{"loc":["body"]}]', None, None)),
        (400, {"error": "plain"}, (400, "plain", "plain", None)),
        (400, {}, (400, "The ChatGPT backend refused the request with status 400.", None, None)),
        (422, {"error": {"message": "m", "param": "p", "code": 7}}, (400, "m", "7", "p")),
        (402, {"detail": {"code": "deactivated_workspace"}}, (402, "deactivated_workspace", "deactivated_workspace", None)),
        (403, {"detail": "no"}, (403, "no", "forbidden", None)),
        (413, b"", (413, "The ChatGPT backend answered 413 without a reason.", "request_too_large", None)),
        (429, {"error": {"type": "usage_not_included", "message": "m"}}, (429, "m", "usage_not_included", None)),
        (429, {"detail": None}, (429, "The ChatGPT backend is limiting requests. `codexctl usage` shows until when.", "rate_limit_exceeded", None)),
        (500, {"error": {"message": "m"}}, (502, "m", "upstream_error", None)),
        (500, b"\xff", (502, "The ChatGPT backend failed with status 500. Try again in a moment.", "upstream_error", None)),
        (503, {"error": {"code": "server_is_overloaded"}}, (503, "The ChatGPT backend failed with status 503. Try again in a moment.",
                                                            "server_is_overloaded", None)),
        (502, {"error": {"code": "slow_down", "message": "m"}}, (503, "m", "slow_down", None)),
    ],
)  # fmt: skip
def test_http_errors_keep_their_words_and_get_a_status(
    status: int, body: object, expected: tuple[int, str, str | None, str | None]
) -> None:
    error = http(status, body)
    assert (error.status, error.error.message, error.error.code, error.error.param) == expected


def test_a_refused_sign_in_says_what_to_do() -> None:
    error = http(401, {"detail": "Unauthorized"})
    assert (error.status, error.error.code) == (401, "upstream_unauthorized")
    assert "(Unauthorized)" in error.error.message
    assert "codexctl login" in error.error.message
    assert "no reason given" in http(401, b"").error.message


@pytest.mark.parametrize("detail", ["The 'x' model is not supported when using Codex with a ChatGPT account."])
def test_a_retired_model_points_to_the_aliases(detail: str) -> None:
    assert http(400, {"detail": detail}).error.message.startswith(detail)
    assert "models.aliases" in http(400, {"detail": detail}).error.message
    assert "models.aliases" in http(404, {"error": {"message": "Model not found x"}}).error.message


def test_a_client_version_that_is_too_old_points_to_its_key() -> None:
    message = http(400, {"detail": "The 'x' model requires a newer version of Codex. Please upgrade."}).error.message
    assert "backend.client_version" in message


def test_the_edges_html_is_no_fault_of_the_sign_in() -> None:
    error = http(403, b"\n<!DOCTYPE html><html>Just a moment</html>")
    assert (error.status, error.error.code, error.retryable) == (502, "upstream_blocked", False)
    assert "Cloudflare" in error.error.message
    bad_gateway = http(520, b"", content_type="text/html")
    assert (bad_gateway.status, bad_gateway.error.code, bad_gateway.retryable) == (502, "upstream_error", True)
    assert not http(400, b"<html>").retryable


@pytest.mark.parametrize(
    ("body", "headers", "wait"),
    [
        ({"error": {"type": "usage_limit_reached", "resets_at": NOW + 90.2}}, {}, 91),
        ({"error": {"type": "usage_limit_reached", "resets_at": NOW - 5}}, {}, 1),
        ({"error": {"type": "usage_limit_reached", "resets_at": 9e15}}, {}, 31 * 86400),
        ({"error": {"resets_in_seconds": 12}}, {}, 12),
        ({"error": {"resets_at": NOW + 90}}, {"retry_after": "3"}, 3),
        ({"error": {"message": "Please try again in 1.2s."}}, {"retry_after": "Wed, 21 Oct"}, 2),
        ({"error": {"message": "try again in 900ms"}}, {}, 1),
        ({"error": {"message": "try again in 1500 milliseconds"}}, {}, 2),
        ({"error": {"message": "try again in 2 minutes"}}, {}, 120),
        ({"error": {"message": "try again in 20 seconds"}}, {}, 20),
        ({"error": {"message": "no"}}, {}, None),
    ],
)
def test_a_limit_says_when_to_come_back(body: object, headers: dict[str, str], wait: int | None) -> None:
    error = http(429, body, **headers)
    assert (error.status, error.retry_after, error.retryable) == (429, wait, False)


def test_a_server_error_is_tried_again_unless_it_names_a_time() -> None:
    assert http(500, {}).retryable
    assert not http(503, {}, retry_after="5").retryable


@pytest.mark.parametrize(
    ("code", "status", "kind", "retryable"),
    [
        ("context_length_exceeded", 400, "invalid_request_error", False),
        ("insufficient_quota", 429, "insufficient_quota", False),
        ("rate_limit_exceeded", 429, "rate_limit_error", False),
        ("server_is_overloaded", 503, "server_error", True),
        ("server_error", 502, "server_error", True),
        (None, 502, "server_error", True),
    ],
)
def test_failures_inside_a_200_get_a_status(code: str | None, status: int, kind: str, retryable: bool) -> None:
    error = failures.in_stream(code, None)
    assert (error.status, error.error.type, error.retryable) == (status, kind, retryable)
    assert error.error.code == (code or "upstream_failed")
    assert error.error.message


LIMIT = {"type": "usage_limit_reached", "message": "The usage limit has been reached", "plan_type": "plus",
         "resets_at": NOW + 7500, "resets_in_seconds": 7500}  # fmt: skip


def test_a_usage_limit_says_when_it_resets() -> None:
    for error in (
        http(429, {"error": LIMIT}),
        failures.from_event(decode_event(msgspec.json.encode({"type": "error", "error": LIMIT}))),
        failures.from_event(
            decode_event(msgspec.json.encode({"type": "response.failed", "response": {"error": LIMIT}}))
        ),
    ):
        found = error.error
        assert (error.status, error.retry_after, found.code) == (429, 7500, "usage_limit_reached")
        assert (found.plan_type, found.resets_at, found.resets_in_seconds) == ("plus", NOW + 7500, 7500)
        assert found.message == (
            "The usage limit has been reached. The limit resets in 2 h 5 min (at 2026-11-22 07:28 UTC)."
        )
        assert failures.NO_RETRY in error.headers
        assert not error.retryable
        inside = msgspec.json.decode(failure_document(error))["error"]
        assert (inside["type"], inside["code"]) == ("usage_limit_reached", "usage_limit_reached")
        assert msgspec.json.decode(error.body())["error"]["type"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"resets_in_seconds": 30}, "resets in 1 min."),
        ({"resets_in_seconds": 90_000}, "resets in 1 d 1 h."),
        ({"resets_at": NOW - 5}, "resets in 1 min (at "),
        ({"resets_at": 1e30}, "resets in 31 d"),
        ({}, "m"),
    ],
)
def test_the_time_of_a_reset_in_words(facts: dict[str, float], words: str) -> None:
    said = http(429, {"error": {"type": "usage_limit_reached", "message": "m.", **facts}}).error
    assert words in said.message
    assert said.message.count("..") == 0


def test_waiting_for_a_minute_may_be_of_use() -> None:
    assert failures.NO_RETRY not in http(429, {"error": {"code": "x"}}, retry_after="60").headers
    assert failures.NO_RETRY in http(429, {"error": {"code": "x"}}, retry_after="61").headers
    assert "plan_type" not in msgspec.json.decode(http(429, {"error": {"code": "x"}}).body())["error"]


@pytest.mark.parametrize("key", ["status", "status_code"])
@pytest.mark.parametrize(("status", "becomes"), [(400, 400), (404, 404), (422, 422), (429, 429), (500, 500), (99, 502)])
def test_an_error_event_keeps_its_status(key: str, status: int, becomes: int) -> None:
    event = {"type": "error", key: status, "error": {"code": "odd", "message": "m"}}
    error = failures.from_event(decode_event(msgspec.json.encode(event)))
    assert (error.status, error.retryable) == (becomes, becomes >= 500)


def test_odd_facts_do_not_cost_the_error() -> None:
    odd = {
        "type": "usage_limit_reached",
        "message": "m",
        "resets_at": "tomorrow",
        "plan_type": 7,
        "resets_in_seconds": True,
    }
    for error in (
        http(429, {"error": odd}),
        failures.from_event(decode_event(msgspec.json.encode({"type": "response.failed", "response": {"error": odd}}))),
    ):
        assert (error.status, error.error.code, error.error.message, error.retryable) == (
            429,
            "usage_limit_reached",
            "m",
            False,
        )


def test_a_limit_may_be_in_the_code() -> None:
    error = http(429, {"error": {"code": "usage_limit_reached", "message": "m", "resets_in_seconds": 60}})
    assert (error.error.type, error.error.code) == ("insufficient_quota", "usage_limit_reached")
    assert "resets in 1 min" in error.error.message


@pytest.mark.parametrize(
    ("given", "wait"), [("9" * 5000, 31 * 86400), ("0", 0), ("7", 7), (" 7", 7), ("-1", None), ("1e3", None), ("٣", 3)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_is_bounded_where_it_is_read(given: str, wait: int | None, status: int) -> None:
    assert failures.from_http(status, {"retry-after": given}, b"{}", 1.0).retry_after == wait
