"""``make bench``: codexd beside nginx and its Python peers in one interleaved run, as ratios against the targets.

The rig (``rig/``: a simulated backend and a load generator in Rust) is built in ``build/bench``, the peers are installed
there, and each scenario is run for every server in turn, round by round, so that a slow minute of the machine meets all
of them. Wall clock swings twofold on a shared machine: read the CPU columns, and those as ratios.

    bench.py [--rounds 3] [--scen fast,paced,...] [--servers codexd:chat,...] [--report-only]
    bench.py --icount          user-space instructions by callgrind, repeatable within 2 %, and memory
    bench.py --check           the same, and fail where one is 5 % (flat out 15 %) above tests/bench/instructions.json
    bench.py --accept          the same, and write that file
    bench.py --loaded 1000     one more request while so many streams are open
    bench.py --warm            the first event over TLS, with a connection that is ready and with one to be made
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rig import conversion, servers
from rig.measuring import Plan, instructions, loaded, matrix, memory
from rig.servers import CERTIFICATE, NGINX_TLS, OUT, PEERS, missing, prepare

BESIDE = ["nginx:resp", "floor"]
OURS = ["codexd-http", "codexd"]
ALL = ["backend:resp", *BESIDE, *PEERS, *OURS, "codexd:resp"]
PLAN: Plan = [
    # No peer carries a thousand streams; each of the last ones takes a quarter of a minute.
    ("warm", ["chatmock", *OURS], 1),
    ("req", ALL, 3),
    ("req4", ALL, 3),
    ("json", [*PEERS, *OURS, "codexd:resp"], 1),
    ("fast", ALL, 3),
    ("fast16", [*BESIDE, *OURS], 1),
    ("paced", [*BESIDE, *PEERS, *OURS], 3),
    ("paced100", [*BESIDE, *PEERS, *OURS], 3),
    ("abort", [*OURS], 1),
    ("abortq", [*OURS], 1),
    ("hold1000", OURS, 1),
    ("paced1k", [*BESIDE, *OURS], 1),
    ("paced1k20", [*BESIDE, *OURS], 1),
    ("paced5k", ["nginx:resp", "floor", "codexd-http"], 1),
]
"""Ten minutes on two cores."""
ROWS = "codexd.jsonl"

FIGURES = Path(__file__).with_name("instructions.json")
TOLERANCE = 1.05
OF_FLAT_OUT = 1.15
"""How many events come with one read depends on the machine."""

# --- connections


def warm(times: int = 100) -> None:
    """Prints medians in microseconds, on loopback: beyond it each handshake is two more round trips, and the name."""
    import ssl

    import httpx
    import trio

    from codexd.upstream.transport import Transport, target_of

    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.check_hostname = False
    target = target_of(httpx.URL(f"https://127.0.0.1:{NGINX_TLS}/backend-api/codex/responses"))
    document = {"input": "@@n=1;b=16@@", "stream": True}
    body, headers = json.dumps(document).encode(), [(b"content-type", b"application/json")]

    async def first_event(transport: Transport) -> float:
        begun = time.perf_counter()
        _, _, stream, *_ = await transport.post(target, headers, body, lambda: False)
        await anext(stream)
        took = time.perf_counter() - begun
        async for _ in stream:
            pass
        return took * 1e6

    async def measure() -> None:
        cold, ready = Transport(lambda: context), Transport(lambda: context)
        found: dict[str, list[float]] = {"to be made": [], "ready": []}
        for _ in range(times):
            await cold.aclose()
            found["to be made"].append(await first_event(cold))
            await ready.warm(target.origin)
            found["ready"].append(await first_event(ready))
        print({name: round(statistics.median(each)) for name, each in found.items()})
        await cold.aclose()
        await ready.aclose()

    servers.start("backend")
    servers.start("nginx")
    trio.run(measure)


# --- instructions


COUNTED = ("codexd", "codexd:resp", "codexd-http", "codexd-http:resp")
TRIES = 3
"""How often a server is counted before a figure is believed to be dearer."""


def counted(servers: Iterable[str] = COUNTED) -> dict[str, dict[str, float]]:
    """Returns what ``instructions`` finds of each lane and kind of request, and what ``memory`` finds of each lane."""
    found = {}
    for server in servers:
        found[server] = ({} if ":" in server else memory(server)) | instructions(server)
        print(server, found[server], flush=True)
    return found


def _interpreter() -> str:
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} {platform.machine()}"


def compare(found: dict[str, dict[str, float]], wanted: dict[str, dict[str, float]]) -> list[str]:
    """What has become dearer than is tolerated."""
    return [
        f"{server} {name}: {figure:g}, and {before:g} was measured before"
        for server, figures in found.items()
        for name, figure in figures.items()
        # One that nobody has accepted yet counts as dearer.
        if figure > (before := wanted.get(server, {}).get(name, 0)) * (OF_FLAT_OUT if "flat" in name else TOLERANCE)
    ]


def check() -> None:
    """Exits with 1 where something has become dearer. Says so, and does nothing, where it cannot be measured."""
    if why := missing("rustc", "valgrind"):
        print(f"bench: instructions are not counted; {why}")
        return
    prepare()
    found = counted()
    wanted = json.loads(FIGURES.read_text()).get(_interpreter())
    if wanted is None:
        print(f"bench: {FIGURES.name} has no figures for {_interpreter()}: nothing to compare with")
        return
    # A busy machine adds some percent to a count, now and then; a dearer program is dearer each time.
    for _ in range(TRIES - 1):
        if not (dearer := compare(found, wanted)):
            break
        print("bench: counting again, because of\n" + "\n".join(dearer), flush=True)
        for server, figures in counted({line.split()[0] for line in dearer}).items():
            found[server] = {name: min(figure, found[server][name]) for name, figure in figures.items()}
    if dearer := compare(found, wanted):
        sys.exit(
            "bench: dearer than before by more than is tolerated (--accept, when it has to be):\n" + "\n".join(dearer)
        )
    else:
        print("bench: no figure is above the committed one by more than is tolerated")


def accept() -> None:
    prepare()
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps(known | {_interpreter(): counted()}, indent=2) + "\n")


# --- the report

Rows = list[dict[str, Any]]


def _median(rows: Rows, server: str, scenario: str, of: Callable[[dict[str, Any]], Any]) -> float | None:
    found = []
    for row in rows:
        if (row["server"], row["scen"]) == (server, scenario):
            try:
                found.append(float(of(row)))
            except (KeyError, TypeError, ValueError):
                continue
    return statistics.median(found) if found else None


def _event(row: dict[str, Any]) -> Any:
    return row["win_cpu_us_per_chunk"] if "win_cpu_us_per_chunk" in row else row["cpu_us_per_chunk"]


def _request(row: dict[str, Any]) -> Any:
    return row["cpu_ms_per_req"]


COSTS: list[tuple[str, str, Callable[[dict[str, Any]], Any], float | None, float | None]] = [
    # what, scenario, measure, target as a multiple of the better peer, target as a multiple of nginx
    ("us an event, flat out", "fast", _event, 0.15, 3.5),
    ("us an event, flat out, 16 a write", "fast16", _event, None, None),
    ("us an event, 50 x 10/s", "paced", _event, 0.40, 3.0),
    ("us an event, 100 x 20/s", "paced100", _event, 0.25, 2.2),
    ("us an event, 1000 x 5/s", "paced1k", _event, None, 2.3),
    ("us an event, 1000 x 20/s", "paced1k20", _event, None, 2.4),
    ("us an event, 5000 x 2/s", "paced5k", _event, None, None),
    ("ms a request, 4 clients", "req4", _request, 0.25, None),
    ("ms a request, alone", "req", _request, None, None),
    ("ms a request, not streamed", "json", _request, 0.45, None),
]
"""Chat over the HTTP lane is compared: it is the lane of nginx, of the floor and of the peers."""


def _shown(value: float | None, target: float | None = None) -> str:
    if value is None:
        return ""
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return text if target is None else f"{text} ({'ok' if value <= target else 'MISSED'}, {target:g})"


def _ratio(value: float | None, by: float | None, target: float | None = None) -> str:
    return _shown(value / by if value and by else None, target)


def report(rows: Rows) -> Iterator[str]:
    yield "| CPU | nginx | floor | best peer | HTTP | websocket | / peer | / nginx | / floor | websocket / nginx |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for what, scenario, of, to_peer, to_nginx in COSTS:
        nginx, floor, http, websocket = (
            _median(rows, name, scenario, of) for name in ("nginx:resp", "floor", "codexd-http", "codexd")
        )
        peers = [found for name in PEERS if (found := _median(rows, name, scenario, of))]
        if http is None and websocket is None:
            continue
        peer = min(peers) if peers else None
        cells = [
            _shown(nginx), _shown(floor), _shown(peer), _shown(http), _shown(websocket),
            _ratio(http, peer, to_peer), _ratio(http, nginx, to_nginx), _ratio(http, floor), _ratio(websocket, nginx),
        ]  # fmt: skip
        yield f"| {what} | {' | '.join(cells)} |"
    yield ""
    names = [*BESIDE, *PEERS, *OURS]
    yield f"| latency, memory | backend | {' | '.join(names)} |"
    yield f"|---{'|---:' * (len(names) + 1)}|"
    lines: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
        ("first token, us p50", "req", lambda row: row["ttfd_us"]["p50"]),
        ("delay p99 ms, 100 x 20/s", "paced100", lambda row: row["lat_us"]["p99"] / 1000),
        ("delay p99 ms, 1000 x 5/s", "paced1k", lambda row: row["lat_us"]["p99"] / 1000),
        ("delay p99 ms, 1000 x 20/s", "paced1k20", lambda row: row["lat_us"]["p99"] / 1000),
        ("cores, 1000 x 20/s", "paced1k20", lambda row: row["win_cpu_frac"]),
        ("open of 5000 x 2/s", "paced5k", lambda row: row["open"]),
        ("delay p99 ms, 5000 x 2/s", "paced5k", lambda row: row["lat_us"]["p99"] / 1000),
        ("requests/s, not streamed", "json", lambda row: row["req_s"]),
        ("client gone, flowing: ms p50", "abort", lambda row: row["abort_to_upstream_close_us"]["p50"] / 1000),
        ("client gone, flowing: ms max", "abort", lambda row: row["abort_to_upstream_close_us"]["max"] / 1000),
        ("client gone, silent: ms p50", "abortq", lambda row: row["abort_to_upstream_close_us"]["p50"] / 1000),
        ("client gone, silent: ms max", "abortq", lambda row: row["abort_to_upstream_close_us"]["max"] / 1000),
        ("never closed", "abortq", lambda row: row["abort_never_seen"]),
        ("MiB after 40 requests", "warm", lambda row: row["rss1_kb"] / 1024),
        ("MiB with 1000 streams", "hold1000", lambda row: row["rss_end_kb"] / 1024),
    ]
    for what, scenario, of in lines:
        found = [_median(rows, name, scenario, of) for name in ("backend:resp", *names)]
        if any(value is not None for value in found):
            yield f"| {what} | {' | '.join(_shown(value) for value in found)} |"
    errors = [
        f"{row['server']} {row['scen']}: {row['errors']}"
        for row in rows
        if row.get("errors") and "codexd" in row["server"]
    ]
    yield f"\nerrors of codexd: {', '.join(errors) or 'none'}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, metavar="AT MOST", default=3)
    parser.add_argument("--scen", default=",".join(scenario for scenario, *_ in PLAN))
    parser.add_argument("--servers", default="")
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--icount", action="store_true")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--conversion", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--loaded", type=int, metavar="STREAMS")
    options = parser.parse_args()
    try:
        measure(options)
    finally:
        servers.stop()


def measure(options: argparse.Namespace) -> None:
    wanted, scenarios = options.servers.split(",") if options.servers else [], options.scen.split(",")
    plan = [
        (scenario, wanted or names, min(rounds, options.rounds))
        for scenario, names, rounds in PLAN
        if scenario in scenarios
    ]
    if options.check or options.accept:
        check() if options.check else accept()
        return
    if options.conversion:
        conversion.report()
        return
    if not options.report_only:
        if why := missing("rustc", *(["valgrind"] if options.icount else ["nginx", "openssl"])):
            sys.exit(f"bench: {why}")
        prepare(*([] if options.icount else ["nginx", *PEERS]))
        if options.warm:
            warm()
        elif options.icount:
            counted()
        elif options.loaded:
            loaded(options.loaded, wanted or OURS)
        else:
            matrix(plan, OUT / ROWS)
        if options.warm or options.icount or options.loaded:
            return
    print("\n".join(report([json.loads(line) for line in (OUT / ROWS).read_text().splitlines()])))


if __name__ == "__main__":
    main()
