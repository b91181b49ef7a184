"""The simulated ChatGPT as a process of its own, at ADDRESS:PORT, with so many seconds between events; a sign-in goes to
the FILE."""

import sys
import time
from functools import partial
from pathlib import Path

import trio

from codexd.auth import store
from codexd.demo.chatgpt import ChatGPT
from codexd.demo.issuer import SimulatedIssuer
from codexd.server import loopback


async def main(address: str, pace: float, file: Path) -> None:
    host, _, port = address.rpartition(":")
    chatgpt = ChatGPT(time.time, SimulatedIssuer(time.time, approves_after=1), pace=pace)
    chatgpt.issuer.url = f"http://{address}"
    store.save(file, chatgpt.issuer.sign_in())
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    await loopback.serve(chatgpt.handle, listeners, max_body=1 << 26, patience=300)


trio.run(partial(main, sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])))
