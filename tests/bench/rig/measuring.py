"""What is measured of the servers, by the load generator and under callgrind. A row is what one run has found."""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from rig import servers
from rig.servers import BACKEND, BINARIES, KEY, OUT

Row = dict[str, Any]

LONG = "--open-timeout 30 --timeout 90"
PACED = "--params n=100000;b=16;r="
SCENARIOS = {
    "warm": "--mode loop --c 4 --total 40 --params n=20;b=16",
    # A request, alone and beside three others, and one that is not streamed.
    "req": "--mode loop --c 1 --total 60 --params n=1;b=16",
    "req4": "--mode loop --c 4 --total 400 --params n=1;b=16",
    "json": "--mode loop --stream 0 --c 4 --total 80 --params n=50;b=16",
    # An event, as fast as the backend can, with one event a write and with 16.
    "fast": "--mode loop --c 8 --total 40 --timeout 90 --params n=500;b=16",
    "fast16": "--mode loop --c 8 --total 40 --timeout 90 --params n=500;b=16;k=16",
    # An event at the pace of a model.
    "paced": f"--mode hold --c 50 --window 5 --ramp-ms 1000 {PACED}10",
    "paced100": f"--mode hold --c 100 --window 5 --ramp-ms 1000 {PACED}20",
    "paced1k": f"--mode hold --c 1000 --window 6 --ramp-ms 5000 {LONG} {PACED}5",
    "paced1k20": f"--mode hold --c 1000 --window 6 --ramp-ms 5000 {LONG} {PACED}20",
    "paced5k": f"--mode hold --c 5000 --window 6 --ramp-ms 15000 {LONG} {PACED}2",
    # The memory of an open stream.
    "hold1000": f"--mode hold --c 1000 --window 3 --ramp-ms 8000 {LONG} {PACED}1",
    # A client that leaves, while events come and while the backend is silent.
    "abort": f"--mode abort --c 10 --abort-after 4 {PACED}20",
    "abortq": "--mode abort --c 10 --abort-after 2 --abort-delay-ms 1000 --abort-wait-ms 10000 --timeout 25 "
    f"{PACED}50;s=6",
}


def command(server: str, words: str, pids: Iterable[int] = ()) -> list[str]:
    """The load generator's command line."""
    _, known, kind = servers.named(server)
    where = ["--port", str(known.port), "--kind", kind, "--path", known.paths[kind], "--key", KEY]
    watched = ["--up", str(BACKEND), "--pids", ",".join(map(str, pids))]
    return [str(BINARIES / "load"), *where, *watched, *words.split()]


def load(server: str, words: str, pids: Iterable[int] = (), timeout: float = 300) -> Row:
    asked = subprocess.run(command(server, words, pids), capture_output=True, text=True, timeout=timeout, check=False)
    try:
        row: Row = json.loads(asked.stdout)
    except ValueError:
        return {"errors": -1, "errs": [asked.stderr[-300:], asked.stdout[-300:]]}
    return row


def backend(path: str) -> Row:
    connection = HTTPConnection("127.0.0.1", BACKEND, timeout=10)
    connection.request("GET", path)
    answer: Row = json.loads(connection.getresponse().read())
    connection.close()
    return answer


Plan = list[tuple[str, list[str], int]]
"""Scenarios, each with its servers and how many rounds it takes part in."""


def matrix(plan: Plan, out: Path) -> None:
    """Every scenario for its servers in turn, round by round. Writes rows to ``out``."""
    servers.start("backend")
    for name in dict.fromkeys(name for _, names, _ in plan for name in names):
        servers.start(name.partition(":")[0])
    with out.open("w") as written:
        for number in range(max(rounds for *_, rounds in plan)):
            for scenario, names in [(each, names) for each, names, rounds in plan if number < rounds]:
                for name in names:
                    backend("/__reset")
                    row = load(name, SCENARIOS[scenario], servers.pids(name.partition(":")[0]))
                    row |= {"server": name, "scen": scenario, "round": number}
                    written.write(json.dumps(row) + "\n")
                    written.flush()
                    print(_brief(row), flush=True)
                    time.sleep(0.3)


def _brief(row: Row) -> str:
    event = row.get("win_cpu_us_per_chunk", row.get("cpu_us_per_chunk"))
    first, delay = ((row.get(name) or {}).get("p50") for name in ("ttfd_us", "lat_us"))
    return (
        f"{row['server']:>18} {row['scen']:<9} ok {row.get('ok')}, errors {row['errors']}, CPU {event} us an event, "
        f"{row.get('cpu_ms_per_req')} ms a request; first token {first} us, delay {delay} us "
        f"{' '.join(row.get('errs') or [])[:160]}"
    )


def cpu(pids: Iterable[int]) -> float:
    """Milliseconds of CPU that these processes have taken, from the kernel's clock of each."""
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids) / 1e6


def loaded(streams: int, names: list[str]) -> None:
    """What one more request costs while so many streams are open: finds what looks through all connections."""
    servers.start("backend")
    one = "--mode loop --c 1 --total 100 --params n=1;b=16"
    for name in names:
        servers.start(name.partition(":")[0])
        pids = servers.pids(name.partition(":")[0])
        load(name, one)
        before = cpu(pids)
        alone = load(name, one)
        alone_ms = (cpu(pids) - before) / 100
        ramp = streams * 6
        words = f"--mode hold --c {streams} --window 14 --ramp-ms {ramp} --open-timeout 20 --timeout 60 {PACED}1"
        with subprocess.Popen(command(name, words), stdout=subprocess.DEVNULL) as held:
            try:
                deadline = time.monotonic() + ramp / 1000 + 20
                while (now_open := backend("/__stats")["active"]) < streams and time.monotonic() < deadline:
                    time.sleep(0.2)
                time.sleep(1)
                before = cpu(pids)
                time.sleep(3)
                a_second = (cpu(pids) - before) / 3
                before, begun = cpu(pids), time.monotonic()
                beside = load(name, one)
                beside_ms = (cpu(pids) - before - a_second * (time.monotonic() - begun)) / 100
            finally:
                held.kill()
        found = {"server": name, "open": now_open, "alone_ms": round(alone_ms, 3), "loaded_ms": round(beside_ms, 3)}
        first = {key: (row.get("ttfd_us") or {}).get("p50") for key, row in (("alone", alone), ("loaded", beside))}
        print(json.dumps(found | {"ttfd_us": first, "errors": alone["errors"] + beside["errors"]}), flush=True)


# --- memory


def memory(server: str, streams: int = 500) -> dict[str, float]:
    """MiB at rest after 40 requests, and KiB for each open stream: what is the process's own, from its smaps."""
    name = server.partition(":")[0]
    servers.stop(name)
    servers.start("backend")
    pid = servers.start(name)
    load(server, SCENARIOS["warm"])
    time.sleep(0.5)
    rest = _own(pid)
    words = f"--mode hold --c {streams} --window 60 --ramp-ms {streams * 4} {LONG} {PACED}1"
    with subprocess.Popen(command(server, words), stdout=subprocess.DEVNULL) as held:
        try:
            deadline = time.monotonic() + 60
            while (now_open := backend("/__stats")["active"]) < streams and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(2)
            open_ = _own(pid)
        finally:
            held.kill()
    servers.stop(name)
    if now_open < streams:
        sys.exit(f"bench: {server}: only {now_open} of {streams} streams opened")
    return {"mib_at_rest": round(rest / 1024, 2), "kib_per_stream": round((open_ - rest) / streams, 2)}


def _own(pid: int) -> int:
    """KiB of memory that no other process has."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1])
    sys.exit("bench: this kernel does not tell a process's own memory (Pss_Anon)")


# --- a conversation


class Conversation:
    """A chat of coding tools: many messages, and the answer to each brings back all before it."""

    def __init__(self, server: str, messages: int = 680, size: int = 1 << 20) -> None:
        _, known, _ = servers.named(server)
        self._path = known.paths["chat"]
        self._connection = HTTPConnection("127.0.0.1", known.port, timeout=120)
        text = 'some words, and\n"a quote" of code: {x: [1]}; '
        text = (text * (size // messages // len(text) + 1))[: size // messages]
        self.messages = [
            {"role": ("user", "assistant")[number % 2], "content": f"{number} {text}"} for number in range(messages)
        ]

    def turn(self) -> None:
        """Asks, and takes the answer in."""
        self.messages.append({"role": "user", "content": "@@n=3;b=16@@ and on"})
        asked = {"model": "gpt-5.1-codex", "stream": False, "messages": self.messages}
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        self._connection.request("POST", self._path, json.dumps(asked), headers)
        answer = self._connection.getresponse()
        found = json.loads(answer.read())
        if answer.status != 200:
            sys.exit(f"bench: {found}")
        self.messages.append({"role": "assistant", "content": found["choices"][0]["message"]["content"]})


# --- instructions


class Counted:
    """codexd under callgrind, which counts instructions in user space; the kernel's are not among them."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.name, self.known, _ = servers.named(server)

    def __enter__(self) -> "Counted":
        for old in OUT.glob("callgrind.*"):
            old.unlink()
        servers.stop(self.name)
        servers.start("backend")
        under = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={OUT}/callgrind.%p")
        self.pid = servers.start(self.name, under, patience=400)
        return self

    def __exit__(self, *_: object) -> None:
        servers.stop(self.name)

    def _control(self, flag: str) -> None:
        """callgrind hears a command when the process does something, so it is given connections to accept."""
        asked = subprocess.Popen(
            ["callgrind_control", flag, str(self.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(4):
            time.sleep(0.25)
            socket.create_connection(("127.0.0.1", self.known.port), 10).close()
        asked.wait(20)
        time.sleep(0.3)

    def of(self, total: int, params: str) -> int:
        """Instructions that so many requests take."""

        def ask() -> None:
            row = load(self.server, f"--c 1 --total {total} --timeout 200 --params {params}")
            if row["errors"] or row["ok"] != total:
                sys.exit(f"bench: {self.server} under callgrind: {row}")

        return self.during(ask)

    def during(self, ask: Callable[[], None]) -> int:
        """Instructions while that is done."""
        self._control("-z")
        before = set(OUT.glob("callgrind.*"))
        ask()
        self._control("-d")
        found = 0
        for path in set(OUT.glob("callgrind.*")) - before:
            if summary := re.search(r"^(?:summary|totals): (\d+)", path.read_text(errors="replace"), re.MULTILINE):
                found += int(summary[1])
        if not found:
            sys.exit(f"bench: callgrind has written no figures for {self.server}")
        return found


def instructions(server: str) -> dict[str, float]:
    """Thousands of instructions.

    Of a request, of an event that comes alone, of one that comes with others, and of the next turn of a conversation of
    a megabyte.
    """
    with Counted(server) as counted:
        counted.of(6, "n=5;b=16")
        # Of two: what runs now and then falls into one of them.
        requests = min(counted.of(20, "n=1;b=16") for _ in range(2))
        short = min(counted.of(1, "n=100;b=16;r=100") for _ in range(2))
        long = min(counted.of(1, "n=900;b=16;r=100") for _ in range(2))
        flat = [counted.of(1, f"n={pieces};b=16") for pieces in (100, 2100)]
        found = {
            "kinstr_per_request": round(requests / 20e3, 1),
            "kinstr_per_chunk_paced": round((long - short) / 800e3, 2),
            "kinstr_per_chunk_flat": round((flat[1] - flat[0]) / 2000e3, 2),
        }
        if server.partition(":")[2] != "resp":
            talk = Conversation(server)
            talk.turn()
            found["kinstr_next_turn_1_mib"] = round(counted.during(talk.turn) / 1e3)
    return found
