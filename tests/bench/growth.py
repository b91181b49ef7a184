"""``make plots``: how the cost of an event and of a request grows, and where it goes. Writes docs/performance/*.svg.

It runs in an environment of its own with matplotlib and py-spy (``build/bench/plots``), on the rig of ``bench.py``.

    growth.py [--rounds 3] [--only streams,event,body,turns,flames]
"""

import argparse
import html
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rig import measuring, servers
from rig.servers import OUT, ROOT

PAGE = ROOT / "docs" / "performance"
SERVERS = {
    "codexd-http": "codexd over HTTP",
    "codexd": "codexd over websockets",
    "floor": "a bare loop in CPython",
    "nginx:resp": "nginx, which only passes it on",
}
COLOURS_OF = ("#0b6e99", "#c2410c", "#7c3aed", "#6b7280")
STREAMS = (10, 30, 100, 300, 1000, 3000, 5000)
EVENT = (16, 64, 256, 1024, 4096, 16384, 65536)
BODY = (1 << 10, 1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 24)
TURNS = (1, 5, 20, 50, 100, 200, 500)
WEBSOCKETS = 1000
"""The most that codexd opens."""
FLAMES = {
    "flat-out": ("codexd-http", "--mode loop --c 8 --total 4000 --params n=500;b=16 --timeout 90"),
    "paced": ("codexd-http", "--mode hold --c 100 --window 12 --ramp-ms 500 --params n=100000;b=16;r=20"),
    "requests": ("codexd-http", "--mode loop --c 4 --total 40000 --params n=1;b=16"),
}
SECONDS = 6
"""For which each flame graph is sampled."""


def asked(server: str, words: str, pids: list[int]) -> dict[str, Any]:
    row = measuring.load(server, words, pids)
    if row["errors"]:
        sys.exit(f"growth: {server} {words}: {row}")
    return row


# --- growth


def _streams(server: str, count: int, pids: list[int]) -> float | None:
    if server == "codexd" and count > WEBSOCKETS:
        return None
    ramp = 500 + 3 * count
    words = (
        f"--mode hold --c {count} --window 4 --ramp-ms {ramp} --open-timeout 30 --timeout 90 --params n=100000;b=16;r=2"
    )
    return float(asked(server, words, pids)["win_cpu_us_per_chunk"])


def _event(server: str, size: int, pids: list[int]) -> float | None:
    if server == "floor" and size > 16384:
        return None  # it does not wait for a socket that is full
    return float(asked(server, f"--c 4 --total 12 --params n=400;b={size} --timeout 90", pids)["cpu_us_per_chunk"])


def _body(server: str, size: int, pids: list[int]) -> float | None:
    if server == "floor":
        return None
    total = 12 if size > 100_000 else 60
    return float(asked(server, f"--c 1 --total {total} --params n=1;b=16 --extra {size}", pids)["cpu_ms_per_req"])


def _turns(server: str, count: int, pids: list[int]) -> float | None:
    """Milliseconds for the next turn after so many, each of a kilobyte's question and one's answer."""
    if servers.named(server)[2] != "chat" or server == "floor":
        return None
    talk = measuring.Conversation(server, 2 * count, 2048 * count)
    for _ in range(2):
        talk.turn()
    times = 12 if count > 100 else 40
    before = measuring.cpu(pids)
    for _ in range(times):
        talk.turn()
    return (measuring.cpu(pids) - before) / times


Measure = Callable[[str, int, list[int]], float | None]
GROWTH: dict[str, tuple[Measure, tuple[int, ...], str, str]] = {
    "streams": (_streams, STREAMS, "streams, 2 events a second each", "µs of CPU an event"),
    "event": (_event, EVENT, "bytes of text in an event, flat out", "µs of CPU an event"),
    "body": (_body, BODY, "bytes of prompt in a request", "ms of CPU a request"),
    "turns": (_turns, TURNS, "turns of a conversation, 2 KiB each", "ms of CPU for the next one"),
}


def growth(name: str, rounds: int) -> None:
    measure, points, _, _ = GROWTH[name]
    found: dict[str, dict[int, list[float]]] = {server: {point: [] for point in points} for server in SERVERS}
    pids = {}
    for server in SERVERS:
        servers.start(server.partition(":")[0])
        pids[server] = servers.pids(server.partition(":")[0])
    for number in range(rounds):
        for point in points:
            for server in SERVERS:
                if (figure := measure(server, point, pids[server])) is not None:
                    found[server][point].append(figure)
        print(f"{name}: round {number + 1} of {rounds}", flush=True)
    medians = {
        server: {point: round(statistics.median(of), 3) for point, of in row.items() if of}
        for server, row in found.items()
    }
    (PAGE / f"{name}.json").write_text(json.dumps(medians, indent=1) + "\n")
    draw(name)


def draw(name: str) -> None:
    _, _, across, up = GROWTH[name]
    medians = json.loads((PAGE / f"{name}.json").read_text())
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "codexd", "font.family": "sans-serif"})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for server, colour in zip(SERVERS, COLOURS_OF, strict=True):
        if not (row := medians[server]):
            continue
        axes.plot([int(point) for point in row], list(row.values()), "o-", color=colour, label=SERVERS[server])
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(PAGE / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


# --- flame graphs

ROW, WIDTH, SMALLEST = 17, 1200, 0.002
COLOURS = {"codexd": "#f6a04d", "trio": "#8ab6d6", "hypercorn": "#a7c99a", "h11": "#a7c99a", "structlog": "#d3b3e0"}


class Frame:
    """``name`` and how many samples had it at this place of the stack."""

    def __init__(self, name: str) -> None:
        self.name, self.samples, self.below = name, 0, dict[str, Frame]()


def stacks(raw: str) -> Frame:
    """py-spy's folded stacks: ``a;b;c 12``, without what is under everything."""
    root = Frame("all")
    for line in raw.splitlines():
        folded, _, count = line.rpartition(" ")
        frame = root
        frame.samples += int(count)
        for name in folded.split(";"):
            frame = frame.below.setdefault(name, Frame(name))
            frame.samples += int(count)
    while len(root.below) == 1:
        (root,) = root.below.values()
    return root


def boxes(frame: Frame, x: float, depth: int, total: int) -> Iterator[tuple[Frame, float, float, int]]:
    share = frame.samples / total
    if share < SMALLEST:
        return
    yield frame, x, share, depth
    for below in sorted(frame.below.values(), key=lambda each: each.name):
        yield from boxes(below, x, depth + 1, total)
        x += below.samples / total


def flame(raw: str, title: str) -> str:
    root = stacks(raw)
    found = list(boxes(root, 0.0, 0, root.samples))
    height = (max(depth for *_, depth in found) + 2) * ROW + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/><text x="4" y="13">{html.escape(title)}</text>',
    ]
    for frame, x, share, depth in found:
        left, top, wide = x * WIDTH, (depth + 1) * ROW, share * WIDTH
        function, _, place = frame.name.partition(" (")
        file = place.rstrip(")")
        colour = next((colour for name, colour in COLOURS.items() if name in file.split("/")), "#d9d9d9")
        shown = html.escape(f"{function} ({file}) {share:.1%}")
        label = html.escape(function[: int(wide / 6.8)]) if wide > 20 else ""
        lines.append(
            f'<g><title>{shown}</title><rect x="{left:.1f}" y="{top}" width="{max(wide - 0.5, 0.3):.1f}" '
            f'height="{ROW - 1}" fill="{colour}"/><text x="{left + 2:.1f}" y="{top + 12}">{label}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def flames() -> None:
    spy = Path(sys.executable).with_name("py-spy")
    raw = OUT / "stacks"
    for name, (server, words) in FLAMES.items():
        pid = servers.start(server.partition(":")[0])
        with subprocess.Popen(measuring.command(server, words, [pid]), stdout=subprocess.DEVNULL) as running:
            time.sleep(1.5)
            subprocess.run(
                [spy, "record", "--pid", str(pid), "--duration", str(SECONDS), "--rate", "400", "--format", "raw",
                 "--nolineno", "--output", raw], check=True, capture_output=True)  # fmt: skip
            running.terminate()
        (PAGE / f"flame-{name}.svg").write_text(flame(raw.read_text(), f"{name}: {words.partition('--params ')[2]}"))
        print(f"flame graph: {name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join([*GROWTH, "flames"]))
    options = parser.parse_args()
    if why := servers.missing("rustc", "nginx", "openssl"):
        sys.exit(f"growth: {why}")
    PAGE.mkdir(exist_ok=True)
    servers.prepare("nginx")
    try:
        servers.start("backend")
        for name in options.only.split(","):
            flames() if name == "flames" else growth(name, options.rounds)
    finally:
        servers.stop()


if __name__ == "__main__":
    main()
