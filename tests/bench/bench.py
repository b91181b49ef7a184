"""``make bench``: codexd beside nginx and its Python peers in one interleaved run, as ratios against the targets.

The rig (a fake upstream and a load generator in Rust) is copied from ``$RIG`` to ``build/bench``, the peers are
installed there, and each scenario is run for every server in turn, round by round, so that a slow minute of the machine
meets all of them. Wall clock swings twofold on a shared machine: read the CPU columns, and those as ratios.

    bench.py [--rounds 3] [--scen fast,paced,...] [--servers codexd:chat,...] [--report-only]
    bench.py --icount          user-space instructions by callgrind, repeatable within 2 %
    bench.py --check           the same, and fail where one is 10 % above tests/bench/instructions.json
    bench.py --accept          the same, and write that file
    bench.py --loaded 1000     one more request while so many streams are open
    bench.py --warm            the first event over TLS, with a connection that is ready and with one to be made
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(os.environ.get("RIG", ROOT.parent / "shared" / "perf" / "rig"))
WORK = ROOT / "build" / "bench"
RIG = WORK / "rig"
OUT = WORK / "out" / "codexd.jsonl"
PEERS = {"chatmock": "chatmock==1.40", "codex-api-proxy": "codex-api-proxy==0.1.6"}
PORT = 18090
SERVERS = "fakeup:resp,nginx:resp,chatmock,codex-api-proxy,codexd,codexd:resp"
SCENARIOS = "req,req4,fast,fast16,paced,paced100,json,abort,abortq"
LARGE = "paced1k,paced1k20,hold1000"

REGISTER = """
# codexd, as tests/bench/bench.py starts it
S["codexd"] = dict(port={port}, cmd=[{python!r}, "-m", "codexd", "--config", {config!r}],
    env={{"STATE_DIRECTORY": {state!r}, "PYTHONPATH": {root!r}}}, chat="/v1/chat/completions", resp="/v1/responses")
"""
CONFIG = """
[server]
bind = ["127.0.0.1:{port}"]
client_keys = {{ bench = "{key}" }}
[oauth]
issuer = "http://127.0.0.1:18000"
[backend]
url = "http://127.0.0.1:18000/backend-api"
"""


FIGURES = ROOT / "tests" / "bench" / "instructions.json"
TOLERANCE = 1.10


def missing(*tools: str) -> str | None:
    """What is not there of what is needed."""
    if not SOURCE.is_dir():
        return f"the rig is not at {SOURCE}: say where it is with RIG=..."
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"{' and '.join(absent)} is needed" if absent else None


def prepare(peers: dict[str, str] = PEERS) -> None:
    """Copy and build the rig, install the peers, sign codexd in to the fake upstream."""
    shutil.copytree(SOURCE, RIG, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for name in ("fakeup", "lg"):
        if not (RIG / name).exists():
            subprocess.run(
                ["rustc", "-O", "--edition", "2021", "-o", RIG / name, RIG / "src" / f"{name}.rs"], check=True
            )
    for name, package in peers.items():
        venv = WORK / "peers" / f"v-{name}"
        if not (venv / "done").exists():
            print(f"installing {package} ...", flush=True)
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            subprocess.run([venv / "bin" / "pip", "install", "-qq", package], check=True)
            (venv / "done").touch()
    subprocess.run([sys.executable, RIG / "mkpeers.py"], check=True, cwd=RIG)
    _sign_in()


def _sign_in() -> None:
    state, config = WORK / "state", WORK / "codexd.toml"
    state.mkdir(mode=0o700, exist_ok=True)
    auth = json.loads((WORK / "peers" / "run" / "codexhome" / "auth.json").read_text())["tokens"]
    tokens = {name: auth[name] for name in ("access_token", "refresh_token", "account_id")}
    document = tokens | {"expires_at": 4102444800, "updated_at": int(time.time())}
    (state / "tokens.json").write_text(json.dumps(document))
    (state / "tokens.json").chmod(0o600)
    servers = (RIG / "servers.py").read_text()
    key = servers.partition('KEY = "')[2].partition('"')[0]
    config.write_text(CONFIG.format(port=PORT, key=key))
    python = str(ROOT / ".venv" / "bin" / "python")
    register = REGISTER.format(port=PORT, python=python, config=str(config), state=str(state), root=str(ROOT))
    (RIG / "servers.py").write_text(
        servers.replace('if __name__ == "__main__":', f'{register}if __name__ == "__main__":', 1)
    )


def rig(script: str, *words: str) -> None:
    subprocess.run([sys.executable, RIG / script, *words], check=True, cwd=RIG)


def stop(servers: list[str]) -> None:
    subprocess.run([sys.executable, RIG / "servers.py", "stop", *servers], check=False, cwd=RIG, capture_output=True)


# --- connections


def warm(times: int = 100) -> None:
    """Prints medians in microseconds, on loopback: beyond it each handshake is two more round trips, and the name."""
    import ssl

    import httpx
    import trio

    from codexd.transport import Transport, target_of

    context = ssl.create_default_context(cafile=WORK / "peers" / "run" / "nginx" / "cert.pem")
    context.check_hostname = False
    target = target_of(httpx.URL("https://127.0.0.1:18443/backend-api/codex/responses"))
    document = {"input": "@@n=1;b=16@@", "stream": True}
    body, headers = json.dumps(document).encode(), [(b"content-type", b"application/json")]

    async def first_event(transport: Transport) -> float:
        begun = time.perf_counter()
        _, _, stream, *_ = await transport.post(target, headers, body, 5, lambda: False)
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
            await ready.warm(target.origin, 5)
            found["ready"].append(await first_event(ready))
        print({name: round(statistics.median(each)) for name, each in found.items()})
        await cold.aclose()
        await ready.aclose()

    rig("servers.py", "start", "fakeup", "nginx")
    trio.run(measure)


# --- instructions


def instructions() -> dict[str, dict[str, float]]:
    """Thousands of user-space instructions for each kind of request: of a request, of an event paced and flat out."""
    asked = subprocess.run(
        [sys.executable, RIG / "icount.py", "codexd", "codexd:resp"],
        check=True,
        cwd=RIG,
        capture_output=True,
        text=True,
    )
    found = {}
    for line in asked.stdout.splitlines():
        print(line, flush=True)
        if line.startswith("{"):
            row = json.loads(line)
            found[row["server"]] = {name: row[name] for name in row if name.startswith("kinstr_")}
    if len(found) != 2:
        sys.exit(f"bench: callgrind gave no figures: {asked.stdout} {asked.stderr}")
    return found


def _interpreter() -> str:
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} {platform.machine()}"


def compare(found: dict[str, dict[str, float]], wanted: dict[str, dict[str, float]]) -> list[str]:
    """What has become dearer than is tolerated."""
    return [
        f"{server} {name}: {figure:g}, and {wanted[server][name]:g} was measured before"
        for server, figures in found.items()
        for name, figure in figures.items()
        if figure > wanted[server][name] * TOLERANCE
    ]


def check() -> None:
    """Exits with 1 where something has become dearer. Says so, and does nothing, where it cannot be measured."""
    if why := missing("rustc", "valgrind"):
        print(f"bench: instructions are not counted: {why}")
        return
    prepare(peers={})
    found = instructions()
    wanted = json.loads(FIGURES.read_text()).get(_interpreter())
    if wanted is None:
        print(f"bench: {FIGURES.name} has no figures for {_interpreter()}: nothing to compare with")
    elif dearer := compare(found, wanted):
        sys.exit("bench: dearer than before by more than a tenth (--accept, when it has to be):\n" + "\n".join(dearer))
    else:
        print("bench: no instruction count is more than a tenth above the committed one")


def accept() -> None:
    prepare(peers={})
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps(known | {_interpreter(): instructions()}, indent=2) + "\n")


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
    ("us an event, flat out", "fast", _event, 0.15, 4),
    ("us an event, flat out, 16 a write", "fast16", _event, None, None),
    ("us an event, 50 x 10/s", "paced", _event, 0.50, 3.5),
    ("us an event, 100 x 20/s", "paced100", _event, 0.36, 2.5),
    ("us an event, 1000 x 5/s", "paced1k", _event, None, 3),
    ("us an event, 1000 x 20/s", "paced1k20", _event, None, None),
    ("ms a request, 4 clients", "req4", _request, 0.40, None),
    ("ms a request, alone", "req", _request, None, None),
    ("ms a request, not streamed", "json", _request, 0.45, None),
]


def _shown(value: float | None, target: float | None = None) -> str:
    if value is None:
        return ""
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return text if target is None else f"{text} ({'ok' if value <= target else 'MISSED'}, {target:g})"


def report(rows: Rows) -> Iterator[str]:
    yield "| CPU | nginx | best peer | chat | responses | chat / peer | chat / nginx | responses / chat |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for what, scenario, of, to_peer, to_nginx in COSTS:
        chat, responses = (_median(rows, name, scenario, of) for name in ("codexd", "codexd:resp"))
        nginx = _median(rows, "nginx:resp", scenario, of)
        peers = [found for name in PEERS if (found := _median(rows, name, scenario, of))]
        if chat is None:
            continue
        peer = min(peers) if peers else None
        cells = [
            _shown(nginx), _shown(peer), _shown(chat), _shown(responses),
            _shown(chat / peer if peer else None, to_peer), _shown(chat / nginx if nginx else None, to_nginx),
            _shown(responses / chat if responses else None, 1.0),
        ]  # fmt: skip
        yield f"| {what} | {' | '.join(cells)} |"
    yield ""
    yield "| latency, memory | fakeup | nginx | chatmock | codex-api-proxy | chat | responses |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    names = ["fakeup:resp", "nginx:resp", "chatmock", "codex-api-proxy", "codexd", "codexd:resp"]
    lines: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
        ("first token, us p50", "req", lambda row: row["ttfd_us"]["p50"]),
        ("delay p99 ms, 100 x 20/s", "paced100", lambda row: row["lat_us"]["p99"] / 1000),
        ("delay p99 ms, 1000 x 5/s", "paced1k", lambda row: row["lat_us"]["p99"] / 1000),
        ("open of 1000 x 5/s", "paced1k", lambda row: row["open"]),
        ("delay p99 ms, 1000 x 20/s", "paced1k20", lambda row: row["lat_us"]["p99"] / 1000),
        ("cores, 1000 x 20/s", "paced1k20", lambda row: row["win_cpu_frac"]),
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
        found = [_median(rows, name, scenario, of) for name in names]
        if any(value is not None for value in found[4:]):
            yield f"| {what} | {' | '.join(_shown(value) for value in found)} |"
    errors = [
        f"{row['server']} {row['scen']}: {row['errors']}"
        for row in rows
        if row.get("errors") and "codexd" in row["server"]
    ]
    yield f"\nerrors of codexd: {', '.join(errors) or 'none'}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scen", default=f"{SCENARIOS},{LARGE}")
    parser.add_argument("--servers", default=SERVERS)
    parser.add_argument("--report-only", action="store_true")
    parser.add_argument("--icount", action="store_true")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--accept", action="store_true")
    parser.add_argument("--loaded", type=int, metavar="STREAMS")
    options = parser.parse_args()
    servers = options.servers.split(",")
    if options.check or options.accept:
        try:
            check() if options.check else accept()
        finally:
            stop(["codexd", "fakeup"])
        return
    if not options.report_only:
        if why := missing("rustc", "nginx"):
            sys.exit(f"bench: {why}")
        prepare()
        try:
            if options.warm:
                warm()
                return
            if options.icount:
                rig("icount.py", "codexd", "codexd:resp")
                return
            if options.loaded:
                rig("loaded.py", str(options.loaded), *servers)
                return
            OUT.unlink(missing_ok=True)
            rig("bench.py", "--out", OUT.stem, "--servers", options.servers, "--scen", options.scen,
                "--rounds", str(options.rounds))  # fmt: skip
        finally:
            stop(sorted({name.partition(":")[0] for name in [*servers, "codexd", "fakeup", "nginx"]}))
    print("\n".join(report([json.loads(line) for line in OUT.read_text().splitlines()])))


if __name__ == "__main__":
    main()
