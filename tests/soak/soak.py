"""``make soak``: the daemon as a process, under mixed use and faults for a while, and what that left behind.

Streams, whole answers, conversations, clients that leave, clients that dawdle, both lanes to the backend and its faults,
tokens that run out, reloads and idle connections, all at once. Every request has to end in one of the ways that it may end; memory and descriptors have
to stay flat; and the log may hold no line that nobody expects. Exits with 1 when any of that is not so.

Beside that, attackers send what would fill or freeze it, and the backend answers them in kind, under a budget of memory and, where
this machine's control groups allow it, a hard limit: ordinary requests are all answered, and nothing is killed.

    soak.py [--seconds 600] [--clients 24] [--idle 200] [--attackers 4] [--limit 300]
"""

import argparse
import contextlib
import gzip
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from codexd.protocol import sse
from support.daemon import Daemon, connected, hello, post, running
from support.secrets import access_token, leaks, refresh_token
from support.upstream import (
    ADDED,
    COMPLETED,
    CREATED,
    Call,
    Script,
    Upstream,
    done,
    failed,
    polite,
    refuse,
    stream_of,
    text,
    token_answer,
    welcome,
)

WORDS = "x" * 40
UNEXPECTED = re.compile(r"\[(ERROR|WARN)\]|Traceback|internal error")
EXPECTED = re.compile(
    r"websockets to the backend|the answer failed after it had started|a client stopped reading|(refused|denied) the access token"
)
BUDGET = 256
"""MiB: ``server.memory_mb``."""

WARM_UP = 0.25
"""The part of the time after which memory counts: pools and caches fill up first."""

SLOPE = 100.0
"""KiB a minute that memory may grow by, from then to the end."""


async def chatty(call: Call) -> None:
    await call.start()
    number = random.randint(1, 200)  # noqa: S311
    await call.events(CREATED, ADDED)
    for _ in range(number):
        await call.events(text(WORDS))
        await trio.sleep(random.uniform(0, 0.01))  # noqa: S311
    await call.events(done(WORDS * number), COMPLETED)
    await call.end()


async def cut(call: Call) -> None:
    await call.stream.aclose()


async def cut_on_the_way(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED, text(WORDS))
    await call.stream.aclose()


async def silent(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED, text(WORDS))
    await call.gone()


PLAYS: list[tuple[int, Script]] = [
    (60, chatty),
    (20, polite),
    (2, cut),
    (2, cut_on_the_way),
    (1, silent),
    (2, refuse(500, b"oops")),
    (2, refuse(429, {"error": {"code": "rate_limit_exceeded"}}, "retry-after: 1")),
    (1, refuse(403, b"<html>no</html>")),
    (2, stream_of(CREATED, failed("server_is_overloaded"))),
    (2, refuse(401, {"error": {"code": "token_expired"}})),
]


async def expands(call: Call) -> None:
    """128 MiB of an event, in some kB."""
    await call.start(200, "content-encoding: gzip")
    await call.chunk(BOMB)
    await call.end()


async def endless(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED)
    for _ in range(3000):
        await call.events(text("x" * 20_000))
    await call.gone()


async def nested(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED)
    await call.chunk(b'data: {"type":"response.output_item.done","item":' + b"[" * 50_000 + b"\n\n")
    await call.events(text(WORDS), done(WORDS), COMPLETED)
    await call.end()


BOMB = gzip.compress(b'data: {"type":"response.output_text.delta","delta":"' + b"x" * (128 << 20), 9)
ATTACKED: list[Script] = [expands, endless, nested, polite]
MARK = b"attack"
MANY = msgspec.json.encode({"model": "gpt-5.5", "messages": [{"role": "user", "content": "attack"}] * 33_000})
LARGE = msgspec.json.encode({"model": "gpt-5.5", "input": "attack" * 1_500_000})
ATTACKS: dict[str, tuple[bytes, bytes]] = {
    # headers, and a body
    "many messages": (b"", MANY),
    "a large text": (b"", LARGE),
    "too many items": (b"", b'{"attack":[' + b"[]," * 3_000_000 + b"0]}"),
    "nested": (b"", b'{"attack":' + b"[" * 1_000_000),
    "compressed": (b"content-encoding: gzip\r\n", gzip.compress(b'{"attack":"' + bytes(60 << 20))),
    "a question": (
        b"",
        msgspec.json.encode(
            {
                "model": "gpt-5.5",
                "messages": [{"role": "user", "content": "attack"}],
                "input": "attack",
                "max_tokens": 9,
            }
        ),
    ),
    "half a body": (b"", b""),
}
PATHS = (b"/v1/chat/completions", b"/v1/responses", b"/v1/messages", b"/v1/responses/input_tokens", b"/api/chat")


HANDSHAKES: list[tuple[int, Script]] = [(60, welcome), (1, cut), (1, refuse(403, b"")), (1, refuse(503, b""))]


def _any(scripts: list[tuple[int, Script]]) -> list[Script]:
    return random.choices([play for _, play in scripts], [weight for weight, _ in scripts])  # noqa: S311


class Moody(Upstream):
    """Plays at random, with fresh tokens for whoever asks."""

    async def _play(self, call: Call) -> None:
        number = len(self.token_calls) + 2
        self.token_plays = [token_answer(access_token(time.time() + 864000, number=number), refresh_token(number))]
        self.handshakes = _any(HANDSHAKES)
        await super()._play(call)
        self.asked.clear()

    async def _answer(self, call: Call) -> None:
        hostile = MARK in call.body[-40:] or MARK in call.body[:4000]
        self.plays = [random.choice(ATTACKED)] if hostile else _any(PLAYS)  # noqa: S311
        self.calls.clear()
        await super()._answer(call)


class Soak:
    def __init__(self, daemon: Daemon, backend: int) -> None:
        self.daemon = daemon
        self.backend = backend
        self.outcomes: Counter[str] = Counter()
        self.attacked: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[tuple[float, int, int]] = []

    # --- what clients do

    def body(self) -> tuple[str, bool, bytes]:
        streamed = random.random() < 0.7  # noqa: S311
        if random.random() < 0.5:  # noqa: S311
            return "/v1/chat/completions", streamed, msgspec.json.encode(hello(stream=streamed))
        return "/v1/responses", streamed, msgspec.json.encode({"model": "gpt-5.5", "input": "x", "stream": streamed})

    async def asks(self, http: httpx.AsyncClient) -> None:
        """One request to its end, which has to be one that it may have."""
        path, streamed, body = self.body()
        response = await http.post(path, content=body)
        if response.status_code != 200:
            code = response.json()["error"]["code"]
            self.outcomes[f"{response.status_code} {code}"] += 1
            if not 400 <= response.status_code < 600 or code in ("internal_error", "server_is_busy"):
                self.wrong.append(f"{path}: {response.status_code} {response.text[:200]}")
            return
        if not streamed:
            self.outcomes["whole"] += "id" in response.json()
            return
        events = sse.EventDecoder().feed(response.content)
        failures = [event for event in events if b'"error":{' in event]
        ended = events[-1] == b"[DONE]"
        self.outcomes["streamed to its end" if ended else "streamed to an error"] += 1
        if ended == bool(failures):
            self.wrong.append(f"{path}: neither an end nor an error, or both: {response.text[-300:]}")

    async def converses(self, http: httpx.AsyncClient) -> None:
        """A conversation to its end, or to the first turn that fails; each turn is a request."""
        messages = [{"role": "user", "content": f"hello {random.random()}"}]  # noqa: S311
        for turn in range(4):
            response = await http.post("/v1/chat/completions", json={"model": "gpt-5.5", "messages": messages})
            if response.status_code != 200:
                self.outcomes[f"{response.status_code} {response.json()['error']['code']}"] += 1
                return
            self.outcomes["turn of a conversation"] += 1
            messages += [response.json()["choices"][0]["message"], {"role": "user", "content": f"and {turn}?"}]

    async def leaves(self, _: httpx.AsyncClient) -> None:
        path, _, body = self.body()
        async with connected(self.daemon) as client:
            await client.send(post(path, msgspec.json.decode(body)))
            with trio.move_on_after(random.uniform(0, 0.3)):  # noqa: S311
                await client.all()
        self.outcomes["left"] += 1

    async def dawdles(self, _: httpx.AsyncClient) -> None:
        path, _, body = self.body()
        async with connected(self.daemon) as client:
            await client.send(post(path, msgspec.json.decode(body)))
            with trio.move_on_after(5):
                while await client.stream.receive_some(200):
                    await trio.sleep(0.02)
        self.outcomes["dawdled"] += 1

    async def client(self, until: float) -> None:
        async with httpx.AsyncClient(base_url=self.daemon.base, timeout=60) as http:
            while trio.current_time() < until:
                does: Callable[[httpx.AsyncClient], Awaitable[None]]
                [does] = random.choices([self.asks, self.converses, self.leaves, self.dawdles], [60, 20, 15, 5])  # noqa: S311
                try:
                    await does(http)
                except httpx.HTTPError as error:
                    self.wrong.append(f"a client met {error!r}")
                except (trio.BrokenResourceError, AssertionError) as error:
                    self.wrong.append(f"a rude client met {error!r}")

    async def attacks(self, until: float) -> None:
        """One attack after another; whatever comes of it, it is an answer or the end of the connection."""
        while trio.current_time() < until:
            name = random.choice(list(ATTACKS))  # noqa: S311
            headers, body = ATTACKS[name]
            path = random.choice(PATHS)  # noqa: S311
            size = len(body) or 30 << 20
            head = b"POST %b HTTP/1.1\r\nhost: localhost\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n"
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(20):
                async with connected(self.daemon) as client:
                    await client.send(head % (path, headers, size) + (body or b" " * (20 << 20)))
                    with trio.move_on_after(3):
                        while await client.stream.receive_some(65536):
                            pass
            self.attacked[name] += 1

    # --- what goes on beside

    async def reloads(self, until: float) -> None:
        while trio.current_time() < until:
            await trio.sleep(5)
            self.daemon.signal(signal.SIGHUP)

    async def measures(self, until: float) -> None:
        while trio.current_time() < until:
            self.samples.append((trio.current_time(), self.resident(), self.descriptors()))
            await trio.sleep(1)

    def resident(self) -> int:
        """KiB."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def peak(self) -> int:
        """KiB."""
        status = Path(f"/proc/{self.daemon.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])

    def descriptors(self) -> int:
        """But for connections to the backend: those are kept to be used again, and found closed when they are."""
        process = Path(f"/proc/{self.daemon.process.pid}")
        rows = [line.split() for line in (process / "net" / "tcp").read_text().splitlines()[1:]]
        backend = {row[9] for row in rows if int(row[2].partition(":")[2], 16) == self.backend}
        links = []
        for each in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(each.readlink()))
        return sum(link.removeprefix("socket:[").removesuffix("]") not in backend for link in links)

    # --- what it comes to

    def slope(self) -> float:
        """KiB a minute, by the samples after the warm-up."""
        samples = self.samples[int(len(self.samples) * WARM_UP) :]
        return statistics.linear_regression([at for at, _, _ in samples], [kib for _, kib, _ in samples]).slope * 60

    def unexpected(self) -> list[str]:
        lines = self.daemon.log.read_text(errors="replace").splitlines()
        return [line for line in lines if UNEXPECTED.search(line) and not EXPECTED.search(line)]


@contextlib.contextmanager
def limited(process: int, limit: int) -> Iterator[str]:
    """Puts the process under a hard limit of memory, as a unit's MemoryMax= does; gives what limits it."""
    for group, name in (
        (Path(f"/sys/fs/cgroup/memory/codexd-soak-{process}"), "memory.limit_in_bytes"),
        (Path(f"/sys/fs/cgroup/codexd-soak-{process}"), "memory.max"),
    ):
        try:
            if not (group.parent / "cgroup.procs").exists():
                continue
            group.mkdir()
            (group / name).write_text(f"{limit << 20}")
            (group / "cgroup.procs").write_text(f"{process}")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield f"{name} = {limit}M"
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield "nothing: no control group of memory can be made here"


async def soak(seconds: float, clients: int, idle: int, attackers: int, limit: int) -> int:
    with tempfile.TemporaryDirectory(prefix="codexd-soak-") as name:
        folder = Path(name)
        logs = folder / "logs"
        logs.mkdir()
        async with trio.open_nursery() as nursery:
            upstream = Moody()
            await nursery.start(upstream.serve)
            limits = {"first_event_timeout": 5, "idle_timeout": 3, "transport": "auto"}
            logging = {"level": "info", "enable_request_logging": False}
            storage = {"response_bytes": 256 * 1024}  # a store that is full soon, and then stays so
            server = {"memory_mb": BUDGET}
            with contextlib.ExitStack() as stack:
                async with running(
                    folder, logs, upstream, backend=limits, logging=logging, storage=storage, server=server
                ) as daemon:
                    hard = stack.enter_context(limited(daemon.process.pid, limit))
                    it = Soak(daemon, upstream.port)
                    await daemon.logged("model catalogue refreshed")
                    before = it.descriptors()
                    until = trio.current_time() + seconds
                    async with trio.open_nursery() as busy:
                        for _ in range(clients):
                            busy.start_soon(it.client, until)
                        for _ in range(idle):
                            busy.start_soon(_idle, daemon, until)
                        for _ in range(attackers):
                            busy.start_soon(it.attacks, until)
                        busy.start_soon(it.reloads, until)
                        busy.start_soon(it.measures, until)
                    with trio.move_on_after(30):
                        while it.descriptors() > before + 1:  # the reactor's, made with the first stream
                            await trio.sleep(0.1)
                    left, resident, peak = it.descriptors() - before - 1, it.resident(), it.peak()
                    daemon.signal()
                    code = await daemon.process.wait()
                    faults = [*it.wrong, *it.unexpected()]
            nursery.cancel_scope.cancel()
        found = list(leaks(logs))
        finished = len(re.findall("request finished", daemon.log.read_text()))
    growth, total = it.slope(), it.outcomes.total()
    if not attackers and not total - it.outcomes["left"] <= finished <= total:
        faults.append(f"{total} requests were made, and {finished} are in the log")
    print(f"{total} requests in {seconds:g} s, {finished} in the log:")
    for what, number in it.outcomes.most_common():
        print(f"  {number:7} {what}")
    print(f"  {it.attacked.total():7} attacks: {', '.join(sorted(it.attacked))}")
    print(f"memory at its highest {peak / 1024:.1f} MiB, limited by {hard}")
    if peak > limit * 1024:
        faults.append(f"it took {peak / 1024:.0f} MiB")
    print(f"memory {resident / 1024:.1f} MiB at the end, {growth:+.0f} KiB a minute; {left} descriptors left over")
    print(f"exit code {code}; {len(found)} secrets in the log; {len(faults)} outcomes or log lines that may not be")
    for each in faults[:20]:
        print(f"  {each}")
    return int(bool(faults or found or code or left > 0 or (growth > SLOPE and seconds >= 300)))


async def _idle(daemon: Daemon, until: float) -> None:
    """A connection that asks for nothing, or for the beginning of something."""
    while trio.current_time() < until:
        async with connected(daemon) as client:
            await client.send(random.choice([b"", b"GET /hea", b"POST /v1/responses HTTP/1.1\r\nhost: x\r\n"]))  # noqa: S311
            await trio.sleep(random.uniform(1, 10))  # noqa: S311


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--attackers", type=int, default=4)
    parser.add_argument("--limit", type=int, default=300, help="MiB that the process may ever take")
    options = parser.parse_args()
    return trio.run(soak, options.seconds, options.clients, options.idle, options.attackers, options.limit)


if __name__ == "__main__":
    sys.exit(main())
