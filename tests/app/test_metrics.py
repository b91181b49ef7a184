"""What Prometheus gets, and that dashboard and alerts ask for what there is."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from codexd.config.model import Config, Server
from codexd.telemetry.metrics import MAX_ADJUSTMENTS, MAX_ERRORS, MAX_MODELS, Metrics
from codexd.telemetry.trace import Spans, Trace
from support.asgi import Client, client
from support.backend import Backend
from support.daemon import ROOT, hello
from support.upstream import ADDED, COMPLETED, CREATED, done, failed, text

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(app: Client) -> Samples:
    answer = await app.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return sum(number for (each, own), number in found.items() if each == name and labels.items() <= set(own))


async def test_an_answer_is_counted_by_all_that_is_asked_for(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([1.0, CREATED, 2.0, ADDED, text("Hel"), 4.0, done("Hello"), COMPLETED])
    async with client(tmp_path, backend, Config(server=Server(client_keys={"phone": "k" * 32}))) as app:
        bearer = {"authorization": f"Bearer {'k' * 32}"}
        answer = await app.request("POST", "/v1/chat/completions", hello(stream=True, seed=7), headers=bearer)
        assert answer.status == 200
        await app.request("POST", "/v1/chat/completions", {**hello(), "model": "nope"}, headers=bearer)
        text_of = (await app.request("GET", "/metrics", headers=bearer)).body.decode()
    families = text_string_to_metric_families(text_of)
    found = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    place = {"endpoint": "/chat/completions", "model": "gpt-5.5", "status": "200", "key": "phone"}
    assert value(found, "codexd_requests_total", **place) == 1
    assert value(found, "codexd_requests_total", status="404", key="phone", model="") == 1
    assert value(found, "codexd_tokens_total", kind="input", key="phone", model="gpt-5.5") == 7
    assert value(found, "codexd_tokens_total", kind="output") == 3
    assert value(found, "codexd_adjusted_parameters_total", parameter="seed", how="dropped") == 1
    # The first thing of the answer is said after three seconds, and seven are all.
    first = {"model": "gpt-5.5"}
    assert value(found, "codexd_time_to_first_token_seconds_bucket", le="2.5", **first) == 0
    assert value(found, "codexd_time_to_first_token_seconds_bucket", le="5", **first) == 1
    assert value(found, "codexd_request_duration_seconds_sum", endpoint="/chat/completions") == pytest.approx(7)
    assert value(found, "codexd_streams_open") == 0
    assert value(found, "codexd_signed_in") == 1
    assert value(found, "process_resident_memory_bytes") > 0


async def test_what_goes_wrong_is_counted_by_its_code(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("x"), failed("server_is_overloaded")])
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello(stream=True))
        await app.request("POST", "/v1/chat/completions", {"model": "gpt-5.1"})
        await app.request("GET", "/v1/responses/resp_nobody")
        found = await samples(app)
    assert value(found, "codexd_upstream_errors_total", code="server_is_overloaded") == 1
    assert value(found, "codexd_upstream_errors_total") == 1
    assert value(found, "codexd_requests_total", endpoint="/responses/<id>", status="404") == 1


async def test_a_client_that_leaves_is_a_499(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("x"), 100.0])
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello(stream=True), leave_after=3)
        found = await samples(app)
    assert value(found, "codexd_requests_total", status="499") == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "203.0.113.9"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-real-ip": "x"},
        {"forwarded": "for=x"},
        {"x-forwarded-for": ""},
        {"forwarded": ""},
        {"via": "1.1 proxy"},
        {"x-forwarded-proto": "https"},
        {"x-forwarded-host": ""},
    ],
)
async def test_they_are_for_this_machine(autojump_clock: MockClock, tmp_path: Path, headers: dict[str, str]) -> None:
    async with client(tmp_path, Backend()) as app:
        for path in ("/metrics", "/metrics/", "//metrics", "/anthropic/metrics"):
            refused = await app.request("GET", path, headers=headers)
            assert (refused.status, refused.json["error"]["code"]) == (403, "only_local")
        assert (await app.request("GET", "/metrics")).status == 200


async def test_clients_do_not_choose_how_many_series_there_are(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        for start in range(0, 400, 50):
            odd = {f"odd_{start + number}": 1 for number in range(50)}
            await app.request("POST", "/v1/chat/completions", hello(**odd))
        for number in range(300):
            await app.request("POST", "/v1/chat/completions", {**hello(), "model": f"odd-{number}"})
            await app.request("GET", f"/odd/{number}")
        found = await samples(app)
    assert len([name for name, _ in found if name == "codexd_adjusted_parameters_total"]) <= MAX_ADJUSTMENTS + 1
    assert len([name for name, _ in found if name == "codexd_requests_total"]) < 10


async def test_nor_does_the_backend(autojump_clock: MockClock, tmp_path: Path) -> None:
    metrics = Metrics()
    for number in range(300):
        spans = Spans(first=1, end=1)
        metrics.add(Trace(id="r", at=0, method="POST", endpoint="/responses", status=502, streamed=False, spans=spans,
                          model=f"m{number}", limited_model=f"l{number}", error=f"e{number}", tries=1))  # fmt: skip
    assert len(metrics._errors) <= MAX_ERRORS + 1
    for counted in (metrics._requests, metrics._model_fallbacks, metrics._first):
        assert len(counted) <= MAX_MODELS + 1


async def test_preflights_do_not_either(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend(), Config(server=Server(allowed_origins=["https://a.example"]))) as app:
        for number in range(30):
            preflight = {"origin": "https://b.example", "access-control-request-method": "GET"}
            await app.request("OPTIONS", f"/v1/models/odd-{number}", headers=preflight)
            await app.request("OPTIONS", f"/v1/responses/resp_{number}", headers=preflight)
        found = await samples(app)
    assert {dict(labels)["endpoint"] for name, labels in found if name == "codexd_requests_total"} == {
        "/models/<path:name>", "/responses/<id>",
    }  # fmt: skip


async def test_what_is_remembered_of_an_error_is_bounded(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Backend()) as app:
        secret = "sk-" + "a1B2" * 8
        await app.request("POST", "/v1/chat/completions", {**hello(), "model": f"{secret} " + "x" * 100_000})
        (trace,) = app.services.journal.recent.errors()
    assert trace.message is not None and len(trace.message) <= 1000
    assert secret not in trace.message and "[redacted]" in trace.message


async def test_a_late_loop_shows() -> None:
    metrics = Metrics()
    metrics.lagged(0.0)
    metrics.lagged(0.3)
    assert metrics.lag.buckets() == [
        ("0.001", 1),
        ("0.005", 1),
        ("0.02", 1),
        ("0.1", 1),
        ("0.5", 2),
        ("2", 2),
        ("+Inf", 2),
    ]


def names_in(query: str) -> set[str]:
    return set(re.findall(r"\b(?:codexd|process)_[a-z_]+", query))


async def test_dashboard_and_alerts_ask_for_what_there_is(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Backend([CREATED, ADDED, text("Hel"), done("Hello"), COMPLETED])
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/chat/completions", hello(stream=True, seed=7))
        backend.steps = [failed("server_is_overloaded")]
        await app.request("POST", "/v1/chat/completions", hello())
        text_of = (await app.request("GET", "/metrics")).body.decode()
    there = {sample.name for family in text_string_to_metric_families(text_of) for sample in family.samples}
    there |= set(re.findall(r"# TYPE (\S+)", text_of))  # gauges of the limits have no value here
    labels = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text_of)
        for sample in family.samples
    }
    dashboard = json.loads((ROOT / "packaging" / "grafana" / "codexd.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = (ROOT / "packaging" / "prometheus" / "codexd.rules.yml").read_text()
    alerts = re.findall(r"expr: (.+)", rules)
    assert len(queries) >= 10
    assert len(alerts) >= 5
    for query in [*queries, *alerts]:
        assert names_in(query) <= there, query
        for name, selected in re.findall(r"(\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)[=!]~?", selected)) <= labels[name], query
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            known = set().union(
                *(labels.get(name, set()) | labels.get(f"{name}_bucket", set()) for name in names_in(query))
            )
            assert {each.strip() for each in grouped.split(",")} <= known | {"limit", "window"}, query
