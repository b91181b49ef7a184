"""Many conversations at once, over websockets: what they leave behind, and how they were sent.

The same is done twice, because pools and caches fill up in the first round: what the second adds would go on growing.

    conversations.py [--conversations 500] [--turns 10]
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from soak import Soak
from support.daemon import running
from support.upstream import Upstream

GROWTH = 4096
"""KiB that the second round may add."""


async def converse(base: str, number: int, turns: int) -> None:
    async with httpx.AsyncClient(base_url=base, timeout=120) as http:
        messages = [{"role": "user", "content": f"conversation {number}, {time.time()}"}]
        for turn in range(turns):
            response = await http.post("/v1/chat/completions", json={"model": "gpt-5.5", "messages": messages})
            response.raise_for_status()
            messages += [response.json()["choices"][0]["message"], {"role": "user", "content": f"and {turn}?"}]


async def rounds(conversations: int, turns: int) -> int:
    with tempfile.TemporaryDirectory(prefix="codexd-soak-") as name:
        folder, logs = Path(name), Path(name, "logs")
        logs.mkdir()
        async with trio.open_nursery() as nursery:
            upstream = Upstream()
            await nursery.start(upstream.serve)
            logging = {"level": "info", "enable_request_logging": False}
            async with running(folder, logs, upstream, backend={"transport": "auto"}, logging=logging) as daemon:
                it = Soak(daemon, upstream.port)
                await daemon.logged("model catalogue refreshed")
                samples = []
                for _ in range(2):
                    started = trio.current_time()
                    async with trio.open_nursery() as busy:
                        for number in range(conversations):
                            busy.start_soon(converse, daemon.base, number, turns)
                    seconds = trio.current_time() - started
                    with trio.move_on_after(10):
                        while samples and it.descriptors() > samples[0][1]:
                            await trio.sleep(0.1)
                    samples.append((it.resident(), it.descriptors(), seconds))
                websockets = upstream.websockets
                daemon.signal()
                code = await daemon.process.wait()
            nursery.cancel_scope.cancel()
        log = daemon.log.read_text()
    sent = Counter(re.findall(r"request finished.* lane=(\w+)", log))
    deltas = len(re.findall(r"request finished.* delta=True", log))
    for resident, descriptors, seconds in samples:
        memory = f"{resident / 1024:.1f} MiB, {descriptors} descriptors"
        print(f"{conversations} conversations of {turns} turns in {seconds:.1f} s: {memory}")
    print(f"sent: {dict(sent)}, {deltas} as deltas; {websockets} websockets open at the end; exit code {code}")
    (before, opened, _), (after, left, _) = samples
    return int(bool(code) or after - before > GROWTH or left > opened or sent.total() != 2 * conversations * turns)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    return trio.run(rounds, options.conversations, options.turns)


if __name__ == "__main__":
    sys.exit(main())
